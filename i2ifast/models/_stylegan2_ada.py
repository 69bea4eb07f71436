"""Networks of StyleGAN2 with adaptive augmentation: see `nn.stylegan_ada`.

Drop-in for the originals of the same names; every `architecture` of theirs: 'orig', 'skip', 'resnet'.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from i2ifast.nn.modulated_conv import downsample2d, fir, upsample2d
from i2ifast.nn.stylegan_ada import (
    FIR,
    Conv2dLayer,
    FullyConnectedLayer,
    MappingNetwork,
    MinibatchStdLayer,
    SynthesisLayer,
    ToRGBLayer,
)

Architecture = Literal["orig", "skip", "resnet"]


def resolutions(img_resolution: int) -> list[int]:
    """4, 8, ..., img_resolution."""
    return [2**i for i in range(2, img_resolution.bit_length())]


class SynthesisBlock(nn.Module):
    """Layers of one resolution: the map, and the image so far."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        is_last: bool,
        architecture: Architecture = "skip",
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.register_buffer("resample_filter", fir(FIR))
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, resolution, up=2, conv_clamp=conv_clamp)
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution, conv_clamp=conv_clamp)
        self.num_conv = 2 if in_channels else 1
        if is_last or architecture == "skip":
            self.torgb = ToRGBLayer(out_channels, img_channels, w_dim, conv_clamp=conv_clamp)
        if in_channels and architecture == "resnet":
            self.skip = Conv2dLayer(in_channels, out_channels, 1, bias=False, up=2)

    def forward(self, x: Tensor | None, img: Tensor | None, ws: Tensor, noise_mode: str = "random"):
        """ws [N, layers, w_dim]; x and img are None for the first block."""
        w = iter(ws.unbind(1))
        if x is None:
            x = self.conv1(self.const.expand(len(ws), -1, -1, -1), next(w), noise_mode)
        elif self.architecture == "resnet":
            half = math.sqrt(0.5)
            y = self.skip(x, half)
            x = y + self.conv1(self.conv0(x, next(w), noise_mode), next(w), noise_mode, half)
        else:
            x = self.conv1(self.conv0(x, next(w), noise_mode), next(w), noise_mode)
        if img is not None:
            img = upsample2d(img, self.resample_filter, 4.0)
        if hasattr(self, "torgb"):
            y = self.torgb(x, next(w)).float()
            img = y if img is None else img + y
        return x, img


class SynthesisNetwork(nn.Module):
    """Styles ws [N, num_ws, w_dim] to images."""

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int = 3,
        channel_base: int = 32768,
        channel_max: int = 512,
        architecture: Architecture = "skip",
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        channels, self.num_ws = 0, 0
        for resolution in resolutions(img_resolution):
            fin, channels = channels, min(channel_base // resolution, channel_max)
            last = resolution == img_resolution
            block = SynthesisBlock(fin, channels, w_dim, resolution, img_channels, last, architecture, conv_clamp)
            self.add_module(f"b{resolution}", block)
            self.num_ws += block.num_conv + last

    def forward(self, ws: Tensor, noise_mode: str = "random") -> Tensor:
        x = img = None
        at = 0
        for block in self.children():
            x, img = block(x, img, ws[:, at : at + block.num_conv + 1], noise_mode)
            at += block.num_conv
        return img


class Generator(nn.Module):
    """Latents z [N, z_dim] and conditions c [N, c_dim] to images [N, img_channels, img_resolution, img_resolution]."""

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        num_layers: int = 8,
        **synthesis,
    ) -> None:
        super().__init__()
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **synthesis)
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, self.synthesis.num_ws, num_layers)

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: str = "random",
    ) -> Tensor:
        return self.synthesis(self.mapping(z, c, truncation_psi, truncation_cutoff), noise_mode)


class DiscriminatorBlock(nn.Module):
    """Layers of one resolution, and downsampling by 2: the map, and the image for the next block."""

    def __init__(
        self,
        in_channels: int,
        tmp_channels: int,
        out_channels: int,
        img_channels: int,
        architecture: Architecture = "resnet",
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.architecture, shared = architecture, {"activation": "lrelu", "conv_clamp": conv_clamp}
        self.register_buffer("resample_filter", fir(FIR))
        if in_channels == 0 or architecture == "skip":
            self.fromrgb = Conv2dLayer(img_channels, tmp_channels, 1, **shared)
        self.conv0 = Conv2dLayer(tmp_channels, tmp_channels, 3, **shared)
        self.conv1 = Conv2dLayer(tmp_channels, out_channels, 3, down=2, **shared)
        if architecture == "resnet":
            self.skip = Conv2dLayer(tmp_channels, out_channels, 1, bias=False, down=2)

    def forward(self, x: Tensor | None, img: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if hasattr(self, "fromrgb"):
            y = self.fromrgb(img)
            x = y if x is None else x + y
            img = downsample2d(img, self.resample_filter) if self.architecture == "skip" else None
        if self.architecture == "resnet":
            half = math.sqrt(0.5)
            return self.skip(x, half) + self.conv1(self.conv0(x), half), img
        return self.conv1(self.conv0(x)), img


class DiscriminatorEpilogue(nn.Module):
    """The last map, and the image, to logits [N, 1]: of the condition's embedding, or without one."""

    def __init__(
        self,
        in_channels: int,
        cmap_dim: int,
        img_channels: int,
        architecture: Architecture = "resnet",
        mbstd_group_size: int | None = 4,
        mbstd_num_channels: int = 1,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        shared = {"activation": "lrelu", "conv_clamp": conv_clamp}
        if architecture == "skip":
            self.fromrgb = Conv2dLayer(img_channels, in_channels, 1, activation="lrelu")
        self.mbstd = MinibatchStdLayer(mbstd_group_size, mbstd_num_channels)
        self.conv = Conv2dLayer(in_channels + mbstd_num_channels, in_channels, 3, **shared)
        self.fc = FullyConnectedLayer(16 * in_channels, in_channels, activation="lrelu")
        self.out = FullyConnectedLayer(in_channels, cmap_dim or 1)

    def forward(self, x: Tensor, img: Tensor | None, cmap: Tensor | None) -> Tensor:
        x = x.float()
        if hasattr(self, "fromrgb"):
            x = x + self.fromrgb(img.float())
        x = self.out(self.fc(self.conv(self.mbstd(x)).flatten(1)))
        return x if cmap is None else (x * cmap).sum(1, keepdim=True) / math.sqrt(cmap.size(1))


class Discriminator(nn.Module):
    """Images and conditions c [N, c_dim] to logits [N, 1]."""

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,
        img_channels: int,
        architecture: Architecture = "resnet",
        channel_base: int = 32768,
        channel_max: int = 512,
        conv_clamp: float | None = None,
        mapping_layers: int = 8,
        mbstd_group_size: int | None = 4,
    ) -> None:
        super().__init__()
        widths = {r: min(channel_base // r, channel_max) for r in resolutions(img_resolution)}
        for r in reversed(resolutions(img_resolution)[1:]):
            fin = widths[r] if r < img_resolution else 0
            block = DiscriminatorBlock(fin, widths[r], widths[r // 2], img_channels, architecture, conv_clamp)
            self.add_module(f"b{r}", block)
        cmap_dim = widths[4] if c_dim else 0
        if c_dim:
            self.mapping = MappingNetwork(0, c_dim, cmap_dim, None, mapping_layers, w_avg_beta=None)
        self.b4 = DiscriminatorEpilogue(
            widths[4], cmap_dim, img_channels, architecture, mbstd_group_size, 1, conv_clamp
        )

    def forward(self, img: Tensor, c: Tensor | None = None) -> Tensor:
        x, given = None, img
        for name, block in self.named_children():
            if name not in ("mapping", "b4"):
                x, given = block(x, given)
        return self.b4(x, given, self.mapping(None, c) if hasattr(self, "mapping") else None)
