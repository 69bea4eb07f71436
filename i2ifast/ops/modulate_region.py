"""Modulation by a vector per region of an index map, normalised by the region's statistics: region normalisation."""

import torch
from torch import Tensor

from .. import _backend
from ._modulate_table import lookup
from ._modulation import activation_gradient
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
from .modulate_table import Segments
from .region_moments import RegionStatistics, check_ids, region_sums, rows_of
from .region_moments import reference_forward as reference_moments


def _modulated(x, ids, style, maps, mean, low, rstd):
    """xhat, scale, t = xhat * scale + shift, the pixel's factor, and z = t * factor + offset."""
    xhat = (x.to(mean.dtype) - lookup(mean, ids) - lookup(low, ids)) * lookup(rstd, ids)
    scale, shift = lookup(style.to(xhat.dtype), ids).chunk(2, 1)
    t = xhat * scale + shift
    if maps is None:
        return xhat, scale, t, 1, t
    gamma, beta = maps.to(xhat.dtype).chunk(2, 1)
    return xhat, scale, t, 1 + gamma, t * (1 + gamma) + beta


def reference_forward(x, ids, style, maps, mean, low, rstd, slope) -> Tensor:
    return activate(_modulated(x, ids, style, maps, mean, low, rstd)[-1], slope).to(x.dtype)


def reference_dstyle(dy, x, ids, style, maps, mean, low, rstd, slope) -> Tensor:
    """[R, 2C]: sums over each region of dt * xhat and of dt."""
    xhat, _, _, factor, z = _modulated(x, ids, style, maps, mean, low, rstd)
    dt = activation_gradient(dy.to(xhat.dtype), z, slope) * factor
    return region_sums(rows_of(torch.cat([dt * xhat, dt], 1)), ids, style.size(0)).to(style.dtype)


def reference_dx(dy, x, ids, style, maps, mean, low, rstd, means, slope) -> tuple[Tensor, Tensor | None]:
    xhat, scale, t, factor, z = _modulated(x, ids, style, maps, mean, low, rstd)
    dz = activation_gradient(dy.to(xhat.dtype), z, slope)
    mean_dtx, mean_dt = lookup(means, ids).chunk(2, 1)
    dx = lookup(rstd, ids) * scale * (dz * factor - mean_dt - xhat * mean_dtx)
    dmaps = None if maps is None else torch.cat([(dz * t).sum(1, True), dz.sum(1, True)], 1).to(maps.dtype)
    return dx.to(x.dtype), dmaps


def _working_layout(backend: str, x: Tensor) -> torch.memory_format:
    """The CPU kernels read rows of channels: they know channels_last only, and two copies cost less than gathers."""
    return torch.channels_last if backend == "cpu" else memory_format(x)


def _rows(style, mean, low, rstd) -> Tensor:
    """[R, 4C]: mean, rstd, scale, shift; as xhat is made with `mean` alone, the shift takes what `low` adds to it."""
    scale, shift = style.chunk(2, 1)
    return torch.cat([mean, rstd, scale, shift - low * rstd * scale], 1)


def _forward(x, ids, style, maps, order, offsets, mean, low, rstd, count, of_x, slope):
    layout, backend = memory_format(x), _backend.choose("modulate_region", "modulate_region", x)
    if backend == "reference" or x.numel() == 0:
        return reference_forward(x, ids, style, maps, mean, low, rstd, slope).contiguous(memory_format=layout)
    working = _working_layout(backend, x)
    y = torch.empty_like(x, memory_format=working)
    x, rows = x.contiguous(memory_format=working), _rows(style, mean, low, rstd)
    _backend.kernel(backend, "modulate_region", "modulate_region")(x, ids, maps, rows, slope, y)
    return y.contiguous(memory_format=layout)


def _backward(dy, x, ids, style, maps, order, offsets, mean, low, rstd, count, of_x, slope):
    layout, backend = memory_format(x), _backend.choose("modulate_region", "modulate_region_dx", x)
    reference = backend == "reference" or x.numel() == 0
    if reference:
        dstyle = reference_dstyle(dy, x, ids, style, maps, mean, low, rstd, slope)
    else:
        working = _working_layout(backend, x)
        dy, x = dy.contiguous(memory_format=working), x.contiguous(memory_format=working)
        rows = _rows(style, mean, low, rstd)
        segments = () if backend == "cpu" else (order, offsets)
        dstyle = torch.empty_like(style)
        _backend.kernel(backend, "modulate_region", "modulate_region_sums")(
            dy, x, ids, maps, *segments, rows, slope, dstyle
        )
        # Of xhat as the kernel makes it: see `_rows`.
        dscale, dshift = dstyle.chunk(2, 1)
        dscale -= low * rstd * dshift
    # The scale is constant over a region, so what the statistics contribute follows from the means of dt itself.
    means = dstyle / count.clamp(min=1)[:, None] if of_x else torch.zeros_like(style)
    if reference:
        dx, dmaps = reference_dx(dy, x, ids, style, maps, mean, low, rstd, means, slope)
    else:
        dx, dmaps = torch.empty_like(x), None if maps is None else torch.empty_like(maps)
        mean_dtx, mean_dt = means.chunk(2, 1)
        rows = torch.cat([rows, mean_dtx, mean_dt - low * rstd * mean_dtx], 1)
        _backend.kernel(backend, "modulate_region", "modulate_region_dx")(dy, x, ids, maps, rows, slope, dx, dmaps)
    return dx.contiguous(memory_format=layout), dstyle, x.new_empty(0) if dmaps is None else dmaps


def _backward_fake(dy, x, ids, style, maps, *rest):
    dstyle = torch.empty_like(style, memory_format=torch.contiguous_format)
    return dense_like(x), dstyle, x.new_empty(0) if maps is None else torch.empty_like(maps)


def _attach(x, ids, mean, rstd):
    """The same values, as differentiable functions of x (whatever eps is in rstd)."""
    _, m, _, v = reference_moments(x, ids, mean.size(0))
    return mean + (m - m.detach()), (rstd**-2 + (v - v.detach())) ** -0.5


def _gradient(dy, x, ids, style, maps, order, offsets, mean, low, rstd, count, of_x, slope):
    leaves = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in (x, style, maps)]
    x, style, maps = leaves
    mean, rstd = _attach(x, ids, mean, rstd) if of_x else (mean, rstd)
    y = reference_forward(x, ids, style, maps, mean, low, rstd, slope)
    wanted = [t for t in leaves if t is not None]
    return *torch.autograd.grad(y, wanted, dy.to(y.dtype), create_graph=True), *[None] * (3 - len(wanted))


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.of_x, ctx.slope = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx, dy):
    saved = ctx.saved_tensors  # once: checkpointing recomputes them for one unpacking
    dx, dstyle, dmaps = torch.ops.i2ifast.modulate_region_backward(dy, *saved, ctx.of_x, ctx.slope)
    return dx, None, dstyle, None if saved[3] is None else dmaps, *[None] * 8


_ARGS = (
    "Tensor x, Tensor ids, Tensor style, Tensor? maps, Tensor? order, Tensor? offsets, Tensor mean, Tensor low, "
    "Tensor rstd, Tensor count, bool of_x, float slope"
)
define("modulate_region", f"({_ARGS}) -> Tensor", _forward, lambda x, *rest: dense_like(x))
define("modulate_region_backward", f"(Tensor dy, {_ARGS}) -> (Tensor, Tensor, Tensor)", _backward, _backward_fake)
autograd("modulate_region", _setup, _autograd)
second_order("modulate_region_backward", _gradient)


def modulate_region(
    x: Tensor,
    ids: Tensor,
    statistics: RegionStatistics,
    style: Tensor | None = None,
    maps: Tensor | None = None,
    act: str | float = "none",
    segments: Segments | None = None,
) -> Tensor:
    """With r = ids[n,p]: t = (x - mean[r]) * rstd[r] * style[r, c] + style[r, C + c]; y = act(t * (1 + gamma) + beta)

    x [N, C, H, W]; ids [N, H, W] int32 in 0..R-1; style [R, 2C] (scale, then shift), 1 and 0 if None; maps [N, 2, H, W]
    (gamma, then beta, of all channels of a pixel), 0 if None. y like x. `segments` spare CUDA kernels a sort in
    backward. Raises ValueError for shapes or devices that do not fit. Indices are not checked here.
    """
    check_4d("x", x)
    check_ids(x, ids)
    mean, low, rstd, count, of_x = statistics
    if style is None:
        style = torch.cat([torch.ones_like(mean), torch.zeros_like(mean)], 1)
    check_shape("style", style, (mean.size(0), 2 * x.size(1)))
    if maps is not None:
        check_shape("maps", maps, (x.size(0), 2, *x.shape[2:]))
        maps = maps.to(accumulation_dtype(x)).contiguous()
    check_device(x, style=style, mean=mean, maps=maps)
    order, offsets = (None, None) if segments is None else segments
    return torch.ops.i2ifast.modulate_region(
        x, ids.contiguous(), style.to(mean.dtype).contiguous(), maps, order, offsets, mean, low, rstd, count, of_x,
        slope_of(act),
    )  # fmt: skip
