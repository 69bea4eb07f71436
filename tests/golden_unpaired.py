"""What the drivers of unpaired systems share: their losses by the originals' names, their gradients, their training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import golden_system
import torch
from golden_recipe import Case, sample
from golden_system import feed_noise
from safetensors.torch import save_file
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import Batch, Phase, System

Found = dict[str, Tensor]


@dataclass(frozen=True)
class Names:
    """How an original calls what it logs."""

    weights: dict[str, str]  # beginning of a term's name -> option that it is weighted with, and recorded without
    totals: dict[str, str]  # phase -> name of the sum of its terms
    losses: Callable[[Phase], str]  # phase -> beginning of the recorded names of its terms


ROUNDING = 6e-8  # of float32


def build(case: Case, folder: Path, seed: int = 0) -> System:
    """The system of a case, with its weights, but for rounding if `seed` is not 0.

    The case's fixed network, if any, is read from a file of `folder`.
    """
    name = case.meta["system"]
    config = models.system(name).Config.from_original(case.options)
    fixed = case.meta["nets"].keys() - models.build(name, **vars(config)).nets.keys()
    for net in fixed:
        save_file(case.state(net), folder / f"{net}.safetensors")
        config = replace(config, vgg_weights=str(folder / f"{net}.safetensors"))
    system = models.build(name, **vars(config))
    for name, net in system.nets.items():
        assert {key: (list(v.shape), v.dtype) for key, v in net.state_dict().items()} == case.keys(name), name
        net.load_state_dict(case.state(name))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in system.nets.parameters() if seed else ():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.device)
            parameter.copy_(parameter.double() * (1 + ROUNDING * noise))
    return system


def settled(case: Case, run: Callable[[int], Found]) -> Found:
    """What `run(0)` finds. If not all is as recorded, the case is told how far rounding moves it, by seeds 1 to 4.

    One activation on the other side of its kink changes the gradients of all that is in front of it, and a gradient
    near zero is, to Adam, one of either sign.
    """
    found = run(0)
    if all(error(case, name, found[name]) <= 1 for name in case.names):
        return found
    for other in map(run, range(1, 5)):
        for name in case.names:
            before = start(case, name)
            here, there = (sample(name, values[name] - before) for values in (found, other))
            moved = float(abs(here - there).max() / max(abs(here).max(), 1e-30))
            case.movement[name] = max(case.movement.get(name, 0.0), moved)
    return found


def start(case: Case, name: str) -> Tensor | float:
    """What training started from, for a weight after it; else 0."""
    net, _, key = name.removeprefix("traj.after.").partition(".")
    return case.state(net)[key] if name.startswith("traj.after.") else 0.0


def error(case: Case, name: str, value: Tensor) -> float:
    """In units of the tolerance, as the test has it."""
    if name.startswith("traj.after."):
        return max(case.error(name, value), case.update_error(name, value, start(case, name)))
    return case.error(name, value)


def nets_of(name: str, options: dict[str, Any]) -> dict[str, nn.Module]:
    """The networks of a file of keys: all of the full system, and one generator of the light one."""
    full, light = (golden_system.nets_of(name, options | {"light": light}) for light in (False, True))
    first = next(iter(light))
    return full | {f"{first}_light": light[first]}


def batch_of(case: Case, requires_grad: bool = False) -> Batch:
    return {side: case.inputs(f"in.x_{side}")[""].requires_grad_(requires_grad) for side in "ab"}


def backward(system: System, phase: Phase, batch: Batch) -> Found:
    """Backward of a phase: its terms."""
    system.freeze_all_but(phase)
    terms = phase.loss(batch)
    sum(terms.values()).backward()
    return {name: term.detach() for name, term in terms.items()}


def run_phase(system: System, phase: Phase, batch: Batch, names: Names) -> Found:
    """Backward of a phase: its terms and totals, under the original's names."""
    terms, values = backward(system, phase, batch), {}
    for name, term in terms.items():
        (option,) = (option for start, option in names.weights.items() if name.startswith(start))
        values[name] = term / getattr(system.config, option)
    for side in "AB":
        of_side = [term for name, term in terms.items() if name.endswith(side)]
        values |= {f"{phase.name}_loss_{side}": sum(of_side)} if of_side else {}
    return {**values, names.totals[phase.name]: sum(terms.values())}


def gradients(system: System, phase: Phase, mode: str) -> Found:
    """Gradients of what a phase trains."""
    return {f"grad.{mode}.{net}.{key}": p.grad for net in phase.nets for key, p in system.nets[net].named_parameters()}


def optimizers(system: System) -> dict[str, torch.optim.Optimizer]:
    """The phases' optimizers, by name."""
    found = {}
    for phase in system.phases:
        parameters = [p for net in phase.nets for p in system.nets[net].parameters()]
        own = phase.optimizer.kind(parameters, **vars(phase.optimizer))
        found[phase.name] = found[phase.shares] if phase.shares else own
    return found


def after(system: System) -> Found:
    """The state of the networks after training."""
    found: Found = {}
    for name, net in system.nets.items():
        found |= {f"traj.after.{name}.{key}": value for key, value in net.state_dict().items()}
        found |= {f"post.train.{name}.{key}": value.clone() for key, value in net.named_buffers()}
    return found


def series_of(steps: Sequence[Found]) -> Found:
    """What each step found, as recorded series."""
    names = dict.fromkeys(name for step in steps for name in step)
    return {f"traj.{name}": torch.stack([step[name] for step in steps if name in step]) for name in names}


def run_phases(system: System, case: Case, mode: str, names: Names) -> Found:
    """Every phase from the case's weights, without optimiser steps: losses, and gradients of what it trains."""
    noise = feed_noise(system, case, f"noise.{mode}.")
    system.train(mode == "train")
    found: Found = {}
    for phase in system.phases:
        batch = batch_of(case, requires_grad=phase is system.phases[-1])
        found |= {
            f"{names.losses(phase)}{name}": value for name, value in run_phase(system, phase, batch, names).items()
        }
        found |= gradients(system, phase, mode)
    assert next(noise, None) is None, "noise was left over"
    return found | {f"grad.{mode}.in.x_{side}": images.grad for side, images in batch.items()}


def run_training(system: System, case: Case, iterations: int, names: Names) -> Found:
    """Iterations on one batch: series of terms and learning rates, and the state of the networks afterwards."""
    noise = feed_noise(system, case, "noise.")
    system.train()
    adams, steps = optimizers(system), []
    for step in range(iterations):
        rate, found = system.rate(step), {}
        for phase in system.phases:
            adam = adams[phase.name]
            adam.param_groups[0]["lr"] = phase.optimizer.lr * rate
            adam.zero_grad()
            found |= run_phase(system, phase, batch_of(case), names)
            adam.step()
            if phase.after is not None:
                phase.after()
        steps.append(found | {"lr": torch.tensor(phase.optimizer.lr * rate)})
    assert next(noise, None) is None, "noise was left over"
    return series_of(steps) | after(system)


@contextmanager
def first_outputs(system: System, prefix: str, names: set[str]) -> Iterator[Found]:
    """Outputs of modules in their first calls in the block: `prefix`<net>.<module path>, of `names`."""
    outputs: Found = {}

    def hook(name: str) -> Callable:
        def record(module: nn.Module, args: tuple, output: Tensor) -> None:
            outputs.setdefault(name, output.detach().clone())

        return record

    modules = {f"{prefix}{path}": module for path, module in system.nets.named_modules() if "." in path}
    handles = [modules[name].register_forward_hook(hook(name)) for name in names & modules.keys()]
    yield outputs
    for handle in handles:
        handle.remove()


def run_case(
    system: System,
    case: Case,
    names: Names,
    images: Callable[[System, Batch], dict[str, Tensor]],
    judges: Sequence[str],
) -> Found:
    """All that a case of a system with class activation maps records: `images` gives outputs by the original's names,
    `judges` are the discriminators recorded in training mode too."""
    if case.trains:
        return run_training(system, case, case.options["iteration"], names)
    with first_outputs(system, "out.eval.", case.names) as outputs:
        values = run_phases(system, case, "eval", names)
    values |= outputs | {f"out.eval.{name}": value for name, value in images(system, batch_of(case)).items()}
    for net in judges:
        judged = system.train().nets[net](batch_of(case)["a"])
        values |= {f"out.train.{net}.{i}": output for i, output in enumerate(judged)}
        values |= {f"post.train.{net}.{key}": buffer for key, buffer in system.nets[net].named_buffers()}
    return values
