"""Networks of DMIT: encoders of content and style, a decoder, and discriminators that are told an attribute.

All convolutions and linear layers have spectral norm. Norms are `cbin` or `cbbn`: instance or batch norms, and where
they are conditioned on a code, with a bias from that code.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import BatchNormAct, InstanceNormAct, UpsampleConv2d, spectral_norm
from i2ifast.nn.conv import Conv2d, ConvTranspose2d
from i2ifast.ops import instance_statistics, modulate_style

from ._blocks import LayerNormAct, half_size
from ._cyclegan import Dropout

NORMS = {"cbin": InstanceNormAct, "cbbn": BatchNormAct}
UPSAMPLINGS = ("transpose", "nearest", "pixelshuffle")


class Options(Protocol):
    """The options that the networks read."""

    input_nc: int
    output_nc: int
    n_attribute: int
    n_style: int
    norm_type: str
    up_type: str
    nef: int
    ndf: int
    n_style_blocks: int
    n_content_resblocks: int
    n_dec_resblocks: int
    n_content_disblocks: int
    n_image_disblocks: int
    n_ds_blocks: int
    use_dropout: bool


class ConditionalInstanceNorm(nn.Module):
    """act(instance_norm(x) + tanh(fc(code)))."""

    def __init__(self, channels: int, codes: int, act: str | float) -> None:
        super().__init__()
        self.act = act
        self.ConBias = nn.Sequential(spectral_norm(nn.Linear(codes, channels)), nn.Tanh())

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        bias = self.ConBias(code)
        return modulate_style(x, torch.cat([torch.ones_like(bias), bias], 1), instance_statistics(x), self.act)


class ConditionalBatchNorm(BatchNormAct):
    """act((batch_norm(x) - mean + tanh(fc(code))) * weight + bias), where the mean is that of the plane behind it."""

    def __init__(self, channels: int, codes: int, act: str | float) -> None:
        super().__init__(channels, act)
        self.ConBias = nn.Sequential(spectral_norm(nn.Linear(codes, channels)), nn.Tanh())

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var
        normalised = F.batch_norm(x, *statistics, training=self.training, momentum=self.momentum, eps=self.eps)
        if self.training:
            self.num_batches_tracked.add_(1)
        shift = self.ConBias(code) - normalised.mean((2, 3))
        scale = self.weight.expand(len(x), -1)
        return modulate_style(normalised, torch.cat([scale, shift * scale + self.bias], 1), act=self.act)


CONDITIONAL = {"cbin": ConditionalInstanceNorm, "cbbn": ConditionalBatchNorm}


class Conv2dBlock(nn.Module):
    """norm(conv(x)) with reflection padding; a norm has the activation behind it."""

    def __init__(
        self,
        fin: int,
        fout: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        bias: bool = False,
        norm: nn.Module | None = None,
        kind: type[nn.Conv2d] = Conv2d,
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2
        self.conv = spectral_norm(kind(fin, fout, kernel, stride, padding, bias=bias, padding_mode="reflect"))
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)


class ResidualBlock(nn.Module):
    def __init__(self, width: int, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        first, second = (Conv2dBlock(width, width, norm=norm(width, act)) for act in (0.2, "none"))
        self.encode = nn.Sequential(first, second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.encode(x)


class ContentEncoder(nn.Module):
    """Images to contents, with half the size for each of n_ds_blocks."""

    def __init__(self, config: Options) -> None:
        super().__init__()
        norm = NORMS[config.norm_type]
        widths = [min(config.nef << i, 1024) for i in range(config.n_ds_blocks + 1)]
        layers = [Conv2dBlock(config.input_nc, config.nef, 7, norm=norm(config.nef, 0.2))]
        layers += [Conv2dBlock(fin, fout, 4, 2, norm=norm(fout, 0.2)) for fin, fout in pairwise(widths)]
        blocks = (ResidualBlock(widths[-1], norm) for _ in range(config.n_content_resblocks))
        self.encode = nn.Sequential(*layers, *blocks)

    def forward(self, images: Tensor) -> Tensor:
        return self.encode(images)


def pooled_pixel(fin: int, fout: int) -> nn.Sequential:
    """The way beside a block to half the size."""
    return nn.Sequential(nn.AvgPool2d(2), Conv2dBlock(fin, fout, 1, bias=True))


class DownResidualBlock(nn.Module):
    """To half the size."""

    def __init__(self, fin: int, fout: int, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        first = Conv2dBlock(fin, fin, norm=norm(fin, 0.2))
        # The second is the activation of the original's, which the norm has with it.
        layers = norm(fin, 0.2), nn.Identity(), first, Conv2dBlock(fin, fout), nn.AvgPool2d(2)
        self.encode, self.shortcut = nn.Sequential(*layers), pooled_pixel(fin, fout)

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x) + self.shortcut(x)


class StyleEncoder(nn.Module):
    """Images to mean and log variance [N,n_style] of their styles."""

    def __init__(self, config: Options) -> None:
        super().__init__()
        norm = NORMS[config.norm_type]
        widths = [min(config.nef * i, 256) for i in range(1, config.n_style_blocks + 1)]
        blocks = (DownResidualBlock(fin, fout, norm) for fin, fout in pairwise(widths))
        self.encode = nn.Sequential(Conv2dBlock(config.input_nc, config.nef, 4, 2, bias=True), *blocks)
        self.fc, self.fcVar = (spectral_norm(nn.Linear(widths[-1], config.n_style)) for _ in range(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = F.leaky_relu(self.encode(images), 0.2).mean((2, 3))
        return self.fc(features), self.fcVar(features)


class ConResidualBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))) with conditional norms; several codes of each x share the first."""

    def __init__(self, config: Options, width: int, rand: Callable[..., Tensor]) -> None:
        super().__init__()
        norm, codes = CONDITIONAL[config.norm_type], config.n_attribute + config.n_style
        self.c1, self.c2 = Conv2dBlock(width, width), Conv2dBlock(width, width)
        self.n1, self.n2 = norm(width, codes, "relu"), norm(width, codes, "none")
        self.dropout = Dropout(rand) if config.use_dropout else nn.Identity()

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        y, times = self.c1(x), len(code) // len(x)
        if times > 1:
            x, y = x.repeat(times, 1, 1, 1), y.repeat(times, 1, 1, 1)
        return x + self.dropout(self.n2(self.c2(self.n1(y, code)), code))


class TransposedBlock(nn.Module):
    def __init__(self, fin: int, fout: int) -> None:
        super().__init__()
        self.trConv = spectral_norm(ConvTranspose2d(fin, fout, 4, 2, 1, bias=False))
        self.norm = LayerNormAct(fout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.trConv(x))


class Upsampling(nn.Module):
    """To twice the size, with layer norm and relu; pixels are shuffled behind these."""

    def __init__(self, fin: int, fout: int, kind: str) -> None:
        super().__init__()
        if kind == "transpose":
            self.upsample = TransposedBlock(fin, fout)
        elif kind == "nearest":  # where the original has an upsampling, which is one with the convolution
            block = Conv2dBlock(fin, fout, norm=LayerNormAct(fout), kind=UpsampleConv2d)
            self.upsample = nn.Sequential(nn.Identity(), block)
        else:
            block = Conv2dBlock(fin, 4 * fout, norm=LayerNormAct(4 * fout))
            self.upsample = nn.Sequential(block, nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(x)


class Decoder(nn.Module):
    """Contents and codes (attribute, then style) to images in [-1, 1].

    With k times as many codes as contents, images are those of all contents with the first codes, then the second, ...
    """

    def __init__(self, config: Options, rand: Callable[..., Tensor]) -> None:
        super().__init__()
        width = config.nef << config.n_ds_blocks
        layers: list[nn.Module] = [ConResidualBlock(config, width, rand) for _ in range(config.n_dec_resblocks)]
        for _ in range(config.n_ds_blocks):
            layers.append(Upsampling(width, width // 2, config.up_type))
            width //= 2
        self.decode = nn.ModuleList([*layers, Conv2dBlock(width, config.output_nc, 7, bias=True, norm=nn.Tanh())])

    def forward(self, content: Tensor, code: Tensor) -> Tensor:
        for layer in self.decode:
            content = layer(content, code) if isinstance(layer, ConResidualBlock) else layer(content)
        return content


class ConDownResidualBlock(nn.Module):
    """To half the size, with conditional norms."""

    def __init__(self, config: Options, fin: int, fout: int) -> None:
        super().__init__()
        norm = CONDITIONAL[config.norm_type]
        self.cnorm1, self.cnorm2 = (norm(fin, config.n_attribute, 0.2) for _ in range(2))
        # On small maps of many channels what Winograd's products save goes into transforms of the weights.
        self.conv1, second = Conv2dBlock(fin, fin, kind=nn.Conv2d), Conv2dBlock(fin, fout, kind=nn.Conv2d)
        self.cmp, self.shortcut = nn.Sequential(second, nn.AvgPool2d(2)), pooled_pixel(fin, fout)

    def forward(self, x: Tensor, attribute: Tensor) -> Tensor:
        y = self.cnorm2(self.conv1(self.cnorm1(x, attribute)), attribute)
        return self.cmp(y) + self.shortcut(x)


class StyleDiscriminator(nn.Module):
    """Images or contents, and attributes, to logits."""

    def __init__(self, config: Options, fin: int, width: int, blocks: int) -> None:
        super().__init__()
        widths = [min(width << i, 512) for i in range(blocks)]
        self.head = Conv2dBlock(fin, width, 4, 2, bias=True)
        layers = (ConDownResidualBlock(config, *pair) for pair in pairwise(widths))
        self.encode = nn.ModuleList([*layers, Conv2dBlock(widths[-1], 1, 1, bias=True)])

    def forward(self, x: Tensor, attribute: Tensor) -> Tensor:
        x = self.head(x)
        *blocks, last = self.encode
        for block in blocks:
            x = block(x, attribute)
        return last(x)


class MultiStyleDiscriminator(nn.Module):
    """One of images at full resolution and a narrower one at half -> logits of both."""

    def __init__(self, config: Options) -> None:
        super().__init__()
        for i, width in enumerate((config.ndf, config.ndf // 2), 1):
            net = StyleDiscriminator(config, config.input_nc, width, config.n_image_disblocks)
            self.add_module(f"model_{i}", net)

    def forward(self, images: Tensor, attribute: Tensor) -> list[Tensor]:
        return [self.model_1(images, attribute), self.model_2(half_size(images), attribute)]
