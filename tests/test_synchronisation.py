"""A training step asks a device for nothing: on a GPU the host would wait for it, and the GPU then for the host."""

import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from test_models import OF_LABELS, label_batch, tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from i2ifast import labels
from i2ifast.models import Batch, System

# What returns a value, or a tensor whose size depends on values.
METHODS = (
    "item",
    "tolist",
    "numpy",
    "nonzero",
    "unique",
    "masked_select",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
)
OPERATIONS = (
    "_local_scalar_dense",
    "nonzero",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "masked_select",
    "equal",
)
BOOLEAN = (torch.bool, torch.uint8)


def caller() -> str:
    """The innermost line of the library that is being run."""
    frames = [f for f in traceback.extract_stack() if "/i2ifast/" in f.filename or "/kernels/" in f.filename]
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}: {frames[-1].line}" if frames else "torch"


class Waits(TorchDispatchMode):
    """Records where the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = function._schema.name.rpartition(":")[2]
        masks = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in OPERATIONS or any(isinstance(m, Tensor) and m.dtype in BOOLEAN for m in masks):
            self.found.add(f"{name} in {caller()}")
        return function(*args, **(kwargs or {}))


def recorded(name: str, found: set[str]) -> Callable:
    """Tensor's method `name`, which notes its callers."""
    of = getattr(Tensor, name)

    def method(self: Tensor, *args: Any, **options: Any) -> Any:
        found.add(f"{name} in {caller()}")
        return of(self, *args, **options)

    return method


@contextmanager
def waits() -> Iterator[set[str]]:
    """Fills a set with the places in the block where the host would wait for a device."""
    with Waits() as mode, pytest.MonkeyPatch.context() as patch:
        for name in METHODS:  # inside of the library's own operations the mode sees nothing
            patch.setattr(Tensor, name, recorded(name, mode.found))
        yield mode.found


def batch_of(system: System) -> Batch:
    """As a loader's worker hands it over: with a label plan that has its levels."""
    config, batch = system.config, label_batch(system.config, system.config.size)
    instances = batch["instance"] if getattr(config, "instance", False) else None
    plan = labels.plan(batch["label"], config.num_classes, instances=instances)
    plan = plan.per_sample() if system.plan_per_sample else plan
    plan.precompute(system.plan_sizes, windows=system.plan_windows)
    return batch | {"plan": pickle.loads(pickle.dumps(plan))}


@pytest.mark.parametrize("name", ["clade", "sean", "spade"])
def test_a_step_does_not_wait(name: str) -> None:
    assert name in OF_LABELS
    system = tiny(name).train()
    batch = batch_of(system)
    with waits() as found:
        batch = system.prepare(batch)
        for phase in system.phases:
            system.freeze_all_but(phase)
            sum(phase.loss(batch).values()).backward()
    assert not found, "\n".join(sorted(found))


def test_waits_are_seen() -> None:
    x = torch.arange(3.0)
    for wait in (lambda: x.sum().item(), lambda: bool(x[0] > 0), lambda: x[x > 1], lambda: torch.nonzero(x)):
        with waits() as found:
            wait()
        assert found
