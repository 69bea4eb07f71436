"""Convolution within the segments of an id map: a tap counts where it shows the id of its window's centre."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from .. import _backend
from . import _panoptic_rows as kernels
from ._op import accumulation_dtype, autograd, check_4d, check_device, check_shape, define, memory_format
from ._panoptic import PanopticWindows
from ._panoptic_rows import image_of, matrix_of, pixels_of, weight_of


def _columns(x: Tensor, taps: Tensor) -> Tensor:
    """What the taps of each window show, [B, k * k * C]: 0 where they do not count."""
    return pixels_of(x)[taps.clamp(min=0)].masked_fill((taps < 0)[..., None], 0).flatten(1)


def _ratio(taps: Tensor, x: Tensor) -> Tensor:
    """[B, 1]: taps of a window over those that count."""
    return taps.size(1) / (taps >= 0).sum(1, keepdim=True).to(x.dtype)


def reference_forward(x: Tensor, weight: Tensor, bias: Tensor | None, at: Tensor, taps: Tensor, stride: int) -> Tensor:
    wide, w = (t.to(accumulation_dtype(x)) for t in (x, weight))
    y = F.conv2d(wide, w, None, stride, weight.size(2) // 2)
    rows = F.linear(_columns(wide, taps), matrix_of(w)) * _ratio(taps, wide)
    y = image_of(pixels_of(y).index_copy(0, at.long(), rows), y)
    return (y if bias is None else y + bias.to(y.dtype)[:, None, None]).to(x.dtype)


def _taken(dy: Tensor, at: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """dy at the listed windows times their ratio, [B, O], and dy with zeros in their place."""
    pixels = pixels_of(dy)
    return pixels[at.long()] * _ratio(taps, dy), image_of(pixels.index_fill(0, at.long(), 0), dy)


def reference_dx(dy: Tensor, weight: Tensor, at: Tensor, taps: Tensor, size: list[int], stride: int) -> Tensor:
    wide, w = (t.to(accumulation_dtype(dy)) for t in (dy, weight))
    rows, rest = _taken(wide, at, taps)
    dx = conv2d_input((dy.size(0), w.size(1), *size), w, rest, stride, w.size(2) // 2)
    columns = (rows @ matrix_of(w)).view(*taps.shape, w.size(1)).masked_fill((taps < 0)[..., None], 0)
    pixels = pixels_of(dx).index_add(0, taps.clamp(min=0).flatten(), columns.flatten(0, 1))
    return image_of(pixels, dx).to(dy.dtype)


def reference_dweight(x: Tensor, dy: Tensor, at: Tensor, taps: Tensor, kernel: int, stride: int) -> Tensor:
    wide, wide_dy = (t.to(accumulation_dtype(x)) for t in (x, dy))
    rows, rest = _taken(wide_dy, at, taps)
    dweight = conv2d_weight(wide, (dy.size(1), x.size(1), kernel, kernel), rest, stride, kernel // 2)
    return dweight.add(weight_of(rows.t() @ _columns(wide, taps), kernel)).to(x.dtype)


def _backend_of(x: Tensor) -> str:
    return "reference" if x.numel() == 0 else _backend.choose("panoptic_conv", "panoptic_gather", x)


def _forward(x, weight, bias, at, taps, stride):
    backend = _backend_of(x)
    if backend == "reference":
        return reference_forward(x, weight, bias, at, taps, stride).contiguous(memory_format=memory_format(x))
    y = _forward_fake(x, weight, bias, at, taps, stride)
    return kernels.forward(backend, x.contiguous(memory_format=torch.channels_last), weight, bias, at, taps, stride, y)


def _dx(dy, weight, at, taps, size, stride):
    backend = _backend_of(dy)
    if backend == "reference":
        return reference_dx(dy, weight, at, taps, size, stride).contiguous(memory_format=memory_format(dy))
    dx = _dx_fake(dy, weight, at, taps, size, stride)
    return kernels.dx(backend, dy.contiguous(memory_format=torch.channels_last), weight, at, taps, stride, dx)


def _dweight(x, dy, at, taps, kernel, stride):
    backend = _backend_of(x)
    if backend == "reference":
        dweight = reference_dweight(x, dy, at, taps, kernel, stride)
    else:
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
        dweight = kernels.dweight(backend, x, dy, at, taps, stride, _dweight_fake(x, dy, at, taps, kernel, stride))
    return dweight.contiguous(memory_format=torch.channels_last)


def _like(x: Tensor, channels: int, size: list[int]) -> Tensor:
    """The output of a kernel is channels_last, that of the reference in the layout of x."""
    layout = memory_format(x) if _backend_of(x) == "reference" else torch.channels_last
    return torch.empty((x.size(0), channels, *size), dtype=x.dtype, device=x.device, memory_format=layout)


def _forward_fake(x, weight, bias, at, taps, stride):
    return _like(x, weight.size(0), [(size - 1) // stride + 1 for size in x.shape[2:]])


def _dx_fake(dy, weight, at, taps, size, stride):
    return _like(dy, weight.size(1), size)


def _dweight_fake(x, dy, at, taps, kernel, stride):
    shape = (dy.size(1), x.size(1), kernel, kernel)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _setup(ctx, inputs, output) -> None:
    x, weight, _, *lists, ctx.stride = inputs
    ctx.save_for_backward(x, weight, *lists)


def _backward(ctx, dy: Tensor):
    x, weight, *lists = ctx.saved_tensors
    need_x, need_weight, need_bias, *_ = ctx.needs_input_grad
    op = torch.ops.i2ifast
    dx = op.panoptic_conv_dx(dy, weight, *lists, x.shape[2:], ctx.stride) if need_x else None
    dweight = op.panoptic_conv_dweight(x, dy, *lists, weight.size(2), ctx.stride) if need_weight else None
    return dx, dweight, dy.sum((0, 2, 3)) if need_bias else None, None, None, None


# The three are linear in each argument, and each one's derivatives are the other two.
def _setup_pair(ctx, inputs, output) -> None:
    a, b, *lists, ctx.extent, ctx.stride = inputs
    ctx.save_for_backward(a, b, *lists)


def _backward_of_dx(ctx, g: Tensor):
    dy, weight, *lists = ctx.saved_tensors
    ddy = torch.ops.i2ifast.panoptic_conv(g, weight, None, *lists, ctx.stride)
    dweight = torch.ops.i2ifast.panoptic_conv_dweight(g, dy, *lists, weight.size(2), ctx.stride)
    return ddy, dweight, *[None] * 4


def _backward_of_dweight(ctx, g: Tensor):
    x, dy, *lists = ctx.saved_tensors
    dx = torch.ops.i2ifast.panoptic_conv_dx(dy, g, *lists, x.shape[2:], ctx.stride)
    return dx, torch.ops.i2ifast.panoptic_conv(x, g, None, *lists, ctx.stride), *[None] * 4


_LISTS = "Tensor at, Tensor taps"
define(
    "panoptic_conv", f"(Tensor x, Tensor weight, Tensor? bias, {_LISTS}, int stride) -> Tensor", _forward, _forward_fake
)
define("panoptic_conv_dx", f"(Tensor dy, Tensor weight, {_LISTS}, SymInt[] size, int stride) -> Tensor", _dx, _dx_fake)
define(
    "panoptic_conv_dweight",
    f"(Tensor x, Tensor dy, {_LISTS}, int kernel, int stride) -> Tensor",
    _dweight,
    _dweight_fake,
)
autograd("panoptic_conv", _setup, _backward)
autograd("panoptic_conv_dx", _setup_pair, _backward_of_dx)
autograd("panoptic_conv_dweight", _setup_pair, _backward_of_dweight)


def panoptic_conv(x: Tensor, weight: Tensor, bias: Tensor | None, windows: PanopticWindows, stride: int = 1) -> Tensor:
    """y[p] = k^2 / count(p) * sum over the counting taps t of W_t x[p + t] + bias

    A tap counts if it lies inside of the image and shows the id of the window's centre. x [N, C, H, W],
    weight [O, C, k, k] with odd k, bias [O] -> [N, O, Ho, Wo], with padding k // 2; `windows` from
    panoptic_windows(ids, k, stride). Windows in which all taps count run as a plain convolution, the others as one
    matrix product. Differentiable to any order; channels_last where a kernel runs. Raises ValueError for shapes or
    devices that do not fit. Indices are not checked here: panoptic_windows makes them.
    """
    check_4d("x", x)
    kernel = weight.size(-1)
    check_shape("weight", weight, (weight.size(0), x.size(1), kernel, kernel))
    check_shape("taps", windows.taps, (windows.at.numel(), kernel * kernel))
    check_device(x, weight=weight, bias=bias, taps=windows.taps)
    return torch.ops.i2ifast.panoptic_conv(x, weight, bias, *windows, stride)
