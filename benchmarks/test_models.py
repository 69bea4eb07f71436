"""The SPADE networks at full width: what a user would otherwise run, and this library, from label maps to images.

Everything that depends on the label map is timed: the one-hot map of the plain networks, the label plan of ours.
"""

import contextlib
import functools
import io
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import maps
import pytest
import torch
from plain_spade import PlainDiscriminator, PlainGenerator, PlainSPADE, generator_loss, train_step
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from i2ifast import accelerate, labels
from i2ifast.models import Batch, spade
from i2ifast.nn import bake
from i2ifast.nn.label_conv import table_pays

SIZES = {"coco": [(256, 256), (512, 512)], "cityscapes": [(256, 512), (512, 1024)]}
SMALL = {"ngf": 4, "nhidden": 8, "ndf": 4}  # widths with --small, on maps a quarter as wide
TRAINERS = ("plain", "channels_last", "accelerate", "ours")
ROUNDS = {"generator": 3, "step": 2}

PLACES = [(preset, size) for preset, sizes in SIZES.items() for size in sizes]
FIRST = [(preset, sizes[0]) for preset, sizes in SIZES.items()]


def ids(value: object) -> str | None:
    return "x".join(map(str, value)) if isinstance(value, tuple) else None


def config_of(preset: str, small: bool) -> spade.Config:
    options = spade.PRESETS[preset] | (SMALL if small else {})
    return spade.Config(**options, lambda_vgg=0.0)


def batches_of(
    kind: str, preset: str, config: spade.Config, size: tuple[int, int], n: int, count: int, realdata: Path | None
) -> list[Batch]:
    if kind == "real" and realdata is None:
        pytest.skip("real maps: name their folder by --realdata")
    folder, phase = maps.REAL[preset]
    return maps.batches(kind, config, size, n, count, (realdata / folder, phase) if kind == "real" else None)


def move(batch: Batch, device: torch.device) -> Batch:
    return {name: t.to(device) for name, t in batch.items()}


def dense(config: spade.Config, batch: Batch, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """What the published networks take: the one-hot label map and the edges between instances."""
    label = batch["label"]
    shape = (len(label), config.semantic_nc, *label.shape[2:])
    seg = torch.empty(shape, device=label.device, memory_format=layout).zero_().scatter_(1, label, 1.0)
    seg[:, -1:] = labels.instance_edges(batch["instance"])
    return seg


def quietly_accelerated(net: nn.Module) -> nn.Module:
    with contextlib.redirect_stdout(io.StringIO()):
        return accelerate(net)


@functools.lru_cache(maxsize=1)
def settled(preset: str, small: bool) -> dict[str, Tensor]:
    """Random weights of a generator, with running statistics and spectral norms of three forwards over scenes."""
    torch.manual_seed(0)
    config = config_of(preset, small)
    g = PlainGenerator(config)
    for module in g.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over forwards
    with torch.no_grad():
        for batch in maps.batches("procedural", config, shrunk(SIZES[preset][0], small), 2, 3):
            g(dense(config, batch))
    return g.state_dict()


def shrunk(size: tuple[int, int], small: bool) -> tuple[int, int]:
    return (size[0] // 4, size[1] // 4) if small else size


def loaded(net: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    net.load_state_dict(state)
    return net


def relative_error(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).abs().max() / expected.abs().max())


def work(config: spade.Config, batch: Batch) -> dict[str, float]:
    """Floating-point operations of the generator as published and with tables, and the bytes of its SPADE layers, each
    of which reads and writes x once."""
    plan = labels.plan(batch["label"], config.num_classes, instances=batch["instance"])
    shapes: list[torch.Size] = []
    with torch.device("meta"):
        g = PlainGenerator(config).eval()
        seg = torch.empty((len(batch["label"]), config.semantic_nc, *plan.size))
    for module in g.modules():
        if isinstance(module, PlainSPADE):
            module.register_forward_hook(lambda module, args, y: shapes.append(y.shape))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        g(seg)
    published = ours = counter.get_total_flops()
    taps = 2 * 9 * config.nhidden
    for n, c, *size in shapes:
        level, pixels = plan.level(tuple(size)), n * size[0] * size[1]
        ours -= taps * pixels * (config.semantic_nc + 2 * c)
        ours += taps * len(plan.values) * config.semantic_nc
        ours += taps * (level.hidden.count if table_pays(level) else pixels) * 2 * c
    return {"flops_published": published, "flops": ours, "bytes": 2 * 4 * sum(s.numel() for s in shapes)}


@pytest.mark.parametrize("kind", maps.KINDS)
@pytest.mark.parametrize(("preset", "size"), PLACES, ids=ids)
@torch.no_grad()
def test_generator(compare, device, small, realdata, compiling, preset, size, kind) -> None:
    """Label maps to images, batch 1."""
    if kind == "noise" and size != SIZES[preset][0]:
        pytest.skip("noise: one size tells")
    config, state, size = config_of(preset, small), settled(preset, small), shrunk(size, small)
    data = batches_of(kind, preset, config, size, 1, ROUNDS["generator"], realdata)
    facts = work(config, data[0])

    def plain() -> nn.Module:
        return loaded(PlainGenerator(config), state).eval().to(device)

    last = torch.channels_last
    eager, nhwc = plain(), plain().to(memory_format=last)
    accelerated = quietly_accelerated(plain().to(memory_format=last))
    ours = loaded(spade.SPADEGenerator(config), state).eval().to(device, memory_format=last)
    baked = bake(ours)

    def plan(batch: Batch) -> labels.LabelPlan:
        return labels.plan(batch["label"], config.num_classes, instances=batch["instance"])

    contenders: dict[str, Callable[[Batch], Tensor]] = {
        "plain": lambda batch: eager(dense(config, batch)),
        "channels_last": lambda batch: nhwc(dense(config, batch, last)),
        "accelerate": lambda batch: accelerated(dense(config, batch, last)),
        "ours": lambda batch: ours(plan(batch)),
        "baked": lambda batch: baked(plan(batch)),
    }
    if compiling or not small:
        compiled = torch.compile(plain().to(memory_format=last), dynamic=False, options={"freezing": True})
        contenders["compile"] = lambda batch: compiled(dense(config, batch, last))
    data = [move(batch, device) for batch in data]
    expected = contenders["plain"](data[0])
    error = {name: relative_error(f(data[0]), expected) for name, f in contenders.items() if name != "plain"}
    where = {"preset": preset, "size": size, "batch": 1, "map": kind, "dtype": "float32"}
    compare(contenders, data, what="generator", error=error, **where, **facts)


class Trainer(NamedTuple):
    """One way to train the networks."""

    generator: nn.Module
    loss: Callable[[Batch], Tensor]  # the generator's, of a batch that requires no gradients of the discriminator
    step: Callable[[Batch], None]  # an iteration: generator, then discriminator


def trainer(name: str, config: spade.Config, device: torch.device) -> Trainer:
    """The way `name`, one of TRAINERS or "compile"; all use the fused Adam."""
    torch.manual_seed(0)
    nets = [PlainGenerator(config), PlainDiscriminator(config)]
    if name == "ours":
        return system_trainer(config, [net.state_dict() for net in nets], device)
    layout = torch.contiguous_format if name == "plain" else torch.channels_last
    g, d = (net.to(device, memory_format=layout).train() for net in nets)
    run_g, run_d = g, d
    if name == "accelerate":
        g, d = run_g, run_d = quietly_accelerated(g), quietly_accelerated(d)
    if name == "compile":
        run_g, run_d = (torch.compile(net, dynamic=False) for net in (g, d))
    rates = (config.lr / 2, config.lr * 2)
    betas = (config.beta1, config.beta2)
    optimizers = tuple(
        torch.optim.Adam(net.parameters(), lr, betas, fused=True) for net, lr in zip((g, d), rates, strict=True)
    )

    def inputs(batch: Batch) -> tuple[Tensor, Tensor]:
        return dense(config, batch, layout), batch["image"].contiguous(memory_format=layout)

    def loss(batch: Batch) -> Tensor:
        d.requires_grad_(False)
        return generator_loss(run_g, run_d, *inputs(batch))

    return Trainer(g, loss, lambda batch: train_step(run_g, run_d, optimizers, *inputs(batch)))


def system_trainer(config: spade.Config, states: list[dict[str, Tensor]], device: torch.device) -> Trainer:
    """The system as i2ifast.train runs it, with the weights `states` of generator and discriminator."""
    system = spade.System(config)
    for net, state in zip(system.nets.values(), states, strict=True):
        net.load_state_dict(state)
    system.to(device, memory_format=torch.channels_last).train()
    optimizers = {
        phase.name: phase.optimizer.over([p for net in phase.nets for p in system.nets[net].parameters()])
        for phase in system.phases
    }

    def loss(batch: Batch, phase: spade.Phase = system.phases[0]) -> Tensor:
        system.freeze_all_but(phase)
        return sum(phase.loss(batch).values())

    def prepared(batch: Batch) -> Batch:
        return system.prepare(batch | {"image": batch["image"].contiguous(memory_format=torch.channels_last)})

    def step(batch: Batch) -> None:
        batch = prepared(batch)
        for phase in system.phases:
            optimizers[phase.name].zero_grad()
            loss(batch, phase).backward()
            optimizers[phase.name].step()

    return Trainer(system.nets["G"], lambda batch: loss(prepared(batch)), step)


def gradients(way: Trainer, batch: Batch) -> dict[str, Tensor]:
    """Of the generator's loss, by parameter; they are not left in the network."""
    way.loss(batch).backward()
    found = {name: p.grad for name, p in way.generator.named_parameters()}
    way.generator.zero_grad()
    return found


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference of all gradients over the norm of the expected ones."""
    difference = sum(float((found[name] - t).square().sum()) for name, t in expected.items())
    return (difference / sum(float(t.square().sum()) for t in expected.values())) ** 0.5


def peak_resident() -> int:
    """Bytes of this process at its largest. getrusage would count the parent's, which it was once a copy of."""
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


def peak_memory(name: str, config: spade.Config, size: tuple[int, int], n: int) -> int:
    """Bytes that two training steps take at most, beyond what the imports took, in a process that did nothing else."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = move(maps.batches("procedural", config, size, n, 1)[0], device)
    before = peak_resident()
    step = trainer(name, config, device).step
    step(batch)
    step(batch)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_resident() - before


@pytest.mark.parametrize("kind", ["procedural", "real"])
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize(("preset", "size"), FIRST, ids=ids)
def test_training_step(compare, device, small, realdata, compiling, preset, size, n, kind) -> None:
    """One iteration: generator with feature matching, then discriminator; no perceptual term."""
    config, size = config_of(preset, small), shrunk(size, small)
    config = replace(config, crop_size=size[1], aspect_ratio=size[1] / size[0])
    data = batches_of(kind, preset, config, size, n, ROUNDS["step"], realdata)
    data = [move(batch, device) for batch in data]
    names = (*TRAINERS, "compile") if compiling else TRAINERS
    memory = {}
    if kind == "procedural":
        for name in names:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                memory[name] = pool.submit(peak_memory, name, config, size, n).result()
    ways = {name: trainer(name, config, device) for name in names}
    expected = gradients(ways["plain"], data[0])
    error = {name: distance(gradients(way, data[0]), expected) for name, way in ways.items() if name != "plain"}
    del expected
    where = {"preset": preset, "size": size, "batch": n, "map": kind, "dtype": "float32"}
    steps = {name: way.step for name, way in ways.items()}
    compare(steps, data, what="training step", error=error, memory=memory, **where)
