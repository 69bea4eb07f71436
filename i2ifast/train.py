"""The training loop and its command line.

    python -m i2ifast.train SYSTEM --preset NAME --data DIR --steps N
    torchrun --nproc-per-node 8 -m i2ifast.train SYSTEM ...

An epoch gives every process the same number of batches, so that none waits for gradients that never come. Noise is a
function of (seed, step, process): a resumed run continues bit for bit.
"""

import argparse
import json
import random
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

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
from .data.images import Preprocess
from .data.labels import LabelDataset, Options, collate, folder
from .data.loader import loader
from .models import Batch, System

SHOWN = 4  # label maps in a sample grid
Batches = Callable[[int, int], Iterable[Batch]]  # (epoch, batches to skip) -> this process's batches of the epoch


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

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: must be at least 1")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}: must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train a system on a folder of label maps, photographs and, if it takes them, instance maps."""

    system: tyro.conf.Positional[str]
    preset: str | None = None
    """named options of the system; --config.* changes single ones"""
    data: Path
    """folder, for instance with train_label, train_img, train_inst and val_*"""
    loop: tyro.conf.OmitArgPrefixes[Loop]
    workers: int = 2
    """processes that load data"""
    dataset_mode: Literal["auto", "coco", "ade20k", "cityscapes", "celebamask", "deepfashion"] = "auto"
    """layout of the data folder"""
    load_size: int | None = None
    """side that images are resized to before the crop"""
    preprocess_mode: Preprocess | None = None
    """how images are resized and cropped; by default as the published models"""
    flip: bool = True
    """mirror half of the training images"""


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
    system: System, batches: Batches, loop: Loop, device: torch.device, header: Header, samples: Batch | None
) -> int:
    """Train `system` on `device` until `loop.steps` or a signal to stop; the last step, returned, is always saved.

    `header` (JSON) is stored in checkpoints, and one with another header is not resumed. `samples` is a batch to show.
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
                fake = averaged.translate(to_device(samples, device))["fake"]
            log.samples(state.step, samples["label"], fake, samples.get("image"))

    run_facts = header | {"options": options}
    run_log = RunLog(loop.out, run_facts, loop.steps, state.step, device) if rank == 0 else nullcontext()
    with run_log as log, stop_requests() as stop:
        done = state.step >= loop.steps
        while not done:
            before = state.step
            for batch in batches(state.epoch, state.seen // (loop.batch_size * world)):
                seed_step(loop.seed, state.step + 1, rank)
                state.set_learning_rates()
                batch = system.prepare(to_device(batch, device))
                for phase in system.phases:
                    if phase.when(state.step):
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


def datasets(arguments: Arguments, config: Any) -> tuple[LabelDataset, LabelDataset]:
    """What to train on and what to show: the held-out phase "val", else the training items without random crops."""
    names = ("dataset_mode", "load_size", "preprocess_mode", "flip")
    options = Options.of(config, **{name: getattr(arguments, name) for name in names})
    training = folder(arguments.data, "train", options, arguments.loop.seed)
    try:
        return training, folder(arguments.data, "val", options)
    except FileNotFoundError:
        return training, LabelDataset(training.files, options)


def run(arguments: Arguments, device: torch.device) -> int:
    """Train as the command line says; returns the last step."""
    loop, config = arguments.loop, vars(arguments.config)
    seed_step(loop.seed, 0, 0)  # constructors draw too: spectral norm its first vectors
    system = models.build(arguments.system, **config)
    if system.data != "labels":
        raise ValueError(f"{arguments.system} learns from {system.data}: this command reads folders of label maps only")
    training, held_out = datasets(arguments, system.config)
    rank, world = rank_and_world()
    plans = {"sizes": system.plan_sizes, "per_sample": system.plan_per_sample}
    to_batch = partial(collate, num_classes=system.config.num_classes, **plans)
    options = {"seed": loop.seed, "workers": arguments.workers, "rank": rank, "world_size": world}
    batches = loader(training, loop.batch_size, collate=to_batch, **options)
    batches.worker_init_fn = ignore_interrupts

    def epoch_batches(epoch: int, start: int) -> Iterable[Batch]:
        batches.batch_sampler.seek(epoch, start)
        return batches

    shown = [held_out[index] for index in range(min(SHOWN, len(held_out)))]
    samples = to_batch([item for item in shown if item["label"].shape == shown[0]["label"].shape])
    header = json.loads(json.dumps({"system": arguments.system, "config": config}))  # as it will be read
    return train(system, epoch_batches, loop, device, header, samples)


def parse(args: Sequence[str]) -> Arguments:
    """The command line; SYSTEM and --preset, read first, give the type and the defaults of --config."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("system", nargs="?")
    first.add_argument("--preset")
    known, _ = first.parse_known_args(args)
    kind = Arguments
    if known.system is not None:
        system = models.system(known.system)
        config = system.Config(**system.PRESETS.get(known.preset, {}))
        fields = [
            ("preset", Literal[tuple(system.PRESETS)] | None, None),
            ("config", system.Config, field(default_factory=lambda: config)),
        ]
        kind = make_dataclass("Arguments", fields, bases=(Arguments,), frozen=True, kw_only=True)
    presets = [f"{name}: {', '.join(models.system(name).PRESETS)}" for name in models.names()]
    description = f"{Arguments.__doc__}\n\nSystems and their presets:\n\n" + "\n".join(presets)
    return tyro.cli(kind, args=args, prog="python -m i2ifast.train", description=description)


def main(args: Sequence[str] | None = None) -> None:
    try:
        arguments = parse(sys.argv[1:] if args is None else args)
        with processes() as device:
            run(arguments, device)
    except (CheckpointError, NonFiniteLoss, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
