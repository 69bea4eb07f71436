"""A forward whose graph several optimiser steps go through, as originals do that call backward with retain_graph.

The later ones meet weights that the earlier ones changed, while activations are still those of the forward. PyTorch
refused nothing when these were published; to train as they did, and without a forward per step, here it is allowed.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def recording(networks: Iterable[nn.Module]) -> saved_tensors_hooks:
    """A block in which graphs through `networks` are made that outlive changes of their parameters.

    Their parameters require gradients from now on, until the next phase freezes what it does not update.
    """
    for network in networks:
        network.requires_grad_(True)
    # What hooks keep has no version. Without detach an output that its own function keeps would hold that function, and
    # be held by it, for ever.
    return saved_tensors_hooks(Tensor.detach, lambda tensor: tensor)


class _Through(torch.autograd.Function):
    """Its backward is that of the graph behind `outputs`, to `leaves` only, and keeps it."""

    @staticmethod
    def forward(ctx: Any, outputs: list[Tensor], *leaves: Tensor) -> tuple[Tensor, ...]:
        ctx.outputs, ctx.leaves = outputs, leaves
        ctx.set_materialize_grads(False)
        return tuple(output.detach() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        reached = [(output, g) for output, g in zip(ctx.outputs, gradients, strict=True) if g is not None]
        outputs, gradients = zip(*reached, strict=True)
        return None, *torch.autograd.grad(outputs, ctx.leaves, gradients, retain_graph=True, allow_unused=True)


def through(outputs: dict[str, Tensor], leaves: Iterable[Tensor]) -> dict[str, Tensor]:
    """The outputs of a forward, with gradients for those of `leaves` that require them, and for nothing else.

    As often as one likes: the graph behind `outputs` stays until they go.
    """
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    names = [name for name, output in outputs.items() if output.requires_grad]
    found = _Through.apply([outputs[name] for name in names], *leaves)
    return outputs | dict(zip(names, found, strict=True))
