"""How recorded cases of EdgeGAN run: one evaluation of TensorFlow's graph, all variables in one network W."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from golden_recipe import Case
from golden_unpaired import Found, backward
from torch import Tensor

from i2ifast import models
from i2ifast.models.edgegan import JUDGED, Config, from_tensorflow, parameter_of

VARIANTS = ("",)
# What the original adds up, of the terms here.
TOTALS = {
    **{f"{seen}_d": (f"{seen}_d", f"{seen}_gp") for seen in JUDGED.values()},
    "edge_g": ("joint_g", "edge_g"),
    "image_g": ("joint_g", "image_g", "class_g"),
}


def check_keys(recorded: dict[str, Any]) -> None:
    """All variables, none else, at the published sizes."""
    with torch.device("meta"):
        system = models.build("edgegan", "sketchycoco")
        shapes = {}
        for variable, shape in recorded["tf_variables"].items():
            net, key = parameter_of(variable)
            shapes[f"{net}.{key}"] = from_tensorflow(key, torch.empty(shape)).shape
    own = {key: value.shape for key, value in system.nets.state_dict().items()}
    assert shapes == own


def build(case: Case) -> models.System:
    system, states = models.build("edgegan", **vars(Config.from_original(case.options))), {}
    for variable, value in case.state("W").items():
        net, key = parameter_of(variable)
        states.setdefault(net, {})[key] = from_tensorflow(key, value)
    assert states.keys() == system.nets.keys()
    for net, state in states.items():
        system.nets[net].load_state_dict(state)
    return system


def gradients(case: Case, system: models.System, nets: Sequence[str]) -> Found:
    """Of some networks, in TensorFlow's layout."""
    found, trained = {}, {(net, key): p.grad for net in nets for key, p in system.nets[net].named_parameters()}
    for variable, (shape, _) in case.keys("W").items():
        gradient = trained.get(parameter_of(variable))
        if gradient is not None:
            axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(gradient.ndim, (0,))
            found[f"grad.train.W.{variable}"] = gradient.permute(axes).reshape(shape)
    return found


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    pair, z, eps = (case.inputs("in.")[name] for name in ("images", "z", "encoder_eps"))
    sketch, image = pair.chunk(2, 3)
    domain = torch.arange(len(z)) % case.options["num_classes"]
    batch = {"sketch": sketch, "image": image, "domain": domain}
    alphas = dict(zip(JUDGED, case.noise("noise.train."), strict=True))
    values: Found = {}
    for i in range(len(build(case).phases) - 1):
        system = build(case).train()
        phase = system.phases[i]
        system.randn = lambda shape, like: z if len(shape) == 2 else eps
        system.rand = lambda shape, like, name=phase.name: alphas[name]
        terms = backward(system, phase, system.prepare(batch))
        values |= {f"loss.train.{name}": term for name, term in terms.items()} | gradients(case, system, phase.nets)
    for name, parts in TOTALS.items():
        values[f"loss.train.{name}"] = sum(values[f"loss.train.{part}"] for part in parts)
    return values | outputs(build(case).eval(), batch, z, eps)


@torch.no_grad()
def outputs(system: models.System, batch: models.Batch, z: Tensor, eps: Tensor) -> Found:
    nets, coded = system.nets, system.with_class(z, batch["domain"])
    edge, photo = nets["G1"](coded), nets["G2"](coded)
    system.randn = lambda shape, like: eps
    views = {"real": system.views(batch["sketch"], batch["image"]), "fake": system.views(edge, photo)}
    found = {f"{seen}_{kind}": nets[net](view[seen]) for net, seen in JUDGED.items() for kind, view in views.items()}
    found |= {"edge_output": edge, "image_output": photo, "z_recon": system.encode(edge)}
    for seen in ("image", "edge"):
        found |= {f"resized_{seen}": views["real"][seen], f"resized_{seen}_fake": views["fake"][seen]}
    for name, photographs in {"true": batch["image"], "fake": photo}.items():
        found[f"{name}_class_logits"] = nets["D2"](photographs)
    return {f"out.train.{name}": value for name, value in found.items()}
