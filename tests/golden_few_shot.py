"""What the drivers of FUNIT and its relatives share: batches, terms by the originals' names, gradients, training."""

from collections.abc import Callable

import torch
from golden_domains import Found, step, train
from golden_recipe import Case

from i2ifast.models import Batch, Phase, System

INPUTS = {"x_a": "image", "l_a": "domain", "x_b": "reference", "l_b": "reference_domain"}
WEIGHTS = {
    "dis_real": "gan_w",
    "dis_fake": "gan_w",
    "gen_adv": "gan_w",
    "gen_cyc_x": "r_w",
    "gen_recon_x": "r_w",
    "gen_recon_c": "fm_w",
    "gen_recon_s": "fm_w",
}


def batch_of(case: Case, requires_grad: bool = False) -> Batch:
    given = case.inputs("in.")
    batch = {ours: given[name] for name, ours in INPUTS.items()}
    return {name: t.requires_grad_(requires_grad and t.is_floating_point()) for name, t in batch.items()}


def weights(system: System) -> dict[str, float]:
    return {term: getattr(system.config, option) for term, option in WEIGHTS.items()} | {"dis_reg": 10.0}


def naming(phase: Phase, term: str) -> str:
    return term or f"{phase.name}_total"


@torch.no_grad()
def accuracies(system: System, batch: Batch) -> Found:
    """How often the discriminator is right, and how often the generator deceives it."""
    gen, dis = system.nets["gen"], system.nets["dis"]
    options = system.options(batch)
    content = gen.encode(batch["image"], **options)
    recon, fake = (
        gen.decode(content, gen.classify(batch[name], **options), **options) for name in ("image", "reference")
    )
    real, fake, recon = (
        (dis(images, batch[label])[0] >= 0).float().mean()
        for images, label in ((batch["reference"], "reference_domain"), (fake, "reference_domain"), (recon, "domain"))
    )
    return {"dis_acc": (real + 1 - fake) / 2, "gen_acc": (recon + fake) / 2}


def run(system: System, case: Case, forwards: Callable[[System, Case], Found]) -> Found:
    """All that a case records; `forwards` gives the outputs."""
    if case.trains:
        found, _ = train(system, batch_of(case), case.options["iterations"], naming, weights)
        return found | {f"traj.{name}_adv": found[f"traj.{name}"] for name in ("dis_real", "dis_fake")}
    found, batch = forwards(system, case), batch_of(case, requires_grad=True)
    losses = accuracies(system, system.prepare(batch_of(case)))
    for phase in system.phases:
        prepared = system.prepare(batch)
        system.freeze_all_but(phase)
        losses |= step(system, phase, prepared, naming, weights)
        parameters = system.nets[phase.name].named_parameters()
        found |= {f"grad.any.{phase.name}.{key}": p.grad for key, p in parameters}
    found |= {f"loss.any.{name}": value for name, value in losses.items()}
    return found | {f"grad.any.in.{name}": batch[ours].grad for name, ours in INPUTS.items() if name[0] == "x"}
