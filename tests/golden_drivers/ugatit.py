"""How recorded cases of U-GAT-IT run."""

from pathlib import Path

import torch
from golden_recipe import Case
from golden_unpaired import Found, Names, build, nets_of, run_case, settled
from torch import Tensor

from i2ifast import models

__all__ = ["VARIANTS", "found", "nets_of"]

VARIANTS = ("",)
NAMES = Names(
    {
        "D_ad": "adv_weight",
        "G_ad": "adv_weight",
        "G_recon": "cycle_weight",
        "G_identity": "identity_weight",
        "G_cam": "cam_weight",
    },
    {"D": "Discriminator_loss", "G": "Generator_loss"},
    lambda phase: f"loss.eval.{phase.name.lower()}.",
)


@torch.no_grad()
def images(system: models.System, batch: models.Batch) -> dict[str, Tensor]:
    """What the generator step computes, under the original's names."""
    nets, found = system.nets, {}

    def named(name: str, output: tuple, first: str = "", logit: str = "_cam_logit") -> None:
        found.update({name + first: output.out, name + logit: output.cam_logit})

    for side, other in ("AB", "BA"):
        to_side, to_other = nets[f"gen{other}2{side}"], nets[f"gen{side}2{other}"]
        real = {key.upper(): images for key, images in batch.items()}
        fake = to_side(real[other])
        named(f"fake_{other}2{side}", fake)
        named(f"fake_{side}2{side}", to_side(real[side]))
        named(f"fake_{other}2{side}2{other}", to_other(fake.out))
        for kind in "GL":
            named(f"fake_{kind}{side}", nets[f"dis{kind}{side}"](fake.out), "_logit")
    for net, side in {"genA2B": "a", "disGA": "a", "disLA": "a"}.items():
        output = nets[net](batch[side])
        found |= {f"{net}.{name}": value for name, value in output._asdict().items()}
        found[f"{net}.image"] = output.out
    return found


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run_case(build(case, folder, seed), case, NAMES, images, ("disGA", "disLB")))
