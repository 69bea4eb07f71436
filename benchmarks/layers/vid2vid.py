"""Residual blocks with reflection padding and batch norm, of which vid2vid's generators consist."""

import torch
from torch import nn

from i2ifast.models._vid2vid import ResnetBlock
from i2ifast.nn import BatchNormAct

from . import Layer, Made, Shape


class Plain(nn.Module):
    """The same block of torch's own layers."""

    def __init__(self, channels: int, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            *[nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)],
            *[nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.BatchNorm2d(channels)],
        )
        self.load_state_dict(state)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv_block(x)


def make(shape: Shape, g: torch.Generator) -> Made:
    block = ResnetBlock(shape[1], BatchNormAct)
    functions = {"ours": block, "plain": Plain(shape[1], block.state_dict())}
    return Made(functions, {"x": torch.randn(shape, generator=g)})


LAYERS = [Layer("vid2vid.ResnetBlock", ((1, 1024, 16, 32), (1, 256, 64, 64)), make)]
