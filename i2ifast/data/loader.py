"""Batches in an order that depends on (seed, epoch) alone: sharded over ranks, resumable, whatever the workers."""

import multiprocessing
from collections.abc import Callable, Iterator, Sized
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from ._items import Items


class Batches(Sampler[list[tuple[int, int]]]):
    """Keys (epoch, index) of one rank's batches, `batch_size` per rank.

    The global batch of a step is the same for any number of ranks, which take every world_size-th item of it. All ranks
    get the same number of batches of the same sizes: with `drop_last` the incomplete global batch is left out; else it
    is filled up to a multiple of world_size with the first items of the epoch, so that only a single rank sees each
    item exactly once. With `drop_last` a data set smaller than one global batch is repeated, every repetition with
    draws of its own (its epoch number in the key), so that an epoch always has a batch.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        if len(dataset) < 1:
            raise ValueError("the data set is empty")
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size {batch_size}, rank {rank} of {world_size}: expected batches and ranks to exist"
            )
        self.items = len(dataset)
        self.total = batch_size * world_size
        self.repeats = -(-self.total // self.items) if drop_last else 1
        self.seed, self.rank, self.world_size, self.shuffle, self.drop_last = seed, rank, world_size, shuffle, drop_last
        self.seek(epoch, start)

    def seek(self, epoch: int, start: int = 0) -> None:
        """Continue with batch `start` of `epoch`; ValueError past its end."""
        if epoch < 0 or not 0 <= start <= self.per_epoch:
            raise ValueError(
                f"batch {start} of epoch {epoch}: expected batch 0 to {self.per_epoch} of epoch 0 or later"
            )
        self.epoch, self.start = epoch, start

    @property
    def per_epoch(self) -> int:
        """Batches of a whole epoch, whatever `start`."""
        items = self.items * self.repeats
        return items // self.total if self.drop_last else -(-items // self.total)

    def __len__(self) -> int:
        return self.per_epoch - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        keys: list[tuple[int, int]] = []
        for number in range(self.epoch * self.repeats, (self.epoch + 1) * self.repeats):
            order = np.arange(self.items)
            if self.shuffle:
                np.random.default_rng((self.seed, number)).shuffle(order)
            keys += [(number, int(index)) for index in order]
        for step in range(self.start, self.per_epoch):
            batch = keys[step * self.total : (step + 1) * self.total]
            batch += [keys[i % len(keys)] for i in range(-len(batch) % self.world_size)]
            yield batch[self.rank :: self.world_size]


def start_method(workers: int) -> BaseContext | None:
    """How loader processes start: clean (never forked from one with threads), and torch is imported once, if can be."""
    if not workers:
        return None
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def loader(
    dataset: Items, batch_size: int, workers: int = 0, collate: Callable[..., Any] | None = None, **order: Any
) -> DataLoader:
    """A DataLoader over `Batches(dataset, batch_size, **order)`; `.batch_sampler.seek(epoch, start)` before an epoch.

    Batches are `dataset.collate(items)`, unless `collate` is given.

    Workers stay alive between epochs and are started from a clean process, so the calling script needs the usual
    `if __name__ == "__main__"`. Batches are pinned where there is a CUDA device.
    """
    return DataLoader(
        dataset,
        batch_sampler=Batches(dataset, batch_size, **order),
        collate_fn=collate or dataset.collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context=start_method(workers),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else each epoch takes a number from the global one, and a resumed run one more
    )
