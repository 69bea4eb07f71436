"""Triton kernels of `modulate_region`: t = xhat * scale + shift with rows by index, y = act(t * (1 + gamma) + beta).

Rows are (mean, rstd, scale, shift) of C numbers each, for dx also the means of dt * xhat and dt. maps [N, 2, HW] are
gamma and beta of a pixel; with a batch taken as one long sample, gamma of pixel i of all lies at i + i // pixels *
pixels, beta `pixels` further on.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    SEGMENT,
    Tiling,
    activate,
    activation_gradient,
    add_partials,
    load,
    on_device,
    piece,
    pieces,
    place,
    segments,
    store,
    tiling,
)


def _tiling(x: Tensor) -> Tiling:
    return tiling(x, not x.is_contiguous(), join=True)


@triton.jit
def _map_at(i, pixels):
    """Where gamma of pixels i of all lies."""
    return i + (i.to(tl.int32) // pixels).to(tl.int64) * pixels  # a division of 64 bits is a call


@triton.jit
def _modulated(x, at, row, maps, map_at, c, ok, p_ok, channels, MAPS: tl.constexpr):
    """xhat, t, the pixel's factor, and z."""
    xhat = (load(x, at, ok) - load(row, c, ok)) * load(row, channels + c, ok)
    t = xhat * load(row, 2 * channels + c, ok) + load(row, 3 * channels + c, ok)
    factor, z = 1.0, t
    if MAPS:
        factor = 1 + load(maps, map_at[0], p_ok)[:, None]
        z = t * factor + load(maps, map_at[1], p_ok)[:, None]
    return xhat, t, factor, z


@triton.jit
def _apply(
    x, ids, maps, rows, y, slope, pixels, hw, channels, stride_p, stride_c,
    MAPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    p_ok = p < hw
    ok = p_ok[:, None] & (c < channels)[None, :]
    i = n * hw + p
    row = rows + tl.load(ids + i, mask=p_ok, other=0).to(tl.int64)[:, None] * (4 * channels)
    map_at = _map_at(i, pixels)
    at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
    _, _, _, z = _modulated(x, at, row, maps, (map_at, map_at + pixels), c[None, :], ok, p_ok, channels, MAPS)
    store(y, at, activate(z, slope), ok)


@triton.jit
def _dx(
    dy, x, ids, maps, rows, dx, dmaps, slope, pixels, all_maps, hw, channels, stride_p, stride_c,
    MAPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    p_ok = p < hw
    ok = p_ok[:, None] & (c < channels)[None, :]
    i = n * hw + p
    row = rows + tl.load(ids + i, mask=p_ok, other=0).to(tl.int64)[:, None] * (6 * channels)
    map_at = _map_at(i, pixels)
    at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
    places = (map_at, map_at + pixels)
    xhat, t, factor, z = _modulated(x, at, row, maps, places, c[None, :], ok, p_ok, channels, MAPS)
    dz = activation_gradient(load(dy, at, ok), z, slope)
    rstd, scale = load(row, channels + c[None, :], ok), load(row, 2 * channels + c[None, :], ok)
    mean_dtx, mean_dt = load(row, 4 * channels + c[None, :], ok), load(row, 5 * channels + c[None, :], ok)
    store(dx, at, rstd * scale * (dz * factor - mean_dt - xhat * mean_dtx), ok)
    if MAPS:
        out = dmaps + tl.program_id(0) % tl.cdiv(channels, BLOCK_C) * all_maps
        tl.store(out + map_at, tl.sum(dz * t, 1), mask=p_ok)
        tl.store(out + map_at + pixels, tl.sum(dz, 1), mask=p_ok)


@triton.jit
def _sums(
    dy, x, order, offsets, maps, rows, sums, partials, slope, pixels, regions, channels,
    MAPS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Rows (sum of dt * xhat, sum of dt) from channels_last dy and x."""
    blocks_c = tl.cdiv(channels, BLOCK_C)
    item = tl.program_id(0) // blocks_c
    c = tl.program_id(0) % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    c_ok = (c < channels)[None, :]
    r, first, last = piece(offsets, regions, item, SEGMENT)
    row = rows + r.to(tl.int64) * (4 * channels)
    sum_x = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    sum_dt = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for j in range(first, last, BLOCK_M):
        member = j + tl.arange(0, BLOCK_M)
        p_ok = member < last
        ok = p_ok[:, None] & c_ok
        i = tl.load(order + member, mask=p_ok, other=0).to(tl.int64)
        at, map_at = i[:, None] * channels + c[None, :], _map_at(i, pixels)
        places = (map_at, map_at + pixels)
        xhat, _, factor, z = _modulated(x, at, row, maps, places, c[None, :], ok, p_ok, channels, MAPS)
        dt = activation_gradient(load(dy, at, ok), z, slope) * factor
        sum_x += dt * xhat
        sum_dt += dt
    out = sums + item.to(tl.int64) * (2 * channels) + c
    if item >= regions:
        out = partials + (item - regions).to(tl.int64) * (2 * channels) + c
    tl.store(out, tl.sum(sum_x, 0), mask=c < channels)
    tl.store(out + channels, tl.sum(sum_dt, 0), mask=c < channels)


@on_device
def modulate_region(x: Tensor, ids: Tensor, maps: Tensor | None, rows: Tensor, slope: float, y: Tensor) -> None:
    t = _tiling(x)
    _apply[t.grid](x, ids, maps, rows, y, slope, ids[0].numel(), *t.sizes, MAPS=maps is not None, **t.blocks)


@on_device
def modulate_region_sums(
    dy: Tensor, x: Tensor, ids: Tensor, maps: Tensor | None, order: Tensor | None, offsets: Tensor | None,
    rows: Tensor, slope: float, sums: Tensor,
) -> None:  # fmt: skip
    """sums [R, 2C] of dt * xhat and of dt. `order`, `offsets`: pixels sorted by index, None to sort here."""
    regions, channels = rows.size(0), x.size(1)
    if order is None or offsets is None:
        order, offsets = segments(ids, regions)
    programs, boundaries = pieces(ids.numel(), regions)
    partials = sums.new_empty((boundaries, 2 * channels))
    last = torch.channels_last  # pixels of a region are scattered: their channels had better lie side by side
    block_c = min(triton.next_power_of_2(channels), 64)
    _sums[(programs * triton.cdiv(channels, block_c),)](
        dy.contiguous(memory_format=last), x.contiguous(memory_format=last), order, offsets, maps, rows, sums, partials,
        slope, ids[0].numel(), regions, channels,
        MAPS=maps is not None, SEGMENT=SEGMENT, BLOCK_M=8, BLOCK_C=block_c, num_warps=2,
    )  # fmt: skip
    add_partials(partials, offsets, sums)


@on_device
def modulate_region_dx(
    dy: Tensor, x: Tensor, ids: Tensor, maps: Tensor | None, rows: Tensor, slope: float, dx: Tensor,
    dmaps: Tensor | None,
) -> None:  # fmt: skip
    t = _tiling(x)
    blocks = triton.cdiv(t.sizes[1], t.blocks["BLOCK_C"])
    partials = None if dmaps is None else dmaps.new_empty((blocks, *dmaps.shape))
    all_maps = 2 * ids.numel()
    _dx[t.grid](
        dy, x, ids, maps, rows, dx, partials, slope, ids[0].numel(), all_maps, *t.sizes,
        MAPS=maps is not None, **t.blocks,
    )  # fmt: skip
    if dmaps is not None:
        torch.sum(partials, 0, out=dmaps)
