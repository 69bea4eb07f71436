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


def _forward(x, gamma_beta, mean, rstd, of_x, slope, group):
    layout = memory_format(x)
    backend = _backend.choose("modulate", "modulate", x)
    if backend == "reference" or x.numel() == 0:
        return reference_forward(x, gamma_beta, mean, rstd, slope).contiguous(memory_format=layout)
    y = dense_like(x)
    x, gamma_beta = x.contiguous(memory_format=layout), gamma_beta.contiguous(memory_format=layout)
    _backend.kernel(backend, "modulate", "modulate")(x, gamma_beta, mean, rstd, slope, y)
    return y


def _backward(dy, x, gamma_beta, mean, rstd, of_x, slope, group):
    layout = memory_format(x)
    backend = _backend.choose("modulate", "modulate_dx", x)
    if backend == "reference" or x.numel() == 0:
        d_gamma_beta, sums = reference_sums(dy, x, gamma_beta, mean, rstd, slope)
        means = m.mean_of_sums(sums, x, of_x, group)
        dx = reference_dx(dy, x, gamma_beta, mean, rstd, means, slope)
        return dx.contiguous(memory_format=layout), d_gamma_beta.contiguous(memory_format=layout)
    dy, x, gamma_beta = (t.contiguous(memory_format=layout) for t in (dy, x, gamma_beta))
    d_gamma_beta, dx = torch.empty_like(gamma_beta), torch.empty_like(x)
    sums = x.new_empty((2, *mean.shape), dtype=accumulation_dtype(x))
    _backend.kernel(backend, "modulate", "modulate_sums")(dy, x, gamma_beta, mean, rstd, slope, d_gamma_beta, sums)
    means = m.mean_of_sums(sums, x, of_x, group)
    _backend.kernel(backend, "modulate", "modulate_dx")(dy, x, gamma_beta, mean, rstd, means, slope, dx)
    return dx, d_gamma_beta


def _backward_fake(dy, x, gamma_beta, *rest):
    return dense_like(x), torch.empty_like(gamma_beta, memory_format=memory_format(x))


def _gradient(dy, x, gamma_beta, mean, rstd, of_x, slope, group):
    m.refuse_group(group)
    x, gamma_beta = (t if t.requires_grad else t.detach().requires_grad_() for t in (x, gamma_beta))
    y = reference_forward(x, gamma_beta, *m.attach(x, mean, rstd, of_x), slope)
    return torch.autograd.grad(y, [x, gamma_beta], dy.to(y.dtype), create_graph=True)


def _setup(ctx, inputs, output) -> None:
    x, gamma_beta, mean, rstd, *ctx.rest = inputs
    ctx.save_for_backward(x, gamma_beta, mean, rstd)


def _autograd(ctx, dy):
    dx, d_gamma_beta = torch.ops.i2ifast.modulate_backward(dy, *ctx.saved_tensors, *ctx.rest)
    return dx, d_gamma_beta, *[None] * 5


_ARGS = "Tensor x, Tensor gamma_beta, Tensor mean, Tensor rstd, bool of_x, float slope, str group"
define("modulate", f"({_ARGS}) -> Tensor", _forward, lambda x, *rest: dense_like(x))
define("modulate_backward", f"(Tensor dy, {_ARGS}) -> (Tensor, Tensor)", _backward, _backward_fake)
autograd("modulate", _setup, _autograd)
second_order("modulate_backward", _gradient)


def modulate(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    statistics: Statistics | None = None,
    act: str | float = "none",
) -> Tensor:
    """y = act((x - mean) * rstd * (1 + gamma) + beta), gamma and beta maps as large as x.

    x [N, C, H, W]; gamma, beta [N, C, H, W] each, or gamma alone as [N, 2C, H, W] with beta stacked behind it (one
    convolution of 2C outputs makes it, and nothing is copied). y like x. Statistics default to none (x as it is).
    Raises ValueError for shapes or devices that do not fit.
    """
    check_4d("x", x)
    n, c, h, w = x.shape
    gamma_beta = gamma if beta is None else torch.cat([gamma, beta], 1)
    check_shape("gamma and beta together", gamma_beta, (n, 2 * c, h, w))
    statistics = no_statistics(x) if statistics is None else statistics
    check_device(x, gamma=gamma_beta, mean=statistics.mean)
    mean, rstd, of_x, group = statistics
    return torch.ops.i2ifast.modulate(x, gamma_beta.to(x.dtype), mean, rstd, of_x, slope_of(act), group)
