"""What is not finite, and where it comes from: noted on the device, looked for only once it happened."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ._processes import gather
from .models import Batch, Phase, System


class Place(NamedTuple):
    """A step, counted from 1, and where its batches are: epoch, and how many come before them there."""

    step: int
    epoch: int
    start: int


class Watch:
    """Losses and norms of gradients, left on the device until `first`, so that no step waits for them.

    After the first that is not finite no fused optimizer changes a weight: the step can be run again as it was, bar the
    phases before.
    """

    def __init__(self, device: torch.device) -> None:
        self.values: list[tuple[Place, Phase, Tensor]] = []  # in order of execution
        self.found = torch.zeros((), device=device)  # 1 from then on

    def add(self, place: Place, phase: Phase, value: Tensor) -> Tensor:
        """Note a loss or a norm; returns `found`."""
        self.values.append((place, phase, value.float()))
        self.found = torch.maximum(self.found, (~value.isfinite()).to(self.found))
        return self.found

    def first(self) -> tuple[Place, Phase] | None:
        """Where the first one since the last call is, if there is one."""
        values, self.values = self.values, []
        finite = torch.stack([value for *_, value in values]).isfinite().tolist() if values else []
        return next((values[i][:2] for i, fine in enumerate(finite) if not fine), None)


def source(system: System, phases: Sequence[Phase], batches: Sequence[Batch], autocast: AbstractContextManager) -> str:
    """Run `phases` again, without steps, and say what in the last one is the first not to be finite, in any process.

    That is an input, else the output of a module, else the gradient of one. All processes call it together, and run it
    to its end: they wait for each other in synchronised norms.
    """
    found: dict[str, str] = {}  # by kind

    def note(kind: str, name: str, tensor: Tensor) -> None:
        if kind not in found and not tensor.isfinite().all():
            found[kind] = f"{kind} {name}"

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            called = f"{name} ({type(module).__name__})"
            for tensor in tree_leaves(output):
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    note("the output of", called, tensor)
                    if tensor.requires_grad:
                        tensor.register_hook(lambda gradient: note("the gradient at the output of", called, gradient))

        return hook

    hooks = [module.register_forward_hook(hook_of(name)) for name, module in system.named_modules() if name]
    try:
        for batch in batches:
            for name, value in batch.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    note("the input", f"{name} of {', '.join(map(str, batch.get('path', [])))}", value)
        for phase in phases:
            system.freeze_all_but(phase)
            for batch in batches:
                with autocast:
                    loss = sum(phase.loss(batch).values())
                if phase is phases[-1]:
                    loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    of_ranks = gather(found)
    for kind in ("the input", "the output of", "the gradient at the output of"):
        for rank, of_rank in enumerate(of_ranks):
            if kind in of_rank:
                return of_rank[kind] + (f" in process {rank}" if rank else "")
    return "in no module: all inputs, outputs and their gradients are finite"
