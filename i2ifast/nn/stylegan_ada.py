"""Layers of StyleGAN2 with adaptive augmentation (ADA): Karras et al., Training GANs with Limited Data, NeurIPS 2020.

Drop-in for the modules of the same names: the convolutions of StyleGAN2 with another scaling of weights, clamped for
float16, and stored noise of a learned strength.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import bias_act
from .layer import minibatch_std
from .modulated_conv import fir, modulated_conv2d, normalise_second_moment, resampled_conv2d

FIR = (1.0, 3.0, 3.0, 1.0)


class FullyConnectedLayer(nn.Module):
    """act(x W^T + b), weights scaled at run time by lr_multiplier / sqrt(in_features), biases by lr_multiplier."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.activation, self.lr_multiplier, self.bias_init = activation, lr_multiplier, bias_init
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, 0, 1 / self.lr_multiplier)
        if self.bias is not None:
            nn.init.constant_(self.bias, self.bias_init)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * (self.lr_multiplier / math.sqrt(self.weight.size(1)))
        bias = None if self.bias is None else self.bias * self.lr_multiplier
        if self.activation == "lrelu":  # homogeneous, and too small for an op: its gain goes into the weight
            scale = math.sqrt(2)
            return F.leaky_relu(F.linear(x, weight * scale, None if bias is None else bias * scale), 0.2)
        return bias_act(F.linear(x, weight, bias), act=self.activation)


class Conv2dLayer(nn.Module):
    """clamp(act(convolution + bias) * gain), upsampled or downsampled by 2."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str = "linear",
        up: int = 1,
        down: int = 1,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.activation, self.up, self.down, self.conv_clamp = activation, up, down, conv_clamp
        self.register_buffer("resample_filter", fir(FIR))
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """`gain` scales the result, and its clamp."""
        weight = self.weight / math.sqrt(self.weight[0].numel())
        if self.bias is None and self.activation == "linear" and self.conv_clamp is None:
            return resampled_conv2d(x, weight * gain, self.resample_filter, self.up, self.down, self.up**2)
        x = resampled_conv2d(x, weight, self.resample_filter, self.up, self.down, self.up**2)
        return _activate(x, self.bias, self.activation, gain, self.conv_clamp)


def _activate(x: Tensor, bias: Tensor | None, act: str, gain: float, clamp: float | None) -> Tensor:
    own = math.sqrt(2) if act in ("relu", "lrelu", "swish") else 1.0
    return bias_act(x, bias, act=act, gain=own * gain, clamp=None if clamp is None else clamp * gain)


class SynthesisLayer(nn.Module):
    """clamp(act(modulated 3x3 convolution + noise + bias) * gain), upsampled by 2 with up=2."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        kernel_size: int = 3,
        up: int = 1,
        use_noise: bool = True,
        activation: str = "lrelu",
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.resolution, self.up, self.activation, self.conv_clamp = resolution, up, activation, conv_clamp
        self.register_buffer("resample_filter", fir(FIR))
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.use_noise = use_noise
        if use_noise:
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)
        if self.use_noise:
            nn.init.zeros_(self.noise_strength)

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        noise_mode: Literal["random", "const", "none"] | Tensor = "random",
        gain: float = 1.0,
    ) -> Tensor:
        """w [N, w_dim]; noise_mode may be the noise, [N, 1, resolution, resolution]."""
        noise = None
        if self.use_noise and not (isinstance(noise_mode, str) and noise_mode == "none"):
            noise = self.noise_const if isinstance(noise_mode, str) else noise_mode
            if isinstance(noise_mode, str) and noise_mode == "random":
                noise = torch.randn_like(noise.expand(x.size(0), 1, -1, -1), memory_format=torch.contiguous_format)
            noise = noise.view(-1, 1, *noise.shape[-2:]) * self.noise_strength
        f, style = self.resample_filter, self.affine(w)
        x = modulated_conv2d(x, self.weight, style, noise, f=f, up=self.up, gain=self.up**2)
        return _activate(x, self.bias, self.activation, gain, self.conv_clamp)


class ToRGBLayer(nn.Module):
    """clamp(modulated 1x1 convolution without demodulation + bias)"""

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, kernel_size: int = 1, conv_clamp: float | None = None
    ) -> None:
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.affine(w) / math.sqrt(self.weight[0].numel())
        return bias_act(modulated_conv2d(x, self.weight, style, demodulate=False), self.bias, clamp=self.conv_clamp)


class MappingNetwork(nn.Module):
    """Latents z [N, z_dim] and conditions c [N, c_dim], either of which may have no dimension, to w.

    w [N, num_ws, w_dim], the same num_ws times over, or [N, w_dim] without num_ws. Training moves `w_avg`, to which
    truncation_psi below 1 moves the first truncation_cutoff of them.
    """

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        num_layers: int = 8,
        lr_multiplier: float = 0.01,
        w_avg_beta: float | None = 0.995,
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.num_ws, self.num_layers, self.w_avg_beta = (
            z_dim,
            c_dim,
            num_ws,
            num_layers,
            w_avg_beta,
        )
        if c_dim:
            self.embed = FullyConnectedLayer(c_dim, w_dim)
        for i in range(num_layers):
            fin = w_dim if i else z_dim + (w_dim if c_dim else 0)
            self.add_module(f"fc{i}", FullyConnectedLayer(fin, w_dim, activation="lrelu", lr_multiplier=lr_multiplier))
        if num_ws is not None and w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> Tensor:
        parts = [normalise_second_moment(z)] if self.z_dim else []
        parts += [normalise_second_moment(self.embed(c))] if self.c_dim else []
        w = torch.cat(parts, 1)
        for i in range(self.num_layers):
            w = self.get_submodule(f"fc{i}")(w)
        if self.training and hasattr(self, "w_avg"):
            self.w_avg.copy_(w.detach().mean(0).lerp(self.w_avg, self.w_avg_beta))
        if self.num_ws is None:
            return w
        w = w[:, None].expand(-1, self.num_ws, -1)
        if truncation_psi == 1:
            return w
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        return torch.cat([self.w_avg.lerp(w[:, :cutoff], truncation_psi), w[:, cutoff:]], 1)


class MinibatchStdLayer(nn.Module):
    """See `minibatch_std`; without a group size the whole batch is one."""

    def __init__(self, group_size: int | None, num_channels: int = 1) -> None:
        super().__init__()
        self.group_size, self.num_channels = group_size, num_channels

    def forward(self, x: Tensor) -> Tensor:
        return minibatch_std(x, len(x) if self.group_size is None else self.group_size, self.num_channels)
