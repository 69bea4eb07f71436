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


def _normalised(x, noise, strength, mean, rstd, upsample) -> Tensor:
    """xhat at the size of y."""
    if noise is None:
        xhat = m.normalise(x, mean, rstd)
        return m.repeat2(xhat) if upsample else xhat
    # Added to the difference, noise is not rounded to the digits of a large mean.
    centred = x.to(mean.dtype) - m.spread(mean)
    centred = m.repeat2(centred) if upsample else centred
    return (centred + noise[:, None] * strength[:, None, None]) * m.spread(rstd)


def reference_forward(
    x: Tensor,
    table: Tensor,
    patches: Tensor,
    mean: Tensor,
    rstd: Tensor,
    slope: float,
    slope2: float | None,
    upsample: bool,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    xhat = _normalised(x, noise, strength, mean, rstd, upsample)
    maps = lookup(table.to(xhat.dtype), patches).split(x.size(1), 1)
    ys = [
        activate(xhat * (1 + gamma) + beta, s).to(x.dtype)
        for gamma, beta, s in zip(maps[::2], maps[1::2], (slope, slope2), strict=False)
    ]
    return ys[0], ys[1] if slope2 is not None else x.new_empty(0)


def _gradients(dys, x, table, patches, mean, rstd, slopes, upsample, noise, strength):
    """xhat, dL/dxhat and the gradients of gamma and beta maps, at the size of y."""
    xhat = _normalised(x, noise, strength, mean, rstd, upsample)
    maps = lookup(table.to(xhat.dtype), patches).split(x.size(1), 1)
    g, dmaps = torch.zeros_like(xhat), []
    for dy, gamma, beta, slope in zip(dys, maps[::2], maps[1::2], slopes, strict=False):
        dz = m.activation_gradient(dy.to(xhat.dtype), xhat * (1 + gamma) + beta, slope)
        g = g + dz * (1 + gamma)
        dmaps += [dz * xhat, dz]
    return xhat, g, dmaps


def reference_sums(
    dys, x, table, patches, mean, rstd, slopes, upsample, noise=None, strength=None
) -> tuple[Tensor, Tensor]:
    """dtable [D, 2CK] and sums [2, G, C] of g and g * xhat; with noise also of xhat, g * noise and xhat * noise."""
    xhat, g, dmaps = _gradients(dys, x, table, patches, mean, rstd, slopes, upsample, noise, strength)
    rows = torch.cat(dmaps, 1).permute(0, 2, 3, 1).flatten(0, 2)
    dtable = torch.zeros(table.shape, dtype=rows.dtype, device=x.device).index_add(0, patches.flatten().long(), rows)
    sums = m.statistics_sums(g, xhat, mean.size(0))
    if noise is not None:
        maps = xhat, g * noise[:, None], xhat * noise[:, None]
        sums += tuple(m.statistics_sums(t, xhat, mean.size(0))[0] for t in maps)
    return dtable.to(table.dtype), torch.stack(sums)


def reference_dx(dys, x, table, patches, mean, rstd, means, slopes, upsample, noise=None, strength=None) -> Tensor:
    xhat, g, _ = _gradients(dys, x, table, patches, mean, rstd, slopes, upsample, noise, strength)
    if upsample:
        xhat, g = m.add2(xhat) / 4, m.add2(g)
    return m.normalise_gradient(g, xhat, rstd, means).to(x.dtype)


def _dstrength(sums: Tensor, means: Tensor, rstd: Tensor, noise: Tensor, upsample: bool) -> Tensor:
    """Sum of noise * d(x + strength * noise), the second factor being rstd * (g - mean(g) - xhat * mean(g * xhat)).

    It is a small difference of large sums: they come in float64.
    """
    of_noise = noise.double().flatten(1).sum(1, keepdim=True)  # [N, 1]
    of_noise = of_noise if rstd.size(0) > 1 else of_noise.sum(0, keepdim=True)
    of_g, of_gx, of_x = means / 4 if upsample else means  # over the pixels of y
    # Rounding of the mean lets xhat have one, which the sum over all pixels would make count.
    of_gx = of_gx - of_g * of_x
    return (rstd * (sums[3] - of_g * of_noise - of_gx * (sums[4] - of_x * of_noise))).sum(0).to(rstd.dtype)


def _output(x: Tensor, upsample: bool, layout: torch.memory_format) -> Tensor:
    n, c, h, w = x.shape
    scale = 2 if upsample else 1
    return torch.empty((n, c, scale * h, scale * w), dtype=x.dtype, device=x.device, memory_format=layout)


def _working_layout(backend: str, layout: torch.memory_format) -> torch.memory_format:
    """The CPU kernels read table rows along channels: they know channels_last only, and two copies cost less than
    gathers."""
    return torch.channels_last if backend == "cpu" else layout


def _choose(kernel: str, x: Tensor, noise: Tensor | None) -> str:
    backend = _backend.choose("modulate_table", kernel, x)
    if noise is None or backend != "cuda":
        return backend
    return "reference" if _backend.missing["triton"] else "triton"  # the CUDA C++ kernels know no noise


def _forward(x, table, patches, noise, strength, order, offsets, mean, rstd, of_x, slope, slope2, upsample, group):
    layout = memory_format(x)
    backend = _choose("modulate_table", x, noise)
    if backend == "reference" or x.numel() == 0:
        y, y2 = reference_forward(x, table, patches, mean, rstd, slope, slope2, upsample, noise, strength)
        return y.contiguous(memory_format=layout), y2.contiguous(memory_format=layout) if slope2 is not None else y2
    working = _working_layout(backend, layout)
    y = _output(x, upsample, working)
    y2 = torch.empty_like(y) if slope2 is not None else None
    x = x.contiguous(memory_format=working)
    kernel = _backend.kernel(backend, "modulate_table", "modulate_table")
    noisy = () if noise is None else (noise, strength)
    kernel(x, table.contiguous(), patches, mean, rstd, slope, slope2, upsample, y, y2, *noisy)
    y = y.contiguous(memory_format=layout)
    return y, x.new_empty(0) if y2 is None else y2.contiguous(memory_format=layout)


def _forward_fake(x, table, patches, noise, strength, order, offsets, mean, rstd, of_x, slope, slope2, upsample, group):
    y = _output(x, upsample, memory_format(x))
    return y, torch.empty_like(y) if slope2 is not None else x.new_empty(0)


def _backward(
    dy, dy2, x, table, patches, noise, strength, order, offsets, mean, rstd, of_x, slope, slope2, upsample, group
):
    backend = _choose("modulate_table_dx", x, noise)
    layout = memory_format(x)
    noisy = () if noise is None else (noise, strength)
    if backend == "reference" or x.numel() == 0:
        dys, slopes = [dy] if dy2 is None else [dy, dy2], (slope, slope2)
        dtable, sums = reference_sums(dys, x, table, patches, mean, rstd, slopes, upsample, *noisy)
        sums = sums if noise is None else sums.double()
        means = m.mean_of_sums(sums[:3], x, of_x, group)
        dx = reference_dx(dys, x, table, patches, mean, rstd, means.to(rstd.dtype), slopes, upsample, *noisy)
        dstrength = rstd.new_empty(0) if noise is None else _dstrength(sums, means, rstd, noise, upsample)
        return dx.contiguous(memory_format=layout), dtable, dstrength
    working = _working_layout(backend, layout)
    x, table, dy = x.contiguous(memory_format=working), table.contiguous(), dy.contiguous(memory_format=working)
    dy2 = None if dy2 is None else dy2.contiguous(memory_format=working)
    dtable = torch.empty_like(table)
    sums = table.new_empty((2 if noise is None else 5, *mean.shape), dtype=accumulation_dtype(x))
    segments = () if backend == "cpu" else (order, offsets)
    _backend.kernel(backend, "modulate_table", "modulate_table_sums")(
        dy, dy2, x, table, patches, *segments, mean, rstd, slope, slope2, upsample, dtable, sums, *noisy
    )
    sums = sums if noise is None else sums.double()
    means = m.mean_of_sums(sums[:3], x, of_x, group)
    dx = torch.empty_like(x)
    _backend.kernel(backend, "modulate_table", "modulate_table_dx")(
        dy, dy2, x, table, patches, mean, rstd, means.to(rstd.dtype), slope, slope2, upsample, dx, *noisy
    )
    dstrength = rstd.new_empty(0) if noise is None else _dstrength(sums, means, rstd, noise, upsample)
    return dx.contiguous(memory_format=layout), dtable, dstrength


def _backward_fake(dy, dy2, x, table, patches, noise, strength, order, offsets, mean, rstd, *rest):
    dstrength = rstd.new_empty(0 if noise is None else x.size(1))
    return dense_like(x), torch.empty_like(table, memory_format=torch.contiguous_format), dstrength


def _gradient(
    dy, dy2, x, table, patches, noise, strength, order, offsets, mean, rstd, of_x, slope, slope2, upsample, group
):
    m.refuse_group(group)
    leaves = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in (x, table, strength)]
    x, table, strength = leaves
    normalised = x
    if noise is not None:
        normalised = (m.repeat2(x) if upsample else x) + noise[:, None] * strength[:, None, None]
    mean, rstd = m.attach(normalised, mean, rstd, of_x)
    y, y2 = reference_forward(x, table, patches, mean, rstd, slope, slope2, upsample, noise, strength)
    pairs = [(y, dy.to(y.dtype))] if dy2 is None else [(y, dy.to(y.dtype)), (y2, dy2.to(y.dtype))]
    wanted = leaves[: 2 if noise is None else 3]
    grads = torch.autograd.grad([p[0] for p in pairs], wanted, [p[1] for p in pairs], create_graph=True)
    return *grads, *[None] * (3 - len(grads))


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.of_x, ctx.slope, ctx.slope2, ctx.upsample, ctx.group = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx, dy, dy2):
    dy2 = None if ctx.slope2 is None else dy2
    rest = ctx.of_x, ctx.slope, ctx.slope2, ctx.upsample, ctx.group
    dx, dtable, dstrength = torch.ops.i2ifast.modulate_table_backward(dy, dy2, *ctx.saved_tensors, *rest)
    return dx, dtable, None, None, dstrength if dstrength.numel() else None, *[None] * 9


_ARGS = (
    "Tensor x, Tensor table, Tensor patches, Tensor? noise, Tensor? strength, Tensor? order, Tensor? offsets, "
    "Tensor mean, Tensor rstd, bool of_x, float slope, float? slope2, bool upsample, str group"
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
    noise: Tensor | None = None,
    strength: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """y[n,c,p] = act((x - mean) * rstd * (1 + table[patches[n,p], c]) + table[patches[n,p], C + c])

    x [N, C, H, W]; table [D, 2C], gamma then beta; patches [N, H, W] int32 in 0..D-1; y like x.
    With `act2`, table is [D, 4C] (gamma, beta, gamma2, beta2) and a second output, with its own modulation and
    activation, is made from the same read of x. With `upsample`, x is first upsampled x2 by nearest, without ever
    existing at that size: patches and y are [N, 2H, 2W]. Statistics default to none (x as it is). `segments` spare CUDA
    kernels a sort in backward.
    With `noise` (of the shape of patches) and `strength` [C], x (upsampled) + strength * noise takes the place of x,
    without ever existing; statistics are those of that sum. There is no gradient of the noise, and no `act2` with it.
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
    check_device(x, table=table, patches=patches, mean=statistics.mean, noise=noise, strength=strength)
    mean, rstd, of_x, group = statistics
    order, offsets = (None, None) if segments is None else segments
    slope2 = None if act2 is None else slope_of(act2)
    if noise is not None:
        if strength is None or act2 is not None:
            raise ValueError("noise goes with strength, and not with act2")
        check_shape("noise", noise, patches.shape)
        check_shape("strength", strength, (c,))
        noise, strength = noise.to(mean.dtype).contiguous(), strength.to(mean.dtype).contiguous()
    y, y2 = torch.ops.i2ifast.modulate_table(
        x,
        table.to(mean.dtype),
        patches.contiguous(),
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
