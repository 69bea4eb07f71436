"""3x3 convolution with stride 1 and padding 1, the main cost of a generator once modulation is cheap."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from . import _winograd
from ._op import autograd, check_4d, define, memory_format
from ._winograd import PADDINGS, like


def fast(x: Tensor, read: int, written: int) -> bool:
    """Whether the CPU kernel runs: not for maps of which most of every tile is padding."""
    return min(x.shape[2:]) > 1 and _winograd.fast(x, read, written)


def _padded(x: Tensor, padding: str) -> tuple[Tensor, int]:
    """x, and the zeros around it that a convolution is left to add."""
    return (x, 1) if padding == "zeros" else (F.pad(x, (1, 1, 1, 1), padding), 0)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: str) -> Tensor:
    if fast(x, x.size(1), weight.size(0)):
        return _winograd.convolved(x, weight, bias, x.shape[2:], padding=padding)
    x, zeros = _padded(x, padding)
    return F.conv2d(x, weight, bias, padding=zeros).contiguous(memory_format=memory_format(x))


def _dx(dy: Tensor, weight: Tensor, padding: str) -> Tensor:
    if fast(dy, dy.size(1), weight.size(1)):
        dx = _winograd.convolved(dy, weight, None, dy.shape[2:], adjoint=True)
    else:
        shape = (dy.size(0), weight.size(1), *dy.shape[2:])
        dx = conv2d_input(shape, weight, dy, padding=1).contiguous(memory_format=memory_format(dy))
    if padding != "zeros" and dx.numel() > 0:
        _add_frame(dx, dy, weight, inner=PADDINGS.index(padding) - 1)
    return dx


def _add_frame(dx: Tensor, dy: Tensor, weight: Tensor, inner: int) -> None:
    """Add the gradient of the padding's pixels to those that they repeat, `inner` pixels away from the border."""
    n, c, h, w = dx.shape
    for here, there, tap in ((0, inner, 0), (h - 1, h - 1 - inner, 2)):
        frame = _of_line(dy[:, :, here], weight[:, :, tap])
        row = frame[..., 1:-1].clone()
        row[..., inner] += frame[..., 0]
        row[..., w - 1 - inner] += frame[..., -1]
        dx[:, :, there] += row
    for here, there, tap in ((0, inner, 0), (w - 1, w - 1 - inner, 2)):
        dx[:, :, :, there] += _of_line(dy[:, :, :, here], weight[:, :, :, tap])[..., 1:-1]


def _of_line(dy: Tensor, weight: Tensor) -> Tensor:
    """Gradient of a line of pixels [N, C, L + 2], of a convolution along it: dy [N, O, L], weight [O, C, 3].

    By products that read the weights where they are: copies of some, as a convolution makes, take longer than that.
    """
    rows = dy.transpose(1, 2)
    line = dy.new_zeros(dy.size(0), dy.size(2) + 2, weight.size(1))
    for tap in range(3):
        line[:, tap : tap + dy.size(2)] += rows @ weight[..., tap]
    return line.transpose(1, 2)


def _dweight(x: Tensor, dy: Tensor, padding: str) -> Tensor:
    shape = (dy.size(1), x.size(1), 3, 3)
    if not fast(x, x.size(1), dy.size(1)):
        x, zeros = _padded(x, padding)
        return conv2d_weight(x, shape, dy, padding=zeros).contiguous(memory_format=torch.channels_last)
    return _winograd.dweight(x, dy, 3, padding=padding)


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.padding = inputs[-1]


def _backward(ctx, dy: Tensor):
    x, weight = ctx.saved_tensors
    need_x, need_weight, need_bias, _ = ctx.needs_input_grad
    dx = torch.ops.i2ifast.conv3x3_dx(dy, weight, ctx.padding) if need_x else None
    dweight = torch.ops.i2ifast.conv3x3_dweight(x, dy, ctx.padding) if need_weight else None
    return dx, dweight, dy.sum((0, 2, 3)) if need_bias else None, None


# The three are linear in each argument, and each one's derivatives are the other two.
def _backward_of_dx(ctx, g: Tensor):
    dy, weight = ctx.saved_tensors
    ddy = torch.ops.i2ifast.conv3x3(g, weight, None, ctx.padding)
    return ddy, torch.ops.i2ifast.conv3x3_dweight(g, dy, ctx.padding), None


def _backward_of_dweight(ctx, g: Tensor):
    x, dy = ctx.saved_tensors
    dx = torch.ops.i2ifast.conv3x3_dx(dy, g, ctx.padding)
    return dx, torch.ops.i2ifast.conv3x3(x, g, None, ctx.padding), None


def _forward_fake(x: Tensor, weight: Tensor, outputs: int) -> Tensor:
    """Of the adjoint too: x read, `outputs` channels written."""
    layout = torch.channels_last if fast(x, x.size(1), outputs) else memory_format(x)
    return like(x, x.size(0), outputs, x.size(2), x.size(3), layout=layout)


define(
    "conv3x3",
    "(Tensor x, Tensor weight, Tensor? bias, str padding) -> Tensor",
    _forward,
    lambda x, weight, bias, padding: _forward_fake(x, weight, weight.size(0)),
)
define(
    "conv3x3_dx",
    "(Tensor dy, Tensor weight, str padding) -> Tensor",
    _dx,
    lambda dy, weight, padding: _forward_fake(dy, weight, weight.size(1)),
)
define(
    "conv3x3_dweight",
    "(Tensor x, Tensor dy, str padding) -> Tensor",
    _dweight,
    lambda x, dy, padding: like(x, dy.size(1), x.size(1), 3, 3, layout=torch.channels_last),
)
autograd("conv3x3", _setup, _backward)
autograd("conv3x3_dx", _setup, _backward_of_dx)
autograd("conv3x3_dweight", _setup, _backward_of_dweight)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: str = "zeros") -> Tensor:
    """conv2d(x, weight, bias, padding=1), in the layout of x; channels_last where the CPU kernel runs.

    x [N, C, H, W], weight [O, C, 3, 3], bias [O] -> [N, O, H, W]; padding 'zeros', 'replicate' or 'reflect'.
    Differentiable to any order. On a CPU with AVX-512, float32, C a multiple of 16 and O of 64: Lavin and Gray, Fast
    Algorithms for Convolutional Neural Networks, 2016; else the library's convolution.
    """
    check_4d("x", x)
    if tuple(weight.shape[1:]) != (x.size(1), 3, 3):
        raise ValueError(f"weight has shape {list(weight.shape)}, expected [O, {x.size(1)}, 3, 3]")
    if padding not in PADDINGS:
        raise ValueError(f"padding {padding!r}: expected one of {', '.join(PADDINGS)}")
    return torch.ops.i2ifast.conv3x3(x, weight, bias, padding)


class PackedConv3x3:
    """conv3x3() with weight and bias fixed: the weight is transformed once. Holds it in both forms."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: str = "zeros") -> None:
        self.weight, self.bias, self.padding, self._transformed = weight, bias, padding, None

    def __call__(self, x: Tensor) -> Tensor:
        if not fast(x, x.size(1), self.weight.size(0)):
            return conv3x3(x, self.weight, self.bias, self.padding)
        if self._transformed is None:
            self._transformed = _winograd.transformed(self.weight)
        size, packed = x.shape[2:], self._transformed
        return _winograd.convolved(x, self.weight, self.bias, size, padding=self.padding, packed=packed)
