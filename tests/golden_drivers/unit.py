"""How recorded cases of UNIT run."""

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
        "gen_recon_kl_a": "recon_kl_w",
        "gen_recon_kl_b": "recon_kl_w",
        "gen_recon_kl_cyc": "recon_kl_cyc_w",
        "gen_cyc_x": "recon_x_cyc_w",
        "gen_vgg": "vgg_w",
    },
    {"dis": "dis_total", "gen": "gen_total"},
    lambda phase: "loss.train.",
)


@torch.no_grad()
def forwards(system: models.System, case: Case) -> Found:
    """Both directions, and the layers of each network on the way."""
    batch, found = batch_of(case), {}
    layers = {f"gen_{side}.{part}.model.{i}" for side in "ab" for part in ("enc", "dec") for i in range(16)}
    with first_outputs(system, "", layers) as outputs:
        for side, other in ("ab", "ba"):
            code = found[f"h_{side}"] = system.nets[f"gen_{side}"].enc(batch[side])
            found[f"x_{side}{other}"] = system.nets[f"gen_{other}"].dec(code)
            found[f"x_{side}{other}_first_sample_b1"] = system.nets[f"gen_{other}"].dec(code[:1])
    for side, other in ("ab", "ba"):
        found[f"x_{side}_recon"] = system.nets[f"gen_{side}"].dec(found[f"h_{side}"])
        for kind, images in {"real": batch[side], "fake": found[f"x_{other}{side}"]}.items():
            logits = system.nets[f"dis_{side}"](images)
            found |= {f"d_{side}_{kind}.{i}": scale for i, scale in enumerate(logits)}
    found |= {name.replace(".model", ""): value for name, value in outputs.items()}
    for i in range(1, 2 * system.config.gen_n_downsample, 2):  # upsampling, which is folded into the convolution
        for side in "ab":
            found[f"gen_{side}.dec.{i}"] = F.interpolate(found[f"gen_{side}.dec.{i - 1}"], scale_factor=2)
    return {f"out.eval.{name}": value for name, value in found.items()}


def run(system: models.System, case: Case) -> Found:
    if case.trains:
        return run_training(system, case, case.options["iterations"], NAMES)
    return forwards(system, case) | run_phases(system, case, "train", NAMES)


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case))
