"""Octave convolutions, in which a share alpha of the channels lies at half the resolution.

Chen et al. Drop an Octave: Reducing Spatial Redundancy in Convolutional Neural Networks with Octave Convolution.
ICCV 2019. SEMIT changes alpha from step to step: its layers have all channels at both resolutions, and multiply what
does not belong there by zero. Here it is not computed.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import upsample_conv2d
from i2ifast.nn.conv import convolve
from i2ifast.nn.instance import instance_norm_act

from ._munit import AdaptiveInstanceNorm, activated


class Octave(NamedTuple):
    """A map of C channels: the first h at full resolution, the others at half of it. Either part may be empty.

    The original has all C at both. The planes left out show one number each: zero, or, behind adaptive norms, those of
    `high_rest` and `low_rest`.
    """

    high: Tensor  # [N,h,H,W]
    low: Tensor  # [N,C-h,H/2,W/2]
    high_rest: Tensor | None = None  # [N,C-h]
    low_rest: Tensor | None = None  # [N,h]


def split(channels: int, alpha: float) -> int:
    """How many of the channels lie at full resolution: rounded down, in float32 as in the original."""
    return int(np.float32(channels) * (np.float32(1) - np.float32(alpha)))


def halved(x: Tensor) -> Tensor | None:
    return F.avg_pool2d(x, 2) if x.size(1) else None


def doubled(x: Tensor | None) -> Tensor | None:
    return F.interpolate(x, scale_factor=2) if x is not None and x.size(1) else None


def convolved(x: Tensor | None, weight: Tensor, stride: int = 1, upsample: bool = False) -> Tensor | None:
    """conv2d, of x upsampled x2 if `upsample`, with half the kernel of zeros around it; None where no channel is read
    or written."""
    if x is None or 0 in (x.size(1), weight.size(0)):
        return None
    if upsample:
        return upsample_conv2d(x, weight)
    if stride > 1:
        return F.conv2d(x, weight, stride=stride, padding=(weight.size(-1) - 1) // 2)
    return convolve(x, weight, None)


def of_constants(values: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor | None:
    """The 3x3 convolution of planes of `size` that show one number each, `values` [N,C], with zeros around them.

    Only at the borders does a pixel differ from its neighbour.
    """
    y = convolved(values[..., None, None].expand(-1, -1, *(min(side, 3) for side in size)), weight)
    for axis, side in zip((2, 3), size, strict=True):
        if y is not None and side > 3:
            inner = y.narrow(axis, 1, 1).repeat_interleave(side - 2, axis)
            y = torch.cat([y.narrow(axis, 0, 1), inner, y.narrow(axis, 2, 1)], axis)
    return y


def total(terms: list[Tensor | None], like: Tensor, size: tuple[int, int]) -> Tensor:
    """Their sum; a map of `size` without channels if there is none."""
    found = [term for term in terms if term is not None]
    return sum(found[1:], found[0]) if found else like.new_empty(len(like), 0, *size)


class FirstOctConv(nn.Module):
    """convh(x) and convl(pool(x))."""

    def __init__(self, fin: int, fout: int, kernel: int) -> None:
        super().__init__()
        self.convh, self.convl = (nn.Conv2d(fin, fout, kernel, bias=False) for _ in range(2))

    def forward(self, x: Tensor, alpha: float) -> Octave:
        kept = split(self.convh.weight.size(0), alpha)
        h, w = x.shape[2:]
        high, low = convolved(x, self.convh.weight[:kept]), convolved(halved(x), self.convl.weight[kept:])
        return Octave(total([high], x, (h, w)), total([low], x, (h // 2, w // 2)))


class OctConv(nn.Module):
    """H2H(high) + up(L2H(low)) and L2L(low) + H2L(pool(high)), both parts upsampled x2 before if `upsample`."""

    def __init__(self, fin: int, fout: int, kernel: int, stride: int = 1, upsample: bool = False) -> None:
        super().__init__()
        for name in ("L2L", "L2H", "H2L", "H2H"):
            self.add_module(name, nn.Conv2d(fin, fout, kernel, bias=False))
        self.stride, self.upsample = stride, upsample

    def forward(self, x: Octave, alpha: float) -> Octave:
        given, kept = x.high.size(1), split(self.H2H.weight.size(0), alpha)
        H2H, L2H = self.H2H.weight[:kept], self.L2H.weight[:kept]
        H2L, L2L = self.H2L.weight[kept:], self.L2L.weight[kept:]
        h, w = (side * (2 if self.upsample else 1) // self.stride for side in x.high.shape[2:])
        half = h // 2, w // 2
        pooled = x.high if self.upsample else halved(x.high)  # pooling undoes upsampling
        high = [
            convolved(x.high, H2H[:, :given], self.stride, self.upsample),
            doubled(convolved(x.low, L2H[:, given:], self.stride, self.upsample)),
        ]
        low = [
            convolved(x.low, L2L[:, given:], self.stride, self.upsample),
            convolved(pooled, H2L[:, :given], self.stride),
        ]
        if x.high_rest is not None:
            high += [
                of_constants(x.high_rest, H2H[:, given:], (h, w)),
                doubled(of_constants(x.low_rest, L2H[:, :given], half)),
            ]
            rest = torch.cat([x.low_rest, x.high_rest], 1)
            low += [of_constants(rest, torch.cat([L2L[:, :given], H2L[:, given:]], 1), half)]
        return Octave(total(high, x.high, (h, w)), total(low, x.low, half))


class LastOctConv(nn.Module):
    """convh(high) + convl(up(low)), of a map whose rests are zero."""

    def __init__(self, fin: int, fout: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.convh, self.convl = (nn.Conv2d(fin, fout, kernel, bias=False) for _ in range(2))
        self.stride = stride

    def forward(self, x: Octave) -> Tensor:
        given = x.high.size(1)
        weight = torch.cat([self.convh.weight[:, :given], self.convl.weight[:, given:]], 1)
        low = doubled(x.low)
        return convolved(x.high if low is None else torch.cat([x.high, low], 1), weight, self.stride)


def normalised(x: Octave) -> Octave:
    """relu(instance_norm(x)) of a map whose rests are zero, and stay so."""
    return Octave(instance_norm_act(x.high, act="relu"), instance_norm_act(x.low, act="relu"))


def rectified(x: Octave) -> Octave:
    return Octave(x.high.relu(), x.low.relu())


class AdaptiveOctNorm(nn.Module):
    """Adaptive instance norms of both parts; of a plane that was zero only the bias is left.

    Styles [N,4C] are those of full resolution, bias before scale, then those of half of it.
    """

    def __init__(self, channels: int, act: str | float) -> None:
        super().__init__()
        self.bnh, self.bnl = (AdaptiveInstanceNorm(channels, act) for _ in range(2))
        self.act = act

    def forward(self, x: Octave, styles: Tensor) -> Octave:
        h = x.high.size(1)
        bias_h, scale_h, bias_l, scale_l = styles.chunk(4, 1)
        high = self.bnh(x.high, torch.cat([bias_h[:, :h], scale_h[:, :h]], 1))
        low = self.bnl(x.low, torch.cat([bias_l[:, h:], scale_l[:, h:]], 1))
        rests = bias_h[:, h:], bias_l[:, :h]
        return Octave(high, low, *(rests if self.act == "none" else (activated(rest, self.act) for rest in rests)))


class OctResBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), with adaptive norms if `adaptive`."""

    def __init__(self, channels: int, adaptive: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = (OctConv(channels, channels, 3) for _ in range(2))
        if adaptive:
            self.bn1, self.bn2 = AdaptiveOctNorm(channels, "relu"), AdaptiveOctNorm(channels, "none")

    def forward(self, x: Octave, alpha: float, styles: Tensor | None = None) -> Octave:
        if styles is None:
            y = self.conv2(normalised(self.conv1(x, alpha)), alpha)
            return Octave(x.high + instance_norm_act(y.high), x.low + instance_norm_act(y.low))
        first, second = styles.chunk(2, 1)
        y = self.bn2(self.conv2(self.bn1(self.conv1(x, alpha), first), alpha), second)
        rests = (b if a is None else a + b for a, b in zip(x[2:], y[2:], strict=True))
        return Octave(x.high + y.high, x.low + y.low, *rests)
