"""Semantic Pyramid: images from the features of other images, of any level of a classifier, whole or in part.

Shocher, Gandelsman, Mosseri, Yarom, Irani, Freeman, Dekel. Semantic Pyramid for Image Generation. CVPR 2020.
Networks, losses and settings are those of the PyTorch port that is best known, as there is no original.
"""

import logging
from dataclasses import dataclass, fields
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

from . import _system
from ._blocks import numbered
from ._losses import least_squares
from ._originals import load_strictly
from ._system import Adam, Batch, Phase

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
        values = {field.name: options[field.name] for field in fields(cls) if field.name in options}
        return cls(**values | {"activation": "relu" if options["activation"] == "relu" else "leaky relu"})


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "imagenet":  dict(n_class=1000),
    "places365": dict(n_class=365, feature_channels=(64, 128, 256, 512, 512, 4096, 365)),
    "tiny":      dict(n_class=10,  feature_channels=(4, 4, 8, 8, 8, 16, 10), crop_size=64, size=2, dim_z=8, dim_class=8,
                      channel_multiplier=8, channels=(2, 2, 1, 1, 1, 1), d_channel_multiplier=8,
                      d_channels=(1, 1, 1, 2, 2, 2, 2)),
}
# fmt: on


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
        self.value, self.out = conv(channels, channels // 2, 1, bias=False), conv(channels // 2, channels, 1, bias=False)
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
        self.classifier = numbered({0: nn.Linear(fin * self.GRID**2, fc7), 3: nn.Linear(fc7, fc7), 6: nn.Linear(fc7, fc8)})
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


def reconstruction(fake: list[Tensor], real: list[Tensor], masks: list[Tensor]) -> Tensor:
    """Sum over levels of mean |fake - real| * mask; maps and their masks are pooled 2x2 by maximum before."""
    terms = []
    for a, b, mask in zip(fake, real, masks, strict=True):
        if a.ndim == 4:
            a, b, mask = (F.max_pool2d(t, 2, ceil_mode=True) for t in (a, b, mask))
        else:
            mask = mask[..., 0]
        terms.append(((a - b).abs() * mask).mean())
    return torch.stack(terms).sum()


def diversity(z: list[Tensor], fakes: list[Tensor]) -> Tensor:
    """Mean over samples of mean |z1 - z2| / (mean |fake1 - fake2| + 1e-8)."""
    of_z, of_fakes = ((a - b).abs().flatten(1).mean(1) for a, b in (z, fakes))
    return (of_z / (of_fakes + 1e-8)).mean()


class System(_system.System):
    """A discriminator step, then a generator step on the same two fakes, which differ in z."""

    Config = Config
    PRESETS = PRESETS
    data = "images"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["G"], self.nets["D"] = Generator(config), Discriminator(config)
        self.fixed["VGG"] = Classifier(config)
        adam = Adam(config.lr, (0.0, 0.999))
        self.phases = [
            Phase("D", ("D",), self.discriminator_loss, adam),
            Phase("G", ("G",), self.generator_loss, adam),
        ]

    def init_weights(self) -> None:
        """Xavier uniform with gain sqrt(2), biases and gammas of attention 0; embeddings normal, norms 1."""
        for name, parameter in self.nets.named_parameters():
            if name.endswith("weight_orig"):
                nn.init.xavier_uniform_(parameter, 2**0.5)
            elif name.endswith("embed.weight"):
                nn.init.normal_(parameter)
            else:
                nn.init.constant_(parameter, float(name.endswith("weight")))

    def extract(self, images: Tensor) -> list[Tensor]:
        """Features of all levels."""
        return self.fixed["VGG"](images)

    def classes(self, batch: Batch, logits: Tensor) -> Tensor:
        """`class` [N] of the batch, else what the classifier says."""
        if "class" in batch:
            return batch["class"]
        if logits.size(1) != self.config.n_class:
            raise ValueError(
                f"the classifier has {logits.size(1)} classes, the networks {self.config.n_class}: give `class`"
            )
        return logits.argmax(1)

    def masks(self, features: list[Tensor]) -> list[Tensor]:
        """Of one level of each sample's, drawn; sometimes with an elliptic hole, where that is a map."""
        n, like = len(features[0]), features[0]
        level, holed = self.randint(len(features), (n,), like), self.rand((n,), like) < self.config.crop_probability
        y, x, height, width = self.rand((4, n, 1, 1), like)
        masks = []
        for i, feature in enumerate(features):
            mask = (level == i).to(like)[:, None, None]
            if feature.ndim == 4:
                h, w = feature.shape[2:]
                rows, columns = ((torch.arange(side, device=like.device) + 0.5) / side for side in (h, w))
                radius = [0.1 + 0.3 * t for t in (height, width)]
                inside = ((rows[:, None] - y) / radius[0]).square() + ((columns - x) / radius[1]).square() < 1
                mask = (mask * ~(inside & holed[:, None, None]))[:, None]
            masks.append(mask)
        return masks

    def prepare(self, batch: Batch) -> Batch:
        """Add `features`, `masks` and `class` where they are not given."""
        if "features" not in batch:
            with torch.no_grad():
                batch = {**batch, "features": self.extract(batch["image"])}
        masks = batch["masks"] if "masks" in batch else self.masks(batch["features"])
        return {**batch, "class": self.classes(batch, batch["features"][-1]), "masks": masks}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        generator, discriminator = self.nets["G"], self.nets["D"]
        generator.requires_grad_(True)  # its step takes the fakes with their graph
        batch["z"] = [self.randn((len(batch["image"]), self.config.dim_z), batch["image"]) for _ in range(2)]
        batch["fakes"] = [generator(z, batch["class"], batch["features"], batch["masks"]) for z in batch["z"]]
        real = discriminator(batch["image"], batch["class"])
        fake = discriminator(batch["fakes"][0].detach(), batch["class"])
        return {"D_real": least_squares(real, True), "D_fake": least_squares(fake, False)}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        fakes, config = batch["fakes"], self.config
        found = self.extract(fakes[0])
        return {
            "adv": least_squares(self.nets["D"](fakes[0], batch["class"]), True),
            "rec": config.rec_weight * reconstruction(found, batch["features"], batch["masks"]),
            "div": config.div_weight * diversity(batch["z"], fakes),
        }

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,crop_size,crop_size]} from one level of `image`, resized to that size, with random z.

        `level` [N] or a number, 0 (large maps) to 6 (fc8), by default the smallest maps, 4; `mask` [N,1,H,W] is 1 where
        maps are given, by default everywhere; or `masks` of all levels. Images without pixels have no features: classes
        are those of `class`, else random.
        """
        images, config = batch["image"], self.config
        n, side = len(images), config.crop_size
        if images.numel() == 0:
            images = images.new_zeros(n, 3, side, side)
            made = {"features": self.extract(images)}
            made["masks"] = [torch.zeros_like(mask) for mask in self.masks(made["features"])]
            made["class"] = batch["class"] if "class" in batch else self.randint(config.n_class, (n,), images)
        else:
            features = self.extract(F.interpolate(images, size=(side, side), mode="bilinear", antialias=True))
            made = {"features": features, "class": self.classes(batch, features[-1])}
            made["masks"] = batch["masks"] if "masks" in batch else self.given(batch, features)
        z = self.randn((n, config.dim_z), images)
        return {"fake": self.nets["G"](z, made["class"], made["features"], made["masks"])}

    def given(self, batch: Batch, features: list[Tensor]) -> list[Tensor]:
        """Masks of the `level` asked for, with `mask` on maps."""
        level = torch.as_tensor(batch.get("level", SPATIAL - 1), device=features[0].device).expand(len(features[0]))
        masks = []
        for i, feature in enumerate(features):
            mask = (level == i).to(feature)[:, None, None]
            if feature.ndim == 4:
                mask = mask[:, None].expand(-1, 1, *feature.shape[2:])
                mask = mask * F.interpolate(batch["mask"].to(feature), feature.shape[2:]) if "mask" in batch else mask
            masks.append(mask)
        return masks

    def load_original(self, path: str | Path) -> None:
        """Load a checkpoint of the port: its averaged generator (g_ema), else g, and its discriminator d."""
        found = torch.load(path, "cpu", weights_only=True)
        for net, names in {"G": ("g_ema", "g"), "D": ("d",)}.items():
            name = next((name for name in names if name in found), None)
            if name is None:
                raise ValueError(f"{path} has none of {', '.join(names)}")
            load_strictly(self.nets[net], found[name], Path(path))
