"""What is timed of a function: its forward, or forward and backward to all that has a gradient."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Outputs = Tensor | tuple[Tensor, ...]
Tensors = dict[str, Tensor]


def forward(function: Callable[..., Outputs], tensors: Tensors) -> Callable[[None], Outputs]:
    def run(_: None) -> Outputs:
        with torch.no_grad():
            return function(**tensors)

    return run


def both(function: Callable[..., Outputs], tensors: Tensors) -> Callable[[None], Outputs]:
    """Forward, and backward to every input of floating-point numbers and to the parameters of a module."""
    leaves = {k: t.detach().requires_grad_(t.is_floating_point()) for k, t in tensors.items()}
    wanted = [t for t in leaves.values() if t.requires_grad]
    wanted += [p for p in function.parameters() if p.requires_grad] if isinstance(function, nn.Module) else []

    def run(_: None) -> tuple[Tensor, ...]:
        outs = function(**leaves)
        outs = outs if isinstance(outs, tuple) else (outs,)
        return torch.autograd.grad(outs, wanted, [o.detach() for o in outs])

    return run


def in_layout(tensors: Tensors, layout: torch.memory_format) -> Tensors:
    return {k: t.contiguous(memory_format=layout) if t.dim() == 4 else t for k, t in tensors.items()}
