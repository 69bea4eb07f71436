"""The CPU kernel of 3x3 and 4x4 convolutions."""

import torch
from torch import Tensor

from .. import _backend

# Channels that it takes in blocks: of the map it reads, and of the one it writes.
READ, WRITTEN = 16, 64
DEPTH, SKEW = 64, 16  # of blocks of transformed weights, see kernels/winograd.h
# What lies outside of the image, by the names of torch.nn.Conv2d's padding_mode; the kernel knows them by number.
PADDINGS = ("zeros", "replicate", "reflect")
# Found once, for torch's compiler cannot ask while it traces.
AVX512 = not _backend.missing["cpu"] and torch.ops.i2ifast_cpu.instruction_set() == 2


def fast(x: Tensor, read: int, written: int) -> bool:
    """Whether the kernel runs: Winograd's F(2x2, 3x3), F(3x3, 2x2) and F(2x2, 2x2), float32.

    It needs the registers of AVX-512. Errors are within the 2x rule of the library's convolution (tests/test_ops.py).
    """
    return (
        x.device.type == "cpu"
        and x.dtype is torch.float32
        and x.numel() > 0
        and read % READ == 0  # as are the channels written
        and written % WRITTEN == 0
        and AVX512
        and _backend.choose("winograd", "winograd", x) == "cpu"
    )


def transformed(weight: Tensor) -> Tensor:
    """G w G^T of every channel pair of 3x3 kernels, as the kernel reads it."""
    blocks = weight.size(0) // WRITTEN * -(-weight.size(1) // DEPTH)
    u = weight.new_empty(blocks * 16 * (DEPTH * WRITTEN + SKEW))
    torch.ops.i2ifast_cpu.winograd_weight(weight, u)
    return u


def convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    size: tuple[int, int],
    adjoint: bool = False,
    stride: int = 1,
    pad: int = 1,
    padding: str = "zeros",
    packed: Tensor | None = None,
) -> Tensor:
    """The convolution by weight [O, C, k, k], or its adjoint, as a map of `size` in channels_last."""
    y = like(x, x.size(0), weight.size(int(adjoint)), *size, layout=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    torch.ops.i2ifast_cpu.winograd(x, weight, packed, bias, adjoint, stride, pad, PADDINGS.index(padding), y)
    return y


def dweight(x: Tensor, dy: Tensor, kernel: int, stride: int = 1, pad: int = 1, padding: str = "zeros") -> Tensor:
    """Gradient of the weight, [O, C, k, k] in channels_last."""
    found = like(x, dy.size(1), x.size(1), kernel, kernel, layout=torch.channels_last)
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    torch.ops.i2ifast_cpu.winograd_dweight(x, dy, stride, pad, PADDINGS.index(padding), found)
    return found


def like(t: Tensor, *shape: int, layout: torch.memory_format) -> Tensor:
    return torch.empty(shape, dtype=t.dtype, device=t.device, memory_format=layout)
