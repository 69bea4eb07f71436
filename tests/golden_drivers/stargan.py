"""How recorded cases of StarGAN run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from golden_domains import Found, settled, step, train
from golden_recipe import Case
from golden_unpaired import build, first_outputs
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import Batch, Phase
from i2ifast.models.stargan import Config, Discriminator, Generator

VARIANTS = ("",)


def nets_of(name: str, options: dict[str, Any]) -> dict[str, nn.Module]:
    """The networks of a file of keys: those of one data set, and those of two with a mask that tells which."""
    config = Config.from_original(options)
    both = replace(config, dataset="Both")
    return {
        name + end: net(of)
        for end, of in (("", config), ("_both", both))
        for name, net in (("G", Generator), ("D", Discriminator))
    }


def naming(phase: Phase, term: str) -> str:
    return f"{phase.name.lower()}_loss_{term}".rstrip("_")


def weights(system: models.System) -> dict[str, float]:
    return {name: getattr(system.config, f"lambda_{name}") for name in ("cls", "rec", "gp")}


def feed(system: models.System, case: Case) -> Batch:
    """The batch of the case, whose order of labels and whose noise the system is made to draw."""
    given, noise = case.inputs("in."), case.noise("noise.train.")
    system.randperm = lambda count, like: given["rand_idx"]
    system.rand = lambda shape, like: next(noise).view(shape)
    return {"image": given["x_real"], "domain": given["label_org"]}


@torch.no_grad()
def evaluated(system: models.System, case: Case, batch: Batch) -> Found:
    """The generator with its running averages, and its layers."""
    own, running = system.nets["G"], Generator(system.config, running=True).eval()
    running.load_state_dict(own.state_dict())
    system.nets["G"] = running
    with first_outputs(system, "out.eval.", case.names) as outputs:
        fake = running(batch["image"], system.labels(batch["domain"].flip(0)))
    system.nets["G"] = own
    return {**outputs, "out.eval.x_fake": fake}


def trained(system: models.System, case: Case, batch: Batch) -> Found:
    """A step of both phases without their optimizers: losses, gradients, and the passes of both networks."""
    passes: dict[str, list[tuple[Tensor, Any]]] = {"G": [], "D": []}
    for name, calls in passes.items():
        system.nets[name].register_forward_hook(lambda module, args, y, calls=calls: calls.append((args[0], y)))
    system.train()
    prepared, found = system.prepare(batch), {}
    with first_outputs(system, "out.train.", case.names) as outputs:
        for phase in system.phases:
            system.freeze_all_but(phase)
            losses = step(system, phase, prepared, naming, weights)
            found |= {f"loss.train.{name}": value for name, value in losses.items()}
            parameters = system.nets[phase.name].named_parameters()
            found |= {f"grad.train.{phase.name}.{key}": p.grad for key, p in parameters}
    found |= {name: y.chunk(2)[0] for name, y in outputs.items()}  # real images, then fakes
    (_, (sources, classes)), (between, _), _ = passes["D"]
    (_, fake), _, (_, cycled) = passes["G"]
    values = {"x_fake": fake, "x_reconst": cycled, "x_hat": between}
    for kind, source, label in zip(("real", "fake"), sources.chunk(2), classes.chunk(2), strict=True):
        values |= {f"d_{kind}_src": source, f"d_{kind}_cls": label}
    return found | {f"out.train.{name}": value for name, value in values.items()}


def run(system: models.System, case: Case) -> Found:
    batch = feed(system, case)
    if case.trains:
        found, _ = train(system, batch, case.options["num_iters"], naming, weights)
    else:
        found = evaluated(system, case, batch) | trained(system, case, batch)
    return found | {f"post.train.G.{key}": buffer for key, buffer in system.nets["G"].named_buffers()}


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case))
