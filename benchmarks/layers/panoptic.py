"""Layers on panoptic maps: against their definition, and against the plain convolution that knows of no segments."""

import torch
import torch.nn.functional as F
from plain import maps
from torch import Tensor, nn

from i2ifast.nn import PanopticConv2d, PanopticUpsample
from i2ifast.testing import blocky

from . import Layer, Made, Plain, Shape


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
        return Made({"ours": layer, "plain": Plain(layer, maps.panoptic_conv), "convolution": Unaware(layer)}, inputs)

    return Layer(f"PanopticConv2d {kernel}/{stride}", ((1, 64, 256, 256), (1, 128, 128, 128))[: 3 - stride], make)


def make_upsample(shape: Shape, g: torch.Generator) -> Made:
    n, c, h, w = shape
    layer = PanopticUpsample()
    inputs = {"x": torch.randn(shape, generator=g), "ids": blocky(g, n, 2 * h, 2 * w, 50, 16).long()}

    def plain(x: Tensor, ids: Tensor) -> Tensor:
        return maps.panoptic_upsample(layer, x, ids)[0]

    return Made({"ours": lambda x, ids: layer(x, ids)[0], "plain": plain}, inputs)


LAYERS = [conv(3), conv(5), conv(3, 2), Layer("PanopticUpsample", ((1, 64, 128, 128),), make_upsample)]
