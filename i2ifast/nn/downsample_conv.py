"""A 3x3 convolution and the 2x2 average pooling behind it, as one convolution with stride 2."""

import torch
from torch import Tensor, nn

from .conv import halved

POOLED = ((0.5, 0, 0), (0.5, 0.5, 0), (0, 0.5, 0.5), (0, 0, 0.5))  # of a line of three taps


def widened(weight: Tensor, line: tuple[tuple[float, ...], ...]) -> Tensor:
    """weight [O, C, 3, 3] as [O, C, 4, 4] in channels_last, made of sums of its rows and columns as in `line`."""
    one = torch.tensor(line, dtype=weight.dtype, device=weight.device)
    taps = weight.permute(0, 2, 3, 1).flatten(1, 2)
    return (torch.kron(one, one) @ taps).unflatten(1, (4, 4)).permute(0, 3, 1, 2)


def downsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """avg_pool2d(conv2d(x, weight, bias, padding=1), 2).

    x [N, C, H, W], weight [O, C, 3, 3], bias [O] -> [N, O, H // 2, W // 2]. Exact up to summation order, at borders
    too. Of 36 products for a pixel of y and a pair of channels 16 are left, 7 as `conv2d` computes them.
    """
    if tuple(weight.shape[2:]) != (3, 3):
        raise ValueError(f"weight has shape {list(weight.shape)}, expected [O, C, 3, 3]")
    return halved(x, widened(weight, POOLED), bias)


class DownsampleConv2d(nn.Conv2d):
    """A 3x3 nn.Conv2d that keeps the size, and the nn.AvgPool2d(2) behind it, by `downsample_conv2d`; parameters are
    the Conv2d's."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return downsample_conv2d(x, self.weight, self.bias)
