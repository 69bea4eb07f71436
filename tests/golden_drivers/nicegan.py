"""How recorded cases of NICE-GAN run."""

from pathlib import Path

import torch
from golden_recipe import Case
from golden_unpaired import Found, Names, batch_of, build, first_outputs, nets_of, run_phases, run_training, settled
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


def run(system: models.System, case: Case) -> Found:
    if case.trains:
        return run_training(system, case, case.options["iteration"], NAMES)
    with first_outputs(system, "out.eval.", case.names) as outputs:
        values = run_phases(system, case, "eval", NAMES)
    values |= outputs | {f"out.eval.{name}": value for name, value in images(system, batch_of(case)).items()}
    for net in ("disA", "disB"):
        judged = system.train().nets[net](batch_of(case)["a"])
        values |= {f"out.train.{net}.{i}": output for i, output in enumerate(judged)}
        values |= {f"post.train.{net}.{key}": buffer for key, buffer in system.nets[net].named_buffers()}
    return values


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case))
