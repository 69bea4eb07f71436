"""Several processes training one system: joining them, averaging gradients, stopping together."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ._sharding import Sharded
from .models import Batch, Phase, System

T = TypeVar("T")


@contextmanager
def processes() -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did; yields the device of this one."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ:
        # Default arguments there hold the group that exists on import. Once there is none, a group ends when destroyed,
        # with its threads; else they go on while the interpreter shuts down, which sometimes aborts the process.
        import_module("torch.distributed.nn")
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    yield device
    if dist.is_initialized():  # not after an error: others may wait for this process, and torchrun ends them
        dist.barrier()  # the first still saves
        dist.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """Index of this process and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class PhaseModule(nn.Module):
    """The networks that a phase updates, with its loss as forward: what DistributedDataParallel wraps."""

    def __init__(self, system: System, phase: Phase) -> None:
        super().__init__()
        self.nets = nn.ModuleList(system.nets[name] for name in phase.nets)
        self.loss = phase.loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.loss(batch)


def loss_of(system: System, phase: Phase, sharded: Sharded | None) -> Callable[[Batch, bool], dict[str, Tensor]]:
    """The loss of `phase`. With several processes, its backward averages gradients over them, if the flag says so.

    Those of the batches before, without the flag, are averaged with them; those of `sharded` networks always are.
    """
    if sharded is not None:
        return lambda batch, average: sharded(partial(phase.loss, batch))
    if not dist.is_initialized():
        return lambda batch, average: phase.loss(batch)
    system.freeze_all_but(phase)
    # A broadcast of buffers would change what a forward before it is still to be differentiated with. They are alike
    # anyway, bar statistics that a norm does not synchronise. A parameter may be out of use in some steps.
    options = {"forward_sync_buffers": False, "find_unused_parameters": True, "gradient_as_bucket_view": True}
    module = DistributedDataParallel(PhaseModule(system, phase), **options)

    def loss(batch: Batch, average: bool) -> dict[str, Tensor]:
        with nullcontext() if average else module.no_sync():
            return module(batch)

    return loss


def in_any(flag: bool) -> bool:
    """Whether any process says so: all ask together."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor(flag, dtype=torch.int32)  # on the CPU: no wait for the device
    dist.all_reduce(flags)
    return bool(flags)


def while_all_have(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, until one process has no more: an epoch that is shorter there ends there for all."""
    iterator = iter(batches)
    while not in_any((batch := next(iterator, None)) is None):
        yield batch


def gather(value: T) -> list[T]:
    """`value` of every process, in order of rank, on the first one; on others their own. All call it together."""
    rank, world = rank_and_world()
    if world == 1:
        return [value]
    values = [value] * world if rank == 0 else None
    dist.gather_object(value, values)
    return values or [value]


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Note SIGINT and SIGTERM instead of dying of them; yields whether any process has had one: all ask together."""
    asked: list[int] = []
    before = {number: signal.signal(number, lambda n, _: asked.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: in_any(bool(asked))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
