"""Convolutions behind padding by reflection, and behind nearest upsampling."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from plain import convs
from torch import Tensor, nn

from i2ifast.nn import UpsampleConv2d
from i2ifast.nn.conv import Conv2d

from . import Layer, Made, Plain, Shape


def plain(self: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(convs.padded(x, self.padding[0], self.padding_mode), self.weight, self.bias)


class Only(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def maker(kind: type[nn.Conv2d], kernel: int) -> Callable[..., Made]:
    def make(shape: Shape, g: torch.Generator) -> Made:
        fin = shape[1]
        fout = fin // 2 if kind is UpsampleConv2d else fin
        conv = kind(fin, fout, kernel, padding=kernel // 2, padding_mode="reflect")
        return Made(
            {"ours": Only(conv), "plain": Plain(conv, convs.upsample_module if kind is UpsampleConv2d else plain)},
            {"x": torch.randn(shape, generator=g)},
        )

    return make


SMALL = ((1, 256, 64, 64), (1, 128, 128, 128))  # what a decoder upsamples

LAYERS = [
    Layer("Conv2d reflect", ((1, 256, 64, 64), (1, 64, 256, 256)), maker(Conv2d, 3)),
    Layer("UpsampleConv2d 3x3", SMALL, maker(UpsampleConv2d, 3)),
    Layer("UpsampleConv2d 5x5", SMALL, maker(UpsampleConv2d, 5)),
]
