"""Region normalisation and attentive normalisation, against what their papers' code computes."""

from functools import partial

import torch
import torch.nn.functional as F
from plain import norms
from torch import Tensor

from i2ifast.nn import RN_B, RN_L, RegionNorm, regional_norm
from i2ifast.testing import blocky

from . import Layer, Made, Plain, Shape

REGIONS = 8


def rectangle(n: int, h: int, w: int) -> Tensor:
    mask = torch.zeros(n, 1, h, w, dtype=torch.bool)
    mask[:, :, h // 4 : h // 2, w // 4 : 3 * w // 4] = True
    return mask


def published_rn(x: Tensor, mask: Tensor) -> Tensor:
    """Both sides filled with their means and batch-normalised, as in the paper's code."""
    total = 0
    for m in (mask, 1 - mask):
        inside, count = x * m, m.sum((0, 2, 3))
        count = torch.where(count == 0, torch.ones_like(count), count)
        mean = (inside.sum((0, 2, 3)) / count)[None, :, None, None]
        filled = F.batch_norm(inside + (1 - m) * mean, None, None, training=True)
        total = total + filled * torch.sqrt(count / mask.numel())[None, :, None, None]
    return total


published_basic = partial(norms.basic_region_norm, rn=published_rn)
published_learned = partial(norms.learned_region_norm, rn=published_rn)


def basic(shape: Shape, g: torch.Generator) -> Made:
    n, c, h, w = shape
    layer = RN_B(c, "relu")
    contenders = {
        "ours": layer,
        "plain": Plain(layer, norms.basic_region_norm),
        "original": Plain(layer, published_basic),
    }
    return Made(contenders, {"x": torch.randn(shape, generator=g), "mask": rectangle(n, h, w)})


def learned(shape: Shape, g: torch.Generator) -> Made:
    layer = RN_L(shape[1], threshold=0.5, act="relu")
    contenders = {
        "ours": layer,
        "plain": Plain(layer, norms.learned_region_norm),
        "original": Plain(layer, published_learned),
    }
    return Made(contenders, {"x": torch.randn(shape, generator=g)})


def plain_regions(x: Tensor, maps: Tensor) -> Tensor:
    """One mask after another."""
    result = torch.zeros_like(x)
    for region in range(REGIONS):
        m = (maps == region)[:, None].to(x.dtype)
        count = m.sum((2, 3), keepdim=True).clamp(min=1)
        mean = (x * m).sum((2, 3), keepdim=True) / count
        var = ((x - mean).square() * m).sum((2, 3), keepdim=True) / count
        result = result + (x - mean) * torch.rsqrt(var + 1e-5) * m
    return result


def by_ids(shape: Shape, g: torch.Generator) -> Made:
    n, c, h, w = shape
    maps = blocky(g, n, h, w, REGIONS, 16)
    contenders = {"ours": RegionNorm(c), "plain": plain_regions}
    return Made(contenders, {"x": torch.randn(shape, generator=g), "maps": maps})


def copies(v: Tensor, layout: Tensor) -> Tensor:
    """A copy of v for each region, as in the paper's code."""
    count = layout.sum((2, 3)) + 1e-7
    masked = v[:, None] * layout[:, :, None]
    mean = masked.mean((3, 4)) / count[..., None]
    std = ((masked - mean[..., None, None]).square().sum((3, 4)) / count[..., None]).sqrt() + 1e-7
    return ((v[:, None] - mean[..., None, None]) / std[..., None, None] * layout[:, :, None]).sum(1)


def products(v: Tensor, layout: Tensor) -> Tensor:
    """The same as products of matrices."""
    n, c, h, w = v.shape
    s, x = layout.flatten(2), v.flatten(2)
    count = s.sum(2)[..., None] + 1e-7
    sums, squares = s @ x.transpose(1, 2), s.square() @ x.square().transpose(1, 2)
    mean = sums / (h * w * count)
    scale = 1 / (((squares - 2 * mean * sums + h * w * mean * mean) / count).sqrt() + 1e-7)
    mixed = scale.transpose(1, 2) @ s, (mean * scale).transpose(1, 2) @ s
    return (x * mixed[0] - mixed[1]).view(n, c, h, w)


def attentive(shape: Shape, g: torch.Generator) -> Made:
    n, _, h, w = shape
    layout = torch.softmax(torch.randn(n, 16, h, w, generator=g), 1)
    contenders = {"ours": regional_norm, "plain": products, "original": copies}
    return Made(contenders, {"v": torch.randn(shape, generator=g), "layout": layout})


LAYERS = [
    Layer("RN_B", ((1, 64, 256, 256), (4, 128, 64, 64)), basic),
    Layer("RN_L", ((1, 64, 256, 256), (4, 256, 64, 64)), learned),
    Layer("RegionNorm", ((1, 64, 256, 256),), by_ids),
    Layer("regional_norm", ((1, 128, 64, 64), (1, 64, 256, 256)), attentive),
]
