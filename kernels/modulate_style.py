"""Triton kernels of `modulate_style`: y = act((x - mean) * rstd * scale + shift) with style [N, 2C]."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import Tiling, activate, activation_gradient, group_stride, load, on_device, place, row, store, tiling


def _tiling(x: Tensor, chunked: bool = False) -> Tiling:
    return tiling(x, not x.is_contiguous(), join=x.size(0) == 1, elements=2048 if chunked else 4096, chunked=chunked)


@triton.jit
def _apply(
    x, style, mean, rstd, y, slope, stride_g, hw, channels, stride_p, stride_c,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    ok = (p < hw)[:, None] & (c < channels)[None, :]
    at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
    xhat = (load(x, at, ok) - row(mean, n * stride_g, c, channels)) * row(rstd, n * stride_g, c, channels)
    factor = row(style, n * 2 * channels, c, channels)
    shift = row(style, n * 2 * channels + channels, c, channels)
    store(y, at, activate(xhat * factor + shift, slope), ok)


@triton.jit
def _sums(
    dy, x, style, mean, rstd, partials, slope, stride_g, iterations, hw, channels, stride_p, stride_c,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, part = place(hw, channels, BLOCK_P * iterations, BLOCK_P, BLOCK_C)
    mu, scale = row(mean, n * stride_g, c, channels), row(rstd, n * stride_g, c, channels)
    factor = row(style, n * 2 * channels, c, channels)
    shift = row(style, n * 2 * channels + channels, c, channels)
    dfactor = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    dshift = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for _ in range(iterations):
        ok = (p < hw)[:, None] & (c < channels)[None, :]
        at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
        xhat = (load(x, at, ok) - mu) * scale
        dz = activation_gradient(load(dy, at, ok), xhat * factor + shift, slope)
        dfactor += dz * xhat
        dshift += dz
        p += BLOCK_P
    out = partials + part * 2 * channels + c
    tl.store(out, tl.sum(dfactor, 0), mask=c < channels)
    tl.store(out + channels, tl.sum(dshift, 0), mask=c < channels)


@triton.jit
def _dx(
    dy, x, style, mean, rstd, means, dx, slope, stride_g, groups, hw, channels, stride_p, stride_c,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    ok = (p < hw)[:, None] & (c < channels)[None, :]
    at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
    scale = row(rstd, n * stride_g, c, channels)
    xhat = (load(x, at, ok) - row(mean, n * stride_g, c, channels)) * scale
    factor = row(style, n * 2 * channels, c, channels)
    shift = row(style, n * 2 * channels + channels, c, channels)
    g = activation_gradient(load(dy, at, ok), xhat * factor + shift, slope) * factor
    mean_g = row(means, n * stride_g, c, channels)
    mean_gx = row(means + groups * channels, n * stride_g, c, channels)
    store(dx, at, scale * (g - mean_g - xhat * mean_gx), ok)


@on_device
def modulate_style(x: Tensor, style: Tensor, mean: Tensor, rstd: Tensor, slope: float, y: Tensor) -> None:
    t = _tiling(x)
    _apply[t.grid](x, style, mean, rstd, y, slope, group_stride(mean), *t.sizes, **t.blocks)


@on_device
def modulate_style_sums(
    dy: Tensor, x: Tensor, style: Tensor, mean: Tensor, rstd: Tensor, slope: float, dstyle: Tensor
) -> None:
    """dstyle [N, 2C]: sums over each plane of dz * xhat and of dz."""
    t = _tiling(x, chunked=True)
    partials = dstyle.new_empty((t.samples, t.chunks, dstyle.size(1)))
    _sums[t.grid](dy, x, style, mean, rstd, partials, slope, group_stride(mean), t.iterations, *t.sizes, **t.blocks)
    torch.sum(partials, 1, out=dstyle)


@on_device
def modulate_style_dx(
    dy: Tensor, x: Tensor, style: Tensor, mean: Tensor, rstd: Tensor, means: Tensor, slope: float, dx: Tensor
) -> None:
    t = _tiling(x)
    _dx[t.grid](dy, x, style, mean, rstd, means, dx, slope, group_stride(mean), mean.size(0), *t.sizes, **t.blocks)
