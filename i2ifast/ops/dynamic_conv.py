"""Convolution of every channel, at every pixel, with a 3x3 kernel of its own: the conditional convolutions of CC-FPSE."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _backend
from ._op import (
    accumulation_dtype,
    autograd,
    check_4d,
    check_device,
    check_shape,
    define,
    dense_like,
    memory_format,
)


def _seen(x: Tensor, tap: int) -> Tensor:
    """What every pixel sees at `tap`, 0..8 row by row: zero beyond the border."""
    i, j = divmod(tap, 3)
    return F.pad(x, (1, 1, 1, 1))[:, :, i : i + x.size(2), j : j + x.size(3)]


def reference_forward(x: Tensor, weight: Tensor) -> Tensor:
    wide = accumulation_dtype(x)
    return sum(_seen(x.to(wide), t) * weight[:, :, t].to(wide) for t in range(9)).to(x.dtype)


def reference_dx(dy: Tensor, weight: Tensor) -> Tensor:
    """A pixel is tap t of the one that it sees at tap 8 - t."""
    wide = accumulation_dtype(dy)
    return sum(_seen(dy.to(wide) * weight[:, :, t].to(wide), 8 - t) for t in range(9)).to(dy.dtype)


def reference_dweight(x: Tensor, dy: Tensor) -> Tensor:
    wide = accumulation_dtype(x)
    return torch.stack([_seen(x.to(wide), t) * dy.to(wide) for t in range(9)], 2).to(x.dtype)


def _empty_weight(x: Tensor, channels_inside: bool) -> Tensor:
    """[N, C, 9, H, W]; of a channels_last x pixel by pixel, and in that tap by tap or channel by channel."""
    n, c, h, w = x.shape
    if memory_format(x) is not torch.channels_last:
        return x.new_empty((n, c, 9, h, w))
    if channels_inside:
        return x.new_empty((n, h, w, 9, c)).permute(0, 4, 3, 1, 2)
    return x.new_empty((n, h, w, c, 9)).permute(0, 3, 4, 1, 2)


def _channels_inside(weight: Tensor) -> bool:
    return weight.stride(1) == 1


def _readable(weight: Tensor, x: Tensor) -> Tensor:
    """`weight` as kernels take it: in one of the layouts of `_empty_weight`, of any sizes between its runs."""
    _, channel, tap, row, column = weight.stride()
    by_pixel = channel == 1 or (tap == 1 and channel == 9)
    in_runs = by_pixel if memory_format(x) is torch.channels_last else column == 1
    return weight if in_runs and row == weight.size(4) * column else _empty_weight(x, True).copy_(weight)


def _weighted(name: str, reference, x: Tensor, weight: Tensor) -> Tensor:
    """The forward, or the gradient of x: sums of x (or dy) times weights over the nine taps."""
    layout = memory_format(x)
    backend = _backend.choose("dynamic_conv", name, x)
    if backend == "reference" or x.numel() == 0:
        return reference(x, weight).contiguous(memory_format=layout)
    out = dense_like(x)
    _backend.kernel(backend, "dynamic_conv", name)(x.contiguous(memory_format=layout), _readable(weight, x), out)
    return out


def _forward(x: Tensor, weight: Tensor) -> Tensor:
    return _weighted("dynamic_conv", reference_forward, x, weight)


def _dx(dy: Tensor, weight: Tensor) -> Tensor:
    return _weighted("dynamic_conv_dx", reference_dx, dy, weight)


def _dweight(x: Tensor, dy: Tensor, channels_inside: bool) -> Tensor:
    layout, dweight = memory_format(x), _empty_weight(x, channels_inside)
    backend = _backend.choose("dynamic_conv", "dynamic_conv_dweight", x)
    if backend == "reference" or x.numel() == 0:
        return dweight.copy_(reference_dweight(x, dy))
    x, dy = (t.contiguous(memory_format=layout) for t in (x, dy))
    _backend.kernel(backend, "dynamic_conv", "dynamic_conv_dweight")(x, dy, dweight)
    return dweight


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx, dy: Tensor):
    x, weight = ctx.saved_tensors
    need_x, need_weight = ctx.needs_input_grad
    dx = torch.ops.i2ifast.dynamic_conv_dx(dy, weight) if need_x else None
    if not need_weight:
        return dx, None
    return dx, torch.ops.i2ifast.dynamic_conv_dweight(x, dy, _channels_inside(weight))


# The three are linear in each argument, and each one's derivatives are the other two.
def _backward_of_dx(ctx, g: Tensor):
    dy, weight = ctx.saved_tensors
    dweight = torch.ops.i2ifast.dynamic_conv_dweight(g, dy, _channels_inside(weight))
    return torch.ops.i2ifast.dynamic_conv(g, weight), dweight


def _backward_of_dweight(ctx, g: Tensor):
    x, dy = ctx.saved_tensors
    return torch.ops.i2ifast.dynamic_conv_dx(dy, g), torch.ops.i2ifast.dynamic_conv(x, g), None


define("dynamic_conv", "(Tensor x, Tensor weight) -> Tensor", _forward, lambda x, weight: dense_like(x))
define("dynamic_conv_dx", "(Tensor dy, Tensor weight) -> Tensor", _dx, lambda dy, weight: dense_like(dy))
define(
    "dynamic_conv_dweight",
    "(Tensor x, Tensor dy, bool channels_inside) -> Tensor",
    _dweight,
    lambda x, dy, channels_inside: _empty_weight(x, channels_inside),
)
autograd("dynamic_conv", _setup, _backward)
autograd("dynamic_conv_dx", _setup, _backward_of_dx)
autograd("dynamic_conv_dweight", _setup, _backward_of_dweight)


def dynamic_conv(x: Tensor, weight: Tensor) -> Tensor:
    """y[n, c, p] = sum over taps t of x[n, c, p + t] * weight[n, c, t, p], zero padding, taps 0..8 row by row.

    x [N, C, H, W], weight [N, C, 9, H, W]; y like x. A convolution of 9C outputs makes it, `unflatten(1, (C, 9))`, or,
    read twice as fast if x is channels_last, `unflatten(1, (9, C)).transpose(1, 2)`. Differentiable to any order. Raises
    ValueError for shapes or devices that do not fit.
    """
    check_4d("x", x)
    n, c, h, w = x.shape
    check_shape("weight", weight, (n, c, 9, h, w))
    check_device(x, weight=weight)
    return torch.ops.i2ifast.dynamic_conv(x, weight.to(x.dtype))
