"""The formulas of `modulate_table`, forward and backward, in plain PyTorch."""

import torch
from torch import Tensor

from . import _modulation as m
from ._op import activate


def lookup(table: Tensor, patches: Tensor) -> Tensor:
    """[D, K] and [N, H, W] to [N, K, H, W]."""
    return table[patches.long()].permute(0, 3, 1, 2)


def _maps(table: Tensor, patches: Tensor, scales: Tensor | None, channels: int) -> list[tuple[Tensor, ...]]:
    """1 + gamma, beta [N, C, H, W] and what they are multiplied by, of every output."""
    maps = lookup(table, patches).split(channels, 1)
    count = len(maps)
    factors = [maps[0].new_ones(())] * count if scales is None else scales.to(table.dtype).split(1, 1)
    return [(1 + maps[k], maps[k + 1], factors[k], factors[k + 1]) for k in range(0, count, 2)]


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
    scales: Tensor | None,
    noise: Tensor | None,
    strength: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    slope: float,
    slope2: float | None,
    upsample: bool,
) -> tuple[Tensor, Tensor]:
    xhat = _normalised(x, noise, strength, mean, rstd, upsample)
    maps = _maps(table.to(xhat.dtype), patches, scales, x.size(1))
    ys = [
        activate(xhat * (scale * s) + shift * t, each).to(x.dtype)
        for (scale, shift, s, t), each in zip(maps, (slope, slope2), strict=False)
    ]
    return ys[0], ys[1] if slope2 is not None else x.new_empty(0)


def _gradients(dys, x, table, patches, scales, noise, strength, mean, rstd, slopes, upsample):
    """xhat, dL/dxhat, and the gradients of the maps gamma and beta, and of scales, at the size of y."""
    xhat = _normalised(x, noise, strength, mean, rstd, upsample)
    g, dmaps, dscales = torch.zeros_like(xhat), [], []
    maps = _maps(table.to(xhat.dtype), patches, scales, x.size(1))
    for dy, (scale, shift, s, t), slope in zip(dys, maps, slopes, strict=False):
        dz = m.activation_gradient(dy.to(xhat.dtype), xhat * (scale * s) + shift * t, slope)
        g = g + dz * scale * s
        dmaps += [dz * xhat * s, dz * t]
        dscales += [(dz * xhat * scale).sum(1, keepdim=True), (dz * shift).sum(1, keepdim=True)]
    return xhat, g, dmaps, dscales


def reference_sums(
    dys, x, table, patches, scales, noise, strength, mean, rstd, slopes, upsample
) -> tuple[Tensor, Tensor]:
    """dtable [D, 2CK] and sums [2, G, C] of g and g * xhat; with noise also of xhat, g * noise and xhat * noise."""
    xhat, g, dmaps, _ = _gradients(dys, x, table, patches, scales, noise, strength, mean, rstd, slopes, upsample)
    rows = torch.cat(dmaps, 1).permute(0, 2, 3, 1).flatten(0, 2)
    dtable = torch.zeros(table.shape, dtype=rows.dtype, device=x.device).index_add(0, patches.flatten().long(), rows)
    sums = m.statistics_sums(g, xhat, mean.size(0))
    if noise is not None:
        maps = xhat, g * noise[:, None], xhat * noise[:, None]
        sums += tuple(m.statistics_sums(t, xhat, mean.size(0))[0] for t in maps)
    return dtable.to(table.dtype), torch.stack(sums)


def reference_dx(
    dys, x, table, patches, scales, noise, strength, mean, rstd, means, slopes, upsample
) -> tuple[Tensor, Tensor]:
    """dx, and dscales [N, 2K, H, W]."""
    xhat, g, _, dscales = _gradients(dys, x, table, patches, scales, noise, strength, mean, rstd, slopes, upsample)
    if upsample:
        xhat, g = m.add2(xhat) / 4, m.add2(g)
    return m.normalise_gradient(g, xhat, rstd, means).to(x.dtype), torch.cat(dscales, 1)


def dstrength_of(sums: Tensor, means: Tensor, rstd: Tensor, noise: Tensor, upsample: bool) -> Tensor:
    """Sum of noise * d(x + strength * noise), the second factor being rstd * (g - mean(g) - xhat * mean(g * xhat)).

    It is a small difference of large sums: they come in float64.
    """
    of_noise = noise.double().flatten(1).sum(1, keepdim=True)  # [N, 1]
    of_noise = of_noise if rstd.size(0) > 1 else of_noise.sum(0, keepdim=True)
    of_g, of_gx, of_x = means / 4 if upsample else means  # over the pixels of y
    # Rounding of the mean lets xhat have one, which the sum over all pixels would make count.
    of_gx = of_gx - of_g * of_x
    return (rstd * (sums[3] - of_g * of_noise - of_gx * (sums[4] - of_x * of_noise))).sum(0).to(rstd.dtype)
