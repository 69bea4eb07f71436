"""Modulation by a vector per sample: AdaIN, conditional and plain instance or batch norm, each with its activation."""

import torch
from torch import Tensor

from .. import _backend
from . import _modulation as m
from ._op import (
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


def _keeping(style: Tensor, mean: Tensor, rstd: Tensor, keep: float) -> Tensor:
    """The style that adds keep * x as well: x = xhat / rstd + mean."""
    if keep == 0:
        return style
    scale, shift = style.chunk(2, 1)
    return torch.cat([scale + keep / rstd.to(style.dtype), shift + keep * mean.to(style.dtype)], 1)


def reference_forward(x: Tensor, style: Tensor, mean: Tensor, rstd: Tensor, slope: float) -> Tensor:
    xhat = m.normalise(x, mean, rstd)
    scale, shift = m.spread(style.to(xhat.dtype)).chunk(2, 1)
    return activate(xhat * scale + shift, slope).to(x.dtype)


def _gradients(dy, x, style, mean, rstd, slope):
    xhat = m.normalise(x, mean, rstd)
    scale, shift = m.spread(style.to(xhat.dtype)).chunk(2, 1)
    dz = m.activation_gradient(dy.to(xhat.dtype), xhat * scale + shift, slope)
    return xhat, dz * scale, dz


def reference_dstyle(dy, x, style, mean, rstd, slope) -> Tensor:
    """[N, 2C]: sums over each plane of dz * xhat and of dz."""
    xhat, _, dz = _gradients(dy, x, style, mean, rstd, slope)
    return torch.cat([(dz * xhat).sum((2, 3)), dz.sum((2, 3))], 1).to(style.dtype)


def reference_dx(dy, x, style, mean, rstd, means, slope) -> Tensor:
    xhat, g, _ = _gradients(dy, x, style, mean, rstd, slope)
    return m.normalise_gradient(g, xhat, rstd, means).to(x.dtype)


def apply_style(x, style, mean, rstd, slope) -> Tensor:
    layout = memory_format(x)
    backend = _backend.choose("modulate_style", "modulate_style", x)
    if backend == "reference" or x.numel() == 0:
        return reference_forward(x, style, mean, rstd, slope).contiguous(memory_format=layout)
    y = dense_like(x)
    x, style = x.contiguous(memory_format=layout), style.contiguous()
    _backend.kernel(backend, "modulate_style", "modulate_style")(x, style, mean, rstd, slope, y)
    return y


def style_sums(dy, x, style, mean, rstd, slope) -> Tensor:
    """The gradient of style [N, 2C]: sums over each plane of dz * xhat and of dz."""
    layout = memory_format(x)
    backend = _backend.choose("modulate_style", "modulate_style_sums", x)
    if backend == "reference" or x.numel() == 0:
        return reference_dstyle(dy, x, style, mean, rstd, slope)
    dy, x, style = dy.contiguous(memory_format=layout), x.contiguous(memory_format=layout), style.contiguous()
    dstyle = torch.empty_like(style)
    _backend.kernel(backend, "modulate_style", "modulate_style_sums")(dy, x, style, mean, rstd, slope, dstyle)
    return dstyle


def style_dx(dy, x, style, mean, rstd, means, slope) -> Tensor:
    """rstd * (g - means[0] - xhat * means[1]) with g = dz * scale."""
    layout = memory_format(x)
    backend = _backend.choose("modulate_style", "modulate_style_dx", x)
    if backend == "reference" or x.numel() == 0:
        return reference_dx(dy, x, style, mean, rstd, means, slope).contiguous(memory_format=layout)
    dy, x, style = dy.contiguous(memory_format=layout), x.contiguous(memory_format=layout), style.contiguous()
    dx = torch.empty_like(x)
    _backend.kernel(backend, "modulate_style", "modulate_style_dx")(dy, x, style, mean, rstd, means, slope, dx)
    return dx


def _forward(x, style, mean, rstd, of_x, slope, group, keep=0.0):
    return apply_style(x, _keeping(style, mean, rstd, keep), mean, rstd, slope)


def _backward(dy, x, style, mean, rstd, of_x, slope, group, keep=0.0):
    dy = dy.contiguous(memory_format=memory_format(x))
    own, style = style.chunk(2, 1)[0], _keeping(style, mean, rstd, keep)
    dstyle = style_sums(dy, x, style, mean, rstd, slope)
    # g = dz * scale, so its sums are those of dz times scale, per sample. What is kept of x has no part in statistics.
    sum_gx, sum_g = (own.to(dstyle.dtype) * d for d in dstyle.chunk(2, 1))
    sums = torch.stack([sum_g, sum_gx])
    sums = sums.sum(1, keepdim=True) if mean.size(0) == 1 else sums
    means = m.mean_of_sums(sums.to(mean.dtype), x, of_x, group)
    return style_dx(dy, x, style, mean, rstd, means, slope), dstyle


def _backward_fake(dy, x, style, *rest):
    return dense_like(x), torch.empty_like(style, memory_format=torch.contiguous_format)


def _gradient(dy, x, style, mean, rstd, of_x, slope, group, keep=0.0):
    m.refuse_group(group)
    x, style = (t if t.requires_grad else t.detach().requires_grad_() for t in (x, style))
    mean, rstd = m.attach(x, mean, rstd, of_x)
    y = reference_forward(x, _keeping(style, mean, rstd, keep), mean, rstd, slope)
    return torch.autograd.grad(y, [x, style], dy.to(y.dtype), create_graph=True)


def _setup(ctx, inputs, output) -> None:
    x, style, mean, rstd, *ctx.rest = inputs
    ctx.save_for_backward(x, style, mean, rstd)


def _autograd(ctx, dy):
    dx, dstyle = torch.ops.i2ifast.modulate_style_backward(dy, *ctx.saved_tensors, *ctx.rest)
    return dx, dstyle, *[None] * 6


_ARGS = "Tensor x, Tensor style, Tensor mean, Tensor rstd, bool of_x, float slope, str group, float keep=0.0"
define("modulate_style", f"({_ARGS}) -> Tensor", _forward, lambda x, *rest: dense_like(x))
define("modulate_style_backward", f"(Tensor dy, {_ARGS}) -> (Tensor, Tensor)", _backward, _backward_fake)
autograd("modulate_style", _setup, _autograd)
second_order("modulate_style_backward", _gradient)


def modulate_style(
    x: Tensor,
    style: Tensor | None = None,
    statistics: Statistics | None = None,
    act: str | float = "none",
    keep: float = 0.0,
) -> Tensor:
    """y = act((x - mean) * rstd * style[n, c] + style[n, C + c] + keep * x)

    x [N, C, H, W]; style [N, 2C] (scale, then shift), 1 and 0 if None: plain normalisation and activation in one pass.
    `keep` is the share of x itself that an interpolated style leaves. y like x. Statistics default to none (x as it is). Raises ValueError for shapes or devices that do not fit. The
    scale is not written 1 + gamma as in the other ops: vectors are learned and predicted as scales, and small ones
    would lose their bits.
    """
    check_4d("x", x)
    statistics = no_statistics(x) if statistics is None else statistics
    mean, rstd, of_x, group = statistics
    if style is None:
        style = torch.cat([mean.new_ones(1, x.size(1)), mean.new_zeros(1, x.size(1))], 1).expand(x.size(0), -1)
    check_shape("style", style, (x.size(0), 2 * x.size(1)))
    check_device(x, style=style, mean=mean)
    return torch.ops.i2ifast.modulate_style(x, style.to(mean.dtype), mean, rstd, of_x, slope_of(act), group, keep)
