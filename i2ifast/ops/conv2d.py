"""Convolutions with 4x4 kernels, and 3x3 ones of stride 2, and their transposed form: what halves and doubles maps."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from . import _winograd
from ._op import autograd, check_4d, define, memory_format
from ._winograd import fast, like

KERNELS = ((4, 1), (4, 2), (3, 2))  # and strides
PADDINGS = (0, 1, 2, 3)
FEW = 2  # rows and columns of a map up to which most of what a tile writes is outside of it


def _size(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int]:
    height, width = ((size + 2 * padding - weight.size(2)) // stride + 1 for size in x.shape[2:])
    return height, width


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    size, fits = _size(x, weight, stride, padding), fast(x, x.size(1), weight.size(0))
    if fits and max(size) > FEW:
        return _winograd.convolved(x, weight, bias, size, stride=stride, pad=padding)
    y = F.conv2d(x, weight, bias, stride, padding)
    return y.contiguous(memory_format=torch.channels_last if fits else memory_format(x))


def _dx(dy: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, height: int, width: int) -> Tensor:
    fits = fast(dy, dy.size(1), stride**2 * weight.size(1))
    if fits and (stride == 2 or max(dy.shape[2:]) > FEW):
        return _winograd.convolved(dy, weight, bias, (height, width), adjoint=True, stride=stride, pad=padding)
    dx = conv2d_input((dy.size(0), weight.size(1), height, width), weight, dy, stride, padding)
    dx = dx if bias is None else dx + bias[:, None, None]
    return dx.contiguous(memory_format=torch.channels_last if fits else memory_format(dy))


def _dweight(x: Tensor, dy: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    if fast(x, x.size(1), dy.size(1)):
        return _winograd.dweight(x, dy, kernel, stride, padding)
    shape = (dy.size(1), x.size(1), kernel, kernel)
    return conv2d_weight(x, shape, dy, stride, padding).contiguous(memory_format=torch.channels_last)


def _setup(ctx, inputs, output) -> None:
    x, weight, _, *ctx.geometry = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, dy: Tensor):
    x, weight = ctx.saved_tensors
    need_x, need_weight, need_bias, *_ = ctx.needs_input_grad
    dx = torch.ops.i2ifast.conv2d_dx(dy, weight, None, *ctx.geometry, x.size(2), x.size(3)) if need_x else None
    dweight = torch.ops.i2ifast.conv2d_dweight(x, dy, weight.size(2), *ctx.geometry) if need_weight else None
    return dx, dweight, dy.sum((0, 2, 3)) if need_bias else None, None, None


# The three are linear in each argument, and each one's derivatives are the other two.
def _setup_dx(ctx, inputs, output) -> None:
    dy, weight, _, *ctx.geometry = inputs[:5]
    ctx.save_for_backward(dy, weight)


def _backward_of_dx(ctx, g: Tensor):
    dy, weight = ctx.saved_tensors
    need_dy, need_weight, need_bias, *_ = ctx.needs_input_grad
    ddy = torch.ops.i2ifast.conv2d(g, weight, None, *ctx.geometry) if need_dy else None
    dweight = torch.ops.i2ifast.conv2d_dweight(g, dy, weight.size(2), *ctx.geometry) if need_weight else None
    return ddy, dweight, g.sum((0, 2, 3)) if need_bias else None, None, None, None, None


def _setup_dweight(ctx, inputs, output) -> None:
    x, dy, _, *ctx.geometry = inputs
    ctx.save_for_backward(x, dy)


def _backward_of_dweight(ctx, g: Tensor):
    x, dy = ctx.saved_tensors
    dx = torch.ops.i2ifast.conv2d_dx(dy, g, None, *ctx.geometry, x.size(2), x.size(3))
    return dx, torch.ops.i2ifast.conv2d(x, g, None, *ctx.geometry), None, None, None


def _fake(x: Tensor, outputs: int, size: tuple[int, int], phases: int = 1) -> Tensor:
    """A map of `outputs` channels, which the kernel writes as so many maps."""
    layout = torch.channels_last if fast(x, x.size(1), phases * outputs) else memory_format(x)
    return like(x, x.size(0), outputs, *size, layout=layout)


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    return _fake(x, weight.size(0), _size(x, weight, stride, padding))


define(
    "conv2d",
    "(Tensor x, Tensor weight, Tensor? bias, int stride, int padding) -> Tensor",
    _forward,
    _forward_fake,
)
define(
    "conv2d_dx",
    "(Tensor dy, Tensor weight, Tensor? bias, int stride, int padding, SymInt height, SymInt width) -> Tensor",
    _dx,
    lambda dy, weight, bias, stride, padding, height, width: _fake(dy, weight.size(1), (height, width), stride**2),
)
define(
    "conv2d_dweight",
    "(Tensor x, Tensor dy, int kernel, int stride, int padding) -> Tensor",
    _dweight,
    lambda x, dy, kernel, *_: like(x, dy.size(1), x.size(1), kernel, kernel, layout=torch.channels_last),
)
autograd("conv2d", _setup, _backward)
autograd("conv2d_dx", _setup_dx, _backward_of_dx)
autograd("conv2d_dweight", _setup_dweight, _backward_of_dweight)


def _check(x: Tensor, weight: Tensor, channels: int, stride: int, padding: int) -> None:
    check_4d("x", x)
    kernel = weight.size(-1)
    if (kernel, stride) not in KERNELS or padding not in PADDINGS:
        given = f"kernel {kernel}, stride {stride} and padding {padding}"
        raise ValueError(f"{given}: expected kernel 4 and stride 1 or 2, or 3 and 2, and padding 0 to 3")
    if weight.dim() != 4 or weight.size(2) != kernel or weight.size(channels) != x.size(1):
        expected = f"[O, {x.size(1)}, {kernel}, {kernel}]" if channels else f"[{x.size(1)}, O, {kernel}, {kernel}]"
        raise ValueError(f"weight has shape {list(weight.shape)}, expected {expected}")


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 2, padding: int = 1) -> Tensor:
    """torch.nn.functional.conv2d with 4x4 kernels, stride 1 or 2, and with 3x3 ones and stride 2.

    x [N, C, H, W], weight [O, C, k, k], bias [O] -> [N, O, (H + 2 padding - k) // stride + 1, ...], in the layout of x;
    channels_last where the CPU kernel runs. padding 0 to 3, of zeros. Differentiable to any order. On a CPU with
    AVX-512, float32, C a multiple of 16 and O of 64: four 2x2 convolutions, each by Winograd's F(3x3, 2x2), 16 products
    of 36, or F(2x2, 2x2) (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016); else the library's
    convolution.
    """
    _check(x, weight, 1, stride, padding)
    if min(_size(x, weight, stride, padding)) < 1:
        raise ValueError(f"x has shape {list(x.shape)}: with padding {padding} no window of {weight.size(2)} fits")
    return torch.ops.i2ifast.conv2d(x, weight, bias, stride, padding)


def conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 1, output_padding: tuple[int, int] = (0, 0)
) -> Tensor:
    """torch.nn.functional.conv_transpose2d with 4x4 or 3x3 kernels and stride 2: the adjoint of conv2d(), computed as
    that one is.

    x [N, C, H, W], weight [C, O, k, k], bias [O] -> [N, O, 2 H - 2 + k - 2 padding + output_padding, ...].
    """
    _check(x, weight, 0, 2, padding)
    if not all(more in (0, 1) for more in output_padding):
        raise ValueError(f"output_padding {tuple(output_padding)}: expected 0 or 1")
    kernel = weight.size(2)
    size = [2 * s - 2 + kernel - 2 * padding + more for s, more in zip(x.shape[2:], output_padding, strict=True)]
    if min(size) < 1:
        raise ValueError(f"x has shape {list(x.shape)}: padding {padding} leaves nothing of what it becomes")
    return torch.ops.i2ifast.conv2d_dx(x, weight, bias, 2, padding, *size)
