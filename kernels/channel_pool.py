"""Triton kernels of `channel_pool`: mean and maximum over the channels of every pixel.

A program has whole pixels: a tile holds all channels. What there is once per pixel is float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import load, on_device, store


def _sizes(x: Tensor) -> tuple[tuple[int, ...], dict[str, int], tuple[int]]:
    """(pixels of all samples, HW, C, stride_p, stride_c), blocks, grid."""
    n, c, h, w = x.shape
    block_c = triton.next_power_of_2(c)
    block_p = max(1, min(64, 2048 // block_c))
    strides = (1, h * w) if x.is_contiguous() else (c, 1)
    return (n * h * w, h * w, c, *strides), {"BLOCK_P": block_p, "BLOCK_C": block_c}, (triton.cdiv(n * h * w, block_p),)


@triton.jit
def _place(pixels, hw, channels, stride_p, stride_c, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Pixels of all samples, their offsets in pooled, channels, offsets in x, and what of x exists."""
    i = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    sample, pixel = (i // hw).to(tl.int64), (i % hw).to(tl.int64)
    at = (sample * hw * channels + pixel * stride_p)[:, None] + c.to(tl.int64)[None, :] * stride_c
    return i, i + sample * hw, c[None, :], at, (i < pixels)[:, None] & (c < channels)[None, :]


@triton.jit
def _pool(
    x, pooled, index, pixels, hw, channels, stride_p, stride_c, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    i, out, c, at, ok = _place(pixels, hw, channels, stride_p, stride_c, BLOCK_P, BLOCK_C)
    value = load(x, at, ok)
    seen = tl.where(c < channels, value, float("-inf"))
    most = tl.max(seen, 1)
    p_ok = i < pixels
    store(pooled, out, tl.sum(value, 1) / channels, p_ok)
    store(pooled, out + hw, most, p_ok)
    tl.store(index + i, tl.min(tl.where(seen == most[:, None], c, BLOCK_C), 1), mask=p_ok)


@triton.jit
def _backward(
    dpooled, index, dx, pixels, hw, channels, stride_p, stride_c, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    i, given, c, at, ok = _place(pixels, hw, channels, stride_p, stride_c, BLOCK_P, BLOCK_C)
    p_ok = i < pixels
    share, dmax = load(dpooled, given, p_ok) / channels, load(dpooled, given + hw, p_ok)
    chosen = c == tl.load(index + i, mask=p_ok, other=0)[:, None]
    store(dx, at, share[:, None] + tl.where(chosen, dmax[:, None], 0.0), ok)


@on_device
def channel_pool(x: Tensor, pooled: Tensor, index: Tensor) -> None:
    sizes, blocks, grid = _sizes(x)
    wide = pooled if pooled.dtype is torch.float32 else torch.empty_like(pooled, dtype=torch.float32)
    _pool[grid](x, wide, index, *sizes, **blocks)
    if wide is not pooled:
        pooled.copy_(wide)


@on_device
def channel_pool_backward(dpooled: Tensor, index: Tensor, dx: Tensor) -> None:
    sizes, blocks, grid = _sizes(dx)
    _backward[grid](dpooled.float(), index, dx, *sizes, **blocks)
