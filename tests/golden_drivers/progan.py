"""How recorded cases of ProgressiveGAN run: the networks and losses of its PyTorch port, the official networks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from golden_recipe import Case
from golden_unpaired import Found, backward, gradients, settled
from torch import Tensor, nn
from torch.func import functional_call

from i2ifast import models
from i2ifast.models import System
from i2ifast.models._progan import Scaled, official_state

VARIANTS = ("",)


def keyed(recorded: dict[str, Any]) -> dict[str, nn.Module]:
    nets = models.build("progan", "celebahq").nets
    del nets["G"].lod
    return {"generator_1024": nets["G"], "discriminator_1024": nets["D"]}


def build(case: Case) -> System:
    return models.build("progan", **vars(models.system("progan").Config.from_original(case.options)))


def of_port(case: Case, seed: int) -> Found:
    """Both phases with the layers of the first forwards, scaled and not."""
    system, lod = build(case), case.options["alpha"]
    del system.nets["G"].lod
    for name, net in system.nets.items():
        assert {key: (list(v.shape), v.dtype) for key, v in net.state_dict().items()} == case.keys(name), name
        net.load_state_dict(nudged(case.state(name), seed))
    z, (between,) = case.inputs("in.z")[""].requires_grad_(), case.noise("noise.any.")
    system.randn, system.rand = lambda shape, like: z, lambda shape, like: between
    batch, generator, discriminator = {"real": case.inputs("in.real")[""], "lod": lod}, *system.nets.values()
    found = {}
    for phase in system.phases:
        terms = backward(system, phase, batch)
        found |= {f"loss.any.{name}": value for name, value in terms.items()} | gradients(system, phase, "any")
    found |= {"loss.any.d_real": found["loss.any.real"], "loss.any.d_fake": found["loss.any.fake"]}
    found |= {"loss.any.g": found["loss.any.G"], "grad.any.in.z": z.grad}
    with torch.no_grad(), outputs_of(system) as layers:
        fake = generator(z, lod)
        values = {"fake": fake, "d_real": discriminator(batch["real"], lod)}
        of_real = dict(layers)
        values |= {"d_fake": discriminator(fake, lod), "d_feat_fake": discriminator.features(fake, lod)}
    return found | {f"out.any.{name}": value for name, value in (values | of_real).items()}


@contextmanager
def outputs_of(system: System) -> Iterator[Found]:
    """Outputs of scaled layers in their first calls in the block, and what they scale."""
    found: Found = {}

    def hook(name: str):
        def record(layer: Scaled, args: tuple, output: Tensor) -> None:
            found.setdefault(name, output)
            found.setdefault(f"{name}.module", output / layer.scale)

        return record

    layers = [(name, module) for name, module in system.nets.named_modules() if isinstance(module, Scaled)]
    handles = [module.register_forward_hook(hook(name)) for name, module in layers]
    yield found
    for handle in handles:
        handle.remove()


def of_official(case: Case, seed: int) -> Found:
    """Images, scores and logits of classes, and gradients by the variables of the original."""
    system, options = build(case), case.options
    lod, size, z = options["lod"], system.config.size, case.inputs("in.z")[""].requires_grad_()
    given = {name: nudged(case.state(name), seed) for name in ("G", "D")}
    states = {name: official_state(system.nets[name], variables) for name, variables in given.items()}
    states["G"]["lod"] = torch.tensor(lod)
    for name, net in system.nets.items():
        assert states[name].keys() == net.state_dict().keys(), name
    count = options["label_size"]
    one_hot = torch.eye(count)[torch.arange(len(z)) % count] if count else None
    images = functional_call(system.nets["G"], states["G"], (z, lod, one_hot), strict=True)
    scores, labels = functional_call(system.nets["D"], states["D"], (images, lod), strict=True).tensor_split([1], 1)
    large = F.interpolate(images, size)
    leaves = {f"{name}.{key}": v for name, variables in given.items() for key, v in variables.items() if key != "lod"}
    leaves["in.z"] = z
    objective = (large * case.inputs("in.gy")[""]).sum() + scores.sum() + labels.sum()
    slopes = torch.autograd.grad(objective, list(leaves.values()), allow_unused=True, materialize_grads=True)
    found = {f"grad.any.{name}": value for name, value in zip(leaves, slopes, strict=True)}
    return found | {"out.any.images": large, "out.any.scores": scores, "out.any.label_logits": labels}


def nudged(state: Found, seed: int) -> Found:
    """Leaves of the same values, but for rounding if `seed` is not 0."""
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(v.shape, generator=generator, dtype=torch.float64) for name, v in state.items()}
    moved = {name: v * (1 + 6e-8 * noise[name]) if seed else v for name, v in state.items()}
    return {name: v.float().requires_grad_() for name, v in moved.items()}


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    run = of_official if "fmap_base" in case.options else of_port
    return settled(case, lambda seed: run(case, seed))
