"""Modulation by dense maps: SPADE's dense path, FADE, positional normalisation."""

import torch
from torch import Tensor

from .. import _backend
from . import _modulation as m
from ._op import (
    accumulation_dtype,
    activate,
    autograd,
    check_4d,
    check_device,
    check_shape,
    define,
    dense_like,
    memory_format,
    second_order,
    slope_of,
)
from .moments import Statistics, no_statistics


def reference_forward(x: Tensor, gamma_beta: Tensor, mean: Tensor, rstd: Tensor, slope: float) -> Tensor:
    xhat = m.normalise(x, mean, rstd)
    gamma, beta = gamma_beta.to(xhat.dtype).chunk(2, 1)
    return activate(xhat * (1 + gamma) + beta, slope).to(x.dtype)


def _gradients(dy, x, gamma_beta, mean, rstd, slope):
    xhat = m.normalise(x, mean, rstd)
    gamma, beta = gamma_beta.to(xhat.dtype).chunk(2, 1)
    dz = m.activation_gradient(dy.to(xhat.dtype), xhat * (1 + gamma) + beta, slope)
    return xhat, dz * (1 + gamma), dz


def reference_sums(dy, x, gamma_beta, mean, rstd, slope) -> tuple[Tensor, Tensor]:
    """d_gamma_beta [N, 2C, H, W] and sums [2, G, C] of g and g * xhat."""
    xhat, g, dz = _gradients(dy, x, gamma_beta, mean, rstd, slope)
    return torch.cat([dz * xhat, dz], 1).to(gamma_beta.dtype), torch.stack(m.statistics_sums(g, xhat, mean.size(0)))


def reference_dx(dy, x, gamma_beta, mean, rstd, means, slope) -> Tensor:
    xhat, g, _ = _gradients(dy, x, gamma_beta, mean, rstd, slope)
    return m.normalise_gradient(g, xhat, rstd, means).to(x.dtype)


def _each(gamma_beta: Tensor, gamma_beta2: Tensor | None, slope: float, slope2: float) -> list[tuple[Tensor, float]]:
    """(gamma and beta, slope) of every output."""
    return [(gamma_beta, slope)] if gamma_beta2 is None else [(gamma_beta, slope), (gamma_beta2, slope2)]


def _forward(x, gamma_beta, gamma_beta2, mean, rstd, of_x, slope, slope2, group):
    layout = memory_format(x)
    backend = _backend.choose("modulate", "modulate", x)
    if backend == "reference" or x.numel() == 0:

        def one(by: Tensor, slope: float) -> Tensor:
            return reference_forward(x, by, mean, rstd, slope).contiguous(memory_format=layout)

    else:
        dense = x.contiguous(memory_format=layout)

        def one(by: Tensor, slope: float) -> Tensor:
            y, by = torch.empty_like(dense), by.contiguous(memory_format=layout)
            _backend.kernel(backend, "modulate", "modulate")(dense, by, mean, rstd, slope, y)
            return y

    ys = [one(*each) for each in _each(gamma_beta, gamma_beta2, slope, slope2)]
    return ys[0], ys[1] if gamma_beta2 is not None else x.new_empty(0)


def _forward_fake(x, gamma_beta, gamma_beta2, *rest):
    return dense_like(x), dense_like(x) if gamma_beta2 is not None else x.new_empty(0)


def _backward(dy, dy2, x, gamma_beta, gamma_beta2, mean, rstd, of_x, slope, slope2, group):
    layout = memory_format(x)
    backend = _backend.choose("modulate", "modulate_dx", x)
    x, dy = x.contiguous(memory_format=layout), dy.contiguous(memory_format=layout)
    dys = [dy] if dy2 is None else [dy, dy2.contiguous(memory_format=layout)]
    each = [(by.contiguous(memory_format=layout), s) for by, s in _each(gamma_beta, gamma_beta2, slope, slope2)]
    if backend == "reference" or x.numel() == 0:
        pairs = [reference_sums(d, x, by, mean, rstd, s) for d, (by, s) in zip(dys, each, strict=True)]
    else:
        pairs = []
        for d, (by, s) in zip(dys, each, strict=True):
            d_by, sums = torch.empty_like(by), x.new_empty((2, *mean.shape), dtype=accumulation_dtype(x))
            _backend.kernel(backend, "modulate", "modulate_sums")(d, x, by, mean, rstd, s, d_by, sums)
            pairs.append((d_by, sums))
    means = m.mean_of_sums(sum(sums for _, sums in pairs), x, of_x, group)
    dx = None
    for d, (by, s) in zip(dys, each, strict=True):
        if backend == "reference" or x.numel() == 0:
            part = reference_dx(d, x, by, mean, rstd, means, s)
        else:
            part = torch.empty_like(x)
            _backend.kernel(backend, "modulate", "modulate_dx")(d, x, by, mean, rstd, means, s, part)
        dx, means = part if dx is None else dx + part, torch.zeros_like(means)  # the statistics' share once
    d_bys = [d_by.contiguous(memory_format=layout) for d_by, _ in pairs]
    return dx.contiguous(memory_format=layout), d_bys[0], d_bys[1] if dy2 is not None else x.new_empty(0)


def _backward_fake(dy, dy2, x, gamma_beta, gamma_beta2, *rest):
    d_by = torch.empty_like(gamma_beta, memory_format=memory_format(x))
    return dense_like(x), d_by, torch.empty_like(d_by) if gamma_beta2 is not None else x.new_empty(0)


def _gradient(dy, dy2, x, gamma_beta, gamma_beta2, mean, rstd, of_x, slope, slope2, group):
    m.refuse_group(group)
    inputs = [x, gamma_beta] if gamma_beta2 is None else [x, gamma_beta, gamma_beta2]
    x, *bys = inputs = [t if t.requires_grad else t.detach().requires_grad_() for t in inputs]
    mean, rstd = m.attach(x, mean, rstd, of_x)
    ys = [reference_forward(x, by, mean, rstd, s) for by, s in zip(bys, (slope, slope2), strict=False)]
    dys = [d.to(x.dtype) for d in (dy, dy2) if d is not None]
    found = torch.autograd.grad(ys, inputs, dys, create_graph=True)
    return found if gamma_beta2 is not None else (*found, None)


def _setup(ctx, inputs, output) -> None:
    x, gamma_beta, gamma_beta2, mean, rstd, *ctx.rest = inputs
    ctx.save_for_backward(x, gamma_beta, gamma_beta2, mean, rstd)


def _autograd(ctx, dy, dy2):
    saved = ctx.saved_tensors  # once: checkpointing recomputes them for one unpacking
    pair = saved[2] is not None
    dx, d_by, d_by2 = torch.ops.i2ifast.modulate_backward(dy, dy2 if pair else None, *saved, *ctx.rest)
    return dx, d_by, d_by2 if pair else None, *[None] * 6


_ARGS = (
    "Tensor x, Tensor gamma_beta, Tensor? gamma_beta2, Tensor mean, Tensor rstd, bool of_x, float slope, "
    "float slope2, str group"
)
define("modulate", f"({_ARGS}) -> (Tensor, Tensor)", _forward, _forward_fake)
define("modulate_backward", f"(Tensor dy, Tensor? dy2, {_ARGS}) -> (Tensor, Tensor, Tensor)", _backward, _backward_fake)
autograd("modulate", _setup, _autograd)
second_order("modulate_backward", _gradient)


def modulate(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    statistics: Statistics | None = None,
    act: str | float = "none",
    gamma2: Tensor | None = None,
    act2: str | float = "none",
) -> Tensor | tuple[Tensor, Tensor]:
    """y = act((x - mean) * rstd * (1 + gamma) + beta), gamma and beta maps as large as x.

    x [N, C, H, W]; gamma, beta [N, C, H, W] each, or gamma alone as [N, 2C, H, W] with beta stacked behind it (one
    convolution of 2C outputs makes it, and nothing is copied). y like x. Statistics default to none (x as it is). With
    `gamma2` [N, 2C, H, W], stacked, a second output with its own modulation and activation: both share the statistics,
    and in training one synchronisation of them. Raises ValueError for shapes or devices that do not fit.
    """
    check_4d("x", x)
    n, c, h, w = x.shape
    gamma_beta = gamma if beta is None else torch.cat([gamma, beta], 1)
    check_shape("gamma and beta together", gamma_beta, (n, 2 * c, h, w))
    if gamma2 is not None:
        check_shape("gamma2", gamma2, (n, 2 * c, h, w))
        gamma2 = gamma2.to(x.dtype)
    statistics = no_statistics(x) if statistics is None else statistics
    check_device(x, gamma=gamma_beta, gamma2=gamma2, mean=statistics.mean)
    mean, rstd, of_x, group = statistics
    y, y2 = torch.ops.i2ifast.modulate(
        x, gamma_beta.to(x.dtype), gamma2, mean, rstd, of_x, slope_of(act), slope_of(act2), group
    )
    return y if gamma2 is None else (y, y2)
