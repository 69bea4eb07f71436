"""How recorded cases of StarGAN v2 run."""

from pathlib import Path
from typing import Any

import golden_system
import torch
from golden_domains import Found, settled, step, train
from golden_recipe import Case
from golden_unpaired import build, first_outputs
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import Batch, Phase

VARIANTS = ("",)
INPUTS = {
    "x_real": "image",
    "x_ref": "reference",
    "x_ref2": "reference2",
    "y_org": "domain",
    "y_trg": "reference_domain",
}
LATENTS = ("z_trg", "z_trg2")
SHORT = {"g": "generator", "d": "discriminator", "e": "style_encoder", "f": "mapping_network"}


def nets_of(name: str, options: dict[str, Any]) -> dict[str, nn.Module]:
    """The networks of a file of keys: all without the high-pass filter, and the generator with it."""
    plain, filtered = (golden_system.nets_of(name, options | {"w_hpf": weight}) for weight in (0, 1))
    return plain | {"generator_hpf1": filtered["generator"]}


def naming(phase: Phase, term: str) -> str:
    return f"{phase.name.lower()}_{term or 'total'}"


def weights(system: models.System) -> dict[str, float | Tensor]:
    given = {name: getattr(system.config, f"lambda_{name}") for name in ("reg", "sty", "cyc")}
    return given | {"ds": -system.lambda_ds}


class Masks(nn.Module):
    """The case's masks, in place of those of a landmark network."""

    def __init__(self, masks: list[Tensor]) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.masks


def feed(system: models.System, case: Case) -> Batch:
    """The batch of the case, whose latents the system is made to draw."""
    given = case.inputs("in.")
    drawn = [given[name] for name in LATENTS]
    draws = iter(drawn * case.options.get("iterations", 1))
    system.randn = lambda shape, like: next(draws)
    if system.config.w_hpf:
        masks = [given[name] for name in sorted(given.keys() - {*INPUTS, *LATENTS})]
        system.fixed["fan"] = Masks(masks or list(case.noise("noise.")))
    return {ours: given[name] for name, ours in INPUTS.items()}


@torch.no_grad()
def forwards(system: models.System, case: Case, batch: Batch) -> Found:
    """Styles, images and logits, and the layers on the way to them."""
    names = {name: name.removeprefix("out.any.").split(".", 1) for name in case.names if name.startswith("out.any.")}
    layers = {name: f"{SHORT[path[0]]}.{path[1]}" for name, path in names.items() if len(path) == 2}
    with first_outputs(system, "", set(layers.values())) as outputs:
        styles = {"map": system.style(batch, "latent"), "enc": system.style(batch, "reference")}
        fakes = [system.nets["generator"](batch["image"], style, batch["masks"]) for style in styles.values()]
        judged = [
            system.nets["discriminator"](images, batch[domain])
            for images, domain in ((batch["image"], "domain"), (fakes[0], "reference_domain"))
        ]
    values = {f"s_{name}": style for name, style in styles.items()}
    values |= {"x_fake_latent": fakes[0], "x_fake_ref": fakes[1], "d_real": judged[0], "d_fake": judged[1]}
    found = {f"out.any.{name}": value for name, value in values.items()}
    return found | {name: outputs[path] for name, path in layers.items()}


def passes(system: models.System, batch: Batch) -> Found:
    """Every phase from the case's weights: losses, and gradients of all networks, also of those that it leaves."""
    found: Found = {}
    for phase in system.phases:
        system.nets.requires_grad_(True).zero_grad()
        batch["image"] = image = batch["image"].detach().requires_grad_()
        losses = step(system, phase, batch, naming, weights)
        found |= {f"loss.any.{name}": value for name, value in losses.items()}
        prefix = f"grad.any.{phase.name.lower()}"
        found |= {f"{prefix}.{key}": p.grad for key, p in system.nets.named_parameters() if p.grad is not None}
        found[f"{prefix}.in.x_real"] = image.grad
    return found


def run(system: models.System, case: Case) -> Found:
    batch = feed(system, case)
    if case.trains:
        found, used = train(system, batch, case.options["iterations"], naming, weights)
        return found | {"traj.lambda_ds": torch.stack([-each["ds"] for each in used])}
    prepared = system.prepare(batch)
    return forwards(system, case, prepared) | passes(system, prepared)


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case))
