"""The convolution of `panoptic_conv` on kernels: the plain one, and a matrix product for the windows that differ.

Images are channels_last, `at` and `taps` those of PanopticWindows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _backend
from ._op import accumulation_dtype

COLUMNS = 1 << 20  # elements of gathered windows that exist at a time on a CPU: they stay in its cache


def pixels_of(x: Tensor) -> Tensor:
    """[N, C, H, W] as [N * H * W, C]: a view where x is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.size(1))


def image_of(pixels: Tensor, like: Tensor) -> Tensor:
    return pixels.view(like.size(0), *like.shape[2:], pixels.size(1)).permute(0, 3, 1, 2)


def matrix_of(weight: Tensor) -> Tensor:
    """[O, C, k, k] as [O, k * k * C]."""
    return weight.permute(0, 2, 3, 1).reshape(weight.size(0), -1)


def weight_of(matrix: Tensor, kernel: int) -> Tensor:
    return matrix.view(matrix.size(0), kernel, kernel, -1).permute(0, 3, 1, 2)


def _run(backend: str, name: str, *args: Tensor) -> None:
    _backend.kernel(backend, "panoptic_conv", f"panoptic_{name}")(*args)


def _pieces(x: Tensor, taps: Tensor) -> list[slice]:
    """The windows a few at a time on a CPU, at once elsewhere."""
    step = max(1, COLUMNS // (taps.size(1) * x.size(1))) if x.device.type == "cpu" else max(1, taps.size(0))
    return [slice(i, i + step) for i in range(0, taps.size(0), step)]


def _gathered(backend: str, x: Tensor, taps: Tensor) -> Tensor:
    columns = x.new_empty((taps.size(0), taps.size(1) * x.size(1)))
    _run(backend, "gather", x, taps, columns)
    return columns


def _split(backend: str, dy: Tensor, at: Tensor, taps: Tensor) -> tuple[Tensor, Tensor | None]:
    """dy at the listed windows times their ratio, [B, O], and dy with zeros in their place: None if all are listed."""
    rows = dy.new_empty((at.numel(), dy.size(1)))
    _run(backend, "take", dy, at, taps, rows)
    if at.numel() == dy.numel() // dy.size(1):
        return rows, None
    rest = dy.clone()
    pixels_of(rest).index_fill_(0, at.long(), 0)
    return rows, rest


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    if (weight.size(2), stride) == (3, 1):
        return torch.ops.i2ifast.conv3x3(x, weight, bias, "zeros")
    return F.conv2d(x, weight, bias, stride, weight.size(2) // 2)


def _plain_backward(dy: Tensor, x: Tensor, weight: Tensor, stride: int, wanted: list[bool]) -> list[Tensor | None]:
    """torch.nn.grad's, but in the layout of x and weight, of which only that is looked at where it is not needed."""
    two, pad = [stride, stride], [weight.size(2) // 2] * 2
    return torch.ops.aten.convolution_backward(
        dy, x, weight, None, two, pad, [1, 1], False, [0, 0], 1, [*wanted, False]
    )


def _plain_dx(dy: Tensor, weight: Tensor, x: Tensor, stride: int) -> Tensor:
    if (weight.size(2), stride) == (3, 1):
        return torch.ops.i2ifast.conv3x3_dx(dy, weight, "zeros")
    return _plain_backward(dy, x, weight, stride, [True, False])[0]


def _plain_dweight(x: Tensor, dy: Tensor, weight: Tensor, stride: int) -> Tensor:
    if (weight.size(2), stride) == (3, 1):
        return torch.ops.i2ifast.conv3x3_dweight(x, dy, "zeros")
    return _plain_backward(dy, x, weight, stride, [False, True])[1]


def forward(
    backend: str, x: Tensor, weight: Tensor, bias: Tensor | None, at: Tensor, taps: Tensor, stride: int, y: Tensor
) -> Tensor:
    """The result, in y where there is no plain part."""
    if at.numel() * y.size(1) < y.numel():
        y = _plain(x, weight, bias, stride).contiguous(memory_format=torch.channels_last)
    matrix = matrix_of(weight)
    for some in _pieces(x, taps):
        rows = torch.ops.i2ifast.linear(_gathered(backend, x, taps[some]), matrix, None)
        _run(backend, "put", y, rows, bias, at[some], taps[some])
    return y


def dx(backend: str, dy: Tensor, weight: Tensor, at: Tensor, taps: Tensor, stride: int, out: Tensor) -> Tensor:
    """The gradient of x, in the size of `out`."""
    rows, rest = _split(backend, dy, at, taps)
    if rest is None:
        out.zero_()
    else:
        out = _plain_dx(rest, weight, out, stride).contiguous(memory_format=torch.channels_last)
    out = out.to(accumulation_dtype(out))  # many small sums
    matrix = matrix_of(weight).t()
    for some in _pieces(out, taps):
        _run(backend, "add", out, torch.ops.i2ifast.linear(rows[some], matrix, None), taps[some])
    return out.to(dy.dtype)


def dweight(backend: str, x: Tensor, dy: Tensor, at: Tensor, taps: Tensor, stride: int, like: Tensor) -> Tensor:
    """The gradient of a weight like `like`."""
    rows, rest = _split(backend, dy, at, taps)
    matrix = x.new_zeros((dy.size(1), taps.size(1) * x.size(1)), dtype=accumulation_dtype(x))
    for some in _pieces(x, taps):
        matrix += torch.ops.i2ifast.linear(rows[some].t(), _gathered(backend, x, taps[some]).t(), None)
    found = weight_of(matrix, like.size(2))
    if rest is not None:
        found = found + _plain_dweight(x, rest, like, stride)
    return found.to(x.dtype)
