"""Triton kernel of `region_moments`: count, mean and biased variance per channel of the pixels that share an index.

Sums over the pixels of a region, sorted by index, in pieces of SEGMENT. The first pass takes off the region's first
pixel before summing, the second the mean so found: what rounding left of it is corrected for.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import SEGMENT, add_partials, load, on_device, piece, pieces, segments


@triton.jit
def _sums(
    x, order, offsets, centre, sums, partials, rows, channels,
    SEGMENT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Rows (sum of d, sum of d^2) with d = x - centre[r], from channels_last x."""
    blocks_c = tl.cdiv(channels, BLOCK_C)
    item = tl.program_id(0) // blocks_c
    c = tl.program_id(0) % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    c_ok = c < channels
    r, first, last = piece(offsets, rows, item, SEGMENT)
    middle = tl.load(centre + r.to(tl.int64) * channels + c, mask=c_ok, other=0.0)[None, :]
    sum_d = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    sum_d2 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for i in range(first, last, BLOCK_M):
        m = i + tl.arange(0, BLOCK_M)
        ok = (m < last)[:, None] & c_ok[None, :]
        p = tl.load(order + m, mask=m < last, other=0).to(tl.int64)
        d = tl.where(ok, load(x, p[:, None] * channels + c[None, :], ok) - middle, 0.0)
        sum_d += d
        sum_d2 += d * d
    out = sums + item.to(tl.int64) * 2 * channels + c
    if item >= rows:
        out = partials + (item - rows).to(tl.int64) * 2 * channels + c
    tl.store(out, tl.sum(sum_d, 0), mask=c_ok)
    tl.store(out + channels, tl.sum(sum_d2, 0), mask=c_ok)


@on_device
def region_moments(
    x: Tensor,
    ids: Tensor,
    order: Tensor | None,
    offsets: Tensor | None,
    count: Tensor,
    mean: Tensor,
    low: Tensor,
    var: Tensor,
) -> None:
    regions, channels = mean.shape
    if order is None or offsets is None:
        order, offsets = segments(ids, regions)
    programs, boundaries = pieces(ids.numel(), regions)
    sums, partials = mean.new_empty((regions, 2 * channels)), mean.new_empty((boundaries, 2 * channels))
    block_c = min(triton.next_power_of_2(channels), 64)
    count.copy_(offsets.diff())
    share = 1 / count.clamp(min=1)[:, None]
    first = order[offsets[:-1].clamp(max=ids.numel() - 1).long()].long()
    centre = x.permute(0, 2, 3, 1).reshape(-1, channels)[first].float().masked_fill_(count[:, None] == 0, 0.0)
    for _ in range(2):
        _sums[(programs * triton.cdiv(channels, block_c),)](
            x, order, offsets, centre, sums, partials, regions, channels,
            SEGMENT=SEGMENT, BLOCK_M=8, BLOCK_C=block_c, num_warps=2,
        )  # fmt: skip
        add_partials(partials, offsets, sums)
        rest, squares = (sums * share).chunk(2, 1)
        before, centre = centre, centre + rest
    mean.copy_(centre)
    torch.sub(rest, centre - before, out=low)
    torch.sub(squares, rest * rest, out=var).clamp_(min=0)
