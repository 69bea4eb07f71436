"""How recorded cases of MUNIT run."""

from pathlib import Path

import torch
import torch.nn.functional as F
from golden_recipe import Case
from golden_unpaired import Found, Names, batch_of, build, first_outputs, run_phases, run_training, settled

from i2ifast import models

VARIANTS = ("",)
NAMES = Names(
    {
        "dis_": "gan_w",
        "gen_adv": "gan_w",
        "gen_recon_x": "recon_x_w",
        "gen_recon_s": "recon_s_w",
        "gen_recon_c": "recon_c_w",
        "gen_cycrecon_x": "recon_x_cyc_w",
        "gen_vgg": "vgg_w",
    },
    {"dis": "dis_total", "gen": "gen_total"},
    lambda phase: "loss.train.",
)


@torch.no_grad()
def forwards(system: models.System, case: Case) -> Found:
    """Both directions with the case's styles, and the layers of each network on the way."""
    batch, found = batch_of(case), {}
    given = {side: case.inputs(f"in.s_{side}")[""] for side in "ab"}
    parts = {"enc_content": "enc_content.model", "enc_style": "enc_style.model", "dec": "dec.model"}
    paths = {f"gen_{side}.{short}": f"gen_{side}.{path}" for side in "ab" for short, path in parts.items()}
    layers = {f"{path}.{i}" for path in paths.values() for i in range(16)}
    with first_outputs(system, "", layers) as outputs:
        for side, other in ("ab", "ba"):
            gen, other_gen = system.nets[f"gen_{side}"], system.nets[f"gen_{other}"]
            content, style = gen.encode(batch[side])
            fake = other_gen.decode(content, given[other])
            found |= {f"c_{side}": content, f"s_{side}_prime": style, f"x_{side}{other}": fake}
            found[f"x_{side}{other}_first_sample_b1"] = other_gen.decode(content[:1], given[other][:1])
    for side, other in ("ab", "ba"):
        gen, dis = system.nets[f"gen_{side}"], system.nets[f"dis_{side}"]
        found[f"adain_params_{side}"] = gen.mlp(given[side])
        found[f"x_{side}_recon"] = gen.decode(found[f"c_{side}"], found[f"s_{side}_prime"])
        for kind, images in {"real": batch[side], "fake": found[f"x_{other}{side}"]}.items():
            found |= {f"d_{side}_{kind}.{i}": logits for i, logits in enumerate(dis(images))}
    for short, path in paths.items():
        found |= {f"{short}.{i}": outputs[f"{path}.{i}"] for i in range(16) if f"{path}.{i}" in outputs}
    for i in range(1, 2 * system.config.gen_n_downsample, 2):  # upsampling, which is folded into the convolution
        found |= {
            f"gen_{side}.dec.{i}": F.interpolate(found[f"gen_{side}.dec.{i - 1}"], scale_factor=2) for side in "ab"
        }
    return {f"out.any.{name}": value for name, value in found.items()}


def run(system: models.System, case: Case) -> Found:
    if case.trains:
        return run_training(system, case, 3, NAMES)
    return forwards(system, case) | run_phases(system, case, "train", NAMES)


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case))
