"""StarGAN v2's networks, as functions of its options."""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import AdaIN as ModulatedByVector
from i2ifast.nn import DownsampleConv2d, UpsampleConv2d
from i2ifast.nn.conv import Conv2d
from i2ifast.nn.instance import instance_norm_act

from ._blocks import numbered

SLOPE = 0.2
DETAILED = (32, 64, 128)  # heights of maps whose details the high-pass filter carries over
Content = tuple[Tensor, dict[int, Tensor]]  # an image without its style: a map, and details by stage


class InstanceNorm(nn.InstanceNorm2d):
    """A leaky relu of the affine instance norm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm_act(x, self.weight, self.bias, SLOPE, self.eps)


class AdaIN(nn.Module):
    """A leaky relu of instance norm(x) * (1 + gamma) + beta, gamma and beta linear in the style [N, style_dim]."""

    def __init__(self, style_dim: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(style_dim, 2 * channels)
        self.norm = ModulatedByVector(SLOPE)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.norm(x, self.fc(style))


def unit(residual: Tensor, shortcut: Tensor) -> Tensor:
    """Their sum with about the variance of each."""
    return (residual + shortcut) * sqrt(0.5)


def projection(fin: int, fout: int) -> nn.Module:
    return nn.Identity() if fin == fout else nn.Conv2d(fin, fout, 1, bias=False)


class ResBlk(nn.Module):
    """Convolutions behind activations, and behind norms if `normalize`; with `downsample` at half the size.

    The shortcut is pooled in front of its 1x1 convolution, with which that commutes.
    """

    def __init__(self, fin: int, fout: int, normalize: bool = False, downsample: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = (InstanceNorm(fin) if normalize else nn.LeakyReLU(SLOPE) for _ in range(2))
        self.conv1 = DownsampleConv2d(fin, fin) if downsample else Conv2d(fin, fin, 3, padding=1)
        self.conv2 = Conv2d(fin, fout, 3, padding=1)
        self.conv1x1 = projection(fin, fout)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return unit(y, self.conv1x1(F.avg_pool2d(x, 2) if self.downsample else x))


class AdainResBlk(nn.Module):
    """ResBlk whose norms are AdaIN; with `upsample` at twice the size.

    Without `shortcut` it gives the residual alone, and its 1x1 convolution is there but out of use.
    """

    def __init__(self, fin: int, fout: int, style_dim: int, upsample: bool = False, shortcut: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = AdaIN(style_dim, fin), AdaIN(style_dim, fout)
        self.conv1 = (UpsampleConv2d if upsample else Conv2d)(fin, fout, 3, padding=1)
        self.conv2 = Conv2d(fout, fout, 3, padding=1)
        self.conv1x1 = projection(fin, fout)
        self.upsample, self.shortcut = upsample, shortcut

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        y = self.conv2(self.norm2(self.conv1(self.norm1(x, style)), style))
        if not self.shortcut:
            return y
        x = self.conv1x1(x)
        return unit(y, F.interpolate(x, scale_factor=2) if self.upsample else x)


class HighPass(nn.Module):
    """The Laplacian of every channel, divided by `w_hpf`."""

    def __init__(self, w_hpf: float) -> None:
        super().__init__()
        self.register_buffer("filter", torch.tensor([[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]]) / w_hpf)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.size(1)
        return F.conv2d(x, self.filter.to(x.dtype).expand(channels, 1, 3, 3), padding=1, groups=channels)


class Generator(nn.Module):
    """Images [N,3,H,W] and styles [N, style_dim] to images."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        widths, style_dim = config.widths(config.stages), config.style_dim
        steps, bottom = list(pairwise(widths)), widths[-1]
        options = {"style_dim": style_dim, "shortcut": not config.w_hpf}
        self.from_rgb = Conv2d(3, widths[0], 3, padding=1)
        down = [ResBlk(fin, fout, normalize=True, downsample=True) for fin, fout in steps]
        self.encode = nn.ModuleList([*down, *(ResBlk(bottom, bottom, normalize=True) for _ in range(2))])
        up = [AdainResBlk(fin, fout, upsample=True, **options) for fout, fin in reversed(steps)]
        self.decode = nn.ModuleList([*(AdainResBlk(bottom, bottom, **options) for _ in range(2)), *up])
        self.to_rgb = numbered({0: InstanceNorm(widths[0]), 2: nn.Conv2d(widths[0], 3, 1)})
        heights = {stage: config.img_size >> stage for stage in range(config.stages)}
        self.detailed = {stage: height for stage, height in heights.items() if config.w_hpf and height in DETAILED}
        if config.w_hpf:
            self.hpf = HighPass(config.w_hpf)

    def analyse(self, images: Tensor, masks: Sequence[Tensor] | None = None) -> Content:
        """What every style starts from; details where `masks` are, of the smallest detailed maps and of the others."""
        details, x = {}, self.from_rgb(images)
        for stage, block in enumerate(self.encode):
            if masks is not None and stage in self.detailed:
                mask = masks[0] if self.detailed[stage] == DETAILED[0] else masks[1]
                details[stage] = self.hpf(F.interpolate(mask, size=x.shape[2:], mode="bilinear") * x)
            x = block(x)
        return x, details

    def synthesise(self, content: Content, style: Tensor) -> Tensor:
        x, details = content
        for stage, block in zip(reversed(range(len(self.decode))), self.decode, strict=True):
            x = block(x, style)
            if stage in details:
                x = x + details[stage]
        return self.to_rgb(x)

    def forward(self, images: Tensor, style: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        return self.synthesise(self.analyse(images, masks), style)


def of_domain(each: Tensor, domain: Tensor) -> Tensor:
    """Of values [N, domains, ...] those of the domain [N] of every sample."""
    return each[torch.arange(len(each), device=each.device), domain]


def mlp(fin: int, hidden: int, layers: int) -> list[nn.Module]:
    """Linear layers, each with a relu."""
    widths = [fin, *[hidden] * layers]
    return [module for a, b in pairwise(widths) for module in (nn.Linear(a, b), nn.ReLU())]


class MappingNetwork(nn.Module):
    """Latents [N, latent_dim] to styles."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden = config.mapping_hidden
        self.shared = nn.Sequential(*mlp(config.latent_dim, hidden, 4))
        self.unshared = nn.ModuleList(
            nn.Sequential(*mlp(hidden, hidden, 3), nn.Linear(hidden, config.style_dim))
            for _ in range(config.num_domains)
        )

    def styles(self, latent: Tensor) -> Tensor:
        """Of all domains, [N, domains, style_dim]."""
        hidden = self.shared(latent)
        return torch.stack([head(hidden) for head in self.unshared], 1)

    def forward(self, latent: Tensor, domain: Tensor) -> Tensor:
        return of_domain(self.styles(latent), domain)


def trunk(config: Any) -> list[nn.Module]:
    """Images [N,3,img_size,img_size] to [N, channels, 1, 1]."""
    widths = config.widths(config.img_size.bit_length() - 3)
    blocks = [ResBlk(fin, fout, downsample=True) for fin, fout in pairwise(widths)]
    last = [nn.LeakyReLU(SLOPE), nn.Conv2d(widths[-1], widths[-1], 4), nn.LeakyReLU(SLOPE)]
    return [Conv2d(3, widths[0], 3, padding=1), *blocks, *last]


class StyleEncoder(nn.Module):
    """Images [N,3,img_size,img_size] to styles."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.shared = nn.Sequential(*trunk(config))
        width = self.shared[-2].out_channels
        self.unshared = nn.ModuleList(nn.Linear(width, config.style_dim) for _ in range(config.num_domains))

    def forward(self, images: Tensor, domain: Tensor) -> Tensor:
        hidden = self.shared(images).flatten(1)
        return of_domain(torch.stack([head(hidden) for head in self.unshared], 1), domain)


class Discriminator(nn.Module):
    """Images [N,3,img_size,img_size] to logits [N]: whether they are real images of their domain."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        layers = trunk(config)
        self.main = nn.Sequential(*layers, nn.Conv2d(layers[-2].out_channels, config.num_domains, 1))

    def forward(self, images: Tensor, domain: Tensor) -> Tensor:
        return of_domain(self.main(images).flatten(1), domain)
