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


def reference_forward(
    x: Tensor,
    table: Tensor,
    patches: Tensor,
    mean: Tensor,
    rstd: Tensor,
    slope: float,
    slope2: float | None,
    upsample: bool,
) -> tuple[Tensor, Tensor]:
    xhat = m.normalise(x, mean, rstd)
    xhat = m.repeat2(xhat) if upsample else xhat
    maps = lookup(table.to(xhat.dtype), patches).split(x.size(1), 1)
    ys = [
        activate(xhat * (1 + gamma) + beta, s).to(x.dtype)
        for gamma, beta, s in zip(maps[::2], maps[1::2], (slope, slope2), strict=False)
    ]
    return ys[0], ys[1] if slope2 is not None else x.new_empty(0)


def _gradients(dys, x, table, patches, mean, rstd, slopes, upsample):
    """xhat (at the size of x), dL/dxhat likewise, and the gradients of gamma and beta maps."""
    xhat = m.normalise(x, mean, rstd)
    large = m.repeat2(xhat) if upsample else xhat
    maps = lookup(table.to(xhat.dtype), patches).split(x.size(1), 1)
    g, dmaps = torch.zeros_like(large), []
    for dy, gamma, beta, slope in zip(dys, maps[::2], maps[1::2], slopes, strict=False):
        dz = m.activation_gradient(dy.to(large.dtype), large * (1 + gamma) + beta, slope)
        g = g + dz * (1 + gamma)
        dmaps += [dz * large, dz]
    return xhat, m.add2(g) if upsample else g, dmaps


def reference_sums(dys, x, table, patches, mean, rstd, slopes, upsample) -> tuple[Tensor, Tensor]:
    """dtable [D, 2CK] and sums [2, G, C] of g and g * xhat."""
    xhat, g, dmaps = _gradients(dys, x, table, patches, mean, rstd, slopes, upsample)
    rows = torch.cat(dmaps, 1).permute(0, 2, 3, 1).flatten(0, 2)
    dtable = torch.zeros(table.shape, dtype=rows.dtype, device=x.device).index_add(0, patches.flatten().long(), rows)
    return dtable.to(table.dtype), torch.stack(m.statistics_sums(g, xhat, mean.size(0)))


def reference_dx(dys, x, table, patches, mean, rstd, means, slopes, upsample) -> Tensor:
    xhat, g, _ = _gradients(dys, x, table, patches, mean, rstd, slopes, upsample)
    return m.normalise_gradient(g, xhat, rstd, means).to(x.dtype)


def _output(x: Tensor, upsample: bool, layout: torch.memory_format) -> Tensor:
    n, c, h, w = x.shape
    scale = 2 if upsample else 1
    return torch.empty((n, c, scale * h, scale * w), dtype=x.dtype, device=x.device, memory_format=layout)


def _working_layout(backend: str, layout: torch.memory_format) -> torch.memory_format:
    """The CPU kernels read table rows along channels: they know channels_last only, and two copies cost less than
    gathers."""
    return torch.channels_last if backend == "cpu" else layout


def _forward(x, table, patches, order, offsets, mean, rstd, of_x, slope, slope2, upsample, group):
    layout = memory_format(x)
    backend = _backend.choose("modulate_table", "modulate_table", x)
    if backend == "reference" or x.numel() == 0:
        y, y2 = reference_forward(x, table, patches, mean, rstd, slope, slope2, upsample)
        return y.contiguous(memory_format=layout), y2.contiguous(memory_format=layout) if slope2 is not None else y2
    working = _working_layout(backend, layout)
    y = _output(x, upsample, working)
    y2 = torch.empty_like(y) if slope2 is not None else None
    x = x.contiguous(memory_format=working)
    kernel = _backend.kernel(backend, "modulate_table", "modulate_table")
    kernel(x, table.contiguous(), patches, mean, rstd, slope, slope2, upsample, y, y2)
    y = y.contiguous(memory_format=layout)
    return y, x.new_empty(0) if y2 is None else y2.contiguous(memory_format=layout)


def _forward_fake(x, table, patches, order, offsets, mean, rstd, of_x, slope, slope2, upsample, group):
    y = _output(x, upsample, memory_format(x))
    return y, torch.empty_like(y) if slope2 is not None else x.new_empty(0)


def _backward(dy, dy2, x, table, patches, order, offsets, mean, rstd, of_x, slope, slope2, upsample, group):
    backend = _backend.choose("modulate_table", "modulate_table_dx", x)
    layout = memory_format(x)
    if backend == "reference" or x.numel() == 0:
        dys, slopes = [dy] if dy2 is None else [dy, dy2], (slope, slope2)
        dtable, sums = reference_sums(dys, x, table, patches, mean, rstd, slopes, upsample)
        means = m.mean_of_sums(sums, x, of_x, group)
        dx = reference_dx(dys, x, table, patches, mean, rstd, means, slopes, upsample)
        return dx.contiguous(memory_format=layout), dtable
    working = _working_layout(backend, layout)
    x, table, dy = x.contiguous(memory_format=working), table.contiguous(), dy.contiguous(memory_format=working)
    dy2 = None if dy2 is None else dy2.contiguous(memory_format=working)
    dtable = torch.empty_like(table)
    sums = table.new_empty((2, *mean.shape), dtype=accumulation_dtype(x))
    segments = () if backend == "cpu" else (order, offsets)
    _backend.kernel(backend, "modulate_table", "modulate_table_sums")(
        dy, dy2, x, table, patches, *segments, mean, rstd, slope, slope2, upsample, dtable, sums
    )
    means = m.mean_of_sums(sums, x, of_x, group)
    dx = torch.empty_like(x)
    _backend.kernel(backend, "modulate_table", "modulate_table_dx")(
        dy, dy2, x, table, patches, mean, rstd, means, slope, slope2, upsample, dx
    )
    return dx.contiguous(memory_format=layout), dtable


def _backward_fake(dy, dy2, x, table, patches, *rest):
    return dense_like(x), torch.empty_like(table, memory_format=torch.contiguous_format)


def _gradient(dy, dy2, x, table, patches, order, offsets, mean, rstd, of_x, slope, slope2, upsample, group):
    m.refuse_group(group)
    if not x.requires_grad:
        x = x.detach().requires_grad_()
    if not table.requires_grad:
        table = table.detach().requires_grad_()
    mean, rstd = m.attach(x, mean, rstd, of_x)
    y, y2 = reference_forward(x, table, patches, mean, rstd, slope, slope2, upsample)
    pairs = [(y, dy.to(y.dtype))] if dy2 is None else [(y, dy.to(y.dtype)), (y2, dy2.to(y.dtype))]
    return torch.autograd.grad([p[0] for p in pairs], [x, table], [p[1] for p in pairs], create_graph=True)


def _setup(ctx, inputs, output) -> None:
    x, table, patches, order, offsets, mean, rstd, *rest = inputs
    ctx.save_for_backward(x, table, patches, order, offsets, mean, rstd)
    ctx.rest = rest


def _autograd(ctx, dy, dy2):
    dy2 = None if ctx.rest[2] is None else dy2
    dx, dtable = torch.ops.i2ifast.modulate_table_backward(dy, dy2, *ctx.saved_tensors, *ctx.rest)
    return dx, dtable, *[None] * 10


_ARGS = (
    "Tensor x, Tensor table, Tensor patches, Tensor? order, Tensor? offsets, Tensor mean, Tensor rstd, bool of_x, "
    "float slope, float? slope2, bool upsample, str group"
)
define("modulate_table", f"({_ARGS}) -> (Tensor, Tensor)", _forward, _forward_fake)
define("modulate_table_backward", f"(Tensor dy, Tensor? dy2, {_ARGS}) -> (Tensor, Tensor)", _backward, _backward_fake)
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
) -> Tensor | tuple[Tensor, Tensor]:
    """y[n,c,p] = act((x - mean) * rstd * (1 + table[patches[n,p], c]) + table[patches[n,p], C + c])

    x [N, C, H, W]; table [D, 2C], gamma then beta; patches [N, H, W] int32 in 0..D-1; y like x.
    With `act2`, table is [D, 4C] (gamma, beta, gamma2, beta2) and a second output, with its own modulation and
    activation, is made from the same read of x. With `upsample`, x is first upsampled x2 by nearest, without ever
    existing at that size: patches and y are [N, 2H, 2W]. Statistics default to none (x as it is). `segments` spare CUDA
    kernels a sort in backward.
    Raises ValueError for shapes or devices that do not fit. Indices are not checked here: `labels.py` makes them.
    """
    check_4d("x", x)
    n, c, h, w = x.shape
    scale, outputs = (2 if upsample else 1), (1 if act2 is None else 2)
    check_shape("patches", patches, (n, h * scale, w * scale))
    check_shape("table", table, (table.size(0), 2 * c * outputs))
    if patches.dtype is not torch.int32:
        raise TypeError(f"patches are {patches.dtype}, expected torch.int32")
    statistics = no_statistics(x) if statistics is None else statistics
    check_device(x, table=table, patches=patches, mean=statistics.mean)
    mean, rstd, of_x, group = statistics
    order, offsets = (None, None) if segments is None else segments
    slope2 = None if act2 is None else slope_of(act2)
    y, y2 = torch.ops.i2ifast.modulate_table(
        x,
        table.to(mean.dtype),
        patches.contiguous(),
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
