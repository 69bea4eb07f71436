"""How recorded cases of DiscoGAN run."""

from pathlib import Path
from typing import Any

import torch
from golden_recipe import Case
from golden_system import nets_of as networks
from golden_unpaired import Found, after, build, first_outputs, gradients, optimizers, series_of, settled
from torch import nn

from i2ifast import models
from i2ifast.models import Batch

VARIANTS = ("",)


def nets_of(name: str, options: dict[str, Any]) -> dict[str, nn.Module]:
    plain, extra = (networks(name, options | {"extra_layers": each}) for each in (False, True))
    return {
        "generator": plain["generator_A"],
        "generator_extra_layers": extra["generator_A"],
        "discriminator": plain["discriminator_A"],
    }


def batch_of(case: Case) -> Batch:
    """A prepared batch: its images are recorded as the networks take them."""
    return {side: (case.inputs(f"in.{side}")[""] + 1) / 2 for side in "AB"}


@torch.no_grad()
def forwards(system: models.System, batch: Batch, mode: str) -> Found:
    """All forwards of an iteration, in the original's order, with all layers of the first one."""
    system.train(mode == "train")
    to_b, to_a = system.nets["generator_B"], system.nets["generator_A"]
    layers = {f"generator_{side}.main.{i}" for side in "AB" for i in range(32)}
    with first_outputs(system, "", layers) as outputs:
        found = {"AB": to_b(batch["A"]), "BA": to_a(batch["B"])}
        found |= {"ABA": to_a(found["AB"]), "BAB": to_b(found["BA"])}
    for side, fake in {"A": found["BA"], "B": found["AB"]}.items():
        for kind, images in {"real": batch[side], "fake": fake}.items():
            logits, features = system.nets[f"discriminator_{side}"](images)
            found[f"{side}_dis_{kind}"] = logits.sigmoid()
            found |= {f"{side}_feats_{kind}.{i}": value for i, value in enumerate(features)}
    for side in "AB":
        found[f"D_{side}"] = found[f"{side}_dis_real"]
        found |= {f"D_{side}_feats.{i}": found[f"{side}_feats_real.{i}"] for i in range(3)}
    found |= {name.replace(".main", ""): value for name, value in outputs.items()}
    return {f"out.{mode}.{name}": value for name, value in found.items()}


def losses(terms: Found, rate: float) -> Found:
    """Under the original's names, without weights, and its sums of them; crossed, for the generators."""
    weights = {"gen": 0.1 * (1 - rate), "fm": 0.9 * (1 - rate), "recon": rate, "dis": 1.0}
    found = {name: term / weights[name.partition("_")[0]] for name, term in terms.items()}
    if "dis_A" in terms:
        return {**found, "dis": terms["dis_A"] + terms["dis_B"]}
    for side, other in ("AB", "BA"):
        found[f"gen_{side}_total"] = terms[f"gen_{other}"] + terms[f"fm_{other}"] + terms[f"recon_{side}"]
    return {**found, "gen": sum(terms.values())}


def run(system: models.System, case: Case) -> Found:
    if case.trains:
        return run_training(system, case)
    found = forwards(system, batch_of(case), "eval") | forwards(system, batch_of(case), "train")
    found |= after(system)  # the forwards' statistics
    config = system.config
    early = case.options["iters"] < config.gan_curriculum
    for phase in (system.phases[0], system.phases[1 if early else 2]):
        batch = batch_of(case)
        batch["A"].requires_grad_()
        system.freeze_all_but(phase)
        terms = phase.loss(batch)
        sum(terms.values()).backward()
        rate = config.starting_rate if early else config.default_rate
        found |= {f"loss.train.{name}": value.detach() for name, value in losses(terms, rate).items()}
        found |= gradients(system, phase, "train")
    return found | {"grad.train.in.A": batch["A"].grad}


def run_training(system: models.System, case: Case) -> Found:
    """The original computes both losses in each iteration, which is in the series and in running statistics."""
    adams, steps = optimizers(system.train()), []
    for step in range(case.options["iterations"]):
        early = step < system.config.gan_curriculum
        rate = system.config.starting_rate if early else system.config.default_rate
        (turn,) = (phase for phase in system.phases if phase.when(step))
        both, found = (system.phases[1 if early else 2], system.phases[0]), {}
        assert turn in both
        for phase in both:
            system.freeze_all_but(phase)
            terms = phase.loss(batch_of(case))
            found |= {name: value.detach() for name, value in losses(terms, rate).items()}
            if phase is turn:
                adams[phase.name].zero_grad()
                sum(terms.values()).backward()
            if phase is both[0]:  # its forwards are those of the discriminators' loss and more
                buffers = [buffer.clone() for buffer in system.nets.buffers()]
        for buffer, kept in zip(system.nets.buffers(), buffers, strict=True):
            buffer.copy_(kept)
        adams[turn.name].step()
        steps.append(found)
    return series_of(steps) | after(system)


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case))
