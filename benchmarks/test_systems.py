"""Systems at their published widths: translation and training against the plain formulation.

A file of `systems/` holds ROWS. Data are procedural scenes, and real ones where --realdata names their folder.
"""

import importlib
import multiprocessing
import pkgutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import maps
import pytest
import torch
from systems import Networks, Row
from test_models import distance, move, peak_resident, relative_error
from torch import Tensor

from i2ifast import models
from i2ifast.data import procedural
from i2ifast.data.kinds import unpaired
from i2ifast.models import Batch, System
from i2ifast.nn import bake

NAMES = [module.name for module in pkgutil.iter_modules([str(Path(__file__).with_name("systems"))])]
ROWS = {f"{row.system}-{row.preset}": row for name in NAMES for row in importlib.import_module(f"systems.{name}").ROWS}
KINDS = ("procedural", "real")
ROUNDS = {"inference": 5, "training": 3}
LAST = torch.channels_last


def batches_of(row: Row, kind: str, small: bool, realdata: Path | None, count: int) -> list[Batch]:
    """Batches {a, b [N,3,H,W]} of two domains, or of label maps."""
    h, w = (side // 4 for side in row.size) if small else row.size
    if kind == "real" and realdata is None:
        pytest.skip("real data: name their folder by --realdata")
    system = models.system(row.system)
    config = system.Config(**system.PRESETS[row.preset] | row.options)
    if system.data_of(config) == "labels":
        folder, phase = maps.REAL[row.maps]
        real = (realdata / folder, phase) if kind == "real" else None
        return maps.batches(kind, config, (h, w), row.batch, count, real)
    settings = unpaired.Settings(crop_size=w, aspect_ratio=w / h, load_size=w)
    if kind == "real":
        items = unpaired.folder(realdata / "cat2dog", "test", settings)
        images = [{side: items[i][side] for side in "ab"} for i in range(count * row.batch)]
    else:
        scenes = [procedural.scene((h, w), seed=i).image for i in range(2 * count * row.batch)]
        tensors = [torch.from_numpy(scene).permute(2, 0, 1) / 127.5 - 1 for scene in scenes]
        images = [dict(zip("ab", pair, strict=True)) for pair in zip(tensors[::2], tensors[1::2], strict=True)]
    batches = [images[i : i + row.batch] for i in range(0, len(images), row.batch)]
    return [{side: torch.stack([item[side] for item in batch]) for side in "ab"} for batch in batches]


def system_of(row: Row, small: bool) -> System:
    """The system with weights that are always the same."""
    torch.manual_seed(0)
    system = models.build(row.system, row.preset, **row.options | (row.small if small else {}))
    system.init_weights()
    return system


def plain_of(row: Row, system: System) -> Networks:
    nets = row.networks(system.config)
    for name, net in nets.items():
        net.load_state_dict(system.nets[name].state_dict())
    return nets


def in_layout(batch: Batch, layout: torch.memory_format) -> Batch:
    return {name: images.contiguous(memory_format=layout) for name, images in batch.items()}


def compiled(nets: Networks) -> Networks:
    return {name: torch.compile(net, dynamic=False) for name, net in nets.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
@torch.no_grad()
def test_inference(compare, device, small, realdata, compiling, row, kind) -> None:
    """Images to images, as the system translates."""
    data = [move(batch, device) for batch in batches_of(row, kind, small, realdata, ROUNDS["inference"])]

    def system() -> System:
        return system_of(row, small).eval().to(device, memory_format=LAST)

    def plain(layout: torch.memory_format, change: Callable[[Networks], Networks] = dict) -> Callable:
        nets = {name: net.eval().to(device, memory_format=layout) for name, net in plain_of(row, ours).items()}
        nets = change(nets)
        return lambda batch: row.translate(nets, ours.config, in_layout(batch, layout))

    ours, baked = system(), system()
    baked.nets.update({name: bake(net) for name, net in baked.nets.items()})
    contenders = {
        "plain": plain(torch.contiguous_format),
        "channels_last": plain(LAST),
        "ours": lambda batch: ours.translate(in_layout(batch, LAST))["fake"],
        "baked": lambda batch: baked.translate(in_layout(batch, LAST))["fake"],
    }
    if compiling:
        contenders["compile"] = plain(LAST, compiled)
    expected = contenders["plain"](data[0])
    error = {name: relative_error(f(data[0]), expected) for name, f in contenders.items() if name != "plain"}
    compare(contenders, data, **where(row, data[0], kind), **{"pass": "inference"}, error=error)


def where(row: Row, batch: Batch, kind: str) -> dict[str, Any]:
    size = tuple(next(iter(batch.values())).shape[2:])
    facts = {"system": row.system, "preset": row.preset, "size": size, "batch": row.batch, "map": kind}
    return {"what": "system", "dtype": "float32", **facts}


class Trainer(NamedTuple):
    """One way to train the networks of a system."""

    gradients: Callable[[Batch], dict[str, Tensor]]  # of the first phase, by parameter
    step: Callable[[Batch], None]  # an iteration


def trainer(name: str, row: Row, small: bool, device: torch.device) -> Trainer:
    """The way `name`: plain, channels_last, compile or ours."""
    system = system_of(row, small).train()
    first, *others = system.phases
    layout = torch.contiguous_format if name == "plain" else LAST
    nets = dict(system.nets) if name == "ours" else {net: m.train() for net, m in plain_of(row, system).items()}
    nets = {net: module.to(device, memory_format=layout) for net, module in nets.items()}
    parameters = {phase.name: [p for net in phase.nets for p in nets[net].parameters()] for phase in system.phases}
    run = compiled(nets) if name == "compile" else nets
    if name == "ours":
        optimizers = {phase.name: phase.optimizer.over(parameters[phase.name]) for phase in system.phases}
    else:  # as torch has it by default
        settings = {phase.name: vars(phase.optimizer) for phase in system.phases}
        optimizers = {n: torch.optim.Adam(parameters[n], **settings[n]) for n in settings}

    def loss(batch: Batch) -> Tensor:
        system.freeze_all_but(first)
        for net, module in nets.items():
            module.requires_grad_(net in first.nets)
        if name == "ours":
            return sum(first.loss(system.prepare(batch)).values())
        return row.loss(run, system.config, batch)

    def gradients(batch: Batch) -> dict[str, Tensor]:
        loss(in_layout(batch, layout)).backward()
        named = {f"{net}.{key}": p for net in first.nets for key, p in nets[net].named_parameters()}
        found = {key: p.grad for key, p in named.items() if p.grad is not None}
        for p in named.values():
            p.grad = None
        return found

    def step(batch: Batch) -> None:
        batch = in_layout(batch, layout)
        if name != "ours":
            for module in nets.values():
                module.requires_grad_(True)
            row.step(run, optimizers, system.config, batch)
            return
        batch = system.prepare(batch)
        for phase in system.phases:
            system.freeze_all_but(phase)
            optimizers[phase.name].zero_grad()
            sum(phase.loss(batch).values()).backward()
            optimizers[phase.name].step()

    return Trainer(gradients, step)


def peak_memory(name: str, row: str, small: bool) -> int:
    """Bytes that two training steps take at most, beyond what the imports took, in a process that did nothing else."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = move(batches_of(ROWS[row], "procedural", small, None, 1)[0], device)
    before = peak_resident()
    step = trainer(name, ROWS[row], small, device).step
    step(batch)
    step(batch)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_resident() - before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_training_step(compare, device, small, realdata, compiling, row, kind) -> None:
    """An iteration: all phases."""
    data = [move(batch, device) for batch in batches_of(row, kind, small, realdata, ROUNDS["training"])]
    names = ("plain", "channels_last", "ours", *(["compile"] if compiling else []))
    memory = {}
    if kind == "procedural":
        for name in names:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                memory[name] = pool.submit(peak_memory, name, f"{row.system}-{row.preset}", small).result()
    ways = {name: trainer(name, row, small, device) for name in names}
    expected = ways["plain"].gradients(data[0])
    error = {name: distance(way.gradients(data[0]), expected) for name, way in ways.items() if name != "plain"}
    steps = {name: way.step for name, way in ways.items()}
    compare(steps, data, **where(row, data[0], kind), **{"pass": "training"}, error=error, memory=memory)
