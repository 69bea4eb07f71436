"""What every op shares: definition, second order, memory formats, and the formula's common parts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _backend

ACTIVATIONS = {"none": 1.0, "relu": 0.0}


# What each op's definition in PyTorch is: exported programs have this in the place of the op.
implementations: dict[str, Callable] = {}


def define(name: str, signature: str, implementation: Callable, fake: Callable) -> None:
    """Define `i2ifast::name`, implemented for every device by `implementation`, which does its own choice of
    backend."""
    _backend.lib.define(name + signature, tags=(torch.Tag.pt2_compliant_tag,))
    _backend.lib.impl(name, implementation, "CompositeExplicitAutograd")
    implementations[name] = implementation
    torch.library.register_fake(f"i2ifast::{name}", fake, lib=_backend.lib)


def autograd(name: str, setup: Callable, backward: Callable) -> None:
    torch.library.register_autograd(f"i2ifast::{name}", backward, setup_context=setup, lib=_backend.lib)


def second_order(name: str, gradient: Callable[..., Sequence[Tensor | None]]) -> None:
    """Make `i2ifast::name`, a backward op, differentiable by differentiating `gradient`, its definition in plain
    PyTorch.

    `gradient(*args)` takes the op's own arguments and returns its outputs as differentiable functions of them.
    """

    def setup(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.is_tensor = [isinstance(a, Tensor) for a in inputs]
        ctx.save_for_backward(*(a for a in inputs if isinstance(a, Tensor)))
        ctx.rest = [a for a in inputs if not isinstance(a, Tensor)]

    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        tensors, rest = iter(ctx.saved_tensors), iter(ctx.rest)
        args = [next(tensors) if is_tensor else next(rest) for is_tensor in ctx.is_tensor]
        wanted = [i for i, need in enumerate(ctx.needs_input_grad) if need]
        with torch.enable_grad():
            for i in wanted:
                args[i] = args[i].detach().requires_grad_()
            outputs = gradient(*args)
            pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o is not None and g is not None]
            pairs = [(o, g.to(o.dtype)) for o, g in pairs if o.requires_grad]
            found = torch.autograd.grad(
                [o for o, _ in pairs], [args[i] for i in wanted], [g for _, g in pairs], allow_unused=True
            )
        result: list[Tensor | None] = [None] * len(args)
        for i, grad in zip(wanted, found, strict=True):
            result[i] = grad
        return tuple(result)

    autograd(name, setup, backward)


def slope_of(act: str | float) -> float:
    """The slope for negative values: 'none' 1, 'relu' 0, a number for leaky_relu."""
    if isinstance(act, str):
        if act not in ACTIVATIONS:
            raise ValueError(f"act={act!r}: expected 'none', 'relu', or the slope of a leaky relu as a number")
        return ACTIVATIONS[act]
    return float(act)


def activate(z: Tensor, slope: float) -> Tensor:
    return z if slope == 1.0 else torch.nn.functional.leaky_relu(z, slope)


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float64 stays, everything else is computed in float32."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def memory_format(x: Tensor) -> torch.memory_format:
    """The dense layout that an output shaped like 4-d `x` takes: channels_last where x has it, else contiguous."""
    if x.is_contiguous():
        return torch.contiguous_format
    channels_last = x.is_contiguous(memory_format=torch.channels_last) or (x.stride(1) == 1 and x.size(1) > 1)
    return torch.channels_last if channels_last else torch.contiguous_format


def dense_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def refuse_forward_mode(*tensors: Tensor) -> None:
    """Custom ops drop the tangents of forward-mode differentiation without a word; this says it."""
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError("i2ifast's ops have no forward-mode derivatives (torch.func.jvp, dual numbers)")


def check_4d(name: str, x: Tensor) -> None:
    if x.dim() != 4:
        raise ValueError(f"{name}: expected a tensor [N, C, H, W], got shape {list(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {x.dtype}")
    refuse_forward_mode(x)


def check_shape(name: str, t: Tensor, expected: Sequence[int]) -> None:
    if list(t.shape) != list(expected):
        raise ValueError(f"{name} has shape {list(t.shape)}, expected {list(expected)}")


def check_device(x: Tensor, **others: Tensor | None) -> None:
    for name, t in others.items():
        if t is not None and t.device != x.device:
            raise ValueError(f"{name} is on {t.device}, x on {x.device}")
