"""Partial convolution, on what a mask lets through only: Liu et al., Image Inpainting for Irregular Holes, ECCV 2018.

Without a mask, on what lies inside of the image: Liu et al., Partial Convolution based Padding, 2018.
"""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv import Conv2d


class _PartialConv(nn.Module):
    """What PartialConv2d and PartialConv3d share; see there."""

    multi_channel: bool
    return_mask: bool
    eps: float
    update_mask: Tensor
    mask_ratio: Tensor

    def _set(self, multi_channel: bool, return_mask: bool, eps: float) -> None:
        if self.padding_mode != "zeros":
            raise ValueError(
                f"padding_mode={self.padding_mode!r}: what lies outside of the image is masked, 'zeros' only"
            )
        self.multi_channel, self.return_mask, self.eps = multi_channel, return_mask, eps
        self.slide_winsize = prod(self.kernel_size) * (self.in_channels if multi_channel else 1)
        self._found_for: tuple | None = None

    @torch.no_grad()
    def _update(self, x: Tensor, mask: Tensor | None) -> None:
        """The mask of the output, and the ratio of all elements of a window to those that the mask lets through."""
        seen = x.new_ones((1, 1, *x.shape[2:])) * (self.in_channels if self.multi_channel else 1)
        if mask is not None:
            seen = mask.sum(1, keepdim=True) if self.multi_channel else mask
        seen = seen.to(torch.promote_types(x.dtype, torch.float32))
        convolve = F.conv2d if x.dim() == 4 else F.conv3d
        ones = seen.new_ones((1, 1, *self.kernel_size))
        count = convolve(seen, ones, None, self.stride, self.padding, self.dilation)
        update = count.clamp(0, 1)
        ratio = self.slide_winsize / (count + self.eps) * update
        if self.multi_channel:  # one map for all channels
            shape = (x.size(0), self.out_channels, *count.shape[2:])
            update, ratio = update.expand(shape), ratio.expand(shape)
        self.update_mask, self.mask_ratio = update.to(x.dtype), ratio.to(x.dtype)

    def forward(self, x: Tensor, mask_in: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        # As the original has it: without a mask, whatever was found for an input of this size holds on.
        state = (tuple(x.shape), x.dtype, x.device)
        if mask_in is not None or self._found_for != state:
            self._update(x, mask_in)
            self._found_for = state
        raw = self._conv_forward(x if mask_in is None else x * mask_in, self.weight, None)
        if self.bias is None:
            y = raw * self.mask_ratio
        else:
            bias = self.bias.view(-1, *[1] * (x.dim() - 2))
            y = torch.addcmul(raw * (self.mask_ratio * self.update_mask), bias, self.update_mask)
        return (y, self.update_mask) if self.return_mask else y


class PartialConv2d(_PartialConv, Conv2d):
    """y = (W . (x * M) * |window| / (|M| + eps) + bias) * m, m = min(|M|, 1): 0 where a window sees nothing.

    `forward(x, mask_in=None)`: M is the mask [1 or N, 1, H, W], |M| its sum in a window of |window| taps; with
    multi_channel a mask [N, C, H, W], summed and counted over channels too, of all groups. Without one M is 1 inside of
    the image and 0 outside. With return_mask the result is (y, m). m and the ratio are kept, as update_mask and
    mask_ratio, and hold for further calls without mask on inputs of the same size. No gradient goes to masks.
    Arguments and state_dict as torch.nn.Conv2d; `eps` is 1e-6 in other versions.
    """

    def __init__(
        self, *args, multi_channel: bool = False, return_mask: bool = False, eps: float = 1e-8, **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        self._set(multi_channel, return_mask, eps)


class PartialConv3d(_PartialConv, nn.Conv3d):
    """PartialConv2d of [N, C, D, H, W]. Arguments and state_dict as torch.nn.Conv3d."""

    def __init__(
        self, *args, multi_channel: bool = False, return_mask: bool = False, eps: float = 1e-8, **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        self._set(multi_channel, return_mask, eps)
