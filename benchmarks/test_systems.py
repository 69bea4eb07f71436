"""Every system at published widths: translation and training against its plain formulation (`plain`).

`systems.py` has the rows. Data are real where --realdata names their folder and the row has some, else procedural
scenes. With --small presets are tiny.

On the CPU, torch 2.13 has wrong gradients of instance norm for a single channels_last image: there the plain networks
in that layout are rivals for time alone.
"""

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from plain import formulas
from systems import ROWS, Row
from test_models import distance, move, peak_resident, relative_error
from torch import Tensor

from i2ifast.models import Batch, Phase, System
from i2ifast.nn import bake

BY_NAME = {f"{row.system}-{row.preset}": row for row in ROWS}
ROUNDS = 3
PLAIN = ("plain", "channels_last", "compile")
LAST = torch.channels_last


def data_of(row: Row, small: bool, realdata: Path | None, device: torch.device) -> tuple[str, list[Batch]]:
    """The kind of data, and batches."""
    folder = realdata if row.real else None
    batches = row.batches(ROUNDS, small, folder)
    return "real" if folder else "procedural", [move(batch, device) for batch in batches]


def layout_of(name: str) -> torch.memory_format:
    return torch.contiguous_format if name == "plain" else LAST


def computing(name: str) -> AbstractContextManager[None]:
    """In which the contender `name` runs. All draw the same random numbers."""
    torch.manual_seed(0)
    return formulas(layout_of(name)) if name in PLAIN else nullcontext()


def in_layout(batch: Batch, layout: torch.memory_format) -> Batch:
    return {
        name: t.contiguous(memory_format=layout) if t.dim() == 4 and t.is_floating_point() else t
        for name, t in batch.items()
    }


def system_of(name: str, row: Row, small: bool, device: torch.device) -> System:
    """For the contender `name`, compiled for "compile"."""
    system = row.build(small).to(device, memory_format=layout_of(name))
    for net in system.nets.values() if name == "compile" else ():
        net.compile(dynamic=False)
    return system


def that_run(functions: dict[str, Callable], batch: Batch) -> dict[str, Callable]:
    """Without "compile" where it cannot."""
    try:
        functions["compile"](batch)
    except KeyError:
        return functions
    except Exception as error:  # whatever torch.compile meets
        print(f"compile: {type(error).__name__}")
        return {name: function for name, function in functions.items() if name != "compile"}
    return functions


def where(row: Row, batch: Batch, kind: str) -> dict[str, Any]:
    size = next(tuple(t.shape[-2:]) for t in batch.values() if t.dim() >= 4)
    facts = {"system": row.system, "preset": row.preset, "size": size, "batch": row.batch, "map": kind}
    return {"what": "system", "dtype": "float32", **facts}


def translator(name: str, row: Row, small: bool, device: torch.device) -> Callable[[Batch], Tensor]:
    system, layout = system_of(name, row, small, device).eval(), layout_of(name)
    if name == "baked":
        system.nets.update({key: bake(net) for key, net in system.nets.items()})

    def translate(batch: Batch) -> Tensor:
        with computing(name):
            return system.translate(in_layout(batch, layout))["fake"]

    return translate


@pytest.mark.parametrize("row", ROWS, ids=list(BY_NAME))
@torch.no_grad()
def test_inference(compare, device, small, realdata, compiling, row) -> None:
    """Images to images, as the system translates."""
    kind, data = data_of(row, small, realdata, device)
    names = ("plain", "channels_last", "ours", "baked", *(["compile"] if compiling else []))
    contenders = that_run({name: translator(name, row, small, device) for name in names}, data[0])
    expected = contenders["plain"](data[0])
    error = {name: relative_error(f(data[0]), expected) for name, f in contenders.items() if name != "plain"}
    compare(contenders, data, **where(row, data[0], kind), **{"pass": "inference"}, error=error)


class Trainer(NamedTuple):
    """One way to train the networks of a system."""

    gradients: Callable[[Batch], dict[str, Tensor]]  # of the first phase, by parameter
    step: Callable[[Batch], None]  # an iteration in which all phases of the row have their turn


def optimizers_of(system: System, phases: Iterable[Phase], ours: bool) -> dict[str, torch.optim.Optimizer]:
    """By phase; torch's as they are by default for rivals."""
    made: dict[str, torch.optim.Optimizer] = {}
    for phase in phases:
        rates = {net: phase.rates.get(net, phase.optimizer.lr) for net in phase.nets}
        groups = [{"params": list(system.nets[net].parameters()), "lr": rate} for net, rate in rates.items()]
        if phase.shares in made:
            made[phase.name] = made[phase.shares]
        elif ours:
            made[phase.name] = phase.optimizer.over(groups)
        else:
            made[phase.name] = phase.optimizer.kind(groups, **vars(phase.optimizer))
    return made


def trainer(name: str, row: Row, small: bool, device: torch.device) -> Trainer:
    """The way `name`: ours, or one of PLAIN."""
    system, layout = system_of(name, row, small, device).train(), layout_of(name)
    phases = row.phases_of(system)
    optimizers = optimizers_of(system, phases, name == "ours")

    def backward(phase: Phase, batch: Batch) -> None:
        system.freeze_all_but(phase)
        sum(phase.loss(batch).values()).backward()

    def gradients(batch: Batch) -> dict[str, Tensor]:
        with computing(name):
            backward(phases[0], system.prepare(in_layout(batch, layout)))
        found = {key: p.grad for key, p in system.nets.named_parameters() if p.grad is not None}
        system.zero_grad()
        return found

    def step(batch: Batch) -> None:
        with computing(name):
            batch = system.prepare(in_layout(batch, layout))
            for phase in phases:
                optimizer = optimizers[phase.name]
                optimizer.zero_grad()
                backward(phase, batch)
                if phase.clip is not None:
                    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], phase.clip)
                optimizer.step()
                if phase.after is not None:
                    phase.after()

    return Trainer(gradients, step)


def peak_memory(name: str, row: str, small: bool) -> int:
    """Bytes that two training steps take at most, beyond what the imports took, in a process that did nothing else."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    (batch,) = BY_NAME[row].batches(1, small)
    batch = move(batch, device)
    before = peak_resident()
    step = trainer(name, BY_NAME[row], small, device).step
    step(batch)
    step(batch)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_resident() - before


@pytest.mark.parametrize("row", ROWS, ids=list(BY_NAME))
def test_training_step(compare, device, small, realdata, compiling, row) -> None:
    kind, data = data_of(row, small, realdata, device)
    memory = {}
    for name in ("plain", "ours"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            memory[name] = pool.submit(peak_memory, name, f"{row.system}-{row.preset}", small).result()
    names = ("plain", "channels_last", "ours", *(["compile"] if compiling else []))
    ways = {name: trainer(name, row, small, device) for name in names}
    gradients = that_run({name: way.gradients for name, way in ways.items()}, data[0])
    expected = gradients["plain"](data[0])
    error = {name: distance(found(data[0]), expected) for name, found in gradients.items() if name != "plain"}
    steps = {name: ways[name].step for name in gradients}
    compare(steps, data, **where(row, data[0], kind), **{"pass": "training"}, error=error, memory=memory)
