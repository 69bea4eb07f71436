"""How recorded cases of StackGAN, version 1 and 2, run."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from golden_recipe import Case
from golden_unpaired import Found, after, backward, first_outputs, gradients, optimizers, series_of, settled
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import Batch, Phase, System
from i2ifast.models.stackgan2 import Discriminator

VARIANTS = ("",)


def keyed(recorded: dict[str, Any]) -> dict[str, nn.Module]:
    second = models.build("stackgan2", "birds").nets
    stages = {stage: models.build("stackgan", f"stage{stage}").nets for stage in (1, 2)}
    first = {f"v1_stage{stage}_{name}": nets[name] for stage, nets in stages.items() for name in "GD"}
    return {"G": second["G"], **{f"D{64 << i}": second[f"D{i}"] for i in range(3)}, **first}


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
def outputs_of(net: nn.Module) -> Iterator[list[Any]]:
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


def steps_of(system: System, batch: Batch, draws: list[Tensor]) -> Iterator[tuple[Phase, Found]]:
    """The phases of an iteration, with their terms, of the noise given."""
    noise = iter(draws)
    system.randn = lambda shape, like: next(noise)
    for phase in system.phases:
        system.zero_grad()
        yield phase, backward(system, phase, batch)
    assert next(noise, None) is None, "noise was left over"


def judged(name: str, calls: list[list[Tensor]], kinds: Sequence[str]) -> Found:
    """Probabilities that the first calls of a discriminator give."""
    pairs = zip(kinds, calls, strict=False)
    return {f"{name}_{kind}.{i}": each.sigmoid().flatten() for kind, call in pairs for i, each in enumerate(call)}


def second_version(case: Case, seed: int) -> Found:
    system = models.build("stackgan2", **vars(models.system("stackgan2").Config.from_original(case.options)))
    more = case.meta["keys"].keys() - system.nets.keys()  # discriminators of images that the system does not make
    system.nets.update({name: Discriminator(system.config, 2) for name in more})
    load(dict(system.nets), case, seed)
    if case.trains:
        return training(system.train(), case)
    batch, eps, found = batch_of(case, system.train()), list(case.noise("noise.train.")), {}
    recorded = {name.removeprefix("out.train.") for name in case.names}
    with ExitStack() as stack:
        outputs = stack.enter_context(first_outputs(system, "", recorded - {"G.ca_net.0", "G.ca_net.1", "G.ca_net.2"}))
        calls = {name: stack.enter_context(outputs_of(net)) for name, net in system.nets.items() if name != "G"}
        for phase, terms in steps_of(system, batch, [case.inputs("in.z")[""], *eps]):
            found[f"loss.train.{phase.name}"] = sum(terms.values())
            found |= gradients(system, phase, "train")
        for name in more:
            system.nets[name](next(x for x in case.inputs("in.").values() if x.size(-1) == 256))
    values = {name: value.sigmoid() if name.endswith("logits") else value for name, value in outputs.items()}
    values |= {f"fake.{i}": fake for i, fake in enumerate(batch["fakes"])}
    kinds = ("real", "wrong", "fake") if system.config.b_condition else ("real", "fake")
    for name, logits in calls.items():
        values |= judged(name, logits, kinds)
        values |= {f"{name}.{i}": each.sigmoid().flatten() for i, each in enumerate(logits[0])}
    if system.config.b_condition:
        mu, logvar = batch["mu"], batch["logvar"]
        found["loss.train.kl_weighted"] = terms["kl"]
        values |= {"mu": mu, "logvar": logvar, "G.ca_net.1": mu, "G.ca_net.2": logvar}
        values["G.ca_net.0"] = mu + eps[0] * (0.5 * logvar).exp()
    return found | after(system) | {f"out.train.{name}": value for name, value in values.items()}


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


def first_version(case: Case, seed: int) -> Found:
    """Both stages, the second first: the generator of the first is a part of its own."""
    systems = {stage: build_stage(case, stage) for stage in (2, 1)}
    systems[1].nets["G"] = systems[2].nets["G"].STAGE1_G
    nets = {"stage2_G": systems[2].nets["G"], "stage1_D": systems[1].nets["D"], "stage2_D": systems[2].nets["D"]}
    load(nets, case, seed)
    eps, found, values = list(case.noise("noise.train.")), {}, {}
    draws = {2: eps[:2], 1: eps[2:]}
    for stage, system in systems.items():
        net, images = f"stage{stage}_G", case.inputs(f"in.real{system.config.size[0]}")[""]
        batch = {"image": images, "embedding": case.inputs("in.text")[""]}
        children = system.train().nets["G"].named_children()
        layers = {f"G.{path}" for path, module in children if isinstance(module, nn.Sequential)}
        with first_outputs(system, "", layers) as outputs, outputs_of(systems[1].nets["G"]) as first:
            for phase, terms in steps_of(system, batch, [case.inputs("in.z")[""], *draws[stage]]):
                found |= losses(stage, phase, terms, system.config.kl)
                trained = system.nets[phase.name].named_parameters()
                found |= {f"grad.train.stage{stage}_{phase.name}.{key}": p.grad for key, p in trained}
                if (stage, phase.name) == (2, "D"):
                    found |= of_images(system, batch, case.inputs("in.gy_stage2")[""])
        mu, logvar = batch["mu"], batch["logvar"]
        values |= {f"mu{stage}": mu, f"logvar{stage}": logvar, f"stage{stage}_img": batch["fake"]}
        values |= {f"{net}.ca_net.1": mu, f"{net}.ca_net.2": logvar}
        values[f"{net}.ca_net.0"] = mu + draws[stage][-1] * (0.5 * logvar).exp()
        values |= {name.replace("G.", f"{net}.", 1): value for name, value in outputs.items()}
        if stage == 2:
            values["stage1_img_in_stage2"] = first[0][0]
            values |= {f"stage2_G.STAGE1_G.{i + 1}": value for i, value in enumerate(first[0])}
    buffers = {f"post.train.stage2_G.{key}": value for key, value in nets["stage2_G"].named_buffers()}
    return found | buffers | {f"out.train.{name}": value for name, value in values.items()}


def build_stage(case: Case, stage: int) -> System:
    widths = {name: case.options[f"stage{stage}_{name.upper()}"] for name in ("gf_dim", "df_dim")}
    config = models.system("stackgan").Config.from_original({**case.options, **widths, "stage": stage})
    return models.build("stackgan", **vars(config))


def losses(stage: int, phase: Phase, terms: Found, weight: float) -> Found:
    """Under the original's names: means over both heads where there are two."""
    total, kind = sum(terms.values()), f"loss.train.stage{stage}"
    if phase.name == "G":
        return {f"{kind}_G": total - terms["kl"], f"{kind}_kl": terms["kl"] / weight}
    shares = {"real": 1, "wrong": 1 / 2, "fake": 1 / 2} if stage == 1 else {"real": 1, "wrong": 1 / 3, "fake": 2 / 3}
    parts = {name: sum(term for key, term in terms.items() if key.startswith(name)) for name in shares}
    return {f"{kind}_D": total, **{f"{kind}_D_{name}": part / shares[name] for name, part in parts.items()}}


def of_images(system: System, batch: Batch, gy: Tensor) -> Found:
    """Gradients of the generator that do not pass through the discriminator."""
    named = {key: p for key, p in system.nets["G"].named_parameters() if not key.startswith("STAGE1_G")}
    found = torch.autograd.grad((batch["fake"] * gy).sum(), list(named.values()), retain_graph=True)
    return {f"grad.train_gy.stage2_G.{key}": value for key, value in zip(named, found, strict=True)}


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    run = first_version if case.options["version"] == "v1" else second_version
    return settled(case, lambda seed: run(case, seed))
