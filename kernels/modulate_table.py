"""Triton kernels of `modulate_table`: y = act((x - mean) * rstd * (1 + gamma) + beta) with a table row per pixel.

A table row is (gamma, beta) or, for a pair of outputs, (gamma, beta, gamma2, beta2), C numbers each. With scales, as
many numbers per pixel of y, 1 + gamma and beta are multiplied by them. With noise, a number per pixel of y, and
strength [C], x + strength * noise is normalised. With CHILDREN = 4, x is upsampled x2 by nearest on the fly: pixel p of
x has four pixels in patches and y.
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
    group_stride,
    load,
    on_device,
    piece,
    pieces,
    place,
    row,
    segments,
    store,
    tiling,
)


def _tiling(x: Tensor, y: Tensor, mean: Tensor, chunked: bool = False) -> tuple[Tiling, tuple[int, int]]:
    """Tiles of x, and (width of x, stride_c of y). The layout is that of y, which tells it where x is 1x1."""
    channels_last = not y.is_contiguous()
    t = tiling(x, channels_last, mean.size(0) == 1, elements=1024 if y.numel() > x.numel() else 2048, chunked=chunked)
    return t, (x.size(3), 1 if channels_last else y.size(2) * y.size(3))


@triton.jit
def _child(p, k, width, CHILDREN: tl.constexpr):
    """Pixel of y of the k-th child of pixel p of x."""
    if CHILDREN == 1:
        return p
    above = (p.to(tl.int32) // width).to(tl.int64) * width  # a division of 64 bits is a call
    return 2 * (p + above) + k // 2 * (2 * width) + k % 2


@triton.jit
def _rows(table, patches, q, p_ok, channels, PAIR: tl.constexpr):
    """Pointers to the table rows of pixels q, as [BLOCK_P, 1]."""
    d = tl.load(patches + q, mask=p_ok, other=0).to(tl.int64)
    return (table + d * ((4 if PAIR else 2) * channels))[:, None]


@triton.jit
def _scale(scales, q, k, q_ok, PAIR: tl.constexpr):
    """Number k of pixels q of y, as [BLOCK_P, 1]; 1 without scales."""
    if scales is None:
        value = 1.0
    else:
        value = tl.load(scales + q * (4 if PAIR else 2) + k, mask=q_ok, other=0.0)[:, None]
    return value


@triton.jit
def _noise(noise, q, q_ok):
    """Noise at pixels q of y, as [BLOCK_P, 1]; 0 without noise."""
    if noise is None:
        value = 0.0
    else:
        value = load(noise, q, q_ok)[:, None]
    return value


@triton.jit
def _strength(strength, c, channels):
    """Row [1, BLOCK_C]; 0 without noise."""
    if strength is None:
        value = 0.0
    else:
        value = row(strength, 0, c, channels)
    return value


@triton.jit
def _modulated(xhat, rows, s, t, c, ok, channels):
    """(1 + gamma, beta, z) with z = xhat * (1 + gamma) * s + beta * t."""
    scale, shift = 1 + load(rows, c[None, :], ok), load(rows, channels + c[None, :], ok)
    return scale, shift, xhat * (scale * s) + shift * t


@triton.jit
def _gradient(dy, xhat, at, rows, s, t, c, ok, slope, channels):
    """Of one output at one pixel of y: dL/dxhat, and the gradients of s and t, by channel."""
    scale, shift, z = _modulated(xhat, rows, s, t, c, ok, channels)
    dz = activation_gradient(load(dy, at, ok), z, slope)
    return dz * scale * s, dz * xhat * scale, dz * shift


@triton.jit
def _apply(
    x, table, patches, scales, noise, strength, mean, rstd, y, y2, slope, slope2, stride_g, width, stride_yc,
    hw, channels, stride_p, stride_c,
    PAIR: tl.constexpr, CHILDREN: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    p_ok = p < hw
    ok = p_ok[:, None] & (c < channels)[None, :]
    value = load(x, n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c, ok)
    mu, scale = row(mean, n * stride_g, c, channels), row(rstd, n * stride_g, c, channels)
    by = _strength(strength, c, channels)
    for k in tl.static_range(CHILDREN):
        q = _child(p, k, width, CHILDREN)
        at = n * hw * CHILDREN * channels + q[:, None] * stride_p + c[None, :] * stride_yc
        q += n * hw * CHILDREN
        rows = _rows(table, patches, q, p_ok, channels, PAIR)
        s, t = _scale(scales, q, 0, p_ok, PAIR), _scale(scales, q, 1, p_ok, PAIR)
        xhat = (value - mu + _noise(noise, q, p_ok) * by) * scale
        _, _, z = _modulated(xhat, rows, s, t, c, ok, channels)
        store(y, at, activate(z, slope), ok)
        if PAIR:
            s, t = _scale(scales, q, 2, p_ok, PAIR), _scale(scales, q, 3, p_ok, PAIR)
            _, _, z = _modulated(xhat, rows + 2 * channels, s, t, c, ok, channels)
            store(y2, at, activate(z, slope2), ok)


@triton.jit
def _store_dscales(
    dscales, y_pixels, q, k, ds, dt, q_ok, channels, PAIR: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Sums over this program's channels, to its block of channels in dscales [blocks, pixels of y, 2 or 4]."""
    if dscales is not None:
        block = (tl.program_id(0) % tl.cdiv(channels, BLOCK_C)).to(tl.int64)
        at = dscales + (block * y_pixels + q) * (4 if PAIR else 2) + k
        tl.store(at, tl.sum(ds, 1), mask=q_ok)
        tl.store(at + 1, tl.sum(dt, 1), mask=q_ok)


@triton.jit
def _dx(
    dy, dy2, x, table, patches, scales, noise, strength, mean, rstd, means, dx, dscales, slope, slope2, stride_g,
    groups, width, stride_yc, y_pixels, hw, channels, stride_p, stride_c,
    PAIR: tl.constexpr, CHILDREN: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    p_ok = p < hw
    ok = p_ok[:, None] & (c < channels)[None, :]
    x_at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
    scale, by = row(rstd, n * stride_g, c, channels), _strength(strength, c, channels)
    centred = load(x, x_at, ok) - row(mean, n * stride_g, c, channels)
    g = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    noises = tl.zeros((BLOCK_P, 1), tl.float32)
    for k in tl.static_range(CHILDREN):
        q = _child(p, k, width, CHILDREN)
        at = n * hw * CHILDREN * channels + q[:, None] * stride_p + c[None, :] * stride_yc
        q += n * hw * CHILDREN
        rows = _rows(table, patches, q, p_ok, channels, PAIR)
        s, t = _scale(scales, q, 0, p_ok, PAIR), _scale(scales, q, 1, p_ok, PAIR)
        one = _noise(noise, q, p_ok)
        noises += one
        xhat = (centred + one * by) * scale
        share, ds, dt = _gradient(dy, xhat, at, rows, s, t, c, ok, slope, channels)
        _store_dscales(dscales, y_pixels, q, 0, ds, dt, p_ok, channels, PAIR, BLOCK_C)
        if PAIR:
            s, t = _scale(scales, q, 2, p_ok, PAIR), _scale(scales, q, 3, p_ok, PAIR)
            second, ds, dt = _gradient(dy2, xhat, at, rows + 2 * channels, s, t, c, ok, slope2, channels)
            share += second
            _store_dscales(dscales, y_pixels, q, 2, ds, dt, p_ok, channels, PAIR, BLOCK_C)
        g += share  # in the order of _sums, so that g and the mean of a single one cancel
    xhat = (centred + noises / CHILDREN * by) * scale
    mean_g = row(means, n * stride_g, c, channels)
    mean_gx = row(means + groups * channels, n * stride_g, c, channels)
    store(dx, x_at, scale * (g - mean_g - xhat * mean_gx), ok)


@triton.jit
def _sums(
    dy, dy2, x, table, patches, scales, noise, strength, mean, rstd, partials, slope, slope2, stride_g,
    width, stride_yc, iterations, parts, hw, channels, stride_p, stride_c,
    PAIR: tl.constexpr, CHILDREN: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, part = place(hw, channels, BLOCK_P * iterations, BLOCK_P, BLOCK_C)
    mu, scale = row(mean, n * stride_g, c, channels), row(rstd, n * stride_g, c, channels)
    by = _strength(strength, c, channels)
    sum_g = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    sum_gx = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    if noise is not None:
        sum_x = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        sum_gn = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        sum_xn = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for _ in range(iterations):
        p_ok = p < hw
        ok = p_ok[:, None] & (c < channels)[None, :]
        centred = load(x, n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c, ok) - mu
        for k in tl.static_range(CHILDREN):
            q = _child(p, k, width, CHILDREN)
            at = n * hw * CHILDREN * channels + q[:, None] * stride_p + c[None, :] * stride_yc
            q += n * hw * CHILDREN
            rows = _rows(table, patches, q, p_ok, channels, PAIR)
            s, t = _scale(scales, q, 0, p_ok, PAIR), _scale(scales, q, 1, p_ok, PAIR)
            one = _noise(noise, q, p_ok)
            xhat = (centred + one * by) * scale
            g, _, _ = _gradient(dy, xhat, at, rows, s, t, c, ok, slope, channels)
            if PAIR:
                s, t = _scale(scales, q, 2, p_ok, PAIR), _scale(scales, q, 3, p_ok, PAIR)
                share, _, _ = _gradient(dy2, xhat, at, rows + 2 * channels, s, t, c, ok, slope2, channels)
                g += share
            sum_g += g
            sum_gx += g * xhat
            if noise is not None:
                sum_x += tl.where(ok, xhat, 0.0)
                sum_gn += g * one
                sum_xn += xhat * one
        p += BLOCK_P
    out = partials + part * channels + c
    tl.store(out, tl.sum(sum_g, 0), mask=c < channels)
    tl.store(out + parts * channels, tl.sum(sum_gx, 0), mask=c < channels)
    if noise is not None:
        tl.store(out + 2 * parts * channels, tl.sum(sum_x, 0), mask=c < channels)
        tl.store(out + 3 * parts * channels, tl.sum(sum_gn, 0), mask=c < channels)
        tl.store(out + 4 * parts * channels, tl.sum(sum_xn, 0), mask=c < channels)


@triton.jit
def _dtable(
    dy, dy2, x, table, scales, noise, strength, order, offsets, mean, rstd, dtable, partials,
    slope, slope2, stride_g, rows, width, y_pixels, channels,
    PAIR: tl.constexpr, CHILDREN: tl.constexpr, SEGMENT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Rows of dtable from channels_last dy, dy2 and x: members of a row are pixels of y."""
    blocks_c = tl.cdiv(channels, BLOCK_C)
    item = tl.program_id(0) // blocks_c
    c = tl.program_id(0) % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    c_ok = c < channels
    d, first, last = piece(offsets, rows, item, SEGMENT)
    table_row = table + d.to(tl.int64) * ((4 if PAIR else 2) * channels) + c
    scale = 1 + tl.load(table_row, mask=c_ok, other=0.0)[None, :]
    beta = tl.load(table_row + channels, mask=c_ok, other=0.0)[None, :]
    by = _strength(strength, c, channels)
    dgamma = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    dbeta = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    if PAIR:
        scale2 = 1 + tl.load(table_row + 2 * channels, mask=c_ok, other=0.0)[None, :]
        beta2 = tl.load(table_row + 3 * channels, mask=c_ok, other=0.0)[None, :]
        dgamma2 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        dbeta2 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for i in range(first, last, BLOCK_M):
        m = i + tl.arange(0, BLOCK_M)
        ok = (m < last)[:, None] & c_ok[None, :]
        q = tl.load(order + m, mask=m < last, other=0).to(tl.int32)
        p = q
        if CHILDREN == 4:  # rows of all samples follow each other, so the sample needs no part in this
            p = q // (2 * width) // 2 * width + q % (2 * width) // 2
        statistic = (q // y_pixels * stride_g)[:, None] + c[None, :]
        p, q = p.to(tl.int64), q.to(tl.int64)
        centred = load(x, p[:, None] * channels + c[None, :], ok) - load(mean, statistic, ok)
        xhat = (centred + _noise(noise, q, m < last) * by) * load(rstd, statistic, ok)
        at = q[:, None] * channels + c[None, :]
        s, t = _scale(scales, q, 0, m < last, PAIR), _scale(scales, q, 1, m < last, PAIR)
        dz = activation_gradient(load(dy, at, ok), xhat * (scale * s) + beta * t, slope)
        dgamma += dz * xhat * s
        dbeta += dz * t
        if PAIR:
            s, t = _scale(scales, q, 2, m < last, PAIR), _scale(scales, q, 3, m < last, PAIR)
            dz = activation_gradient(load(dy2, at, ok), xhat * (scale2 * s) + beta2 * t, slope2)
            dgamma2 += dz * xhat * s
            dbeta2 += dz * t
    out = dtable + item.to(tl.int64) * ((4 if PAIR else 2) * channels) + c
    if item >= rows:
        out = partials + (item - rows).to(tl.int64) * ((4 if PAIR else 2) * channels) + c
    tl.store(out, tl.sum(dgamma, 0), mask=c_ok)
    tl.store(out + channels, tl.sum(dbeta, 0), mask=c_ok)
    if PAIR:
        tl.store(out + 2 * channels, tl.sum(dgamma2, 0), mask=c_ok)
        tl.store(out + 3 * channels, tl.sum(dbeta2, 0), mask=c_ok)


@on_device
def modulate_table(
    x: Tensor, table: Tensor, patches: Tensor, scales: Tensor | None, noise: Tensor | None, strength: Tensor | None,
    mean: Tensor, rstd: Tensor, slope: float, slope2: float | None, upsample: bool, y: Tensor, y2: Tensor | None,
) -> None:  # fmt: skip
    t, layout = _tiling(x, y, mean)
    _apply[t.grid](
        x, table, patches, scales, noise, strength, mean, rstd, y, y2, slope, slope2 or 0.0, group_stride(mean),
        *layout, *t.sizes, PAIR=y2 is not None, CHILDREN=4 if upsample else 1, **t.blocks,
    )  # fmt: skip


@on_device
def modulate_table_sums(
    dy: Tensor, dy2: Tensor | None, x: Tensor, table: Tensor, patches: Tensor, scales: Tensor | None,
    noise: Tensor | None, strength: Tensor | None, order: Tensor | None, offsets: Tensor | None, mean: Tensor,
    rstd: Tensor, slope: float, slope2: float | None, upsample: bool, dtable: Tensor, sums: Tensor,
) -> None:  # fmt: skip
    """dtable like table, and sums [2, G, C] of g and g * xhat; with noise also of xhat, g * noise and xhat * noise.

    Without scales g = dz * (1 + gamma) and 1 + gamma is constant along a table row, so sums over the batch follow from
    dtable; else, with noise and per sample, they take a pass of their own. `order`, `offsets` are the pixels sorted by
    index and the start of each row, None to sort here.
    """
    outputs, children = (1 if dy2 is None else 2), (4 if upsample else 1)
    rows, channels = table.size(0), x.size(1)
    if order is None or offsets is None:
        order, offsets = segments(patches, rows)
    programs, boundaries = pieces(patches.numel(), rows)
    partials = table.new_empty((boundaries, table.size(1)))
    # Pixels of one row are scattered: their channels had better lie side by side.
    last = torch.channels_last
    dense = dy.contiguous(memory_format=last), dy if dy2 is None else dy2.contiguous(memory_format=last)
    block_c = min(triton.next_power_of_2(channels), 64)
    _dtable[(programs * triton.cdiv(channels, block_c),)](
        *dense, x.contiguous(memory_format=last), table, scales, noise, strength, order, offsets, mean, rstd,
        dtable, partials, slope, slope2 or 0.0, group_stride(mean), rows, x.size(3), patches[0].numel(), channels,
        PAIR=outputs == 2, CHILDREN=children, SEGMENT=SEGMENT, BLOCK_M=8, BLOCK_C=block_c, num_warps=2,
    )  # fmt: skip
    add_partials(partials, offsets, dtable)
    if mean.size(0) == 1 and scales is None and noise is None:
        scale = 1 + table.view(rows, outputs, 2, channels)[:, :, :1]
        sums.copy_((scale * dtable.view(rows, outputs, 2, channels)).sum((0, 1)).flip(0)[:, None])
        return
    t, layout = _tiling(x, dy, mean, chunked=True)
    parts = t.samples * t.chunks
    partials = sums.new_empty((sums.size(0), parts, channels))
    _sums[t.grid](
        dy, dy2, x, table, patches, scales, noise, strength, mean, rstd, partials, slope, slope2 or 0.0,
        group_stride(mean), *layout, t.iterations, parts, *t.sizes, PAIR=outputs == 2, CHILDREN=children, **t.blocks,
    )  # fmt: skip
    torch.sum(partials.view(sums.size(0), mean.size(0), -1, channels), 2, out=sums)


@on_device
def modulate_table_dx(
    dy: Tensor, dy2: Tensor | None, x: Tensor, table: Tensor, patches: Tensor, scales: Tensor | None,
    noise: Tensor | None, strength: Tensor | None, mean: Tensor, rstd: Tensor, means: Tensor, slope: float,
    slope2: float | None, upsample: bool, dx: Tensor, dscales: Tensor | None,
) -> None:  # fmt: skip
    t, layout = _tiling(x, dy, mean)
    blocks = triton.cdiv(x.size(1), t.blocks["BLOCK_C"])
    partials = None if dscales is None else dscales.new_empty((blocks, *dscales.shape))
    _dx[t.grid](
        dy, dy2, x, table, patches, scales, noise, strength, mean, rstd, means, dx, partials, slope, slope2 or 0.0,
        group_stride(mean), mean.size(0), *layout, patches.numel(), *t.sizes,
        PAIR=dy2 is not None, CHILDREN=4 if upsample else 1, **t.blocks,
    )  # fmt: skip
    if dscales is not None:
        torch.sum(partials, 0, out=dscales)
