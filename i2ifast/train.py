"""The training loop and its command line.

    python -m i2ifast.train SYSTEM --preset NAME --data DIR --steps N
    torchrun --nproc-per-node 8 -m i2ifast.train SYSTEM ...

An epoch gives every process the same number of batches, so that none waits for gradients that never come. Noise is a
function of (seed, step, process): a resumed run continues bit for bit.
"""

import json
import random
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from . import _checkpoint, models
from ._activations import Activations
from ._arguments import Arguments, parse
from ._checkpoint import Best, CheckpointError, Header
from ._nonfinite import Place, Watch, source
from ._options import Loop
from ._processes import gather, in_any, loss_of, processes, rank_and_world, stop_requests, while_all_have
from ._recompute import recompute
from ._runlog import Losses, NonFiniteLoss, RunLog
from ._sharding import whole
from ._state import State
from ._update import Updater
from .data import kind
from .data._items import Items
from .data.loader import loader
from .models import Batch, Phase, System

ROWS = 4  # of a sample grid
Batches = Callable[[int, int], Iterable[Batch]]  # (epoch, batches to skip) -> this process's batches of the epoch


class Samples(NamedTuple):
    """A batch to show, with its translation: the tensors named are the columns of a grid."""

    batch: Batch
    shown: Sequence[str]


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


def resume(state: State, folder: Path, header: Header, say: Callable[[str], None]) -> Header:
    """Load the newest whole checkpoint of `folder`, and return all of its header.

    Raises CheckpointError if there is none with this `header`.
    """
    rank, world = rank_and_world()
    found: Header = {}

    def load(tensors: dict[str, Tensor], read: Header) -> None:
        for key, value in header.items():
            if read[key] != value:
                raise ValueError(f"its {key} is {read[key]}, not {value}")
        state.load(tensors, read)
        found.update(read)

    path = _checkpoint.load_newest(folder, load, say)
    if in_any(len(set(gather(state.step))) > 1):  # which they all ask: all have read before one deletes
        raise CheckpointError(f"{path}: is not what all processes found; do they see the same {folder}?")
    if rank == 0:
        _checkpoint.forget_newer(path)
    say(f"resumed {path} at step {state.step}, epoch {state.epoch}")
    if (before := found.get("processes", world)) != world:
        say(
            f"it is of {before} processes, and goes on with {world}: with other noise and other batches than it would "
            f"have had; what a process remembers, such as a pool of images, is that of process rank % {before} there"
        )
    return found


class Trainer:
    """A system, how far it has learnt, and all that a step takes."""

    def __init__(self, system: System, batches: Batches, loop: Loop, device: torch.device, header: Header) -> None:
        self.system, self.batches, self.loop, self.device, self.header = system, batches, loop, device, header
        self.rank, world = rank_and_world()
        self.images = loop.batch_size * world  # of a batch, over all processes
        if loop.shard and not dist.is_initialized():
            raise ValueError("shard is True, but there are no processes to split weights between: start torchrun")
        resuming = in_any(bool(_checkpoint.manifests(loop.out)))
        if resuming and not loop.resume:
            raise CheckpointError(f"{loop.out} has checkpoints already: continue with --resume, or take another --out")
        if not resuming:
            seed_step(loop.seed, 0, 0)  # the same weights in every process, on every device and in every memory format
            system.init_weights()
        half = loop.autocast(device)
        self.autocast = torch.autocast(device.type, half, enabled=half is not None)
        layout = torch.contiguous_format if loop.shard else torch.channels_last  # FSDP takes no other
        system.to(device, memory_format=layout).train()
        self.state = State(system, loop.ema_decay, half is torch.float16, loop.shard)
        found = resume(self.state, loop.out, header, print if self.rank == 0 else lambda text: None) if resuming else {}
        if loop.checkpoint_activations:
            recompute(system.nets)
        sharded = self.state.sharded[0] if loop.shard else None
        self.loss = {phase.name: loss_of(system, phase, sharded) for phase in system.phases}
        self.losses, self.watch, self.best = Losses(), Watch(device), Best(loop.best, found)
        self.updater = Updater(self.state, loop.clip_grad, self.watch)
        self.activations = Activations(system) if self.rank == 0 else None  # of the first step
        options = {name: str(value) for name, value in vars(loop).items()}
        self.options = options | {"device": str(device), "processes": world, "autocast": str(half)}

    @property
    def needs(self) -> str:
        """What a step takes, in words."""
        batches = "batch" if self.loop.accumulate == 1 else f"{self.loop.accumulate} batches"
        return f"{batches} of {self.loop.batch_size} for {rank_and_world()[1]} processes"

    @property
    def place(self) -> Place:
        """Of the next step."""
        return Place(self.state.step + 1, self.state.epoch, self.state.seen // self.images)

    def prepared(self, place: Place, batches: Iterable[Batch]) -> list[Batch]:
        """What a step learns from, on the device. All its random numbers follow."""
        seed_step(self.loop.seed, place.step, self.rank)
        return [self.system.prepare(to_device(batch, self.device)) for batch in batches]

    def step(self, batches: Sequence[Batch]) -> None:
        """An iteration: for each phase the mean of its gradients over the batches, then a step of its optimizer."""
        system, state, place = self.system, self.state, self.place
        state.set_learning_rates()
        batches = self.prepared(place, batches)
        moved: dict[str, Tensor] = {}
        for phase in system.phases:
            if phase.when(state.step) and phase.epochs(state.epoch):
                system.freeze_all_but(phase)
                state.optimizers[phase.name].zero_grad()
                for batch in batches:
                    counted = self.activations.during(phase.name) if self.activations else nullcontext()
                    with self.autocast, counted:
                        terms = self.loss[phase.name](batch, batch is batches[-1])
                    self.updater.backward(place, phase, sum(terms.values()) / len(batches))
                    self.losses.add(place.step, phase.name, terms)
                moved |= self.updater.step(place, phase)
                if phase.after is not None:
                    phase.after()
        state.step += 1
        state.seen += self.images * len(batches)
        state.average(moved)

    def source(self, place: Place, phase: Phase) -> str:
        """Run a step again up to `phase`, and say what in it is the first not to be finite."""
        try:
            batches = self.prepared(place, islice(self.batches(place.epoch, place.start), self.loop.accumulate))
            ran = [other for other in self.system.phases if other.when(place.step - 1) and other.epochs(place.epoch)]
            with whole(self.state.sharded):
                return source(self.system, ran[: ran.index(phase) + 1], batches, self.autocast)
        except Exception as error:  # whatever it is, it must not hide what is to be reported
            return f"a step that cannot be run again ({type(error).__name__}: {error})"

    def read_losses(self) -> dict[str, float]:
        """Means since the last call. Raises NonFiniteLoss, having run the step again to see where it comes from."""
        failure = ""
        try:
            means = self.losses.read()
        except NonFiniteLoss as error:
            failure = str(error)
        if first := self.watch.first():
            place, phase = first
            failure = failure or f"gradient of phase {phase.name} is not finite at step {place.step}; not saved since"
            failure += f"; run again, it comes from {self.source(place, phase)}"
        if failure:
            raise NonFiniteLoss(failure)
        self.best.add(means)
        return means

    def save(self) -> None:
        """Write a checkpoint. All processes call it together, the first writes."""
        memories = gather({name: buffer.cpu() for name, buffer in self.state.memory().items()})
        best = self.best.is_now()
        tensors = self.state.tensors(memories) if self.rank == 0 or self.loop.shard else {}
        if self.rank == 0:
            header = self.header | self.state.position | self.best.header
            _checkpoint.save(self.loop.out, self.state.step, tensors, header, self.loop.keep, best)

    def translate(self, batch: Batch) -> Batch:
        """The batch with its translation by averaged networks. All processes call it together."""
        with self.state.averaged() as averaged:
            return batch | averaged.translate(to_device(batch, self.device))


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
    Raises NonFiniteLoss for a loss or gradient that is NaN or infinite and CheckpointError for a checkpoint that cannot
    be used.
    """
    trainer = Trainer(system, batches, loop, device, header)
    state, images = trainer.state, trainer.images * loop.accumulate
    run_facts = header | {"options": trainer.options, "shown": samples.shown if samples else ()}
    first = trainer.rank == 0
    steps = loop.steps, state.step
    run_log = RunLog(loop.out, run_facts, *steps, device, loop.tensorboard) if first else nullcontext()
    with run_log as log, stop_requests() as stop:
        if log:
            log.memory(state.sizes(), "activations, which the first step tells, come on top")
        done = state.step >= loop.steps
        while not done:
            before = state.step
            of_epoch = while_all_have(batches(state.epoch, trainer.place.start))
            for some in zip(*[of_epoch] * loop.accumulate, strict=False):  # as many at a time; a rest is left out
                trainer.step(some)
                if log and (counted := trainer.activations):
                    sizes = state.sizes() | {f"activations, in phase {counted.phase}": counted.peak}
                    log.memory(sizes, f"{sum(sizes.values()) / 2**20:.4g} in all")
                trainer.activations = None
                done = stop() or state.step == loop.steps
                save = done or state.step % loop.save_every == 0
                if save or state.step % loop.log_every == 0:
                    means = trainer.read_losses()
                    if log:
                        log.log(state.step, state.epoch, means, images)
                if save:
                    with log.paused() if log else nullcontext():
                        trainer.save()
                        found = trainer.translate(samples.batch) if samples is not None and (log or loop.shard) else {}
                        if log and samples is not None:
                            log.samples(state.step, [found[name] for name in samples.shown if name in found])
                if done:
                    break
            else:
                if state.step == before and state.seen == 0:
                    raise ValueError(f"epoch {state.epoch} has no {trainer.needs}")
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
        sampler = batches.batch_sampler
        sampler.seek(epoch, min(start, sampler.per_epoch))  # further on with fewer processes than before
        return batches

    items = [held_out[index] for index in range(min(ROWS, len(held_out)))]
    shapes = [{name: value.shape for name, value in item.items() if isinstance(value, Tensor)} for item in items]
    samples = held_out.collate([item for item, shape in zip(items, shapes, strict=True) if shape == shapes[0]])
    header = json.loads(json.dumps({"system": arguments.system, "config": config}))  # as it will be read
    return train(system, epoch_batches, loop, device, header, Samples(samples, kind(system.data).SHOWN))


def main(args: Sequence[str] | None = None) -> None:
    try:
        arguments = parse(sys.argv[1:] if args is None else args)
        with processes() as device:
            run(arguments, device)
    except (CheckpointError, NonFiniteLoss, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
