"""Spectral normalisation of a weight: power iteration and division by the norm are one op, their backward another."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _backend
from ._op import accumulation_dtype, autograd, check_device, check_shape, define, memory_format, second_order


def reference_forward(
    weight: Tensor, u: Tensor, v: Tensor, iterations: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Autocast would take the products of a float32 weight in half precision.
    with torch.autocast(weight.device.type, enabled=False):
        matrix = weight.flatten(1).to(accumulation_dtype(weight))
        new_u, new_v = u.to(matrix.dtype), v.to(matrix.dtype)
        with torch.no_grad():
            for _ in range(iterations):
                new_v = F.normalize(matrix.t().mv(new_u), dim=0, eps=eps)
                new_u = F.normalize(matrix.mv(new_v), dim=0, eps=eps)
        sigma = new_u.dot(matrix.mv(new_v))
        y = (matrix / sigma).view(weight.shape).to(weight.dtype)
        return y, new_u.to(u.dtype, copy=True), new_v.to(v.dtype, copy=True), sigma


def reference_backward(dy: Tensor, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    dy_rows, matrix = dy.flatten(1).to(sigma.dtype), weight.flatten(1).to(sigma.dtype)
    along = (dy_rows * matrix).sum() / sigma
    dweight = (dy_rows - along * torch.outer(u, v).to(sigma.dtype)) / sigma
    return dweight.view(weight.shape).to(weight.dtype)


def _layout(weight: Tensor) -> torch.memory_format:
    return memory_format(weight) if weight.dim() == 4 else torch.contiguous_format


def _as_in_memory(t: Tensor, layout: torch.memory_format) -> Tensor:
    """t [..., I, kh, kw], contiguous, its dimensions in the order that `layout` has them in memory."""
    return (t.movedim(-3, -1) if layout is torch.channels_last else t).contiguous()


def _as_named(t: Tensor, layout: torch.memory_format) -> Tensor:
    """The inverse of `_as_in_memory`, without a copy."""
    return t.movedim(-1, -3) if layout is torch.channels_last else t


def _runs_on(kernel: str, weight: Tensor, u: Tensor, v: Tensor) -> str:
    """The backend: the reference takes other types than float32, and weights without elements."""
    backend = _backend.choose("spectral_weight", kernel, weight)
    simple = weight.numel() > 0 and weight.dtype is u.dtype is v.dtype is torch.float32
    return backend if simple else "reference"


def _forward(
    weight: Tensor, u: Tensor, v: Tensor, iterations: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layout, backend = _layout(weight), _runs_on("spectral_weight", weight, u, v)
    if backend == "reference":
        y, *rest = reference_forward(weight, u, v, iterations, eps)
        return y.contiguous(memory_format=layout), *rest
    weight, v = (_as_in_memory(t, layout) for t in (weight, v.reshape(weight.shape[1:])))
    y, new_u, new_v, sigma = torch.empty_like(weight), torch.empty_like(u), torch.empty_like(v), u.new_empty(())
    _backend.kernel(backend, "spectral_weight", "spectral_weight")(
        weight, u.contiguous(), v, iterations, eps, y, new_u, new_v, sigma
    )
    return _as_named(y, layout), new_u, _as_named(new_v, layout).reshape(-1), sigma


def _forward_fake(weight: Tensor, u: Tensor, v: Tensor, iterations: int, eps: float) -> tuple[Tensor, ...]:
    y = torch.empty_like(weight, memory_format=_layout(weight))
    return y, torch.empty_like(u), torch.empty_like(v), weight.new_empty((), dtype=accumulation_dtype(weight))


def _backward(dy: Tensor, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    layout, backend = _layout(weight), _runs_on("spectral_weight_backward", weight, u, v)
    if backend == "reference":
        return reference_backward(dy, weight, u, v, sigma).contiguous(memory_format=layout)
    dy, weight, v = (_as_in_memory(t, layout) for t in (dy, weight, v.reshape(weight.shape[1:])))
    dweight = torch.empty_like(weight)
    _backend.kernel(backend, "spectral_weight", "spectral_weight_backward")(
        dy, weight, u.contiguous(), v, sigma, dweight
    )
    return _as_named(dweight, layout)


def _gradient(dy: Tensor, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor) -> tuple[Tensor]:
    # sigma = sum of W * u v^T is a function of the weight: the value handed in is a constant.
    sigma = (weight.flatten(1).to(sigma.dtype) * torch.outer(u, v).to(sigma.dtype)).sum()
    return (reference_backward(dy, weight, u, v, sigma),)


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], *output[1:])


def _autograd(ctx: Any, dy: Tensor | None, *constants: None) -> tuple:
    dweight = None if dy is None else torch.ops.i2ifast.spectral_weight_backward(dy, *ctx.saved_tensors)
    return dweight, None, None, None, None


define(
    "spectral_weight",
    "(Tensor weight, Tensor u, Tensor v, int iterations, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
define(
    "spectral_weight_backward",
    "(Tensor dy, Tensor weight, Tensor u, Tensor v, Tensor sigma) -> Tensor",
    _backward,
    lambda dy, weight, u, v, sigma: torch.empty_like(weight, memory_format=_layout(weight)),
)
autograd("spectral_weight", _setup, _autograd)
second_order("spectral_weight_backward", _gradient)


def spectral_weight(
    weight: Tensor, u: Tensor, v: Tensor, iterations: int = 1, eps: float = 1e-12
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Divide a weight by its spectral norm, as estimated by power iteration (Miyato et al. 2018).

    With W = weight as a matrix [O, I] and normalize(t) = t / max(|t|, eps): `iterations` times v = normalize(W^T u),
    u = normalize(W v); then sigma = u . (W v). Returns (weight / sigma, u, v, sigma), none of them sharing memory with
    the arguments; `iterations = 0` takes u and v as they are.

    weight [O, ...] of two dimensions or more; u [O]; v [I], in the order of the elements of weight[0]. The first result
    has the layout of the weight, sigma [] is float32 (float64 for float64).
    Gradients of the weight, of any order, go through sigma; u, v and sigma are constants:
    dweight = (dy - <dy, weight / sigma> u v^T) / sigma.
    Raises ValueError for shapes, devices or iterations that do not fit, TypeError for a weight of integers.
    """
    if weight.dim() < 2:
        raise ValueError(f"weight: expected two dimensions or more, got shape {list(weight.shape)}")
    if not weight.is_floating_point():
        raise TypeError(f"weight: expected a floating-point tensor, got {weight.dtype}")
    if iterations < 0:
        raise ValueError(f"iterations={iterations}: expected 0 or more")
    check_shape("u", u, (weight.size(0),))
    check_shape("v", v, (weight[0].numel() if weight.size(0) else v.numel(),))
    check_device(weight, u=u, v=v)
    return torch.ops.i2ifast.spectral_weight(weight, u, v, iterations, eps)
