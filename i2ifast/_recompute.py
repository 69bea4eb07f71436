"""Activations within blocks, computed once more for gradients instead of kept: less memory for more time."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # they have no forward


def blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules of `net` that repeat: those with children of their own and a sibling of their class."""
    kinds = Counter(type(child) for child in net.children())
    for child in net.children():
        if kinds[type(child)] > 1 and any(child.children()) and not isinstance(child, CONTAINERS):
            yield child
        else:
            yield from blocks(child)


class WithBuffers:
    """Context: a module has its buffers as they were when this was made, and what is written to them is lost.

    So what is run again is what was run: spectral norm divides by what it did then, running statistics take no batch
    twice.
    """

    def __init__(self, module: nn.Module) -> None:
        self.owners = [owner for owner in module.modules() if owner._buffers]
        self.then = [copy.deepcopy(owner._buffers) for owner in self.owners]

    def __enter__(self) -> None:
        self.now = [owner._buffers for owner in self.owners]
        for owner, buffers in zip(self.owners, self.then, strict=True):
            owner._buffers = copy.deepcopy(buffers)  # gradients of gradients come here twice

    def __exit__(self, *error: object) -> None:
        for owner, buffers in zip(self.owners, self.now, strict=True):
            owner._buffers = buffers


def forward(module: nn.Module, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`original`, keeping its arguments instead of its activations where there is something to differentiate."""
    if not torch.is_grad_enabled():
        return original(*args, **kwargs)
    # All of it is run again, not only up to the last tensor in need: hooks behind the forward are to be run too.
    options = {"use_reentrant": False, "early_stop": False, "context_fn": lambda: (nullcontext(), WithBuffers(module))}
    return checkpoint(original, *args, **options, **kwargs)


def recompute(nets: nn.Module) -> None:
    """Let the blocks of `nets` keep their arguments only, and not what they compute from them. In place."""
    for block in list(blocks(nets)):
        block.forward = partial(forward, block, block.forward)
