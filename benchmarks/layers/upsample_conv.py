"""Convolutions behind padding by reflection, and behind nearest upsampling."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import UpsampleConv2d
from i2ifast.nn.conv import Conv2d

from . import Layer, Made, Shape


class Plain(nn.Module):
    """Upsampling, padding and convolution one after the other, around the parameters of ours."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.factor = conv, 2 if isinstance(conv, UpsampleConv2d) else 1

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        x = F.interpolate(x, scale_factor=2) if self.factor == 2 else x
        return F.conv2d(F.pad(x, (conv.padding[0],) * 4, "reflect"), conv.weight, conv.bias)


class Only(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def maker(kind: type[nn.Conv2d], kernel: int) -> Callable[..., Made]:
    def make(shape: Shape, g: torch.Generator) -> Made:
        fin = shape[1]
        fout = fin // 2 if kind is UpsampleConv2d else fin
        conv = kind(fin, fout, kernel, padding=kernel // 2, padding_mode="reflect")
        return Made({"ours": Only(conv), "plain": Plain(conv)}, {"x": torch.randn(shape, generator=g)})

    return make


SMALL = ((1, 256, 64, 64), (1, 128, 128, 128))  # what a decoder upsamples

LAYERS = [
    Layer("Conv2d reflect", ((1, 256, 64, 64), (1, 64, 256, 256)), maker(Conv2d, 3)),
    Layer("UpsampleConv2d 3x3", SMALL, maker(UpsampleConv2d, 3)),
    Layer("UpsampleConv2d 5x5", SMALL, maker(UpsampleConv2d, 5)),
]
