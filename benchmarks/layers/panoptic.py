"""Layers on panoptic maps: against their definition, and against the plain convolution that knows of no segments."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import PanopticConv2d, PanopticUpsample
from i2ifast.testing import blocky
from i2ifast.testing.panoptic import unfolded

from . import Layer, Made, Shape


class Unfolded(nn.Module):
    """All taps of all pixels, masked."""

    def __init__(self, conv: PanopticConv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return unfolded(x, self.conv.weight, self.conv.bias, ids, self.conv.stride[0])


class Unaware(nn.Module):
    """What a network without panoptic layers has in this place."""

    def __init__(self, conv: PanopticConv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight, self.conv.bias, self.conv.stride, self.conv.padding)


def conv(kernel: int, stride: int = 1) -> Layer:
    def make(shape: Shape, g: torch.Generator) -> Made:
        n, c, h, w = shape
        layer = PanopticConv2d(c, c, kernel, stride)
        inputs = {"x": torch.randn(shape, generator=g), "ids": blocky(g, n, h, w, 50, 16).long()}
        return Made({"ours": layer, "plain": Unfolded(layer), "convolution": Unaware(layer)}, inputs)

    return Layer(f"PanopticConv2d {kernel}/{stride}", ((1, 64, 256, 256), (1, 128, 128, 128))[: 3 - stride], make)


def copied(x: Tensor, ids: Tensor) -> Tensor:
    """The upsampling in PyTorch's operations: nine candidates, each a shifted map, from the farthest to the nearest."""
    (_, _, h, w), small = x.shape, ids[:, ::2, ::2]
    y = x.new_zeros((*x.shape[:2], 2 * h, 2 * w))
    padded, padded_ids = F.pad(x, [1] * 4), F.pad(small, [1] * 4, value=-1)
    offsets = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    for fy in (0, 1):
        for fx in (0, 1):
            nearness = sorted(offsets, key=lambda d: (4 * d[0] + 1 - 2 * fy) ** 2 + (4 * d[1] + 1 - 2 * fx) ** 2)
            part, own = y[:, :, fy::2, fx::2], ids[:, fy::2, fx::2]
            for dy, dx in reversed(nearness):
                window = (slice(1 + dy, 1 + dy + h), slice(1 + dx, 1 + dx + w))
                part = torch.where((padded_ids[:, *window] == own)[:, None], padded[:, :, *window], part)
            y[:, :, fy::2, fx::2] = part
    return y


def make_upsample(shape: Shape, g: torch.Generator) -> Made:
    n, c, h, w = shape
    layer = PanopticUpsample()
    inputs = {"x": torch.randn(shape, generator=g), "ids": blocky(g, n, 2 * h, 2 * w, 50, 16).long()}
    return Made({"ours": lambda x, ids: layer(x, ids)[0], "plain": copied}, inputs)


LAYERS = [conv(3), conv(5), conv(3, 2), Layer("PanopticUpsample", ((1, 64, 128, 128),), make_upsample)]
