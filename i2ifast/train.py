"""The training loop and its command line.

    python -m i2ifast.train SYSTEM --preset NAME --data DIR --steps N
    torchrun --nproc-per-node 8 -m i2ifast.train SYSTEM ...

An epoch gives every process the same number of batches, so that none waits for gradients that never come. Noise is a
function of (seed, step, process): a resumed run continues bit for bit.
"""

import argparse
import inspect
import json
import random
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import tyro
from torch import Tensor

from . import _checkpoint, models
from ._checkpoint import CheckpointError, Header
from ._processes import loss_of, processes, rank_and_world, stop_requests
from ._runlog import Losses, NonFiniteLoss, RunLog
from ._state import State
from .data import kind
from .data._items import Items
from .data.loader import loader
from .models import Batch, System

ROWS = 4  # of a sample grid
Batches = Callable[[int, int], Iterable[Batch]]  # (epoch, batches to skip) -> this process's batches of the epoch


class Samples(NamedTuple):
    """A batch to show, with its translation: the tensors named are the columns of a grid."""

    batch: Batch
    shown: Sequence[str]


@dataclass(frozen=True)
class Loop:
    """Options of the loop, for any system and any data."""

    steps: int
    """iterations in all, those before a resume included"""
    out: Path = Path("runs/train")
    """run folder: checkpoints, log.jsonl, samples, index.html"""
    batch_size: int = 1
    """images per process and step"""
    seed: int = 0
    """of weights, noise, order and crops"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 is autocast with float32 weights; auto takes it on CUDA devices that have it"""
    ema_decay: float | None = None
    """of the averaged weights that samples and translations use; by default the system's"""
    log_every: int = 50
    """steps between lines of the log"""
    save_every: int = 1000
    """steps between checkpoints, each with a sample grid"""
    resume: bool = False
    """continue from the newest whole checkpoint in the run folder; start if there is none"""
    tensorboard: bool = False
    """write losses, speed and sample grids for TensorBoard too, in the run folder's tensorboard/"""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: must be at least 1")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}: must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train a system on a folder of images."""

    system: tyro.conf.Positional[str]
    preset: str | None = None
    """named options of the system; --config.* changes single ones"""
    data: Path
    """folder of the system's kind of data"""
    phase: str = "train"
    """the part of the data to learn from"""
    held_out: str = "val"
    """the part of the data to show translations of; where there is none they are of what it learns from"""
    loop: tyro.conf.OmitArgPrefixes[Loop]
    workers: int = 2
    """processes that load data"""
    cache: Path | None = None
    """folder for decoded photographs, which later epochs and runs read instead of the files"""


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make all random numbers of a step a function of (seed, step, rank)."""
    value = int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
    torch.manual_seed(value)  # CUDA too
    np.random.seed(value % 2**32)
    random.seed(value)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with whatever can move (tensors, label plans) on `device`, images in channels_last."""
    moved = {k: v.to(device, non_blocking=True) if hasattr(v, "to") else v for k, v in batch.items()}
    for name, value in moved.items():
        if isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point():
            moved[name] = value.contiguous(memory_format=torch.channels_last)
    return moved


def resume(state: State, folder: Path, header: Header, say: Callable[[str], None]) -> None:
    """Load the newest whole checkpoint of `folder`; raises CheckpointError if there is none with this `header`."""

    def load(tensors: dict[str, Tensor], found: Header) -> None:
        for key, value in header.items():
            if found[key] != value:
                raise ValueError(f"its {key} is {found[key]}, not {value}")
        state.load(tensors, found)

    path = _checkpoint.load_newest(folder, load, say)
    if dist.is_initialized():
        dist.barrier()  # all have read before one deletes
    if rank_and_world()[0] == 0:
        _checkpoint.forget_newer(path)
    say(f"resumed {path} at step {state.step}, epoch {state.epoch}")


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to autocast: as told, or wherever the device computes in bfloat16 natively."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16" or (precision == "auto" and native)


def train(
    system: System,
    batches: Batches,
    loop: Loop,
    device: torch.device,
    header: Header,
    samples: Samples | None = None,
) -> int:
    """Train `system` on `device` until `loop.steps` or a signal to stop; the last step, returned, is always saved.

    `header` (JSON) is stored in checkpoints, and one with another header is not resumed.
    Raises NonFiniteLoss for a loss that is NaN or infinite and CheckpointError for a checkpoint that cannot be used.
    """
    rank, world = rank_and_world()
    resuming = bool(_checkpoint.manifests(loop.out))
    if resuming and not loop.resume:
        raise CheckpointError(f"{loop.out} has checkpoints already: continue with --resume, or take another --out")
    if not resuming:
        seed_step(loop.seed, 0, 0)  # the same weights in every process, on every device and in every memory format
        system.init_weights()
    state = State(system.to(device, memory_format=torch.channels_last).train(), loop.ema_decay)
    if resuming:
        resume(state, loop.out, header, print if rank == 0 else lambda text: None)
    loss = {phase.name: loss_of(system, phase) for phase in system.phases}
    bf16 = use_bf16(loop.precision, device)
    options = {k: str(v) for k, v in vars(loop).items()} | {"device": str(device), "processes": world, "bf16": bf16}
    losses = Losses()

    def show_and_save(log: RunLog) -> None:
        _checkpoint.save(loop.out, state.step, state.tensors(), header | state.position)
        if samples is not None:
            with state.averaged() as averaged:
                found = samples.batch | averaged.translate(to_device(samples.batch, device))
            log.samples(state.step, [found[name] for name in samples.shown if name in found])

    run_facts = header | {"options": options, "shown": samples.shown if samples else ()}
    run_log = (
        RunLog(loop.out, run_facts, loop.steps, state.step, device, loop.tensorboard) if rank == 0 else nullcontext()
    )
    with run_log as log, stop_requests() as stop:
        done = state.step >= loop.steps
        while not done:
            before = state.step
            for batch in batches(state.epoch, state.seen // (loop.batch_size * world)):
                seed_step(loop.seed, state.step + 1, rank)
                state.set_learning_rates()
                batch = system.prepare(to_device(batch, device))
                for phase in system.phases:
                    if phase.when(state.step) and phase.epochs(state.epoch):
                        system.freeze_all_but(phase)
                        optimizer = state.optimizers[phase.name]
                        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                            terms = loss[phase.name](batch)
                        optimizer.zero_grad()
                        sum(terms.values()).backward()
                        optimizer.step()
                        if phase.after is not None:
                            phase.after()
                        losses.add(state.step + 1, phase.name, terms)
                state.step += 1
                state.seen += loop.batch_size * world
                state.average()

                done = stop() or state.step == loop.steps
                save = done or state.step % loop.save_every == 0
                if save or state.step % loop.log_every == 0:
                    means = losses.read()
                    if log:
                        log.log(state.step, state.epoch, means, loop.batch_size * world)
                if save and log:
                    with log.paused():
                        show_and_save(log)
                if done:
                    break
            else:
                if state.step == before and state.seen == 0:
                    raise ValueError(f"epoch {state.epoch} has no batch of {loop.batch_size} for {world} processes")
                state.epoch, state.seen = state.epoch + 1, 0
        if log and state.step < loop.steps:
            log.say(f"stopped at step {state.step} of {loop.steps}: --resume continues")
    return state.step


def ignore_interrupts(worker: int) -> None:
    """Let a loader process outlive the ctrl-C that a terminal sends to all: there is a step to finish."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def datasets(arguments: Arguments, system: System) -> tuple[Items, Items]:
    """What to train on, and what to show: what is held out, else the training items without random crops."""
    of_kind = kind(system.data)
    if not isinstance(arguments.options, of_kind.Options):
        raise ValueError(f"with these options {arguments.system} takes {system.data} data: choose a preset that does")
    settings, seed = of_kind.Settings.of(system, arguments.options), arguments.loop.seed
    training = of_kind.folder(arguments.data, arguments.phase, settings, seed, train=True)
    training = training.cached(arguments.cache) if arguments.cache else training
    try:
        return training, of_kind.folder(arguments.data, arguments.held_out, settings, seed)
    except FileNotFoundError:
        return training, of_kind.folder(arguments.data, arguments.phase, settings, seed)


def run(arguments: Arguments, device: torch.device) -> int:
    """Train as the command line says; returns the last step."""
    loop, config = arguments.loop, vars(arguments.config)
    seed_step(loop.seed, 0, 0)  # constructors draw too: spectral norm its first vectors
    system = models.build(arguments.system, **config)
    training, held_out = datasets(arguments, system)
    rank, world = rank_and_world()
    options = {"seed": loop.seed, "workers": arguments.workers, "rank": rank, "world_size": world}
    batches = loader(training, loop.batch_size, **options)
    batches.worker_init_fn = ignore_interrupts

    def epoch_batches(epoch: int, start: int) -> Iterable[Batch]:
        batches.batch_sampler.seek(epoch, start)
        return batches

    items = [held_out[index] for index in range(min(ROWS, len(held_out)))]
    shapes = [{name: value.shape for name, value in item.items() if isinstance(value, Tensor)} for item in items]
    samples = held_out.collate([item for item, shape in zip(items, shapes, strict=True) if shape == shapes[0]])
    header = json.loads(json.dumps({"system": arguments.system, "config": config}))  # as it will be read
    return train(system, epoch_batches, loop, device, header, Samples(samples, kind(system.data).SHOWN))


def summary(name: str) -> str:
    """A line about a system."""
    system = models.system(name)
    first = inspect.getmodule(system).__doc__.partition("\n")[0]
    return f"{first} [{system.data}; {', '.join(system.PRESETS)}]"


def parse(args: Sequence[str]) -> Arguments:
    """The command line; SYSTEM and --preset, read first, give the options of its kind of data and --config."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("system", nargs="?")
    first.add_argument("--preset")
    known, _ = first.parse_known_args(args)
    arguments = Arguments
    if known.system is not None:
        system = models.system(known.system)
        config = system.Config(**system.PRESETS.get(known.preset, {}))
        options = kind(system.data_of(config)).Options
        fields = [
            ("preset", Literal[tuple(system.PRESETS)] | None, None),
            ("options", tyro.conf.OmitArgPrefixes[options], field(default_factory=options)),
            ("config", system.Config, field(default_factory=lambda: config)),
        ]
        arguments = make_dataclass("Arguments", fields, bases=(Arguments,), frozen=True, kw_only=True)
    systems = "\n".join(f"  {name:13} {summary(name)}" for name in models.names())
    description = f"{Arguments.__doc__}\n\nSystems, their data and their presets:\n\n{systems}"
    return tyro.cli(arguments, args=args, prog="python -m i2ifast.train", description=description)


def main(args: Sequence[str] | None = None) -> None:
    try:
        arguments = parse(sys.argv[1:] if args is None else args)
        with processes() as device:
            run(arguments, device)
    except (CheckpointError, NonFiniteLoss, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
