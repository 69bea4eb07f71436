"""Convolutions on the faster route of the device."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.conv3x3 import PADDINGS, conv3x3


def is_3x3(conv: nn.Conv2d) -> bool:
    """Whether it is what ops.conv3x3 computes: stride 1, padding 1 of a kind it knows, no dilation, one group."""
    shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1)) and conv.groups == 1 and conv.padding_mode in PADDINGS


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d with the zero padding that keeps the size, for odd kernels: 3x3 through `ops.conv3x3`."""
    if weight.size(-1) == 3 and not torch.is_autocast_enabled(x.device.type):
        return conv3x3(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=weight.size(-1) // 2)


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d, with 3x3 convolutions of float32 images through `ops.conv3x3`."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Autocast, and what comes without a batch, are torch's to handle.
        if x.dim() != 4 or x.dtype is not weight.dtype or torch.is_autocast_enabled(x.device.type) or not is_3x3(self):
            return nn.Conv2d._conv_forward(self, x, weight, bias)
        return conv3x3(x, weight, bias, self.padding_mode)
