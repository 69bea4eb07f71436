"""The networks of HiDT: an auto-encoder of photographs, its discriminators, and an enhancer of what it makes."""

from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast import _backend
from i2ifast.nn.conv import Conv2d, NarrowConv2d

from ._blocks import pyramid
from ._munit import MLP, Conv2dBlock, MsImageDis, ResBlocks

SKIPPED = 5  # channels that skip connections take, the first ones of a map
STRIDE = 4  # pixels of an image to one of its content, two steps down
SHIFTS = 4  # of the enhancer's inputs in either direction, and how much larger than them its output is


class ContentEncoder(nn.Module):
    """Images to (content [N, 4 dim, H / 4, W / 4], skips of H / 2 and of H)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        dim, options = config.content_encoder_dim, {"pad": "reflect", "norm": "in", "act": "relu"}
        self.model_preparation = nn.Sequential(Conv2dBlock(3, dim, 9, **options))
        self.model_downsample = nn.Sequential(*(Conv2dBlock(dim << i, 2 * dim << i, 6, 2, **options) for i in range(2)))
        self.model_postprocess = nn.Sequential(ResBlocks(config.content_encoder_num_blocks, 4 * dim, **options))

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, skips = self.model_preparation(images), []
        for down in self.model_downsample:
            skips.insert(0, x[:, :SKIPPED])
            x = down(x)
        return self.model_postprocess(x), skips


class StyleEncoder(nn.Module):
    """Images of at least 32 x 32 pixels to styles [N, style_encoder_output_dim]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        dim = config.style_encoder_dim
        widths = [dim << min(i, 2) for i in range(config.style_encoder_num_downsamples + 1)]
        options = {"pad": "reflect", "act": 0.2}
        down = (Conv2dBlock(fin, fout, 4, 2, **options) for fin, fout in pairwise(widths))
        self.body = nn.Sequential(Conv2dBlock(3, dim, 7, **options), *down)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(widths[-1], config.style_encoder_output_dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images)).flatten(1)


def _padded(x: Tensor, border: tuple[int, ...] = (3,) * 4) -> Tensor:
    return F.pad(x, border, mode="reflect")


class UpsampleSkipConv2d(nn.Conv2d):
    """The 7x7 convolution, with reflection padding, of cat([x upsampled x2 by nearest, skip], 1).

    Away from the border the four pixels around a corner of four upsampled ones read the same 4x4 pixels of x: on the
    CPU they are four outputs of a convolution of x, with 16 products instead of 49. Border and skip are convolved as
    they are. Exact up to summation order.
    """

    def __init__(self, channels: int, skipped: int, fout: int) -> None:
        super().__init__(channels + skipped, fout, 7)
        self.split = [channels, skipped]

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        plain = not _backend.fast() or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type)
        if plain or x.device.type != "cpu" or min(x.shape[2:]) < 8:
            both = torch.cat([F.interpolate(x, scale_factor=2), skip], 1)
            return F.conv2d(_padded(both), self.weight, self.bias)
        of_x, of_skip = self.weight.split(self.split, 1)
        return self._upsampled(x, of_x) + F.conv2d(_padded(skip), of_skip, self.bias)

    @staticmethod
    def _upsampled(x: Tensor, weight: Tensor) -> Tensor:
        """Of x alone: its inside, [2 H - 6, 2 W - 6], and the three pixels around that."""
        taps = _taps().to(weight)
        four = torch.einsum("ockl,pik,qjl->opqcij", weight, taps, taps).flatten(0, 2)
        inside = F.pixel_shuffle(F.conv2d(x, four), 2)
        # Three lines of x become six, and with their padding the nine that three of the border read.
        top, bottom, left, right = (
            F.conv2d(_padded(F.interpolate(part, scale_factor=2), pad), weight)
            for part, pad in (
                (x[:, :, :3], (3, 3, 3, 0)),
                (x[:, :, -3:], (3, 3, 0, 3)),
                (x[..., :3], (3, 0, 0, 0)),
                (x[..., -3:], (0, 3, 0, 0)),
            )
        )
        return torch.cat([top, torch.cat([left, inside, right], 3), bottom], 2)


def _taps() -> Tensor:
    """[2, 4, 7]: which taps of a line meet which of four pixels, for the odd upsampled pixel 2 i + 3 and the even one
    2 i + 4: they read the upsampled pixels 2 i + phase + tap, of the pixels from i on."""
    taps = torch.zeros(2, 4, 7)
    for phase in range(2):
        for tap in range(7):
            taps[phase, (phase + tap) // 2, tap] = 1
    return taps


class UpsampleBlock(Conv2dBlock):
    """relu(layer_norm(conv(cat([upsampled x, skip]))))."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels + SKIPPED, channels // 2, 7, pad="reflect", norm="ln", act="relu")
        self.conv = UpsampleSkipConv2d(channels, SKIPPED, channels // 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.norm(self.conv(x, skip))


class Decoder(nn.Module):
    """Content, skips and styles to images [N,3,H,W] in [-1, 1] and the maps of segmentation, before their tanh."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        dim = 4 * config.content_encoder_dim
        adaptive = {"pad": "reflect", "norm": "adain", "act": "relu"}
        self.body = nn.Sequential(ResBlocks(config.decoder_num_blocks, dim, **adaptive))
        self.upsample_postprocess = nn.ModuleList(nn.ModuleList([UpsampleBlock(dim >> i)]) for i in range(2))
        skips = (Conv2dBlock(SKIPPED, SKIPPED, 7, **adaptive) for _ in range(2))
        self.skip_preprocess = nn.ModuleList(nn.ModuleList([block]) for block in skips)
        last = NarrowConv2d(dim // 4, 3 + config.segmentation_dim, 9, padding=4, padding_mode="reflect")
        self.model_postprocess = nn.Sequential(nn.Sequential(OrderedDict(conv=last)))
        self.split = [4 * dim * config.decoder_num_blocks, 2 * SKIPPED, 2 * SKIPPED]  # of what adain_net gives
        self.adain_net = MLP(config.style_encoder_output_dim, sum(self.split), config.adain_net_dim, act="relu")

    def forward(self, content: Tensor, skips: list[Tensor], style: Tensor) -> tuple[Tensor, Tensor]:
        of_body, *of_skips = self.adain_net(style).split(self.split, 1)
        (body,) = self.body
        x = body(content, of_body)
        for (up,), (prepare,), skip, vector in zip(
            self.upsample_postprocess, self.skip_preprocess, skips, of_skips, strict=True
        ):
            x = up(x, prepare(skip, vector))
        x = self.model_postprocess(x)
        return torch.tanh(x[:, :3]), x[:, 3:]


class Generator(nn.Module):
    """The auto-encoder."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.content_encoder = ContentEncoder(config)
        self.style_encoder = StyleEncoder(config)
        self.decoder = Decoder(config)


class Discriminator(MsImageDis):
    """Patch discriminators of images at full resolution, at half, ...: outputs [scale][layer], the logits last.

    With `style` logits depend on a style too, by projection: the product of its embedding and the features is added.
    Miyato, Koyama. cGANs with Projection Discriminator. ICLR 2018.
    """

    def __init__(self, config: Any, style: bool) -> None:
        super().__init__(config, 3)
        if style:
            width = config.dis_dim << (config.dis_n_layer - 1)
            self.embed = nn.ModuleList(nn.Linear(config.style_encoder_output_dim, width) for _ in self.cnns)

    def forward(self, images: Tensor, style: Tensor | None = None) -> list[list[Tensor]]:
        outputs = []
        for i, (net, x) in enumerate(zip(self.cnns, pyramid(images, len(self.cnns)), strict=True)):
            features = []
            for layer in net:
                x = layer(x)
                features.append(x)
            if style is not None:
                features[-1] = x + torch.einsum("nchw,nc->nhw", features[-2], self.embed[i](style))[:, None]
            outputs.append(features)
        return outputs


class ResidualDenseBlock(nn.Module):
    """x + 0.2 * the last of five convolutions, each of all that is in front of it."""

    def __init__(self, nf: int, gc: int) -> None:
        super().__init__()
        for i in range(1, 6):
            self.add_module(f"conv{i}", Conv2d(nf + (i - 1) * gc, gc if i < 5 else nf, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        maps = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            maps = torch.cat([maps, F.leaky_relu(conv(maps), 0.2)], 1)
        return x + 0.2 * self.conv5(maps)


class RRDB(nn.Module):
    """x + 0.2 * three dense blocks of x."""

    def __init__(self, nf: int, gc: int) -> None:
        super().__init__()
        self.RDB1, self.RDB2, self.RDB3 = (ResidualDenseBlock(nf, gc) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.RDB3(self.RDB2(self.RDB1(x)))


class RRDBNet(nn.Module):
    """Translations of the shifted copies of an image, 3 channels each [N,48,H,W], to images [N,3,4H,4W].

    Wang et al. ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks. ECCV Workshops 2018.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        nf = config.enhancer_nf
        self.conv_first = Conv2d(3 * SHIFTS**2, nf, 3, padding=1)
        self.RRDB_trunk = nn.Sequential(*(RRDB(nf, config.enhancer_gc) for _ in range(config.enhancer_nb)))
        self.trunk_conv = Conv2d(nf, nf, 3, padding=1)
        self.upconv1, self.upconv2 = (Conv2d(nf, 4 * nf, 3, padding=1) for _ in range(2))
        self.HRconv = Conv2d(nf, nf, 3, padding=1)
        self.conv_last = Conv2d(nf, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(x)
        x = x + self.trunk_conv(self.RRDB_trunk(x))
        for conv in (self.upconv1, self.upconv2):
            x = F.leaky_relu(F.pixel_shuffle(conv(x), 2), 0.2)
        return self.conv_last(F.leaky_relu(self.HRconv(x), 0.2))
