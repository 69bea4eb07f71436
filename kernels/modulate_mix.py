"""Triton kernels of `modulate_mix`, `mix_sums` and `mix_dots`: products with K soft weights per pixel and K table rows.

A program keeps a tile of pixels by channels in registers and walks over k. K is small, so that plain products, exact in
float32, keep up with memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import load, on_device, place, store


def _sizes(u: Tensor, k: int, most_p: int, most_c: int) -> tuple[tuple[int, ...], dict[str, int], int, int]:
    """(K, step from a pixel's weights to the next one's, from a weight to the next, HW, C, stride_p, stride_c), blocks,
    and how many tiles of pixels (of a sample) and of channels there are.
    """
    c, hw = u.size(1), u.size(2) * u.size(3)
    block_p, block_c = (min(most, triton.next_power_of_2(size)) for most, size in ((most_p, hw), (most_c, c)))
    layout = (1, hw, hw, c, 1, hw) if u.is_contiguous() else (k, 1, hw, c, c, 1)
    blocks = {"BLOCK_P": block_p, "BLOCK_C": block_c}
    return (k, *layout), blocks, triton.cdiv(hw, block_p), triton.cdiv(c, block_c)


@triton.jit
def _mix(
    x, weights, weights2, table, y, k, weight_p, weight_k, hw, channels, stride_p, stride_c,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    p_ok, c_ok = p < hw, c < channels
    ok = p_ok[:, None] & c_ok[None, :]
    scale = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    shift = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    weight_at, row_at = n * hw * k + p * weight_p, n * k * 2 * channels + c
    for _ in range(k):
        scale += load(weights, weight_at, p_ok)[:, None] * load(table, row_at, c_ok)[None, :]
        shift += load(weights2, weight_at, p_ok)[:, None] * load(table, row_at + channels, c_ok)[None, :]
        weight_at += weight_k
        row_at += 2 * channels
    at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
    store(y, at, load(x, at, ok) * scale + shift, ok)


@triton.jit
def _sums(
    u, v, weights, weights2, partials, k, weight_p, weight_k, hw, channels, stride_p, stride_c,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, part = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    p_ok, c_ok = p < hw, c < channels
    ok = p_ok[:, None] & c_ok[None, :]
    at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
    one = load(u, at, ok)
    product = one * load(v, at, ok)
    weight_at, out = n * hw * k + p * weight_p, partials + part * k * 2 * channels + c
    for _ in range(k):
        tl.store(out, tl.sum(load(weights, weight_at, p_ok)[:, None] * product, 0), mask=c_ok)
        tl.store(out + channels, tl.sum(load(weights2, weight_at, p_ok)[:, None] * one, 0), mask=c_ok)
        weight_at += weight_k
        out += 2 * channels


@triton.jit
def _dots(
    u, v, table, partials, samples, k, weight_p, weight_k, hw, channels, stride_p, stride_c,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    p_ok, c_ok = p < hw, c < channels
    ok = p_ok[:, None] & c_ok[None, :]
    at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
    one = load(u, at, ok)
    product = one * load(v, at, ok)
    block = (tl.program_id(0) % tl.cdiv(channels, BLOCK_C)).to(tl.int64)
    out, row_at = partials + (block * samples + n) * 2 * k * hw + p * weight_p, n * k * 2 * channels + c
    for _ in range(k):
        tl.store(out, tl.sum(product * load(table, row_at, c_ok)[None, :], 1), mask=p_ok)
        tl.store(out + k * weight_k, tl.sum(one * load(table, row_at + channels, c_ok)[None, :], 1), mask=p_ok)
        out += weight_k
        row_at += 2 * channels


@on_device
def modulate_mix(x: Tensor, weights: Tensor, weights2: Tensor, table: Tensor, y: Tensor) -> None:
    sizes, blocks, tiles, across = _sizes(x, weights.size(1), 16, 64)
    _mix[(x.size(0) * tiles * across,)](x, weights, weights2, table, y, *sizes, **blocks)


@on_device
def mix_sums(u: Tensor, v: Tensor, weights: Tensor, weights2: Tensor, sums: Tensor) -> None:
    """sums [N, K, 2C]."""
    sizes, blocks, tiles, across = _sizes(u, weights.size(1), 128, 32)
    partials = sums.new_empty((u.size(0), tiles, *sums.shape[1:]))
    _sums[(u.size(0) * tiles * across,)](u, v, weights, weights2, partials, *sizes, **blocks)
    torch.sum(partials, 1, out=sums)


@on_device
def mix_dots(u: Tensor, v: Tensor, table: Tensor, dots: Tensor) -> None:
    """dots [N, 2K, H, W] in the layout of u."""
    k = table.size(1)
    sizes, blocks, tiles, across = _sizes(u, k, 32, 128)
    steps = (1, u.size(2) * u.size(3)) if u.is_contiguous() else (2 * k, 1)
    partials = dots.new_empty((across, dots.numel()))
    _dots[(u.size(0) * tiles * across,)](u, v, table, partials, u.size(0), k, *steps, *sizes[3:], **blocks)
    every = torch.sum(partials, 0)
    n, _, h, w = dots.shape
    dots.copy_(every.view(n, 2 * k, h, w) if u.is_contiguous() else every.view(n, h, w, 2 * k).permute(0, 3, 1, 2))
