"""Modulation by a table looked up with an index per pixel: the apply step of exact label modulation."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _backend
from . import _modulation as m
from ._op import (
    accumulation_dtype,
    activate,
    autograd,
    check_4d,
    check_device,
    check_shape,
    define,
    dense_like,
    memory_format,
    second_order,
    slope_of,
)
from .moments import Statistics, no_statistics


class Segments(NamedTuple):
    """Pixels sorted by their index: pixels of row d are order[offsets[d]:offsets[d+1]]. For kernels without atomics."""

    order: Tensor  # [P] int32
    offsets: Tensor  # [D+1] int32


def lookup(table: Tensor, patches: Tensor) -> Tensor:
    """[D, K] and [N, H, W] to [N, K, H, W]."""
    return table[patches.long()].permute(0, 3, 1, 2)


def _maps(table: Tensor, patches: Tensor, scales: Tensor | None, channels: int) -> list[tuple[Tensor, ...]]:
    """1 + gamma, beta [N, C, H, W] and what they are multiplied by, of every output."""
    maps = lookup(table, patches).split(channels, 1)
    count = len(maps)
    factors = [maps[0].new_ones(())] * count if scales is None else scales.to(table.dtype).split(1, 1)
    return [(1 + maps[k], maps[k + 1], factors[k], factors[k + 1]) for k in range(0, count, 2)]


def reference_forward(
    x: Tensor,
    table: Tensor,
    patches: Tensor,
    scales: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    slope: float,
    slope2: float | None,
    upsample: bool,
) -> tuple[Tensor, Tensor]:
    xhat = m.normalise(x, mean, rstd)
    xhat = m.repeat2(xhat) if upsample else xhat
    maps = _maps(table.to(xhat.dtype), patches, scales, x.size(1))
    ys = [
        activate(xhat * (scale * s) + shift * t, each).to(x.dtype)
        for (scale, shift, s, t), each in zip(maps, (slope, slope2), strict=False)
    ]
    return ys[0], ys[1] if slope2 is not None else x.new_empty(0)


def _gradients(dys, x, table, patches, scales, mean, rstd, slopes, upsample):
    """xhat (at the size of x), dL/dxhat likewise, and the gradients of the maps gamma and beta, and of scales."""
    xhat = m.normalise(x, mean, rstd)
    large = m.repeat2(xhat) if upsample else xhat
    g, dmaps, dscales = torch.zeros_like(large), [], []
    maps = _maps(table.to(xhat.dtype), patches, scales, x.size(1))
    for dy, (scale, shift, s, t), slope in zip(dys, maps, slopes, strict=False):
        dz = m.activation_gradient(dy.to(large.dtype), large * (scale * s) + shift * t, slope)
        g = g + dz * scale * s
        dmaps += [dz * large * s, dz * t]
        dscales += [(dz * large * scale).sum(1, keepdim=True), (dz * shift).sum(1, keepdim=True)]
    return xhat, m.add2(g) if upsample else g, dmaps, dscales


def reference_sums(dys, x, table, patches, scales, mean, rstd, slopes, upsample) -> tuple[Tensor, Tensor]:
    """dtable [D, 2CK] and sums [2, G, C] of g and g * xhat."""
    xhat, g, dmaps, _ = _gradients(dys, x, table, patches, scales, mean, rstd, slopes, upsample)
    rows = torch.cat(dmaps, 1).permute(0, 2, 3, 1).flatten(0, 2)
    dtable = torch.zeros(table.shape, dtype=rows.dtype, device=x.device).index_add(0, patches.flatten().long(), rows)
    return dtable.to(table.dtype), torch.stack(m.statistics_sums(g, xhat, mean.size(0)))


def reference_dx(dys, x, table, patches, scales, mean, rstd, means, slopes, upsample) -> tuple[Tensor, Tensor]:
    """dx, and dscales [N, 2K, H, W]."""
    xhat, g, _, dscales = _gradients(dys, x, table, patches, scales, mean, rstd, slopes, upsample)
    return m.normalise_gradient(g, xhat, rstd, means).to(x.dtype), torch.cat(dscales, 1)


def _output(x: Tensor, upsample: bool, layout: torch.memory_format) -> Tensor:
    n, c, h, w = x.shape
    scale = 2 if upsample else 1
    return torch.empty((n, c, scale * h, scale * w), dtype=x.dtype, device=x.device, memory_format=layout)


def _choose(name: str, x: Tensor, scales: Tensor | None) -> tuple[str, torch.memory_format]:
    """Backend and working layout. The CPU kernels read table rows along channels: they know channels_last only, and two
    copies cost less than gathers. The CUDA C++ kernels know no scales."""
    backend = _backend.choose("modulate_table", name, x)
    if x.numel() == 0 or (backend == "cuda" and scales is not None):
        backend = "reference"
    return backend, torch.channels_last if backend == "cpu" else memory_format(x)


def _along(scales: Tensor | None, backend: str) -> tuple:
    """scales as kernels take them, a row [2K] per pixel."""
    return () if backend == "cuda" else (None if scales is None else scales.permute(0, 2, 3, 1).contiguous(),)


def _forward(x, table, patches, scales, order, offsets, mean, rstd, of_x, slope, slope2, upsample, group):
    layout = memory_format(x)
    backend, working = _choose("modulate_table", x, scales)
    if backend == "reference":
        y, y2 = reference_forward(x, table, patches, scales, mean, rstd, slope, slope2, upsample)
        return y.contiguous(memory_format=layout), y2.contiguous(memory_format=layout) if slope2 is not None else y2
    y = _output(x, upsample, working)
    y2 = torch.empty_like(y) if slope2 is not None else None
    x = x.contiguous(memory_format=working)
    kernel = _backend.kernel(backend, "modulate_table", "modulate_table")
    kernel(x, table.contiguous(), patches, *_along(scales, backend), mean, rstd, slope, slope2, upsample, y, y2)
    y = y.contiguous(memory_format=layout)
    return y, x.new_empty(0) if y2 is None else y2.contiguous(memory_format=layout)


def _forward_fake(x, table, patches, scales, order, offsets, mean, rstd, of_x, slope, slope2, upsample, group):
    y = _output(x, upsample, memory_format(x))
    return y, torch.empty_like(y) if slope2 is not None else x.new_empty(0)


def _backward(dy, dy2, x, table, patches, scales, order, offsets, mean, rstd, of_x, slope, slope2, upsample, group):
    backend, working = _choose("modulate_table_dx", x, scales)
    layout = memory_format(x)
    if backend == "reference":
        dys, slopes = [dy] if dy2 is None else [dy, dy2], (slope, slope2)
        dtable, sums = reference_sums(dys, x, table, patches, scales, mean, rstd, slopes, upsample)
        means = m.mean_of_sums(sums, x, of_x, group)
        dx, dscales = reference_dx(dys, x, table, patches, scales, mean, rstd, means, slopes, upsample)
        dscales = x.new_empty(0) if scales is None else dscales.to(scales.dtype).contiguous()
        return dx.contiguous(memory_format=layout), dtable, dscales
    x, table, dy = x.contiguous(memory_format=working), table.contiguous(), dy.contiguous(memory_format=working)
    dy2 = None if dy2 is None else dy2.contiguous(memory_format=working)
    dtable = torch.empty_like(table)
    sums = table.new_empty((2, *mean.shape), dtype=accumulation_dtype(x))
    segments = () if backend == "cpu" else (order, offsets)
    along = _along(scales, backend)
    _backend.kernel(backend, "modulate_table", "modulate_table_sums")(
        dy, dy2, x, table, patches, *along, *segments, mean, rstd, slope, slope2, upsample, dtable, sums
    )
    means = m.mean_of_sums(sums, x, of_x, group)
    dx = torch.empty_like(x)
    dscales = tuple(None if each is None else torch.empty_like(each) for each in along)
    _backend.kernel(backend, "modulate_table", "modulate_table_dx")(
        dy, dy2, x, table, patches, *along, mean, rstd, means, slope, slope2, upsample, dx, *dscales
    )
    dscales = x.new_empty(0) if scales is None else dscales[0].permute(0, 3, 1, 2).contiguous()
    return dx.contiguous(memory_format=layout), dtable, dscales


def _backward_fake(dy, dy2, x, table, patches, scales, *rest):
    contiguous = torch.contiguous_format
    dscales = x.new_empty(0) if scales is None else torch.empty_like(scales, memory_format=contiguous)
    return dense_like(x), torch.empty_like(table, memory_format=contiguous), dscales


def _gradient(dy, dy2, x, table, patches, scales, order, offsets, mean, rstd, of_x, slope, slope2, upsample, group):
    m.refuse_group(group)
    inputs = [x, table] if scales is None else [x, table, scales]
    x, table, *rest = inputs = [t if t.requires_grad else t.detach().requires_grad_() for t in inputs]
    mean, rstd = m.attach(x, mean, rstd, of_x)
    y, y2 = reference_forward(x, table, patches, *(rest or [None]), mean, rstd, slope, slope2, upsample)
    pairs = [(y, dy.to(y.dtype))] if dy2 is None else [(y, dy.to(y.dtype)), (y2, dy2.to(y.dtype))]
    found = torch.autograd.grad([p[0] for p in pairs], inputs, [p[1] for p in pairs], create_graph=True)
    return found if rest else (*found, None)


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.of_x, ctx.slope, ctx.slope2, ctx.upsample, ctx.group = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx, dy, dy2):
    rest = ctx.of_x, ctx.slope, ctx.slope2, ctx.upsample, ctx.group
    dy2 = None if ctx.slope2 is None else dy2
    saved = ctx.saved_tensors  # once: checkpointing recomputes them for one unpacking
    dx, dtable, dscales = torch.ops.i2ifast.modulate_table_backward(dy, dy2, *saved, *rest)
    return dx, dtable, None, None if saved[3] is None else dscales, *[None] * 9


_ARGS = (
    "Tensor x, Tensor table, Tensor patches, Tensor? scales, Tensor? order, Tensor? offsets, Tensor mean, Tensor rstd, "
    "bool of_x, float slope, float? slope2, bool upsample, str group"
)
define("modulate_table", f"({_ARGS}) -> (Tensor, Tensor)", _forward, _forward_fake)
define(
    "modulate_table_backward",
    f"(Tensor dy, Tensor? dy2, {_ARGS}) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
autograd("modulate_table", _setup, _autograd)
second_order("modulate_table_backward", _gradient)


def modulate_table(
    x: Tensor,
    table: Tensor,
    patches: Tensor,
    statistics: Statistics | None = None,
    act: str | float = "none",
    act2: str | float | None = None,
    upsample: bool = False,
    segments: Segments | None = None,
    scales: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """y[n,c,p] = act((x - mean) * rstd * (1 + table[patches[n,p], c]) * s[n,p] + table[patches[n,p], C + c] * t[n,p])

    x [N, C, H, W]; table [D, 2C], gamma then beta; patches [N, H, W] int32 in 0..D-1; scales [N, 2, H, W], s then t, or
    None for ones; y like x.
    With `act2`, table is [D, 4C] (gamma, beta, gamma2, beta2), scales [N, 4, H, W], and a second output, with its own
    modulation and activation, is made from the same read of x. With `upsample`, x is first upsampled x2 by nearest,
    without ever existing at that size: patches, scales and y are [N, ..., 2H, 2W]. Statistics default to none (x as it
    is). `segments` spare CUDA kernels a sort in backward.
    Raises ValueError for shapes or devices that do not fit. Indices are not checked here: `labels.py` makes them.
    """
    check_4d("x", x)
    n, c, h, w = x.shape
    scale, outputs = (2 if upsample else 1), (1 if act2 is None else 2)
    check_shape("patches", patches, (n, h * scale, w * scale))
    check_shape("table", table, (table.size(0), 2 * c * outputs))
    if scales is not None:
        check_shape("scales", scales, (n, 2 * outputs, h * scale, w * scale))
    if patches.dtype is not torch.int32:
        raise TypeError(f"patches are {patches.dtype}, expected torch.int32")
    statistics = no_statistics(x) if statistics is None else statistics
    check_device(x, table=table, patches=patches, scales=scales, mean=statistics.mean)
    mean, rstd, of_x, group = statistics
    order, offsets = (None, None) if segments is None else segments
    slope2 = None if act2 is None else slope_of(act2)
    y, y2 = torch.ops.i2ifast.modulate_table(
        x,
        table.to(mean.dtype),
        patches.contiguous(),
        None if scales is None else scales.to(mean.dtype),
        order,
        offsets,
        mean,
        rstd,
        of_x,
        slope_of(act),
        slope2,
        upsample,
        group,
    )
    return y if slope2 is None else (y, y2)
