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


class AsItWas:
    """Context: a module has the parameters and buffers that it had when this was made, the same ones require gradients,
    and what is written to buffers is lost.

    So what is run again is what was run: spectral norm divides by what it did then, running statistics take no batch
    twice. Since then, another phase may have begun, or a functional_call ended.
    """

    def __init__(self, module: nn.Module) -> None:
        self.owners = [owner for owner in module.modules() if owner._parameters or owner._buffers]
        self.parameters = [dict(owner._parameters) for owner in self.owners]
        self.buffers = [copy.deepcopy(owner._buffers) for owner in self.owners]
        self.trained = [(parameter, parameter.requires_grad) for parameter in module.parameters()]

    def _swap(self) -> None:
        """Exchange what the module has and what is kept here."""
        for i, owner in enumerate(self.owners):
            owner._parameters, self.parameters[i] = self.parameters[i], owner._parameters
            owner._buffers, self.buffers[i] = self.buffers[i], owner._buffers
        self.trained, then = [(p, p.requires_grad) for p, _ in self.trained], self.trained
        for parameter, required in then:
            if parameter.is_leaf:
                parameter.requires_grad_(required)

    def __enter__(self) -> None:
        kept = copy.deepcopy(self.buffers)  # gradients of gradients come here twice
        self._swap()
        self.kept = kept

    def __exit__(self, *error: object) -> None:
        self._swap()
        self.buffers = self.kept


def forward(module: nn.Module, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`original`, keeping its arguments instead of its activations where there is something to differentiate."""
    if not torch.is_grad_enabled():
        return original(*args, **kwargs)
    if any(getattr(part, "inplace", False) for part in module.modules()):  # it may write to its arguments
        original = partial(of_copies, original)
    # All of it is run again, not only up to the last tensor in need: hooks behind the forward are to be run too.
    options = {"use_reentrant": False, "early_stop": False, "context_fn": lambda: (nullcontext(), AsItWas(module))}
    return checkpoint(original, *args, **options, **kwargs)


def of_copies(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`original` of copies of its tensors."""
    return original(*(arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args), **kwargs)


def recompute(nets: nn.Module) -> None:
    """Let the blocks of `nets` keep their arguments only, and not what they compute from them. In place."""
    for block in list(blocks(nets)):
        block.forward = partial(forward, block, block.forward)
