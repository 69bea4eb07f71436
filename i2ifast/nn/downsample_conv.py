"""A 3x3 convolution and the 2x2 average pooling behind it, as one convolution with stride 2."""

import torch.nn.functional as F
from torch import Tensor, nn


def pooled_weight(weight: Tensor) -> Tensor:
    """weight [O, C, 3, 3] as [O, C, 4, 4]: the mean of its four places in a window of 4x4."""
    rows = F.pad(weight, (0, 0, 0, 1)) + F.pad(weight, (0, 0, 1, 0))
    return (F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))) / 4


def downsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """avg_pool2d(conv2d(x, weight, bias, padding=1), 2).

    x [N, C, H, W], weight [O, C, 3, 3], bias [O] -> [N, O, H // 2, W // 2]. Exact up to summation order, at borders
    too. Of 36 products for a pixel of y and a pair of channels 16 are left.
    """
    if tuple(weight.shape[2:]) != (3, 3):
        raise ValueError(f"weight has shape {list(weight.shape)}, expected [O, C, 3, 3]")
    return F.conv2d(x, pooled_weight(weight), bias, stride=2, padding=1)


class DownsampleConv2d(nn.Conv2d):
    """A 3x3 nn.Conv2d that keeps the size, and the nn.AvgPool2d(2) behind it, by `downsample_conv2d`; parameters are
    the Conv2d's."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return downsample_conv2d(x, self.weight, self.bias)
