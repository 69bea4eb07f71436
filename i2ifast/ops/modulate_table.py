"""Modulation by a table looked up with an index per pixel: the apply step of exact label modulation."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _backend
from . import _modulation as m
from ._modulate_table import dstrength_of, reference_dx, reference_forward, reference_sums
from ._op import (
    accumulation_dtype,
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


def _output(x: Tensor, upsample: bool, layout: torch.memory_format) -> Tensor:
    n, c, h, w = x.shape
    scale = 2 if upsample else 1
    return torch.empty((n, c, scale * h, scale * w), dtype=x.dtype, device=x.device, memory_format=layout)


def _choose(name: str, x: Tensor, plain: bool) -> tuple[str, torch.memory_format]:
    """Backend and working layout. The CPU kernels read table rows along channels: they know channels_last only, and two
    copies cost less than gathers. The CUDA C++ kernels know `plain` modulation only, by neither scales nor noise."""
    backend = _backend.choose("modulate_table", name, x)
    if backend == "cuda" and not plain:
        backend = "reference" if _backend.missing["triton"] else "triton"
    if x.numel() == 0:
        backend = "reference"
    return backend, torch.channels_last if backend == "cpu" else memory_format(x)


def _extras(backend: str, scales: Tensor | None, noise: Tensor | None, strength: Tensor | None) -> tuple:
    """Scales, a row [2K] per pixel, noise and strength, where kernels take them."""
    if backend == "cuda":
        return ()
    return None if scales is None else scales.permute(0, 2, 3, 1).contiguous(), noise, strength


def _forward(
    x, table, patches, scales, noise, strength, order, offsets, mean, rstd, of_x, slope, slope2, upsample, group
):
    layout = memory_format(x)
    backend, working = _choose("modulate_table", x, scales is None and noise is None)
    if backend == "reference":
        extras = scales, noise, strength
        y, y2 = reference_forward(x, table, patches, *extras, mean, rstd, slope, slope2, upsample)
        return y.contiguous(memory_format=layout), y2.contiguous(memory_format=layout) if slope2 is not None else y2
    y = _output(x, upsample, working)
    y2 = torch.empty_like(y) if slope2 is not None else None
    x = x.contiguous(memory_format=working)
    kernel = _backend.kernel(backend, "modulate_table", "modulate_table")
    extras = _extras(backend, scales, noise, strength)
    kernel(x, table.contiguous(), patches, *extras, mean, rstd, slope, slope2, upsample, y, y2)
    y = y.contiguous(memory_format=layout)
    return y, x.new_empty(0) if y2 is None else y2.contiguous(memory_format=layout)


def _forward_fake(
    x, table, patches, scales, noise, strength, order, offsets, mean, rstd, of_x, slope, slope2, upsample, group
):
    y = _output(x, upsample, memory_format(x))
    return y, torch.empty_like(y) if slope2 is not None else x.new_empty(0)


def _backward(dy, dy2, x, table, patches, scales, noise, strength, order, offsets, mean, rstd, of_x, *rest):
    *slopes, upsample, group = rest
    backend, working = _choose("modulate_table_dx", x, scales is None and noise is None)
    layout = memory_format(x)

    def means_of(sums: Tensor) -> tuple[Tensor, Tensor]:
        """Means for dx, and the gradient of strength, made of them in float64."""
        if noise is None:
            return m.mean_of_sums(sums, x, of_x, group), rstd.new_empty(0)
        means = m.mean_of_sums(sums[:3].double(), x, of_x, group)
        return means.to(rstd.dtype), dstrength_of(sums.double(), means, rstd, noise, upsample)

    if backend == "reference":
        given = [dy] if dy2 is None else [dy, dy2], x, table, patches, scales, noise, strength, mean, rstd
        dtable, sums = reference_sums(*given, slopes, upsample)
        means, dstrength = means_of(sums)
        dx, dscales = reference_dx(*given, means, slopes, upsample)
        dscales = rstd.new_empty(0) if scales is None else dscales.to(scales.dtype).contiguous()
        return dx.contiguous(memory_format=layout), dtable, dscales, dstrength
    x, table, dy = x.contiguous(memory_format=working), table.contiguous(), dy.contiguous(memory_format=working)
    dy2 = None if dy2 is None else dy2.contiguous(memory_format=working)
    dtable = torch.empty_like(table)
    sums = table.new_empty((2 if noise is None else 5, *mean.shape), dtype=accumulation_dtype(x))
    extras = _extras(backend, scales, noise, strength)
    segments = () if backend == "cpu" else (order, offsets)
    _backend.kernel(backend, "modulate_table", "modulate_table_sums")(
        dy, dy2, x, table, patches, *extras, *segments, mean, rstd, *slopes, upsample, dtable, sums
    )
    means, dstrength = means_of(sums)
    dx = torch.empty_like(x)
    dscales = tuple(None if each is None else torch.empty_like(each) for each in extras[:1])
    _backend.kernel(backend, "modulate_table", "modulate_table_dx")(
        dy, dy2, x, table, patches, *extras, mean, rstd, means, *slopes, upsample, dx, *dscales
    )
    dscales = rstd.new_empty(0) if scales is None else dscales[0].permute(0, 3, 1, 2).contiguous()
    return dx.contiguous(memory_format=layout), dtable, dscales, dstrength


def _backward_fake(dy, dy2, x, table, patches, scales, noise, strength, order, offsets, mean, rstd, *rest):
    contiguous = torch.contiguous_format
    dscales = rstd.new_empty(0) if scales is None else torch.empty_like(scales, memory_format=contiguous)
    dstrength = rstd.new_empty(0 if noise is None else x.size(1))
    return dense_like(x), torch.empty_like(table, memory_format=contiguous), dscales, dstrength


def _gradient(dy, dy2, x, table, patches, scales, noise, strength, order, offsets, mean, rstd, of_x, *rest):
    slope, slope2, upsample, group = rest
    m.refuse_group(group)
    inputs = x, table, scales, strength
    inputs = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in inputs]
    x, table, scales, strength = inputs
    normalised = x
    if noise is not None:
        normalised = (m.repeat2(x) if upsample else x) + noise[:, None] * strength[:, None, None]
    mean, rstd = m.attach(normalised, mean, rstd, of_x)
    extras = scales, noise, strength
    y, y2 = reference_forward(x, table, patches, *extras, mean, rstd, slope, slope2, upsample)
    pairs = [(y, dy.to(y.dtype))] if dy2 is None else [(y, dy.to(y.dtype)), (y2, dy2.to(y.dtype))]
    given = [t for t in inputs if t is not None]
    found = iter(torch.autograd.grad([p[0] for p in pairs], given, [p[1] for p in pairs], create_graph=True))
    return [None if t is None else next(found) for t in inputs]


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.of_x, ctx.slope, ctx.slope2, ctx.upsample, ctx.group = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx, dy, dy2):
    rest = ctx.of_x, ctx.slope, ctx.slope2, ctx.upsample, ctx.group
    dy2 = None if ctx.slope2 is None else dy2
    saved = ctx.saved_tensors  # once: checkpointing recomputes them for one unpacking
    dx, dtable, dscales, dstrength = torch.ops.i2ifast.modulate_table_backward(dy, dy2, *saved, *rest)
    dscales, dstrength = None if saved[3] is None else dscales, None if saved[4] is None else dstrength
    return dx, dtable, None, dscales, None, dstrength, *[None] * 9


_ARGS = (
    "Tensor x, Tensor table, Tensor patches, Tensor? scales, Tensor? noise, Tensor? strength, Tensor? order, "
    "Tensor? offsets, Tensor mean, Tensor rstd, bool of_x, float slope, float? slope2, bool upsample, str group"
)
define("modulate_table", f"({_ARGS}) -> (Tensor, Tensor)", _forward, _forward_fake)
define(
    "modulate_table_backward",
    f"(Tensor dy, Tensor? dy2, {_ARGS}) -> (Tensor, Tensor, Tensor, Tensor)",
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
    noise: Tensor | None = None,
    strength: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """y[n,c,p] = act((x - mean) * rstd * (1 + table[patches[n,p], c]) * s[n,p] + table[patches[n,p], C + c] * t[n,p])

    x [N, C, H, W]; table [D, 2C], gamma then beta; patches [N, H, W] int32 in 0..D-1; scales [N, 2, H, W], s then t, or
    None for ones; y like x.
    With `act2`, table is [D, 4C] (gamma, beta, gamma2, beta2), scales [N, 4, H, W], and a second output, with its own
    modulation and activation, is made from the same read of x. With `upsample`, x is first upsampled x2 by nearest,
    without ever existing at that size: patches, scales and y are [N, ..., 2H, 2W]. Statistics default to none (x as it
    is). `segments` spare CUDA kernels a sort in backward.
    With `noise` (of the shape of patches) and `strength` [C], x (upsampled) + strength * noise takes the place of x,
    without ever existing; statistics are those of that sum. Noise has no gradient, and goes with neither `act2` nor
    scales.
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
    tensors = {"scales": scales, "noise": noise, "strength": strength, "mean": statistics.mean}
    check_device(x, table=table, patches=patches, **tensors)
    mean, rstd, of_x, group = statistics
    order, offsets = (None, None) if segments is None else segments
    slope2 = None if act2 is None else slope_of(act2)
    if noise is not None:
        if strength is None or act2 is not None or scales is not None:
            raise ValueError("noise goes with strength, and with neither act2 nor scales")
        check_shape("noise", noise, patches.shape)
        check_shape("strength", strength, (c,))
        noise, strength = noise.to(mean.dtype).contiguous(), strength.to(mean.dtype).contiguous()
    y, y2 = torch.ops.i2ifast.modulate_table(
        x,
        table.to(mean.dtype),
        patches.contiguous(),
        None if scales is None else scales.to(mean.dtype),
        noise,
        strength,
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
