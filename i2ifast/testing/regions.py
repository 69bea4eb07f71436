"""Cases of regions: their statistics, their normalisation, soft mixes of them, and what they are predicted from."""

import torch
from torch import Tensor

from .. import ops
from ._case import Case, blocky, normal, plain_act

REGIONS = 5


def _inputs(shape, g):
    n, c, h, w = shape
    return {"x": normal(g, *shape), "ids": blocky(g, n, h, w, REGIONS)}


def plain_moments(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    rows, index = x.permute(0, 2, 3, 1).reshape(-1, x.size(1)), ids.flatten().long()
    count = torch.bincount(index, minlength=REGIONS).clamp(min=1).to(x.dtype)[:, None]
    mean = x.new_zeros(REGIONS, x.size(1)).index_add(0, index, rows) / count
    squares = (rows - mean[index]).square()
    return mean, x.new_zeros(REGIONS, x.size(1)).index_add(0, index, squares) / count


def largest_factor(x: Tensor, ids: Tensor, style: Tensor | None = None, maps: Tensor | None = None) -> float:
    """The largest rstd * scale * (1 + gamma) that multiplies a difference in dx."""
    rows = x.double().movedim(1, -1)
    rstd = max((rows[ids == r].var(0, correction=0) + 1e-5).rsqrt().max().item() for r in ids.unique())
    scale = 1.0 if style is None else style[:, : x.size(1)].abs().max().item()
    return rstd * scale * (1.0 if maps is None else (1 + maps[:, :1]).abs().max().item())


def _lookup(rows: Tensor, ids: Tensor) -> Tensor:
    return rows[ids.long()].permute(0, 3, 1, 2)


def _modulated(act, with_maps: bool) -> Case:
    def make(shape, g):
        n, c, h, w = shape
        style = 0.5 * normal(g, REGIONS, 2 * c)
        style[:, :c] += 1
        maps = {"maps": 0.5 * normal(g, n, 2, h, w)} if with_maps else {}
        return {**_inputs(shape, g), "style": style, **maps}

    def plain(x, ids, style, maps=None):
        mean, var = plain_moments(x, ids)
        xhat = (x - _lookup(mean, ids)) / torch.sqrt(_lookup(var, ids) + 1e-5)
        scale, shift = _lookup(style, ids).chunk(2, 1)
        z = xhat * scale + shift
        if maps is not None:
            z = z * (1 + maps[:, :1]) + maps[:, 1:]
        return plain_act(z, act)

    def ours(x, ids, style, maps=None):
        statistics = ops.region_statistics(x, ids, REGIONS)
        return ops.modulate_region(x, ids, statistics, style, maps, act)

    return Case(f"modulate_region-batch-{act}{'-maps' if with_maps else ''}", make, ours, plain)


def _mix_inputs(shape, g):
    n, c, h, w = shape
    weights = torch.softmax(normal(g, n, REGIONS, h, w), 1)
    return {"x": normal(g, *shape), "weights": weights, "table": normal(g, n, REGIONS, 2 * c)}


def _mix_plain(x, weights, table):
    scale, shift = table.chunk(2, 2)
    return x * torch.einsum("nkhw,nkc->nchw", weights, scale) + torch.einsum("nkhw,nkc->nchw", weights, shift)


def _sums_inputs(shape, g):
    n, c, h, w = shape
    weights = torch.softmax(normal(g, n, REGIONS, h, w), 1)
    return {"x": normal(g, *shape), "weights": weights.square(), "weights2": weights}


def _sums_plain(x, weights, weights2):
    return torch.einsum("nkhw,nchw->nkc", weights, x * x), torch.einsum("nkhw,nchw->nkc", weights2, x)


def _pool_plain(x):
    return torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)


CASES = [
    Case("channel_pool", lambda shape, g: {"x": normal(g, *shape)}, ops.channel_pool, _pool_plain),
    Case("region_moments-batch", _inputs, lambda x, ids: ops.region_moments(x, ids, REGIONS)[1:], plain_moments),
    _modulated("none", False),
    _modulated(0.2, True),
    Case("modulate_mix", _mix_inputs, ops.modulate_mix, _mix_plain),
    Case("mix_sums", _sums_inputs, ops.mix_sums, _sums_plain),
]
