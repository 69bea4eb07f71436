"""Triton kernels of `modulate_mix`, `mix_sums` and `mix_dots`: products with K soft weights per pixel and K table rows.

They are matrix products along K, the pixels or the channels, with K small. On plain arithmetic units they would take
longer than the images take to be read, so tensor cores do them: halves as three products in tf32, whose error is that
of float32; float32 images by plain ones, which are exact.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import load, on_device, place, store

MOST_TILES = 16  # that a program adds up: tensor cores cut off what they cannot hold, a little with every product


def _sizes(u: Tensor, k: int, most_p: int, most_c: int) -> tuple[tuple[int, ...], dict[str, int | str], int, int]:
    """(K, step from a pixel's weights to the next one's, from a weight to the next, HW, C, stride_p, stride_c), blocks,
    and how many tiles of pixels (of a sample) and of channels there are.
    """
    c, hw = u.size(1), u.size(2) * u.size(3)
    block_p, block_c, block_k = (
        min(most, max(16, triton.next_power_of_2(size))) for most, size in ((most_p, hw), (most_c, c), (32, k))
    )
    layout = (1, hw, hw, c, 1, hw) if u.is_contiguous() else (k, 1, hw, c, c, 1)
    precision = "ieee" if u.dtype is torch.float32 else "tf32x3"
    blocks = {"PRECISION": precision, "BLOCK_P": block_p, "BLOCK_C": block_c, "BLOCK_K": block_k}
    return (k, *layout), blocks, triton.cdiv(hw, block_p), triton.cdiv(c, block_c)


@triton.jit
def _mix(
    x, weights, weights2, table, y, k, weight_p, weight_k, hw, channels, stride_p, stride_c,
    PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    p_ok, c_ok = (p < hw)[:, None], (c < channels)[None, :]
    scale = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    shift = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for first in range(0, k, BLOCK_K):
        i = first + tl.arange(0, BLOCK_K)
        weight_at = n * hw * k + p[:, None] * weight_p + i[None, :] * weight_k
        row_at = (n * k + i)[:, None] * (2 * channels) + c[None, :]
        weight_ok, row_ok = p_ok & (i < k)[None, :], (i < k)[:, None] & c_ok
        scale = tl.dot(load(weights, weight_at, weight_ok), load(table, row_at, row_ok), scale, PRECISION)
        shift = tl.dot(load(weights2, weight_at, weight_ok), load(table, row_at + channels, row_ok), shift, PRECISION)
    at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
    store(y, at, load(x, at, p_ok & c_ok) * scale + shift, p_ok & c_ok)


@triton.jit
def _sums(
    u, v, weights, weights2, partials, iterations, k, weight_p, weight_k, hw, channels, stride_p, stride_c,
    PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n, start, c, part = place(hw, channels, BLOCK_P * iterations, BLOCK_P, BLOCK_C)
    c_ok = (c < channels)[None, :]
    for first in range(0, k, BLOCK_K):
        i = first + tl.arange(0, BLOCK_K)
        sums = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
        sums2 = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
        p = start
        for _ in range(iterations):
            ok, weight_ok = (p < hw)[:, None] & c_ok, (i < k)[:, None] & (p < hw)[None, :]
            at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
            weight_at = n * hw * k + i[:, None] * weight_k + p[None, :] * weight_p
            one = load(u, at, ok)
            sums = tl.dot(load(weights, weight_at, weight_ok), one * load(v, at, ok), sums, PRECISION)
            sums2 = tl.dot(load(weights2, weight_at, weight_ok), one, sums2, PRECISION)
            p += BLOCK_P
        out = partials + (part * k + i)[:, None] * (2 * channels) + c[None, :]
        tl.store(out, sums, mask=(i < k)[:, None] & c_ok)
        tl.store(out + channels, sums2, mask=(i < k)[:, None] & c_ok)


@triton.jit
def _dots(
    u, v, table, dots, k, dot_p, dot_k, hw, channels, stride_p, stride_c,
    PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n, p, lanes, _ = place(hw, BLOCK_C, BLOCK_P, BLOCK_P, BLOCK_C)  # a program has all channels of its pixels
    p_ok = (p < hw)[:, None]
    for first in range(0, k, BLOCK_K):
        i = first + tl.arange(0, BLOCK_K)
        total = tl.zeros((BLOCK_P, BLOCK_K), tl.float32)
        total2 = tl.zeros((BLOCK_P, BLOCK_K), tl.float32)
        for start in range(0, channels, BLOCK_C):
            c = start + lanes
            ok, row_ok = p_ok & (c < channels)[None, :], (c < channels)[:, None] & (i < k)[None, :]
            at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
            row_at = (n * k + i)[None, :] * (2 * channels) + c[:, None]
            one = load(u, at, ok)
            total = tl.dot(one * load(v, at, ok), load(table, row_at, row_ok), total, PRECISION)
            total2 = tl.dot(one, load(table, row_at + channels, row_ok), total2, PRECISION)
        to = n * 2 * k * hw + p[:, None] * dot_p + i[None, :] * dot_k
        store(dots, to, total, p_ok & (i < k)[None, :])
        store(dots, to + k * dot_k, total2, p_ok & (i < k)[None, :])


@on_device
def modulate_mix(x: Tensor, weights: Tensor, weights2: Tensor, table: Tensor, y: Tensor) -> None:
    sizes, blocks, tiles, across = _sizes(x, weights.size(1), 64, 64)
    _mix[(x.size(0) * tiles * across,)](x, weights, weights2, table, y, *sizes, **blocks, num_stages=1)


@on_device
def mix_sums(u: Tensor, v: Tensor, weights: Tensor, weights2: Tensor, sums: Tensor) -> None:
    """sums [N, K, 2C]."""
    sizes, blocks, tiles, across = _sizes(u, weights.size(1), 32, 64)
    iterations = min(MOST_TILES, triton.next_power_of_2(tiles))
    chunks = triton.cdiv(tiles, iterations)
    partials = sums.new_empty((u.size(0), chunks, *sums.shape[1:]), dtype=torch.float32)
    _sums[(u.size(0) * chunks * across,)](u, v, weights, weights2, partials, iterations, *sizes, **blocks, num_stages=1)
    torch.sum(partials, 1, dtype=sums.dtype, out=sums)


@on_device
def mix_dots(u: Tensor, v: Tensor, table: Tensor, dots: Tensor) -> None:
    """dots [N, 2K, H, W] in the layout of u."""
    k = table.size(1)
    (_, _, _, *image), blocks, tiles, _ = _sizes(u, k, 64, 32)
    steps = (1, u.size(2) * u.size(3)) if u.is_contiguous() else (2 * k, 1)
    _dots[(u.size(0) * tiles,)](u, v, table, dots, k, *steps, *image, **blocks, num_stages=1)
