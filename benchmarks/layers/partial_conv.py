"""Partial convolutions, as padding and with holes: against the published formulation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import PartialConv2d
from i2ifast.testing import blocky

from . import Layer, Made, Shape


class Published(nn.Module):
    """The mask of every forward summed by a convolution of the layer's size, the result put together in four passes."""

    def __init__(self, conv: PartialConv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, mask_in: Tensor | None = None) -> Tensor:
        conv = self.conv
        with torch.no_grad():
            mask = x.new_ones((1, 1, *x.shape[2:])) if mask_in is None else mask_in
            shape = conv.weight.shape if conv.multi_channel else (1, 1, *conv.kernel_size)
            count = F.conv2d(mask, x.new_ones(shape), None, conv.stride, conv.padding)
            seen = count.clamp(0, 1)
            ratio = conv.slide_winsize / (count + 1e-8) * seen
        raw = F.conv2d(x if mask_in is None else x * mask_in, conv.weight, conv.bias, conv.stride, conv.padding)
        bias = conv.bias.view(1, -1, 1, 1)
        return ((raw - bias) * ratio + bias) * seen


def layer(name: str, masked: bool, multi_channel: bool = False) -> Layer:
    def make(shape: Shape, g: torch.Generator) -> Made:
        n, c, h, w = shape
        conv = PartialConv2d(c, c, 3, padding=1, multi_channel=multi_channel)
        inputs = {"x": torch.randn(shape, generator=g)}
        if masked:
            mask = (blocky(g, n, h, w, 3, 16) > 0).float()[:, None]
            inputs["mask_in"] = mask.expand(shape).contiguous() if multi_channel else mask

        return Made({"ours": conv, "plain": Published(conv)}, inputs)

    return Layer(name, ((1, 64, 256, 256),), make)


LAYERS = [
    layer("PartialConv2d padding", masked=False),
    layer("PartialConv2d mask", masked=True),
    layer("PartialConv2d mask of channels", masked=True, multi_channel=True),
]
