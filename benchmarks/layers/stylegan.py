"""Layers of StyleGAN2: one convolution for all samples, and epilogues and resampling in one pass."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn.modulated_conv import fir
from i2ifast.nn.stylegan import StyledConv
from i2ifast.ops import bias_act, upfirdn2d

from . import Layer, Made, Shape

FIR = fir([1, 3, 3, 1])


def filtered(x: Tensor, f: Tensor, up: int = 1, down: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """Zeros between the pixels, padding, and a convolution of every channel alone."""
    c = x.size(1)
    if up > 1:
        x = F.conv_transpose2d(x, x.new_ones(c, 1, 1, 1), stride=up, output_padding=up - 1, groups=c)
    return F.conv2d(F.pad(x, padding * 2), f.flip([0, 1]).expand(c, 1, *f.shape), stride=down, groups=c)


class Plain(nn.Module):
    """The published formulation around the parameters of ours: weights of every sample, and a convolution in groups."""

    def __init__(self, layer: StyledConv) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        layer, (n, c, h, w) = self.layer, x.shape
        weight = layer.conv.weight[None] / math.sqrt(layer.conv.weight[0].numel())
        weight = weight * layer.conv.modulation(style)[:, None, :, None, None]
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        if layer.conv.up == 1:
            y = F.conv2d(x.reshape(1, n * c, h, w), weight.flatten(0, 1), padding=1, groups=n).view(n, -1, h, w)
        else:
            weight = weight.transpose(1, 2).flatten(0, 1)
            y = F.conv_transpose2d(x.reshape(1, n * c, h, w), weight, stride=2, groups=n)
            y = filtered(y.view(n, -1, *y.shape[2:]), layer.conv.blur.kernel, padding=(1, 1))
        y = y + layer.noise.weight * noise
        return F.leaky_relu(y + layer.activate.bias[:, None, None], 0.2) * math.sqrt(2)


def styled_conv(upsample: bool, shape: Shape, g: torch.Generator) -> Made:
    n, c, h, w = shape
    layer = StyledConv(c, c, 3, 512, upsample)
    size = (h * 2, w * 2) if upsample else (h, w)
    inputs = {"x": torch.randn(shape, generator=g), "style": torch.randn(n, 512, generator=g)}
    return Made({"ours": layer, "plain": Plain(layer)}, inputs | {"noise": torch.randn(n, 1, *size, generator=g)})


def activation(shape: Shape, g: torch.Generator) -> Made:
    def plain(x: Tensor, b: Tensor) -> Tensor:
        return F.leaky_relu(x + b[:, None, None], 0.2) * math.sqrt(2)

    inputs = {"x": torch.randn(shape, generator=g), "b": torch.randn(shape[1], generator=g)}
    return Made({"ours": lambda x, b: bias_act(x, b, act="lrelu"), "plain": plain}, inputs)


def resampling(up: int, down: int, padding: tuple[int, int], shape: Shape, g: torch.Generator) -> Made:
    def ours(x: Tensor) -> Tensor:
        return upfirdn2d(x, FIR.to(x.device), up, down, padding * 2)

    def plain(x: Tensor) -> Tensor:
        return filtered(x, FIR.to(x.device), up, down, padding)

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
