"""How recorded cases of CoGAN run."""

from pathlib import Path
from typing import Any

import torch
from golden_recipe import Case
from golden_system import nets_of as networks
from golden_unpaired import Found, after, backward, build, first_outputs, gradients, optimizers, series_of, settled
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import Batch

VARIANTS = ("",)


def nets_of(name: str, options: dict[str, Any]) -> dict[str, nn.Module]:
    variants = {"edge": "mnistedge", "usps": "mnist2usps"}
    found = {short: networks(name, options | {"variant": variant}) for short, variant in variants.items()}
    return {f"{net}_{short}": module for short, nets in found.items() for net, module in nets.items()}


def batch_of(case: Case) -> Batch:
    labels = case.inputs("in.labels_a")
    return {side: case.inputs(f"in.x_{side}")[""] for side in "ab"} | ({"label_a": labels[""]} if labels else {})


def feed(system: models.System, codes: Tensor) -> None:
    system.randn = lambda shape, like: codes


def losses(terms: Found, phase: str, weights: dict[str, float]) -> Found:
    """Under the original's names, without weights."""
    found = {f"{name}_loss": term / weights.get(name, 1.0) for name, term in terms.items()}
    return found | ({"d_loss": sum(terms.values())} if phase == "dis" else {})


@torch.no_grad()
def forwards(system: models.System, batch: Batch, codes: Tensor) -> Found:
    """Both networks, with all their layers."""
    layers = {f"{net}.{name}" for net, module in system.nets.items() for name, _ in module.named_children()}
    with first_outputs(system, "", layers) as found:
        found["gen_a"], found["gen_b"] = system.nets["gen"](codes)
        found["dis"], features = system.nets["dis"]((batch["a"] + 1) / 2, (batch["b"] + 1) / 2)
        feats = dict(zip(("dis.1", "dis.2"), features.chunk(2), strict=True))
        if hasattr(system.nets["dis"], "conv_cl"):
            found["classify_a"], found["classify_b"] = map(system.nets["dis"].classify, feats.values())
    return {f"out.eval.{name}": value for name, value in (found | feats | {"dis.0": found["dis"]}).items()}


@torch.no_grad()
def local_variables(system: models.System, batch: Batch, codes: Tensor, phase: str) -> Found:
    """What the original's trainer computes on the way to its losses."""
    pair, net = system.nets["gen"](codes), system.nets["dis"]
    found = {f"fake_images_{side}": fake for side, fake in zip("ab", pair, strict=True)}
    found["fake_outputs"], fake = net(*pair)
    found["true_outputs"], true = net((batch["a"] + 1) / 2, (batch["b"] + 1) / 2)
    for kind, features in {"fake": fake, "true": true}.items():
        found |= {f"{kind}_feat_{side}": each for side, each in zip("ab", features.chunk(2), strict=True)}
    if hasattr(net, "conv_cl"):
        found["cls_outputs"] = net.classify(found["true_feat_a"])
    return {f"out.train.{phase}.{name}": value for name, value in found.items()}


def run(system: models.System, case: Case) -> Found:
    config, batch = system.config, batch_of(case)
    codes, weights = case.inputs("in.noise_"), {"mse": config.mse_weight, "cls": config.cls_weight}
    if case.trains:
        return run_training(system.train(), batch, codes, weights, case.options["iterations"])
    found = forwards(system.eval(), batch, codes["dis"])
    for phase in system.train().phases:
        feed(system, codes[phase.name])
        terms = losses(backward(system, phase, batch), phase.name, weights)
        found |= {f"loss.train.{phase.name}.{name}": value for name, value in terms.items()}
        found |= gradients(system, phase, "train")
        if phase.name == "dis":
            found |= after(system)
    for name in codes:
        found |= local_variables(system, batch, codes[name], name)
    return found


def run_training(
    system: models.System, batch: Batch, codes: dict[str, Tensor], weights: dict[str, float], iterations: int
) -> Found:
    adams, steps = optimizers(system), []
    for step in range(iterations):
        found: Found = {}
        for phase in system.phases:
            feed(system, codes[f"{phase.name}_{step}"])
            adams[phase.name].zero_grad()
            terms = losses(backward(system, phase, batch), phase.name, weights)
            found |= {f"{phase.name}_{name}": value for name, value in terms.items()}
            adams[phase.name].step()
        steps.append(found)
    return series_of(steps) | after(system)


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case))
