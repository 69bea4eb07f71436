"""How recorded cases of AdaIN style transfer run."""

from pathlib import Path
from typing import Any

import torch
from golden_recipe import Case
from golden_unpaired import Found, after, backward, build, first_outputs, gradients, optimizers, series_of, settled

from i2ifast import models
from i2ifast.models import Batch
from i2ifast.models.adain import STRIDE, coral
from i2ifast.nn.instance import adain, mean_and_deviation

VARIANTS = ("",)
SLICES = {"enc_1": 0, "enc_2": 4, "enc_3": 11, "enc_4": 18}  # first layer of each of the parts that `Net` cuts VGG into


def check_keys(recorded: dict[str, Any]) -> None:
    """Those of the networks, also as the original's files have them: with deeper layers, or in one training module."""
    with torch.device("meta"):
        system = models.build("adain", "default")
    own = {"vgg31": system.fixed["VGG"], "decoder": system.nets["decoder"]}
    for name, net in own.items():
        assert {key: list(value.shape) for key, value in net.state_dict().items()} == recorded[name]
        assert sum(p.numel() for p in net.parameters()) == recorded["_param_count"][name]
    assert recorded["vgg31"].items() <= recorded["vgg_full"].items()
    together = {}
    for key, shape in recorded["Net"].items():
        net, layer, leaf = key.split(".")
        together["decoder" if net == "decoder" else "vgg31", f"{int(layer) + SLICES.get(net, 0)}.{leaf}"] = shape
    assert together == {(name, key): shape for name in own for key, shape in recorded[name].items()}


def batch_of(case: Case) -> Batch:
    """In sizes that the original's losses take."""
    sides = {"a": case.inputs("in.content")[""], "b": case.inputs("in.style")[""]}
    return {s: x[..., : x.size(2) // STRIDE * STRIDE, : x.size(3) // STRIDE * STRIDE] for s, x in sides.items()}


@torch.no_grad()
def forwards(system: models.System, case: Case) -> Found:
    images = {name: (case.inputs(f"in.{name}")[""] + 1) / 2 for name in ("content", "style")}
    found, encoder = {}, system.fixed["VGG"]
    for name, each in images.items():
        found |= {f"{name}_relu{i}_1": features for i, features in enumerate(encoder(each), 1)}
    content, style = found["content_relu4_1"], found["style_relu4_1"]
    found["content_mean"], found["content_std"] = mean_and_deviation(content)
    found["adain"] = adain(content, style)
    with first_outputs(system, "", {f"decoder.{i}" for i in range(32)}) as outputs:
        found["stylized"] = system.nets["decoder"](adain(content, style, alpha=system.config.alpha))
    found["coral"] = coral(images["style"][:1], images["content"][:1])
    of_one = {"a": 2 * images["content"][:1] - 1, "b": 2 * images["style"][None] - 1}
    found["interp_25_75"] = (system.translate(of_one, weights=(1, 3))["fake"] + 1) / 2
    return {f"out.any.{name}": value for name, value in (found | outputs).items()}


def run(system: models.System, case: Case) -> Found:
    (phase,), config = system.phases, system.config
    if case.trains:
        return run_training(system, case)
    terms = backward(system, phase, batch_of(case))
    losses = {
        "content": terms["content"] / config.content_weight,
        "style": terms["style"] / config.style_weight,
        "total": sum(terms.values()),
    }
    found = forwards(system, case) | gradients(system, phase, "any")
    return found | {f"loss.any.{name}": value for name, value in losses.items()}


def run_training(system: models.System, case: Case) -> Found:
    (phase,), steps = system.phases, []
    adam = optimizers(system)[phase.name]
    for step in range(case.options["iterations"]):
        rate = adam.param_groups[0]["lr"] = phase.optimizer.lr * system.rate(step)
        adam.zero_grad()
        terms = backward(system, phase, batch_of(case))
        adam.step()
        steps.append({**terms, "total": sum(terms.values()), "lr": torch.tensor(rate)})
    return series_of(steps) | after(system)


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case))
