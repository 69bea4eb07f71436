"""Triton kernels of `panoptic_conv`: rows of channels_last images in the order of lists, around the matrix product."""

import triton
import triton.language as tl
from torch import Tensor

from ._common import load, on_device, store


@triton.jit
def _tile(items, width, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr):
    """Items [BLOCK_I] and columns [BLOCK_C] of this program, and which of them are there."""
    blocks = tl.cdiv(width, BLOCK_C)
    i = tl.program_id(0) // blocks * BLOCK_I + tl.arange(0, BLOCK_I)
    c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    return i, c, (i < items)[:, None] & (c < width)[None, :]


@triton.jit
def _at(row, width, c):
    return row.to(tl.int64)[:, None] * width + c[None, :]


@triton.jit
def _ratio(taps, i, items, TAPS: tl.constexpr, BLOCK_T: tl.constexpr):
    """Taps of windows i over those that count, [BLOCK_I, 1]."""
    t = tl.arange(0, BLOCK_T)
    ok = (i < items)[:, None] & (t < TAPS)[None, :]
    counts = tl.load(taps + i.to(tl.int64)[:, None] * TAPS + t[None, :], mask=ok, other=-1) >= 0
    return (TAPS / tl.maximum(tl.sum(counts.to(tl.float32), 1), 1.0))[:, None]


@triton.jit
def _gather(x, taps, columns, items, width, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr):
    i, c, ok = _tile(items, width, BLOCK_I, BLOCK_C)
    pixel = tl.load(taps + i, mask=i < items, other=-1)
    store(columns, _at(i, width, c), load(x, _at(pixel, width, c), ok & (pixel >= 0)[:, None]), ok)


@triton.jit
def _put(
    y, rows, bias, at, taps, items, width,
    TAPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    i, c, ok = _tile(items, width, BLOCK_I, BLOCK_C)
    z = load(rows, _at(i, width, c), ok) * _ratio(taps, i, items, TAPS, BLOCK_T)
    if bias is not None:
        z += load(bias, c, c < width)[None, :]
    store(y, _at(tl.load(at + i, mask=i < items, other=0), width, c), z, ok)


@triton.jit
def _take(
    dy, at, taps, rows, items, width,
    TAPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    i, c, ok = _tile(items, width, BLOCK_I, BLOCK_C)
    pixel = tl.load(at + i, mask=i < items, other=0)
    store(rows, _at(i, width, c), load(dy, _at(pixel, width, c), ok) * _ratio(taps, i, items, TAPS, BLOCK_T), ok)


@triton.jit
def _add(dx, columns, taps, t, items, width, TAPS: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr):
    i, c, ok = _tile(items, width, BLOCK_I, BLOCK_C)
    entry = i.to(tl.int64) * TAPS + t
    pixel = tl.load(taps + entry, mask=i < items, other=-1)
    ok &= (pixel >= 0)[:, None]
    to = _at(pixel, width, c)
    store(dx, to, load(dx, to, ok) + load(columns, _at(entry, width, c), ok), ok)


def _blocks(items: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    """The grid, and tiles of about 2048 elements."""
    block_c = min(triton.next_power_of_2(width), 128)
    block_i = 2048 // block_c
    return (triton.cdiv(items, block_i) * triton.cdiv(width, block_c),), {"BLOCK_I": block_i, "BLOCK_C": block_c}


def _window(taps: Tensor) -> dict[str, int]:
    return {"TAPS": taps.size(1), "BLOCK_T": triton.next_power_of_2(taps.size(1))}


@on_device
def panoptic_gather(x: Tensor, taps: Tensor, columns: Tensor) -> None:
    """columns [B, T * C]: rows of x at taps [B, T], zeros where these are -1."""
    grid, blocks = _blocks(taps.numel(), x.size(1))
    _gather[grid](x, taps, columns, taps.numel(), x.size(1), **blocks)


@on_device
def panoptic_put(y: Tensor, rows: Tensor, bias: Tensor | None, at: Tensor, taps: Tensor) -> None:
    """y at the pixels at [B] becomes rows [B, O] * ratio + bias."""
    grid, blocks = _blocks(*rows.shape)
    _put[grid](y, rows, bias, at, taps, *rows.shape, **_window(taps), **blocks)


@on_device
def panoptic_take(dy: Tensor, at: Tensor, taps: Tensor, rows: Tensor) -> None:
    """rows [B, O] become dy at the pixels at [B], times ratio."""
    grid, blocks = _blocks(*rows.shape)
    _take[grid](dy, at, taps, rows, *rows.shape, **_window(taps), **blocks)


@on_device
def panoptic_add(dx: Tensor, columns: Tensor, taps: Tensor) -> None:
    """dx at the pixels taps [B, T] += columns [B, T * C]. The same tap of different windows shows different pixels."""
    grid, blocks = _blocks(taps.size(0), dx.size(1))
    for t in range(taps.size(1)):
        _add[grid](dx, columns, taps, t, taps.size(0), dx.size(1), TAPS=taps.size(1), **blocks)
