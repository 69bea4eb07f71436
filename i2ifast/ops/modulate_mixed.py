"""A mix of instance and layer normalisation, modulated by vectors: ILN, AdaILN, and layer norm of a whole sample."""

from typing import NamedTuple

import torch
from torch import Tensor

from ._op import (
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
from .modulate_style import apply_style, style_dx, style_sums
from .modulate_style import reference_forward as reference_style
from .moments import reference_forward as moments_of


class Vectors(NamedTuple):
    """(x - layer mean) * layer rstd = xhat * ratio + offset, where xhat = (x - mean) * rstd is of the plane."""

    rstd: Tensor  # [N, C]
    ratio: Tensor  # [N, C]
    offset: Tensor  # [N, C]
    bend: Tensor  # [N, 1], -2 (d layer rstd / d layer var) / (layer rstd)^3
    correction: float  # d rstd / d var in the same way


def _unbiased(count: int) -> float:
    return count / max(1, count - 1)


def _vectors(mean: Tensor, var: Tensor, pixels: int, eps: float, outside: bool) -> Vectors:
    """The layer statistics follow from those of the planes, which all have the same size."""
    plane, layer = _unbiased(pixels), _unbiased(pixels * mean.size(1))
    rstd = (plane * var + eps).rsqrt()
    centred = mean - mean.mean(1, keepdim=True)
    layer_var = layer * (var + centred.square()).mean(1, keepdim=True)
    if outside:
        positive = layer_var > 0
        std = torch.where(positive, layer_var, 1.0).sqrt()
        layer_rstd = 1 / (torch.where(positive, std, 0.0) + eps)
        bend = torch.where(positive, layer * (std + eps) / std, 0.0)
    else:
        layer_rstd = (layer_var + eps).rsqrt()
        bend = torch.full_like(layer_rstd, layer)
    return Vectors(rstd, layer_rstd / rstd, centred * layer_rstd, bend, plane)


def _style(mix: Tensor, v: Vectors) -> Tensor:
    """Scale and shift [N, 2C] of xhat."""
    instance, layer, shift = mix.chunk(3, 1)
    return torch.cat([instance + layer * v.ratio, shift + layer * v.offset], 1)


def reference_forward(
    x: Tensor, mix: Tensor, mean: Tensor, var: Tensor, eps: float, outside: bool, slope: float
) -> Tensor:
    v = _vectors(mean, var, x.size(2) * x.size(3), eps, outside)
    return reference_style(x, _style(mix, v), mean, v.rstd, slope)


def _forward(x, mix, mean, var, eps, outside, slope):
    v = _vectors(mean, var, x.size(2) * x.size(3), eps, outside)
    return apply_style(x, _style(mix, v), mean, v.rstd, slope)


def _backward(dy, x, mix, mean, var, eps, outside, slope):
    dy = dy.contiguous(memory_format=memory_format(x))
    channels, pixels = x.size(1), x.size(2) * x.size(3)
    v = _vectors(mean, var, pixels, eps, outside)
    instance, layer, _ = mix.chunk(3, 1)
    style = _style(mix, v)
    sum_dzx, sum_dz = style_sums(dy, x, style, mean, v.rstd, slope).chunk(2, 1)
    dlayer = v.ratio * sum_dzx + v.offset * sum_dz
    # What mean and rstd of the plane contribute, as in every norm, and those of the layer.
    bent = v.bend * (layer * dlayer).sum(1, keepdim=True)
    shifted = (layer * sum_dz).sum(1, keepdim=True)
    mean_g = instance * sum_dz + v.ratio * (shifted + v.offset * bent) / channels
    mean_gx = v.correction * instance * sum_dzx + v.ratio.square() * bent / channels
    means = torch.stack([mean_g, mean_gx]) / max(1, pixels)
    dx = style_dx(dy, x, style, mean, v.rstd, means, slope)
    return dx, torch.cat([sum_dzx, dlayer, sum_dz], 1)


def _gradient(dy, x, mix, mean, var, eps, outside, slope):
    x, mix = (t if t.requires_grad else t.detach().requires_grad_() for t in (x, mix))
    own_mean, own_var = moments_of(x, True)
    mean, var = mean + (own_mean - own_mean.detach()), var + (own_var - own_var.detach())
    y = reference_forward(x, mix, mean, var, eps, outside, slope)
    return torch.autograd.grad(y, [x, mix], dy.to(y.dtype), create_graph=True)


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.eps, ctx.outside, ctx.slope = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx, dy):
    rest = ctx.eps, ctx.outside, ctx.slope
    dx, dmix = torch.ops.i2ifast.modulate_mixed_backward(dy, *ctx.saved_tensors, *rest)
    return dx, dmix, *[None] * 5


_ARGS = "Tensor x, Tensor mix, Tensor mean, Tensor var, float eps, bool outside, float slope"
define("modulate_mixed", f"({_ARGS}) -> Tensor", _forward, lambda x, *rest: dense_like(x))
define(
    "modulate_mixed_backward",
    f"(Tensor dy, {_ARGS}) -> (Tensor, Tensor)",
    _backward,
    lambda dy, x, mix, *rest: (dense_like(x), torch.empty_like(mix, memory_format=torch.contiguous_format)),
)
autograd("modulate_mixed", _setup, _autograd)
second_order("modulate_mixed_backward", _gradient)


def modulate_mixed(
    x: Tensor, mix: Tensor, act: str | float = "none", eps: float = 1e-5, outside: bool = False
) -> Tensor:
    """y = act(mix[n, c] * instance(x) + mix[n, C + c] * layer(x) + mix[n, 2C + c])

    instance(x) = (x - mean) / sqrt(var + eps) over a plane; layer(x) the same over the whole sample, or with `outside`
    (x - mean) / (sqrt(var) + eps). Both variances are the unbiased ones. x [N, C, H, W]; mix [N, 3C]; y like x. One
    pass over x for the statistics and one to write y; gradients take the two passes of any norm. Raises ValueError for
    shapes or devices that do not fit.
    """
    check_4d("x", x)
    check_shape("mix", mix, (x.size(0), 3 * x.size(1)))
    check_device(x, mix=mix)
    with torch.no_grad():
        mean, var = torch.ops.i2ifast.moments(x, True)
    return torch.ops.i2ifast.modulate_mixed(x, mix.to(mean.dtype), mean, var, eps, outside, slope_of(act))
