"""The networks of Semantic Pyramid, and the pyramid of features."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import BatchNormAct, UpsampleConv2d, spectral_norm
from i2ifast.nn._norm import statistics_of
from i2ifast.nn.conv import Conv2d
from i2ifast.nn.correspondence import at_positions, attend, positions
from i2ifast.nn.vgg import imagenet, positions_of, read_state
from i2ifast.ops import modulate_style

from ._blocks import numbered
from ._originals import load_strictly, named

SPATIAL = 5  # levels that are maps: those behind the poolings; then come fc7 and fc8


@dataclass
class Config:
    """Options of the port, under its names. A letter of `blocks` is a residual block or attention, one of `upsample`
    and `d_downsample` says whether it resizes."""

    crop_size: int = 224
    n_class: int = 365
    dim_z: int = 128
    dim_class: int = 128
    feature_channels: tuple[int, ...] = (64, 128, 256, 512, 512, 4096, 1000)  # the classifier's, large maps first
    size: int = 7  # of the generator's first map
    channel_multiplier: int = 64
    channels: tuple[int, ...] = (8, 8, 4, 2, 2, 1)
    blocks: str = "rrrrar"
    upsample: str = "nuuunu"
    d_channel_multiplier: int = 64
    d_channels: tuple[int, ...] = (1, 2, 2, 4, 8, 16, 16)
    d_blocks: str = "rrarrrr"
    d_downsample: str = "ddndddn"
    activation: Literal["relu", "leaky relu"] = "relu"
    feature_kernel_size: int = 1
    crop_probability: float = 0.3  # of a hole in the features that are given in training
    rec_weight: float = 0.1
    div_weight: float = 0.1
    lr: float = 1e-4
    vgg_weights: str = ""  # file of VGG16 with its classifier; without one it has random weights, always the same

    def __post_init__(self) -> None:
        for side, resizes in (("", "upsample"), ("d_", "d_downsample")):
            count = len(getattr(self, f"{side}blocks"))
            for name in (f"{side}channels", resizes):
                if len(getattr(self, name)) != count:
                    raise ValueError(f"{name} {getattr(self, name)}: expected {count}, one for each of {side}blocks")
        if self.blocks.count("r") != SPATIAL:
            raise ValueError(f"blocks {self.blocks!r}: expected {SPATIAL} r, one for each map of features")

    @property
    def slope(self) -> float:
        """Of the activation."""
        return 0.0 if self.activation == "relu" else 0.2

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the port's option names and values."""
        values = named(cls, options)
        return cls(**values | {"activation": "relu" if options["activation"] == "relu" else "leaky relu"})


def conv(fin: int, fout: int, kernel: int, bias: bool = True, upsample: bool = False) -> nn.Conv2d:
    kind = UpsampleConv2d if upsample else Conv2d
    return spectral_norm(kind(fin, fout, kernel, padding=kernel // 2, bias=bias))


def linear(fin: int, fout: int, bias: bool = True) -> nn.Linear:
    return spectral_norm(nn.Linear(fin, fout, bias))


class AdaptiveNorm(nn.Module):
    """y = act(norm(x) * (W e + 1) + B e): batch norm modulated by the embedding e [N,D] of a class."""

    def __init__(self, channels: int, dim_class: int, slope: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.weight, self.bias = (linear(dim_class, channels, bias=False) for _ in range(2))
        self.slope = slope

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        (statistics,) = statistics_of(x, [self.norm])
        return modulate_style(x, torch.cat([self.weight(e) + 1, self.bias(e)], 1), statistics, self.slope)


class UpBlock(nn.Module):
    """x + conv(norm(conv(norm(x)))), upsampled x2 by nearest or not. A 1x1 convolution of x comes before upsampling."""

    def __init__(self, fin: int, fout: int, dim_class: int, upsample: bool, slope: float) -> None:
        super().__init__()
        self.upsample = upsample
        self.norm1 = AdaptiveNorm(fin, dim_class, slope)
        self.conv1 = conv(fin, fout, 3, bias=False, upsample=upsample)
        self.norm2 = AdaptiveNorm(fout, dim_class, slope)
        self.conv2 = conv(fout, fout, 3, bias=False)
        self.skip = conv(fin, fout, 1, bias=False) if fin != fout or upsample else None

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        y = self.conv2(self.norm2(self.conv1(self.norm1(x, e)), e))
        x = x if self.skip is None else self.skip(x)
        return y + (F.interpolate(x, scale_factor=2) if self.upsample else x)


class DownBlock(nn.Module):
    """x + conv(act(conv(act(x)))), averaged over 2x2 pixels or not; the `first` is without the activation of x."""

    def __init__(self, fin: int, fout: int, downsample: bool, first: bool, slope: float) -> None:
        super().__init__()
        self.downsample, self.first, self.slope = downsample, first, slope
        self.conv1, self.conv2 = conv(fin, fout, 3), conv(fout, fout, 3)
        self.skip = conv(fin, fout, 1, bias=False) if fin != fout or downsample else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x if self.first else F.leaky_relu(x, self.slope))
        y = self.conv2(F.leaky_relu(y, self.slope))
        if self.downsample:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        return y + (x if self.skip is None else self.skip(x))


class SelfAttention(nn.Module):
    """x + gamma * out(attention of x to itself, pooled 2x2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key = (conv(channels, channels // 8, 1, bias=False) for _ in range(2))
        self.value, self.out = (
            conv(channels, channels // 2, 1, bias=False),
            conv(channels // 2, channels, 1, bias=False),
        )
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query(x), F.max_pool2d(self.key(x), 2), F.max_pool2d(self.value(x), 2)
        found = attend(positions(query), positions(key), positions(value))
        return torch.addcmul(x, self.gamma, self.out(at_positions(found, x.shape[2:])))


class Generator(nn.Module):
    """z [N,dim_z], classes [N], features and masks of all levels to images [N,3,H,W] in [-1, 1].

    Features, large maps first: [N,C,h,w] five times, [N,C] twice; masks [N,1,h,w] and [N,1,1], 1 where they are given.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        *maps, fc7, fc8 = config.feature_channels
        widths = [factor * config.channel_multiplier for factor in config.channels]
        self.embed = nn.Embedding(config.n_class, config.dim_class)
        self.linears = nn.ModuleList(
            nn.Sequential(linear(fin, fout), nn.LeakyReLU(0.2)) for fin, fout in ((config.dim_z, fc8), (fc8, fc7))
        )
        self.feature_linears = nn.ModuleList([linear(fc8, fc8), linear(fc7, fc7)])
        self.linear_expand = linear(fc7, widths[0] * config.size**2)
        self.blocks, self.feature_blocks = nn.ModuleList(), nn.ModuleList()
        fin = widths[0]
        for kind, fout, up in zip(config.blocks, widths, config.upsample, strict=True):
            if kind == "a":
                self.blocks.append(SelfAttention(fin))
                continue
            self.blocks.append(UpBlock(fin, fout, config.dim_class, up == "u", config.slope))
            self.feature_blocks.append(conv(maps.pop(), fout, config.feature_kernel_size, bias=False))
            fin = fout
        self.colorize = nn.Sequential(
            BatchNormAct(fin, config.slope), nn.Identity(), nn.Identity(), conv(fin, 3, 3, upsample=True), nn.Tanh()
        )

    def forward(self, z: Tensor, classes: Tensor, features: list[Tensor], masks: list[Tensor]) -> Tensor:
        masks = [mask if feature.ndim == 4 else mask[..., 0] for feature, mask in zip(features, masks, strict=True)]
        given = [feature * mask for feature, mask in zip(features, masks, strict=True)]
        e, x = self.embed(classes), z
        for layer, of_feature in zip(self.linears, self.feature_linears, strict=True):
            x = layer(x) + of_feature(given.pop())
        x = self.linear_expand(x).unflatten(1, (-1, self.config.size, self.config.size))
        adapters = iter(self.feature_blocks)
        for block in self.blocks:
            if isinstance(block, SelfAttention):
                x = block(x)
                continue
            x, feature = block(x, e), given.pop()
            if feature.shape[2:] != x.shape[2:]:
                h, w = feature.shape[2:]
                raise ValueError(f"features of {h}x{w}: expected {x.size(2)}x{x.size(3)}, as size and upsample have it")
            x = x + next(adapters)(feature)
        return self.colorize(x)


class Discriminator(nn.Module):
    """Images [N,3,H,W] and classes [N] to logits [N,1]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.blocks, fin = nn.ModuleList(), 3
        for kind, factor, down in zip(config.d_blocks, config.d_channels, config.d_downsample, strict=True):
            if kind == "a":
                self.blocks.append(SelfAttention(fin))
                continue
            fout = factor * config.d_channel_multiplier
            self.blocks.append(DownBlock(fin, fout, down == "d", not self.blocks, config.slope))
            fin = fout
        self.blocks.append(nn.LeakyReLU(config.slope))
        self.embed = spectral_norm(nn.Embedding(config.n_class, fin))
        self.linear = linear(fin, 1)

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        x = images
        for block in self.blocks:
            x = block(x)
        x = x.sum((2, 3))
        return self.linear(x) + (self.embed(classes) * x).sum(1, keepdim=True)


class Classifier(nn.Module):
    """The pyramid of features of images in [-1, 1]: behind the five poolings of a VGG16, of fc7 and of fc8; frozen.

    path: the state dict of torchvision's vgg16 with its classifier, of any widths; without one, random weights, which
    are always the same. As in the port the last pooling is applied twice in front of the classifier.
    """

    GRID = 7  # side of the map that the classifier takes

    def __init__(self, config: Config) -> None:
        super().__init__()
        path, channels = config.vgg_weights, config.feature_channels
        convs, fin = {}, 3
        for index, name in positions_of(16).items():
            width = channels[int(name[4]) - 1]  # of its stage
            convs[index] = Conv2d(fin, width, 3, padding=1)
            fin = width
        fc7, fc8 = channels[SPATIAL:]
        self.features = numbered(convs)
        self.classifier = numbered(
            {0: nn.Linear(fin * self.GRID**2, fc7), 3: nn.Linear(fc7, fc7), 6: nn.Linear(fc7, fc8)}
        )
        if path:
            load_strictly(self, read_state(path), Path(path))
        else:
            logging.getLogger(__name__).warning("semantic_pyramid: vgg_weights names no file, so features are random")
            generator = torch.Generator().manual_seed(0)
            for parameter in self.parameters():
                fan = parameter[0].numel()
                values = torch.randn(parameter.shape, generator=generator) * (2 / fan) ** 0.5
                parameter.data.copy_(values if parameter.ndim > 1 else torch.zeros(parameter.shape))
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        x, pooled = imagenet((images + 1) / 2), []
        convs = dict(zip(positions_of(16).values(), self.features, strict=True))
        for name, conv in convs.items():
            if name.endswith("_1") and name != "conv1_1":
                pooled.append(x := F.max_pool2d(x, 2))
            x = F.relu(conv(x), inplace=True)
        pooled.append(x := F.max_pool2d(x, 2))
        x = F.adaptive_avg_pool2d(F.max_pool2d(x, 2), self.GRID).flatten(1)
        fc6, fc7, fc8 = self.classifier
        vector = F.relu(fc7(F.relu(fc6(x))))
        return [*pooled, vector, fc8(vector)]
