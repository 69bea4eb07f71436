"""Triton kernels of `modulate`: y = act((x - mean) * rstd * (1 + gamma) + beta) with maps gamma, beta.

`gamma_beta [N, 2C, H, W]` has the layout of x, so gamma of pixel p, channel c lies at
`n * 2C * HW + p * map_p + c * stride_c`, and its beta `to_beta` behind it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import Tiling, activate, activation_gradient, group_stride, load, on_device, place, row, store, tiling


def _tiling(x: Tensor, gamma_beta: Tensor, mean: Tensor, chunked: bool = False) -> tuple[Tiling, int, int]:
    """Tiles, map_p and to_beta. The layout is that of gamma_beta: with one channel the layout of x says nothing."""
    channels_last = not gamma_beta.is_contiguous()
    t = tiling(x, channels_last, mean.size(0) == 1, chunked=chunked)
    return (t, 2 * x.size(1), x.size(1)) if channels_last else (t, 1, x[0].numel())


@triton.jit
def _apply(
    x, gamma_beta, mean, rstd, y, slope, stride_g, map_p, to_beta, hw, channels, stride_p, stride_c,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    ok = (p < hw)[:, None] & (c < channels)[None, :]
    at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
    map_at = n * 2 * hw * channels + p[:, None] * map_p + c[None, :] * stride_c
    xhat = (load(x, at, ok) - row(mean, n * stride_g, c, channels)) * row(rstd, n * stride_g, c, channels)
    gamma = load(gamma_beta, map_at, ok)
    beta = load(gamma_beta, map_at + to_beta, ok)
    store(y, at, activate(xhat * (1 + gamma) + beta, slope), ok)


@triton.jit
def _sums(
    dy, x, gamma_beta, mean, rstd, d_gamma_beta, partials, slope, stride_g, map_p, to_beta, iterations, parts,
    hw, channels, stride_p, stride_c, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, part = place(hw, channels, BLOCK_P * iterations, BLOCK_P, BLOCK_C)
    mu, scale = row(mean, n * stride_g, c, channels), row(rstd, n * stride_g, c, channels)
    sum_g = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    sum_gx = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for _ in range(iterations):
        ok = (p < hw)[:, None] & (c < channels)[None, :]
        at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
        map_at = n * 2 * hw * channels + p[:, None] * map_p + c[None, :] * stride_c
        xhat = (load(x, at, ok) - mu) * scale
        gamma = load(gamma_beta, map_at, ok)
        beta = load(gamma_beta, map_at + to_beta, ok)
        dz = activation_gradient(load(dy, at, ok), xhat * (1 + gamma) + beta, slope)
        store(d_gamma_beta, map_at, dz * xhat, ok)
        store(d_gamma_beta, map_at + to_beta, dz, ok)
        g = dz * (1 + gamma)
        sum_g += g
        sum_gx += g * xhat
        p += BLOCK_P
    out = partials + part * channels + c
    tl.store(out, tl.sum(sum_g, 0), mask=c < channels)
    tl.store(out + parts * channels, tl.sum(sum_gx, 0), mask=c < channels)


@triton.jit
def _dx(
    dy, x, gamma_beta, mean, rstd, means, dx, slope, stride_g, groups, map_p, to_beta, hw, channels, stride_p, stride_c,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    ok = (p < hw)[:, None] & (c < channels)[None, :]
    at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
    map_at = n * 2 * hw * channels + p[:, None] * map_p + c[None, :] * stride_c
    scale = row(rstd, n * stride_g, c, channels)
    xhat = (load(x, at, ok) - row(mean, n * stride_g, c, channels)) * scale
    gamma = load(gamma_beta, map_at, ok)
    beta = load(gamma_beta, map_at + to_beta, ok)
    g = activation_gradient(load(dy, at, ok), xhat * (1 + gamma) + beta, slope) * (1 + gamma)
    mean_g = row(means, n * stride_g, c, channels)
    mean_gx = row(means + groups * channels, n * stride_g, c, channels)
    store(dx, at, scale * (g - mean_g - xhat * mean_gx), ok)


@on_device
def modulate(x: Tensor, gamma_beta: Tensor, mean: Tensor, rstd: Tensor, slope: float, y: Tensor) -> None:
    t, map_p, to_beta = _tiling(x, gamma_beta, mean)
    _apply[t.grid](x, gamma_beta, mean, rstd, y, slope, group_stride(mean), map_p, to_beta, *t.sizes, **t.blocks)


@on_device
def modulate_sums(
    dy: Tensor, x: Tensor, gamma_beta: Tensor, mean: Tensor, rstd: Tensor, slope: float,
    d_gamma_beta: Tensor, sums: Tensor,
) -> None:  # fmt: skip
    """d_gamma_beta, and sums [2, G, C] of g and g * xhat."""
    t, map_p, to_beta = _tiling(x, gamma_beta, mean, chunked=True)
    parts = t.samples * t.chunks
    partials = sums.new_empty((2, parts, x.size(1)))
    _sums[t.grid](
        dy, x, gamma_beta, mean, rstd, d_gamma_beta, partials, slope, group_stride(mean), map_p, to_beta,
        t.iterations, parts, *t.sizes, **t.blocks,
    )  # fmt: skip
    torch.sum(partials.view(2, mean.size(0), -1, x.size(1)), 2, out=sums)


@on_device
def modulate_dx(
    dy: Tensor, x: Tensor, gamma_beta: Tensor, mean: Tensor, rstd: Tensor, means: Tensor, slope: float, dx: Tensor
) -> None:
    t, map_p, to_beta = _tiling(x, gamma_beta, mean)
    _dx[t.grid](
        dy, x, gamma_beta, mean, rstd, means, dx, slope, group_stride(mean), mean.size(0), map_p, to_beta,
        *t.sizes, **t.blocks,
    )  # fmt: skip
