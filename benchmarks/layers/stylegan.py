"""Layers of StyleGAN2: one convolution for all samples, and epilogues and resampling in one pass."""

import math

import torch
from plain import convs
from torch import Tensor

from i2ifast.nn.modulated_conv import fir
from i2ifast.nn.stylegan import StyledConv
from i2ifast.ops import bias_act, upfirdn2d

from . import Layer, Made, Plain, Shape

FIR = fir([1, 3, 3, 1])


def plain_styled_conv(self: StyledConv, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
    conv, up = self.conv, self.conv.up
    style = conv.modulation(style) / math.sqrt(conv.weight[0].numel())
    f = conv.blur.kernel if up > 1 else None
    y = convs.modulated_conv2d(x, conv.weight, style, self.noise.weight * noise, f=f, up=up)
    return convs.bias_act(y, self.activate.bias, act="lrelu")


def styled_conv(upsample: bool, shape: Shape, g: torch.Generator) -> Made:
    n, c, h, w = shape
    layer = StyledConv(c, c, 3, 512, upsample)
    size = (h * 2, w * 2) if upsample else (h, w)
    inputs = {"x": torch.randn(shape, generator=g), "style": torch.randn(n, 512, generator=g)}
    return Made(
        {"ours": layer, "plain": Plain(layer, plain_styled_conv)},
        inputs | {"noise": torch.randn(n, 1, *size, generator=g)},
    )


def activation(shape: Shape, g: torch.Generator) -> Made:
    inputs = {"x": torch.randn(shape, generator=g), "b": torch.randn(shape[1], generator=g)}
    return Made(
        {"ours": lambda x, b: bias_act(x, b, act="lrelu"), "plain": lambda x, b: convs.bias_act(x, b, act="lrelu")},
        inputs,
    )


def resampling(up: int, down: int, padding: tuple[int, int], shape: Shape, g: torch.Generator) -> Made:
    def ours(x: Tensor) -> Tensor:
        return upfirdn2d(x, FIR.to(x.device), up, down, padding * 2)

    def plain(x: Tensor) -> Tensor:
        return convs.upfirdn2d(x, FIR.to(x.device), up, down, padding * 2)

    return Made({"ours": ours, "plain": plain}, {"x": torch.randn(shape, generator=g)})


MAPS = ((1, 128, 128, 128), (4, 512, 16, 16), (4, 3, 256, 256))
LAYERS = [
    Layer("StyledConv", ((1, 512, 32, 32), (4, 128, 64, 64)), lambda shape, g: styled_conv(False, shape, g)),
    Layer("StyledConv-up", ((1, 512, 16, 16), (4, 128, 32, 32)), lambda shape, g: styled_conv(True, shape, g)),
    Layer("bias_act", MAPS, activation),
    Layer("upfirdn2d-blur", MAPS, lambda shape, g: resampling(1, 1, (2, 1), shape, g)),
    Layer("upfirdn2d-up", MAPS, lambda shape, g: resampling(2, 1, (2, 1), shape, g)),
    Layer("upfirdn2d-down", MAPS, lambda shape, g: resampling(1, 2, (1, 1), shape, g)),
]
