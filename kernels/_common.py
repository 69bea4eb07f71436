"""What the Triton kernels share: tiles of [N, C, H, W] tensors, parts of the modulation formula, sums over segments.

A tile is BLOCK_P pixels by BLOCK_C channels of one sample. Pixel p, channel c of sample n lies at
`n * C * HW + p * stride_p + c * stride_c`. One of the strides is 1 and Triton specialises on it: one kernel serves both
layouts. Loads outside of a tensor give 0, which adds nothing to sums of gradients. Every load is widened to float32 at
once, and every sum is made in a fixed order, without atomics.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Constants of every device, because the order of summation depends on them.
SEGMENT = 256  # members of a segment that one program sums
PROGRAMS = 1024  # programs that a chunked sum is left with, at least


def on_device(function: Callable) -> Callable:
    """`function` with the device of its first argument current, which is where Triton launches."""

    @functools.wraps(function)
    def wrapper(x: Tensor, *args) -> None:
        with torch.cuda.device_of(x):
            function(x, *args)

    return wrapper


class Tiling(NamedTuple):
    """How a tensor is cut into tiles, and into chunks of `iterations` tiles of consecutive pixels."""

    samples: int
    sizes: tuple[int, int, int, int]  # HW, C, stride_p, stride_c
    blocks: dict[str, int]  # BLOCK_P, BLOCK_C
    iterations: int

    @property
    def chunks(self) -> int:
        """Chunks of one sample."""
        return triton.cdiv(self.sizes[0], self.blocks["BLOCK_P"] * self.iterations)

    @property
    def grid(self) -> tuple[int]:
        return (self.samples * self.chunks * triton.cdiv(self.sizes[1], self.blocks["BLOCK_C"]),)


def tiling(x: Tensor, channels_last: bool, join: bool, elements: int = 2048, chunked: bool = False) -> Tiling:
    """Tiles of about `elements`; `join` allows a channels_last batch to be taken as one long sample.

    With `chunked`, for sums, a program takes as many tiles as leave PROGRAMS of them, 64 at most.
    """
    n, c, h, w = x.shape
    hw, power = h * w, triton.next_power_of_2
    if channels_last:
        n, hw = (1, n * hw) if join else (n, hw)
        block_c = min(power(c), 128)
        block_p, strides = min(power(hw), 512, elements // block_c), (c, 1)
    else:
        block_p = min(power(hw), 512)
        block_c, strides = min(power(c), elements // block_p), (1, hw)
    iterations = 1
    if chunked:
        tiles = triton.cdiv(hw, block_p)
        programs = n * tiles * triton.cdiv(c, block_c)
        iterations = min(64, power(tiles), power(max(1, programs // PROGRAMS)))
    return Tiling(n, (hw, c, *strides), {"BLOCK_P": block_p, "BLOCK_C": block_c}, iterations)


def group_stride(mean: Tensor) -> int:
    """Step from a sample to the next in statistics [G, C]."""
    return mean.size(1) if mean.size(0) > 1 else 0


@triton.jit
def place(hw, channels, chunk, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """This program's sample, pixels [BLOCK_P] of its first tile, channels [BLOCK_C], and number among all chunks."""
    blocks_c = tl.cdiv(channels, BLOCK_C)
    part = tl.program_id(0) // blocks_c
    c = tl.program_id(0) % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    chunks = tl.cdiv(hw, chunk)
    p = (part % chunks).to(tl.int64) * chunk + tl.arange(0, BLOCK_P)
    return (part // chunks).to(tl.int64), p, c.to(tl.int64), part.to(tl.int64)


@triton.jit
def row(pointer, start, c, channels):
    """Channels c of the float32 row at `start`, as [1, BLOCK_C]."""
    return tl.load(pointer + start + c, mask=c < channels, other=0.0)[None, :]


@triton.jit
def load(pointer, offset, ok):
    return tl.load(pointer + offset, mask=ok, other=0.0).to(tl.float32)


@triton.jit
def store(pointer, offset, value, ok):
    tl.store(pointer + offset, value.to(pointer.dtype.element_ty), mask=ok)


@triton.jit
def activate(z, slope):
    return tl.where(z > 0, z, z * slope)


@triton.jit
def activation_gradient(dy, z, slope):
    return tl.where(z > 0, dy, dy * slope)


@triton.jit
def row_at(offsets, rows, position):
    """The row d with offsets[d] <= position < offsets[d + 1]."""
    low = position * 0
    high = low + rows
    while high - low > 1:
        middle = (low + high) // 2
        inside = tl.load(offsets + middle) <= position
        low = tl.where(inside, middle, low)
        high = tl.where(inside, high, middle)
    return low


# Sums over segments offsets[d] .. offsets[d+1] - 1 of a list, of any lengths. The list is cut at every multiple of
# SEGMENT, and a program takes one piece: program d < D the first piece of row d, program D + b the piece that begins at
# boundary b. First pieces go to the output, the others to `partials`, and `add_partials` adds those that are inside of
# a row; where a row begins at a boundary its first piece is made twice, and the second is of no use.


def segments(index: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Pixels sorted by their row, stably, and where each row's begin."""
    values, order = torch.sort(index.flatten(), stable=True)
    every_row = torch.arange(rows + 1, dtype=values.dtype, device=values.device)
    return order, torch.searchsorted(values, every_row, out_int32=True)


def pieces(members: int, rows: int) -> tuple[int, int]:
    """Number of programs, and of boundaries."""
    boundaries = max(0, members - 1) // SEGMENT
    return rows + boundaries, boundaries


@triton.jit
def piece(offsets, rows, item, SEGMENT: tl.constexpr):
    """Row, first and last member of a piece."""
    d = item
    first = (item - rows + 1) * SEGMENT
    if item < rows:
        first = tl.load(offsets + item)
    else:
        d = row_at(offsets, rows, first)
    return d, first, tl.minimum(tl.load(offsets + d + 1), (first // SEGMENT + 1) * SEGMENT)


@triton.jit
def _add_partials(
    partials, offsets, out, rows, width, SEGMENT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr
):
    blocks = tl.cdiv(width, BLOCK)
    boundary = tl.program_id(0) // blocks
    k = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    position = (boundary + 1) * SEGMENT
    d = row_at(offsets, rows, position)
    start = tl.load(offsets + d)
    # Only the first boundary inside of a row does the work of all of them.
    if (start < position) & (start >= position - SEGMENT):
        end = boundary + (tl.load(offsets + d + 1) - 1) // SEGMENT - boundary
        total = tl.zeros((BLOCK_M, BLOCK), tl.float32)
        for i in range(boundary, end, BLOCK_M):
            m = i + tl.arange(0, BLOCK_M)
            ok = (m < end)[:, None] & (k < width)[None, :]
            total += tl.load(partials + m.to(tl.int64)[:, None] * width + k[None, :], mask=ok, other=0.0)
        at = out + d.to(tl.int64) * width + k
        tl.store(at, tl.load(at, mask=k < width, other=0.0) + tl.sum(total, 0), mask=k < width)


def add_partials(partials: Tensor, offsets: Tensor, out: Tensor) -> None:
    """Add the pieces behind boundaries, partials [boundaries, width], to the rows of out [D, width]."""
    rows, width = out.shape
    if partials.size(0):
        grid = (partials.size(0) * triton.cdiv(width, 64),)
        _add_partials[grid](partials, offsets, out, rows, width, SEGMENT=SEGMENT, BLOCK_M=32, BLOCK=64)
