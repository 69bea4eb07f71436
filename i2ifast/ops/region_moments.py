"""Count, mean and variance per channel of the regions of an index map, and statistics to normalise regions with."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _backend
from ._modulate_table import lookup
from ._op import accumulation_dtype, autograd, check_4d, check_device, check_shape, define
from .modulate_table import Segments


class RegionStatistics(NamedTuple):
    """What the pixels of every region are normalised with."""

    mean: Tensor  # [R, C]
    low: Tensor  # [R, C], what the rounding of the mean left: without it a large mean would shift a whole region
    rstd: Tensor  # [R, C]
    count: Tensor  # [R], pixels of each region
    of_x: bool  # they are statistics of x, and gradients flow through them; else constants


def rows_of(x: Tensor) -> Tensor:
    """[N, C, H, W] to a row per pixel [NHW, C]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.size(1))


def region_sums(rows: Tensor, ids: Tensor, regions: int) -> Tensor:
    """Sums of rows [P, K] by region: [R, K]."""
    return rows.new_zeros((regions, rows.size(1))).index_add(0, ids.flatten().long(), rows)


def reference_forward(x: Tensor, ids: Tensor, regions: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Count, mean and its rounding error, variance."""
    index, rows = ids.flatten().long(), rows_of(x.to(accumulation_dtype(x)))
    count = torch.bincount(index, minlength=regions).to(rows.dtype)
    pixels = count.clamp(min=1)[:, None]
    mean = region_sums(rows, ids, regions) / pixels
    centred = rows - mean[index]
    rest = region_sums(centred, ids, regions) / pixels
    low = rest - ((mean + rest) - mean)
    return count, mean + rest, low.detach(), region_sums(centred * centred, ids, regions) / pixels - rest * rest


def _empty(x: Tensor, ids: Tensor, order: Tensor | None, offsets: Tensor | None, regions: int) -> tuple[Tensor, ...]:
    mean = x.new_empty((regions, x.size(1)), dtype=accumulation_dtype(x))
    return mean.new_empty(regions), mean, torch.empty_like(mean), torch.empty_like(mean)


def _forward(x, ids, order, offsets, regions):
    backend = _backend.choose("region_moments", "region_moments", x)
    if backend == "reference" or x.numel() == 0:
        return reference_forward(x, ids, regions)
    outputs = _empty(x, ids, order, offsets, regions)
    segments = () if backend == "cpu" else (order, offsets)
    x = x.contiguous(memory_format=torch.channels_last)  # the sums of a region read whole pixels
    _backend.kernel(backend, "region_moments", "region_moments")(x, ids, *segments, *outputs)
    return outputs


def _setup(ctx, inputs, output) -> None:
    x, ids, *_, ctx.regions = inputs
    ctx.save_for_backward(x, ids, *output[:3])
    ctx.set_materialize_grads(False)


def _backward(ctx, dcount: Tensor | None, dmean: Tensor | None, dlow: Tensor | None, dvar: Tensor | None):
    x, ids, count, mean, low = ctx.saved_tensors
    share = 1 / count.clamp(min=1)[:, None]
    shift = torch.zeros_like(mean) if dmean is None else dmean * share
    if dvar is None:
        dx = lookup(shift, ids).to(x.dtype)
    elif torch.is_grad_enabled() and x.requires_grad:
        # The mean is a function of x too: a graph of this gradient has to go through it.
        mean = reference_forward(x, ids, ctx.regions)[1]
        dx = (lookup(shift, ids) + lookup(2 * dvar * share, ids) * (x.to(mean.dtype) - lookup(mean, ids))).to(x.dtype)
    else:
        style = torch.cat([2 * dvar * share, shift], 1)
        constants = None, None, mean, low, torch.ones_like(mean), count, False, 1.0
        dx = torch.ops.i2ifast.modulate_region(x, ids, style, None, *constants)
    return dx, *[None] * 4


define(
    "region_moments",
    "(Tensor x, Tensor ids, Tensor? order, Tensor? offsets, int regions) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _empty,
)
autograd("region_moments", _setup, _backward)


def region_moments(
    x: Tensor, ids: Tensor, regions: int, segments: Segments | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Number of pixels [R], and mean and biased variance [R, C] per channel, of each region of an index map.

    x [N, C, H, W]; ids [N, H, W] int32 in 0..R-1, R = `regions`: a region is all pixels of its index, also of several
    samples. One pass over x; float32 results for halves and float32, float64 for float64, accumulated around local
    means. Differentiable to any order, deterministic. Empty regions have zeros. `segments` spare CUDA kernels a sort.
    Raises ValueError for shapes or devices that do not fit. Indices are not checked here: `labels.regions` makes them.
    """
    check_4d("x", x)
    check_ids(x, ids)
    order, offsets = (None, None) if segments is None else segments
    count, mean, _, var = torch.ops.i2ifast.region_moments(x, ids.contiguous(), order, offsets, regions)
    return count, mean, var


def check_ids(x: Tensor, ids: Tensor) -> None:
    check_shape("ids", ids, (x.size(0), *x.shape[2:]))
    check_device(x, ids=ids)
    if ids.dtype is not torch.int32:
        raise TypeError(f"ids are {ids.dtype}, expected torch.int32")


def region_statistics(
    x: Tensor,
    ids: Tensor,
    regions: int,
    eps: float = 1e-5,
    segments: Segments | None = None,
    per_share: bool = False,
) -> RegionStatistics:
    """Statistics of every region; rstd = 1 / sqrt(var + eps). With `per_share`, eps is divided by the region's share of
    all pixels.
    """
    check_4d("x", x)
    check_ids(x, ids)
    order, offsets = (None, None) if segments is None else segments
    with torch.no_grad():
        count, mean, low, var = torch.ops.i2ifast.region_moments(x, ids.contiguous(), order, offsets, regions)
        rest = eps * ids.numel() / count.clamp(min=1)[:, None] if per_share else eps
        return RegionStatistics(mean, low, (var + rest).rsqrt(), count, True)
