"""Layers of StyleGAN2: convolutions modulated by a style, noise, equalised learning rates.

Drop-in for the modules of the same names in the usual PyTorch port. Karras et al., Analyzing and Improving the Image
Quality of StyleGAN, CVPR 2020.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import bias_act
from .modulated_conv import fir, modulated_conv2d, resampled_conv2d, upsample2d


class EqualLinear(nn.Module):
    """y = x W^T + b with W, b scaled at run time, so that all layers learn at the same rate.

    Drop-in for the original, lr_mul and activation ('fused_lrelu': lrelu(y, 0.2) * sqrt(2)) included.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        bias: bool = True,
        bias_init: float = 0.0,
        lr_mul: float = 1.0,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim))
        self.bias = nn.Parameter(torch.empty(out_dim)) if bias else None
        self.bias_init, self.lr_mul, self.activation = bias_init, lr_mul, activation
        self.gain = math.sqrt(2) if activation else 1.0  # goes into the weight: a leaky relu is homogeneous
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, 0, 1 / self.lr_mul)
        if self.bias is not None:
            nn.init.constant_(self.bias, self.bias_init)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gain * self.lr_mul
        bias = None if self.bias is None else self.bias * scale
        y = F.linear(x, self.weight * (scale / math.sqrt(self.weight.size(1))), bias)
        return F.leaky_relu(y, 0.2) if self.activation else y


class EqualConv2d(nn.Module):
    """Convolution without bias, its weight scaled at run time by 1 / sqrt(C k^2)."""

    def __init__(self, in_channel: int, out_channel: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channel, in_channel, kernel_size, kernel_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor, f: Tensor | None = None, gain: float = 1.0) -> Tensor:
        """Downsampled with filter f if there is one."""
        weight = self.weight * (gain / math.sqrt(self.weight[0].numel()))
        return resampled_conv2d(x, weight, f, down=1 if f is None else 2)


class Blur(nn.Module):
    """The filter of a resampling layer; the layer applies it together with its convolution."""

    def __init__(self, kernel: Sequence[float], gain: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("kernel", fir(kernel, gain))


class FusedLeakyReLU(nn.Module):
    """y = lrelu(x + bias, 0.2) * scale"""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channel))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, scale: float = math.sqrt(2)) -> Tensor:
        return bias_act(x, self.bias, act="lrelu", gain=scale)


class ModulatedConv2d(nn.Module):
    """Convolution modulated by a style [N, style_dim]; drop-in for the original. See `modulated_conv2d`.

    The weight is [O, C, k, k], as the layouts of torch want it, and [1, O, C, k, k] in state dicts, as the original's.
    """

    def __init__(
        self,
        in_channel: int,
        out_channel: int,
        kernel_size: int,
        style_dim: int,
        demodulate: bool = True,
        upsample: bool = False,
        downsample: bool = False,
        blur_kernel: Sequence[float] = (1, 3, 3, 1),
    ) -> None:
        super().__init__()
        self.demodulate, self.up, self.down = demodulate, 1 + upsample, 1 + downsample
        if upsample or downsample:
            self.blur = Blur(blur_kernel, self.up**2)
        self.weight = nn.Parameter(torch.empty(out_channel, in_channel, kernel_size, kernel_size))
        self.modulation = EqualLinear(style_dim, in_channel, bias_init=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination[f"{prefix}weight"][None]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and weight.dim() == 5:
            state_dict = {**state_dict, f"{prefix}weight": weight[0]}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        style = self.modulation(style) / math.sqrt(self.weight[0].numel())  # smaller than the weight
        f = self.blur.kernel if self.up > 1 or self.down > 1 else None
        return modulated_conv2d(x, self.weight, style, noise, self.demodulate, f, self.up, self.down)


class NoiseInjection(nn.Module):
    """The learned strength of the noise that a layer adds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class StyledConv(nn.Module):
    """lrelu(modulated convolution + noise + bias) * sqrt(2), upsampled by 2 with `upsample`; drop-in, too."""

    def __init__(
        self,
        in_channel: int,
        out_channel: int,
        kernel_size: int,
        style_dim: int,
        upsample: bool = False,
        blur_kernel: Sequence[float] = (1, 3, 3, 1),
        demodulate: bool = True,
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(
            in_channel, out_channel, kernel_size, style_dim, demodulate, upsample, blur_kernel=blur_kernel
        )
        self.noise = NoiseInjection()
        self.activate = FusedLeakyReLU(out_channel)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        """noise [N or 1, 1, H, W] of the output's size, standard normal if None."""
        if noise is None:
            noise = x.new_empty(x.size(0), 1, *(self.conv.up * size for size in x.shape[2:])).normal_()
        return self.activate(self.conv(x, style, self.noise.weight * noise))


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to an image, added to the upsampled image so far; drop-in for the original."""

    def __init__(
        self, in_channel: int, style_dim: int, upsample: bool = True, blur_kernel: Sequence[float] = (1, 3, 3, 1)
    ) -> None:
        super().__init__()
        if upsample:
            self.upsample = Blur(blur_kernel, 4)
        self.conv = ModulatedConv2d(in_channel, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, style: Tensor, skip: Tensor | None = None) -> Tensor:
        y = self.conv(x, style, self.bias)
        return y if skip is None else y + upsample2d(skip, self.upsample.kernel)
