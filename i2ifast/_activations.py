"""What forwards keep for backward: bytes, counted while it lives."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .models import System


class Kept:
    """A tensor that counts until autograd lets go of it."""

    def __init__(self, tensor: Tensor, activations: "Activations") -> None:
        self.tensor, self.activations = tensor, activations
        activations.add(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self.activations.add(self.tensor.untyped_storage(), -1)


class Activations:
    """Bytes that autograd keeps, those of tensors that share memory once, those of weights and buffers not at all.

    `peak` is the most that there was at a time, and `phase` the one that ran then.
    """

    def __init__(self, system: System) -> None:
        self.system, self.phase, self.running = system, "", ""
        self.users: Counter[int] = Counter()  # of the memory at an address
        self.now = self.peak = 0

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count what forwards within the block keep, until a backward, or whatever, is through with it."""
        self.running, lasting = phase, set()

        def pack(tensor: Tensor) -> Tensor | Kept:
            if not lasting:  # not before: weights that are split are whole by now
                tensors = (*self.system.parameters(), *self.system.buffers())
                lasting.update(each.untyped_storage().data_ptr() for each in tensors)
            counts = tensor.layout is torch.strided and tensor.untyped_storage().data_ptr() not in lasting
            return Kept(tensor, self) if counts else tensor

        with saved_tensors_hooks(pack, lambda kept: kept.tensor if isinstance(kept, Kept) else kept):
            yield

    def add(self, memory: torch.UntypedStorage, change: int) -> None:
        """Note that `memory` has a user more, or less."""
        address = memory.data_ptr()
        before = self.users[address] > 0
        self.users[address] += change
        self.now += memory.nbytes() * ((self.users[address] > 0) - before)
        if self.now > self.peak:
            self.peak, self.phase = self.now, self.running
