"""Convolutions on the faster route of the device."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.conv3x3 import PADDINGS, conv3x3, fast

WORTH = 1e8  # products of a convolution of stride 2 from which on copies for the gradient of its weight pay


def is_3x3(conv: nn.Conv2d) -> bool:
    """Whether it is what ops.conv3x3 computes: stride 1, padding 1 of a kind it knows, no dilation, one group."""
    shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1)) and conv.groups == 1 and conv.padding_mode in PADDINGS


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d with the zero padding that keeps the size, for odd kernels: 3x3 through `ops.conv3x3`."""
    if weight.size(-1) == 3 and not torch.is_autocast_enabled(x.device.type):
        return conv3x3(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=weight.size(-1) // 2)


class _Resampling(torch.autograd.Function):
    """A convolution (x, weight, bias, stride, padding, dilation, transposed, output_padding, groups) of which the
    gradient of the weight is computed from contiguous copies.

    For 3x3 kernels of stride 2 the CPU library takes half the time for that, copies included; all else it computes
    faster of channels_last images as they are.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        return torch.ops.aten.convolution(x, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, bias, *ctx.geometry = inputs
        ctx.save_for_backward(x, weight)
        ctx.biases = None if bias is None else [bias.numel()]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        gradient = torch.ops.aten.convolution_backward
        dx = dweight = dbias = None
        if need_x:
            dx, _, _ = gradient(dy, x, weight, ctx.biases, *ctx.geometry, [True, False, False])
        if need_weight or need_bias:
            copies = [t.contiguous() for t in (dy, x, weight)]
            _, dweight, dbias = gradient(*copies, ctx.biases, *ctx.geometry, [False, need_weight, need_bias])
        return dx, dweight, dbias, *[None] * 6


def is_resampling(conv: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, weight: Tensor) -> bool:
    """Whether to train it as `_Resampling`."""
    return (
        (conv.kernel_size, conv.stride, conv.padding_mode) == ((3, 3), (2, 2), "zeros")
        and weight.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and (x.device.type, x.dtype, weight.dtype) == ("cpu", torch.float32, torch.float32)
        and x.dim() == 4
        and not x.is_contiguous()
        and x[:, 0].numel() * weight.numel() >= WORTH
        and not torch.is_autocast_enabled("cpu")
    )


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d, with 3x3 convolutions of float32 images through `ops.conv3x3`; of stride 2 by `_Resampling`."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Autocast, and what comes without a batch, are torch's to handle.
        if x.dim() != 4 or x.dtype is not weight.dtype or torch.is_autocast_enabled(x.device.type) or not is_3x3(self):
            if is_resampling(self, x, weight):
                geometry = self.stride, self.padding, self.dilation, False, (0, 0), self.groups
                return _Resampling.apply(x, weight, bias, *geometry)
            return nn.Conv2d._conv_forward(self, x, weight, bias)
        return conv3x3(x, weight, bias, self.padding_mode)


class ConvTranspose2d(nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d, with 3x3 kernels of stride 2 by `_Resampling`."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None or not is_resampling(self, x, self.weight):
            return super().forward(x, output_size)
        geometry = self.stride, self.padding, self.dilation, True, self.output_padding, self.groups
        return _Resampling.apply(x, self.weight, self.bias, *geometry)


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
