"""How recorded cases of NICE-GAN run."""

from pathlib import Path

import torch
from golden_recipe import Case
from golden_unpaired import Found, Names, build, nets_of, run_case, settled
from torch import Tensor

from i2ifast import models

__all__ = ["VARIANTS", "found", "nets_of"]

VARIANTS = ("",)
NAMES = Names(
    {"D_ad": "adv_weight", "G_ad": "adv_weight", "G_cycle": "cycle_weight", "G_recon": "recon_weight"},
    {"D": "Discriminator_loss", "G": "Generator_loss"},
    lambda phase: f"loss.eval.{phase.name.lower()}.",
)
FIELDS = {"local": "local", "global": "overall", "cam_logit": "cam_logit", "heatmap": "heatmap", "z": "code"}


@torch.no_grad()
def images(system: models.System, batch: models.Batch) -> dict[str, Tensor]:
    """What the generator step computes, under the original's names."""
    nets = system.nets
    real = {"A": nets["disA"](batch["a"]), "B": nets["disB"](batch["b"])}
    found = {f"disA.{name}": getattr(real["A"], field) for name, field in FIELDS.items()}
    for side, other in ("AB", "BA"):
        generator = nets[f"gen2{side}"]
        fake = generator(real[other].code)
        judged = nets[f"dis{side}"](fake)
        found |= {
            f"fake_{other}2{side}": fake,
            f"fake_{side}2{side}": generator(real[side].code),
            f"fake_{other}2{side}2{other}": nets[f"gen2{other}"](judged.code),
            f"fake_L{side}_logit": judged.local,
            f"fake_G{side}_logit": judged.overall,
            f"fake_{side}_cam_logit": judged.cam_logit,
            f"real_{side}_cam_logit": real[side].cam_logit,
            f"real_{side}_z": real[side].code,
        }
    return found


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run_case(build(case, folder, seed), case, NAMES, images, ("disA", "disB")))
