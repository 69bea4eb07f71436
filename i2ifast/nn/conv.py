"""Convolutions on the faster route of the device."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _backend
from ..ops import _winograd
from ..ops.conv2d import conv2d, conv_transpose2d
from ..ops.conv3x3 import PADDINGS, conv3x3, fast

WORTH = 1e8  # products of a convolution of stride 2 from which on copies for the gradient of its weight pay


def is_3x3(conv: nn.Conv2d) -> bool:
    """Whether it is what ops.conv3x3 computes: stride 1, padding 1 of a kind it knows, no dilation, one group."""
    shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1)) and conv.groups == 1 and conv.padding_mode in PADDINGS


def fits_conv2d(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Whether it is what ops.conv2d (conv_transpose2d) computes, fast for its channels."""
    sides, padding = (*conv.kernel_size, *conv.stride), conv.padding
    if conv.dilation != (1, 1) or conv.groups != 1 or isinstance(padding, str) or padding[0] != padding[1]:
        return False
    if isinstance(conv, nn.ConvTranspose2d):
        fits, written = sides in ((3, 3, 2, 2), (4, 4, 2, 2)) and max(conv.output_padding) <= 1, 4 * conv.out_channels
    else:
        fits, written = sides in ((3, 3, 2, 2), (4, 4, 1, 1), (4, 4, 2, 2)), conv.out_channels
    return fits and padding[0] <= 3 and _winograd.fast(conv.weight, conv.in_channels, written)


def _takes(conv: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> bool:
    """Whether x is an image of its type. Autocast, and what comes without a batch, are torch's to handle."""
    return x.dim() == 4 and x.dtype is conv.weight.dtype and not torch.is_autocast_enabled(x.device.type)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d with the zero padding that keeps the size, for odd kernels: 3x3 through `ops.conv3x3`."""
    if weight.size(-1) == 3 and not torch.is_autocast_enabled(x.device.type):
        return conv3x3(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=weight.size(-1) // 2)


def halved(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int = 1) -> Tensor:
    """conv2d with stride 2 and zero padding, for 3x3 and 4x4 kernels: through `ops.conv2d`."""
    if x.dtype is not weight.dtype or torch.is_autocast_enabled(x.device.type):
        return F.conv2d(x, weight, bias, 2, padding)
    return conv2d(x, weight, bias, 2, padding)


class _ByPlanes(torch.autograd.Function):
    """torch.convolution, whose weight gets its gradient from the larger map in NCHW: the same numbers.

    With 3x3 kernels and stride 2 oneDNN is two to three times slower at it where that map is channels_last.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        return torch.convolution(x, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, *ctx.geometry = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, *_ = ctx.needs_input_grad
        stride, padding, dilation, transposed, *_ = ctx.geometry
        gradients = torch.ops.aten.convolution_backward
        dx = dweight = None
        if need_x:
            dx = gradients(dy, x, weight, None, *ctx.geometry, (True, False, False))[0]
        if need_weight:
            small, large = (x, dy) if transposed else (dy, x)  # a transposed convolution is one from its result to x
            maps = small, large.contiguous(), weight.contiguous()
            dweight = gradients(*maps, None, stride, padding, dilation, False, (0, 0), 1, (False, True, False))[1]
        return dx, dweight, dy.sum((0, 2, 3)) if need_bias else None, *[None] * len(ctx.geometry)


def halves(conv: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> bool:
    """Whether it trains a 3x3 kernel of stride 2 over channels_last maps on the CPU, for which there is _ByPlanes."""
    plain = (
        torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type) or x.dtype is not conv.weight.dtype
    )
    shape = conv.kernel_size, conv.stride, conv.dilation, conv.groups
    trains = torch.is_grad_enabled() and conv.weight.requires_grad
    fits = shape == ((3, 3), (2, 2), (1, 1), 1) and not isinstance(conv.padding, str)
    if not fits or not trains or plain or x.dim() != 4 or x.device.type != "cpu" or x.is_contiguous():
        return False
    return x[:, 0].numel() * conv.weight.numel() >= WORTH


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d, with 3x3 convolutions of float32 images through `ops.conv3x3`, such of stride 2 and 4x4 ones
    through `ops.conv2d`, or with a faster backward."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        takes, padding = _takes(self, x), self.padding
        # One channel has no layout that the result could have: torch finds the better one.
        if takes and is_3x3(self) and x.size(1) > 1:
            return conv3x3(x, weight, bias, self.padding_mode)
        fits = takes and fits_conv2d(self)
        if not fits and not halves(self, x):
            return nn.Conv2d._conv_forward(self, x, weight, bias)
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, self.padding_mode), (0, 0)
        if fits:
            return conv2d(x, weight, bias, self.stride[0], padding[0])
        return _ByPlanes.apply(x, weight, bias, self.stride, padding, self.dilation, False, (0, 0), 1)


class ConvTranspose2d(nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d, with 3x3 and 4x4 kernels of stride 2 through `ops.conv_transpose2d`, or with a faster
    backward."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is None and _takes(self, x) and fits_conv2d(self):
            return conv_transpose2d(x, self.weight, self.bias, self.padding[0], self.output_padding)
        if output_size is not None or not halves(self, x):
            return nn.ConvTranspose2d.forward(self, x, output_size)
        geometry = self.stride, self.padding, self.dilation, True, self.output_padding, 1
        return _ByPlanes.apply(x, self.weight, self.bias, *geometry)


class NarrowConv2d(nn.Conv2d):
    """torch.nn.Conv2d of stride 1 to few channels, such as those of an image, with any padding.

    On the CPU columns of the kernel become outputs, which are added up side by side: a few more sums for a convolution
    with as many outputs as registers want.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        plain = torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type) or x.dim() != 4
        if plain or not _backend.fast() or x.device.type != "cpu" or x.dtype is not weight.dtype:
            return super()._conv_forward(x, weight, bias)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        x = F.pad(x, self._reversed_padding_repeated_twice, mode)
        outputs, width = weight.size(0), x.size(3) - weight.size(3) + 1
        columns = F.conv2d(x, weight.permute(3, 0, 1, 2).flatten(0, 1)[..., None]).split(outputs, 1)
        y = sum(column[..., tap : tap + width] for tap, column in enumerate(columns))
        return y if bias is None else y + bias[:, None, None]


class ValidConv2d(nn.Conv2d):
    """torch.nn.Conv2d of a map that is already padded: where `ops.conv3x3` is fast, by it, without the border."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shape = self.kernel_size, self.stride, self.padding, self.dilation
        plain = shape != ((3, 3), (1, 1), (0, 0), (1, 1)) or self.groups != 1 or x.dim() != 4
        if plain or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
            return super()._conv_forward(x, weight, bias)
        if x.dtype is not weight.dtype or not fast(x, weight.size(1), weight.size(0)):
            return super()._conv_forward(x, weight, bias)
        return conv3x3(x, weight, bias)[..., 1:-1, 1:-1].contiguous(memory_format=torch.channels_last)
