"""How recorded cases of StackGAN, version 1 and 2, run."""

import copy
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from golden_recipe import Case
from golden_unpaired import Found, after, backward, first_outputs, gradients, optimizers, series_of, settled
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import Batch, System
from i2ifast.models.stackgan2 import Discriminator

VARIANTS = ("",)


def keyed(recorded: dict[str, Any]) -> dict[str, nn.Module]:
    second = models.build("stackgan2", "birds").nets
    return {"G": second["G"], **{f"D{64 << i}": second[f"D{i}"] for i in range(3)}}


def load(nets: dict[str, nn.Module], case: Case, seed: int) -> None:
    """The weights of a case, but for rounding if `seed` is not 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, net in nets.items():
        assert {key: (list(v.shape), v.dtype) for key, v in net.state_dict().items()} == case.keys(name), name
        net.load_state_dict(case.state(name))
        for parameter in net.parameters() if seed else ():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(parameter.data.double() * (1 + 6e-8 * noise))


@contextmanager
def outputs_of(net: nn.Module):
    """What its calls in the block return."""
    calls: list[Any] = []
    handle = net.register_forward_hook(lambda module, args, output: calls.append(output))
    yield calls
    handle.remove()


def batch_of(case: Case, system: System, suffix: str = "") -> Batch:
    """A prepared batch: images are recorded at the size of each branch."""
    real = [case.inputs(f"in.real{level}{suffix}")[""] for level in range(system.config.branch_num)]
    text = case.inputs(f"in.text{suffix}")
    batch = {"image": real[-1], "real": real, "wrong": [-images.flip(0) for images in real]}
    return batch | ({"embedding": text[""]} if text else {})


def steps_of(system: System, batch: Batch, draws: list[Tensor]):
    """The phases of an iteration, with their terms, of the noise given."""
    noise = iter(draws)
    system.randn = lambda shape, like: next(noise)
    for phase in system.phases:
        system.zero_grad()
        yield phase, backward(system, phase, batch)
    assert next(noise, None) is None, "noise was left over"


def judged(name: str, calls: list[list[Tensor]], kinds: list[str]) -> Found:
    """Probabilities of the first calls of a discriminator."""
    pairs = zip(kinds, calls, strict=False)
    return {f"{name}_{kind}.{i}": each.sigmoid().flatten() for kind, call in pairs for i, each in enumerate(call)}


def second_version(case: Case, seed: int) -> Found:
    system = models.build("stackgan2", **vars(models.system("stackgan2").Config.from_original(case.options)))
    own = {name: net for name, net in system.nets.items()}
    load(own, case, seed)
    if case.trains:
        return training(system.train(), case)
    batch = batch_of(case, system.train())
    eps = list(case.noise("noise.train."))
    layers = {f"{net}.{path}" for net, module in own.items() for path, _ in module.named_modules() if path}
    found, values, calls = {}, {}, {}
    hooks = {name: net.register_forward_hook(lambda m, a, out, at=calls.setdefault(name, []): at.append(out)) for name, net in own.items()}
    with first_outputs(system, "", layers & plain_names(case)) as outputs:
        for phase, terms in steps_of(system, batch, [case.inputs("in.z")[""], *eps]):
            found[f"loss.train.{phase.name}"] = sum(terms.values())
            found |= gradients(system, phase, "train")
    for hook in hooks.values():
        hook.remove()
    found |= {"loss.train.kl_weighted": terms.get("kl")} | after(system)
    values |= outputs
    for name in own:
        for head in ("logits", "uncond_logits"):
            if f"{name}.{head}" in values:
                values[f"{name}.{head}"] = values[f"{name}.{head}"].sigmoid()
        if name != "G":
            values |= judged(name, calls[name], ["real", "wrong", "fake"] if len(calls[name]) == 4 else ["real", "fake"])
    values |= {f"fake.{i}": fake for i, fake in enumerate(batch["fakes"])}
    if batch["mu"] is not None:
        mu, logvar = batch["mu"], batch["logvar"]
        values |= {"mu": mu, "logvar": logvar, "G.ca_net.1": mu, "G.ca_net.2": logvar}
        values["G.ca_net.0"] = mu + eps[0] * (0.5 * logvar).exp()
    return found | {f"out.train.{name}": value for name, value in values.items()}


def plain_names(case: Case) -> set[str]:
    return {name.removeprefix("out.train.") for name in case.names}


def training(system: System, case: Case) -> Found:
    adams, average, steps = optimizers(system), copy.deepcopy(system.nets["G"]), []
    eps = list(case.noise("noise.train."))
    for step in range(case.options["iters"]):
        batch, found = batch_of(case, system, f"_{step}"), {}
        for phase, terms in steps_of(system, batch, [case.inputs(f"in.z_{step}")[""], eps[step]]):
            adams[phase.name].step()
            found[phase.name] = sum(terms.values())
        steps.append(found | {"kl_weighted": terms["kl"]})
        for mean, now in zip(average.parameters(), system.nets["G"].parameters(), strict=True):
            mean.data.lerp_(now.data, 1 - case.options["ema_decay"])
    states = after(system)
    found = series_of(steps) | states | {f"traj.ema.G.{key}": value for key, value in average.named_parameters()}
    return found | {name.replace("post.train", "post.traj"): value for name, value in states.items()}


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    run = first_version if case.options["version"] == "v1" else second_version
    return settled(case, lambda seed: run(case, seed))


def first_version(case: Case, seed: int) -> Found:
    raise NotImplementedError
