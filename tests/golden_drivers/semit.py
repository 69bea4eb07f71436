"""How recorded cases of SEMIT run."""

from pathlib import Path

import torch
import torch.nn.functional as F
from golden_few_shot import Found, batch_of, run
from golden_recipe import Case
from golden_unpaired import build, settled
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models._octave import Octave

VARIANTS = ("",)


def whole(x: Octave) -> tuple[Tensor, Tensor]:
    """Both parts with all channels, as the original has them."""
    rests = x.high_rest, x.low_rest
    if x.high_rest is None:
        rests = x.high.new_zeros(len(x.low), x.low.size(1)), x.high.new_zeros(len(x.low), x.high.size(1))
    spread = [rest[..., None, None].expand(-1, -1, *part.shape[2:]) for rest, part in zip(rests, x[:2], strict=True)]
    return torch.cat([x.high, spread[0]], 1), torch.cat([spread[1], x.low], 1)


@torch.no_grad()
def forwards(system: models.System, case: Case) -> Found:
    """Translations at several alpha, and the layers of the generator on the way."""
    gen, batch, found = system.nets["gen"], batch_of(case), {}

    def record(path: str, value: Tensor | Octave) -> None:
        if isinstance(value, Tensor):
            found.setdefault(path, value)
        else:
            found.update({f"{path}.{i}": part for i, part in enumerate(whole(value)) if f"{path}.{i}" not in found})

    def hook(module: nn.Module, args: tuple, output: Tensor | Octave) -> None:
        record(f"gen.{names[module]}", output)

    names = {module: path for path, module in gen.named_modules() if path.count(".") == 1}
    handles = [module.register_forward_hook(hook) for module in names]
    alpha = system.options(system.prepare(batch))
    content, code = gen.encode(batch["image"], **alpha), gen.classify(batch["reference"], **alpha)
    found["x_trans"] = gen.decode(content, code, **alpha)
    for handle in handles:
        handle.remove()
    for norm, conv in {"enc_content.bn2": "enc_content.conv2", "dec.bn1": "dec.conv1"}.items():  # before their relu
        found |= {f"gen.{norm}.{i}": F.instance_norm(found[f"gen.{conv}.{i}"]) for i in range(2)}
    found["content_hf"], found["content_lf"] = whole(content)
    found["class_code"] = code
    for end in (0.0, 1.0):
        found[f"x_trans_alpha{end:.0f}"] = system.translate(batch | {"alpha": end})["fake"]
    found["d_a"], found["d_a_feat"] = system.nets["dis"](batch["image"], batch["domain"])
    return {f"out.any.{name}": value for name, value in found.items()}


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    def run_once(seed: int) -> Found:
        found = run(build(case, folder, seed), case, forwards)
        if case.trains:  # the original logs the sum of both reconstructions
            return found | {"traj.gen_recon_x": found["traj.gen_recon_x"] + found["traj.gen_cyc_x"]}
        both = sum(found[f"loss.any.{name}"] for name in ("gen_recon_x", "gen_cyc_x"))
        return found | {"loss.any.gen_recon_x_plus_cyc": both}

    return settled(case, run_once)
