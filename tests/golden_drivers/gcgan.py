"""How recorded cases of GcGAN run."""

from pathlib import Path
from typing import Any

import torch
from golden_recipe import Case
from golden_system import nets_of as networks
from golden_unpaired import Found, after, backward, build, first_outputs, gradients, optimizers, series_of, settled
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import Batch
from i2ifast.models._cyclegan import Dropout

VARIANTS = ("",)


def nets_of(name: str, options: dict[str, Any]) -> dict[str, nn.Module]:
    unet = networks(name, options | {"which_model_netG": "unet_256"})["netG_AB"]
    return networks(name, options) | {"unet_256": unet}


def batch_of(case: Case) -> Batch:
    return {side.lower(): case.inputs(f"in.{side}")[""] for side in "AB"}


def feed_dropout(system: models.System, case: Case) -> None:
    """Make the system draw the case's masks.

    They are recorded by forwards of the generators: one that is only traced, then those of A, of A turned, and, for the
    identity, of B and of B turned. The system has A and B in one batch, and with one generator all of them.
    """
    draws = list(case.noise("noise."))
    count = sum(isinstance(module, Dropout) for module in system.nets["netG_AB"].modules())
    passes = [draws[i : i + count] for i in range(0, len(draws), count)] if draws else []
    traced = [[masks] for masks in passes[: len(passes) % 2]]
    passes = passes[len(traced) :]
    plain, turned = passes[0::2], passes[1::2]
    together = [plain, turned] if "netG_gc_AB" in system.nets else [plain + turned]
    noise = iter([torch.cat(masks) for group in (*traced, *together) for masks in zip(*group, strict=True)])

    def rand(shape: tuple[int, ...], like: Tensor) -> Tensor:
        drawn = next(noise)
        assert drawn.shape == tuple(shape)
        return drawn

    system.rand = rand


@torch.no_grad()
def traced(system: models.System, batch: Batch) -> Found:
    """A through the generator and B through the discriminator, layer by layer."""
    layers = {f"{net}.model.{i}" for net in ("netG_AB", "netD_B") for i in range(32)}
    with first_outputs(system, "", layers) as outputs:
        system.nets["netG_AB"](batch["a"])
        logits = system.nets["netD_B"](batch["b"])
    found = {name.replace(".model", ""): value for name, value in outputs.items()}
    judged = logits if system.config.lsgan else logits.sigmoid()
    return {**found, "d_real_B": judged, "netD_B": judged, f"netD_B.{3 * system.config.n_layers_D + 3}": judged}


def losses(terms: Found) -> Found:
    """Terms as the original logs them: one for both discriminators."""
    judges = [term for name, term in terms.items() if name.startswith("D_")]
    return terms | {"D_B": sum(judges)} if judges else terms


def run(system: models.System, case: Case) -> Found:
    system.train()
    feed_dropout(system, case)
    if case.trains:
        return run_training(system, case)
    batch = batch_of(case)
    outputs, found = traced(system, batch), {}
    for phase in system.phases:
        found |= {f"loss.train.{name}": value for name, value in losses(backward(system, phase, batch)).items()}
        found |= gradients(system, phase, "train")
    outputs |= {"fake_B": batch["fake"], "fake_gc_B": batch["fake_gc"]}
    outputs |= {f"real_gc_{side}": system.turn(batch[side.lower()]) for side in "AB"}
    return found | {f"out.train.{name}": value for name, value in outputs.items()}


def run_training(system: models.System, case: Case) -> Found:
    adams, steps = optimizers(system), []
    for _ in range(case.options["iterations"]):
        batch, found = batch_of(case), {}
        for phase in system.phases:
            adams[phase.name].zero_grad()
            found |= losses(backward(system, phase, batch))
            adams[phase.name].step()
        steps.append(found)
    return series_of(steps) | after(system)


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case))
