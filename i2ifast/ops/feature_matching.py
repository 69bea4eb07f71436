"""Distances between feature maps, all layers at once: feature matching and perceptual losses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _backend
from ._op import accumulation_dtype, autograd, define, memory_format, refuse_forward_mode

Tensors = list[Tensor]


def _pairs(features: Tensors, others: Tensors) -> list[tuple[Tensor, Tensor]]:
    """(fake, real) of every layer: two tensors, or the halves of one."""
    if others:
        return list(zip(features, others, strict=True))
    return [(x[: x.size(0) // 2], x[x.size(0) // 2 :]) for x in features]


def _layout(x: Tensor) -> torch.memory_format:
    return memory_format(x) if x.dim() == 4 else torch.contiguous_format


def _rows(x: Tensor, layout: torch.memory_format) -> Tensor:
    """x as [N, elements of a sample], these in the order that `layout` has them in memory."""
    return (x.movedim(1, -1) if layout is torch.channels_last else x).flatten(1)


def reference_forward(features: Tensors, others: Tensors, weights: Sequence[float]) -> Tensor:
    distances = []
    for (fake, real), weight in zip(_pairs(features, others), weights, strict=True):
        wide = accumulation_dtype(fake)
        distances.append(weight * (fake.to(wide) - real.detach().to(wide)).abs().flatten(1).mean(1))
    return torch.stack(distances).sum(0)


def reference_signs(features: Tensors, others: Tensors) -> Tensor:
    """Signs of fake - real, one layer after the other, in the order of memory."""
    pairs = zip(_pairs(features, others), map(_layout, features), strict=True)
    return torch.cat(
        [_rows((f > r).to(torch.int8) - (f < r).to(torch.int8), layout).flatten() for (f, r), layout in pairs]
    )


def reference_backward(dy: Tensor, signs: Tensor, features: Tensors, weights: Sequence[float]) -> Tensors:
    gradients = [torch.zeros_like(x, memory_format=_layout(x)) for x in features]
    rows = [_rows(dx[: len(dy)], _layout(x)) for dx, x in zip(gradients, features, strict=True)]
    for row, sign, weight in zip(rows, signs.split([row.numel() for row in rows]), weights, strict=True):
        row.copy_(sign.view(row.shape) * (dy * weight / max(1, row.size(1)))[:, None])
    return gradients


def _runs_on(kernel: str, features: Tensors) -> str:
    """The backend: the reference where the layers do not agree on one, and where there is nothing to do."""
    kinds = {(x.dtype, x.device): x for x in features}
    found = {_backend.choose("feature_matching", kernel, x) for x in kinds.values()}
    return found.pop() if len(found) == 1 and all(x.numel() for x in features) else "reference"


def _empty(features: Tensors, others: Tensors, weights: Sequence[float], signed: bool) -> tuple[Tensor, Tensor]:
    first, halves = features[0], 1 if others else 2
    count = sum(x.numel() // halves for x in features) if signed else 0
    distances = first.new_empty(first.size(0) // halves, dtype=accumulation_dtype(first))
    return distances, first.new_empty(count, dtype=torch.int8)


def _forward(features: Tensors, others: Tensors, weights: Sequence[float], signed: bool) -> tuple[Tensor, Tensor]:
    distances, signs = _empty(features, others, weights, signed)
    backend = _runs_on("feature_matching", features)
    if backend == "reference":
        distances = reference_forward(features, others, weights).to(distances.dtype)
        return distances, reference_signs(features, others) if signed else signs
    layouts = [_layout(x) for x in features]
    features, others = (
        [x.contiguous(memory_format=f) for x, f in zip(t, layouts, strict=False)] for t in (features, others)
    )
    fakes, reals = zip(*_pairs(features, others), strict=True)
    _backend.kernel(backend, "feature_matching", "feature_matching")(fakes, reals, weights, distances, signs)
    return distances, signs


def _backward(dy: Tensor, signs: Tensor, features: Tensors, weights: Sequence[float]) -> Tensors:
    backend = _runs_on("feature_matching_backward", features)
    if backend == "reference":
        return reference_backward(dy, signs, features, weights)
    gradients = _gradients_fake(dy, signs, features, weights)
    kernel = _backend.kernel(backend, "feature_matching", "feature_matching_backward")
    kernel(dy.contiguous(), signs, weights, gradients)
    return gradients


def _gradients_fake(dy: Tensor, signs: Tensor, features: Tensors, weights: Sequence[float]) -> Tensors:
    return [torch.empty_like(x, memory_format=_layout(x)) for x in features]


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    features, others, ctx.weights, ctx.signed = inputs
    ctx.others = len(others)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *features)


def _autograd(ctx: Any, dy: Tensor, _: None) -> tuple:
    signs, *features = ctx.saved_tensors
    gradients = torch.ops.i2ifast.feature_matching_backward(dy, signs, features, ctx.weights)
    return gradients, [None] * ctx.others, None, None


def _setup_backward(ctx: Any, inputs: tuple, output: Tensors) -> None:
    dy, signs, features, ctx.weights = inputs
    ctx.count, ctx.layouts = dy.size(0), [_layout(x) for x in features]
    ctx.save_for_backward(signs)


def _second_order(ctx: Any, grads: Tensors) -> tuple:
    """The gradients are linear in dy, and signs are constant: there is no more to differentiate."""
    rows = [_rows(g[: ctx.count], layout) for g, layout in zip(grads, ctx.layouts, strict=True)]
    signs, total = ctx.saved_tensors[0].split([row.numel() for row in rows]), 0
    for row, sign, weight in zip(rows, signs, ctx.weights, strict=True):
        wide = row.to(accumulation_dtype(row))
        total = total + (wide * sign.view(row.shape)).sum(1) * weight / max(1, row.size(1))
    return total, None, [None] * len(grads), None


define(
    "feature_matching",
    "(Tensor[] features, Tensor[] others, float[] weights, bool signed) -> (Tensor, Tensor)",
    _forward,
    _empty,
)
define(
    "feature_matching_backward",
    "(Tensor dy, Tensor signs, Tensor[] features, float[] weights) -> Tensor[]",
    _backward,
    _gradients_fake,
)
autograd("feature_matching", _setup, _autograd)
autograd("feature_matching_backward", _setup_backward, _second_order)


def feature_matching(
    fake: Sequence[Tensor], real: Sequence[Tensor] | None = None, weights: Sequence[float] | None = None
) -> Tensor:
    """y[n] = sum over layers k of weights[k] * mean |fake[k][n] - real[k][n]|, with gradients of fake only

    fake, real: feature maps [N, ...] of any sizes, one per layer; y [N], float32 (float64 for float64). Without `real`
    every tensor of `fake` is a batch [2N, ...] whose second half is the real one: its gradient, zeros there, is then
    written in one piece. weights default to 1. The forward keeps a byte per element, the sign of the difference, and
    that is all the backward reads. Second derivatives are zero.
    Raises ValueError for numbers of layers, shapes or devices that do not fit.
    """
    fake, real = list(fake), list(real or ())
    weights = [1.0] * len(fake) if weights is None else list(weights)
    for name, given in (("real", real or fake), ("weights", weights)):
        if not fake or len(given) != len(fake):
            raise ValueError(f"{name} has {len(given)} layers, fake {len(fake)}: expected as many, and one at least")
    refuse_forward_mode(*fake)
    samples, device = fake[0].size(0), fake[0].device
    for i, x in enumerate(fake):
        if x.size(0) != samples or samples % 2 and not real:
            even = "" if real else ", and an even number"
            raise ValueError(f"layer {i} has {x.size(0)} samples: expected {samples}{even}")
        if real and real[i].shape != x.shape:
            raise ValueError(f"layer {i}: real has shape {list(real[i].shape)}, fake {list(x.shape)}")
        if x.device != device or real and real[i].device != device:
            raise ValueError(f"layer {i}: expected fake and real on {device}")
    real = [r.detach().to(x.dtype) for x, r in zip(fake, real, strict=False)]
    signed = torch.is_grad_enabled() and any(x.requires_grad for x in fake)
    return torch.ops.i2ifast.feature_matching(fake, real, weights, signed)[0]
