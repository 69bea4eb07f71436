"""Options and networks of ProgressiveGAN: of the usual PyTorch implementation and of the official one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import minibatch_std, upsample_conv2d
from i2ifast.nn.conv import convolve
from i2ifast.nn.modulated_conv import normalise_second_moment

from ._originals import named

GROUP = 4  # samples that standard deviations are taken over


@dataclass
class Config:
    """Options of the usual PyTorch implementation, under its names, and of the official one."""

    dimLatentVector: int = 512
    depthScale0: int = 512  # channels at 4 x 4 pixels
    depthOtherScales: tuple[int, ...] = (512, 512, 512, 256, 128, 64, 32, 16)  # at 8 x 8, 16 x 16, ...
    miniBatchStdDev: bool = True
    lambdaGP: float = 10.0
    epsilonD: float = 0.001  # of squared scores, against their drift
    official: bool = False  # scale, average and fade as the official TensorFlow code
    fused_scale: bool = True  # official: discriminators shrink maps in front of the activation, not behind it
    label_size: int = 0  # official: classes that generators are given and discriminators find
    first_iterations: int = 48000  # at 4 x 4 pixels
    iterations: int = 96000  # at each further size
    fade_iterations: int = 19200  # at the beginning of which the new layers fade in
    lr: float = 0.001

    def __post_init__(self) -> None:
        self.depthOtherScales = tuple(self.depthOtherScales)
        if not 0 < self.fade_iterations <= self.iterations or self.first_iterations < 1:
            given = f"first_iterations {self.first_iterations}, fade_iterations {self.fade_iterations}"
            raise ValueError(f"{given}: must be at least 1, and the second at most iterations {self.iterations}")
        if self.label_size and not self.official:
            raise ValueError(f"label_size {self.label_size}: only with official")

    @property
    def data(self) -> str:
        return "domains" if self.label_size else "images"

    @property
    def levels(self) -> int:
        """How often images double."""
        return len(self.depthOtherScales)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of images in the end."""
        return 4 << self.levels, 4 << self.levels

    def lod(self, step: int) -> float:
        """How many doublings are still missing in this iteration; the part behind the point fades."""
        if step < self.first_iterations or not self.levels:
            return float(self.levels)
        grown, within = divmod(step - self.first_iterations, self.iterations)
        if grown >= self.levels:
            return 0.0
        return self.levels - grown - min(1.0, within / self.fade_iterations)

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the option names and values of either."""
        if "fmap_base" in options:
            options = options | official_widths(options)
        return cls(**named(cls, options))


def official_widths(options: dict[str, Any]) -> dict[str, Any]:
    """What the official options resolution, fmap_base, fmap_decay and fmap_max stand for."""
    stages = range(options["resolution"].bit_length() - 1)
    widths = [int(options["fmap_base"] / 2 ** (stage * options["fmap_decay"])) for stage in stages]
    latent, first, *others = (min(width, options["fmap_max"]) for width in widths)
    return {"official": True, "dimLatentVector": latent, "depthScale0": first, "depthOtherScales": tuple(others)}


class Weights(nn.Module):
    """What a layer scales, under the name that the layer inside it has in the original."""

    def __init__(self, shape: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(*shape)), nn.Parameter(torch.empty(outputs))


class Scaled(nn.Module):
    """A layer whose weight is scaled at run time by gain / sqrt(inputs), so that all layers learn at the same rate.

    Its bias is scaled as well, but in the official networks.
    """

    def __init__(self, shape: Sequence[int], outputs: int, inputs: int, official: bool, gain: float = 2**0.5) -> None:
        super().__init__()
        self.module = Weights(shape, outputs)
        self.scale = gain / math.sqrt(inputs)
        self.bias_scale = 1.0 if official else self.scale
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.module.weight)
        nn.init.zeros_(self.module.bias)

    def scaled(self) -> tuple[Tensor, Tensor]:
        return self.module.weight * self.scale, self.module.bias * self.bias_scale


class ScaledLinear(Scaled):
    def __init__(self, fin: int, fout: int, official: bool, gain: float = 2**0.5) -> None:
        super().__init__((fout, fin), fout, fin, official, gain)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.scaled())


class ScaledConv(Scaled):
    def __init__(self, fin: int, fout: int, kernel: int, official: bool, gain: float = 2**0.5) -> None:
        super().__init__((fout, fin, kernel, kernel), fout, fin * kernel**2, official, gain)

    def forward(self, x: Tensor, upsample: bool = False) -> Tensor:
        """With `upsample` of x twice as large."""
        return (upsample_conv2d if upsample else convolve)(x, *self.scaled())


class FirstMaps(Scaled):
    """Latents [N,C] to maps [N,fout,4,4], in the official networks, with a bias for each channel."""

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__((fin, fout, 4, 4), fout, fin, True, 2**0.5 / 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x[..., None, None], *self.scaled())


def activated(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def doubled(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=2)


class Generator(nn.Module):
    """Latents [N,dimLatentVector], and one-hot classes [N,label_size], to images [N,3,S,S].

    `lod` is the one it has been trained to, see `Config.lod`: with it S is 4 * 2 ** (levels - floor(lod)).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        first, official = config.depthScale0, config.official
        fin = config.dimLatentVector + config.label_size
        self.formatLayer = FirstMaps(fin, first) if official else ScaledLinear(fin, 16 * first, False)
        self.groupScale0 = nn.ModuleList([ScaledConv(first, first, 3, official)])
        widths = [first, *config.depthOtherScales]
        self.scaleLayers = nn.ModuleList(
            nn.ModuleList([ScaledConv(fin, fout, 3, official), ScaledConv(fout, fout, 3, official)])
            for fin, fout in zip(widths, widths[1:], strict=False)
        )
        gain = 1.0 if official else 2**0.5
        self.toRGBLayers = nn.ModuleList(ScaledConv(width, 3, 1, official, gain) for width in widths)
        self.register_buffer("lod", torch.tensor(float(config.levels)))

    def forward(self, latents: Tensor, lod: float, classes: Tensor | None = None) -> Tensor:
        x = normalise_second_moment(latents if classes is None else torch.cat([latents, classes], 1))
        x = activated(self.formatLayer(x)).view(len(x), -1, 4, 4)
        x = normalise_second_moment(activated(self.groupScale0[0](normalise_second_moment(x))))
        level, fade = grown(lod, len(self.scaleLayers))
        for convs in self.scaleLayers[:level]:
            before = x
            for i, conv in enumerate(convs):
                x = normalise_second_moment(activated(conv(x, upsample=i == 0)))
        images = self.toRGBLayers[level](x)
        return images.lerp(doubled(self.toRGBLayers[level - 1](before)), fade) if fade else images


class Discriminator(nn.Module):
    """Images of the size that belongs to `lod` to scores [N, 1 + label_size]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        first, official = config.depthScale0, config.official
        self.official, self.deviations = official, config.miniBatchStdDev
        self.fused = official and config.fused_scale
        widths = [first, *config.depthOtherScales]
        self.fromRGBLayers = nn.ModuleList(ScaledConv(3, width, 1, official) for width in widths)
        self.scaleLayers = nn.ModuleList(
            nn.ModuleList([ScaledConv(fin, fin, 3, official), ScaledConv(fin, fout, 3, official)])
            for fout, fin in zip(widths, widths[1:], strict=False)
        )
        conv = ScaledConv(first + self.deviations, first, 3, official)
        self.groupScaleZero = nn.ModuleList([conv, ScaledLinear(16 * first, first, official)])
        self.decisionLayer = ScaledLinear(first, 1 + config.label_size, official, 1.0 if official else 2**0.5)

    def features(self, images: Tensor, lod: float) -> Tensor:
        """What the decision is made of."""
        level, fade = grown(lod, len(self.scaleLayers))
        x = activated(self.fromRGBLayers[level](images))
        for i in reversed(range(level)):
            first, second = self.scaleLayers[i]
            x = second(activated(first(x)))
            x = activated(F.avg_pool2d(x, 2)) if self.fused else F.avg_pool2d(activated(x), 2)
            if fade and i == level - 1 and (level > 1 or self.official):  # the other one forgets the first level
                x = x.lerp(activated(self.fromRGBLayers[i](F.avg_pool2d(images, 2))), fade)
        if self.deviations:
            x = minibatch_std(x, GROUP) if self.official else with_deviations(x)
        first, second = self.groupScaleZero
        return activated(second(activated(first(x)).flatten(1)))

    def forward(self, images: Tensor, lod: float) -> Tensor:
        return self.decisionLayer(self.features(images, lod))


def grown(lod: float, levels: int) -> tuple[int, float]:
    """The level of the images, and how much of the level below is still in them."""
    return levels - int(lod), lod - int(lod)


def with_deviations(x: Tensor) -> Tensor:
    """`minibatch_std`, but of the unbiased variance of samples that follow each other; of all where groups do not fit.

    Zero for a single sample.
    """
    n = len(x)
    if n == 1:
        return torch.cat([x, torch.zeros_like(x[:, :1])], 1)
    size = GROUP if n % GROUP == 0 else n
    deviation = (x.unflatten(0, (-1, size)).var(1) + 1e-8).sqrt().mean((1, 2, 3))
    more = deviation.repeat_interleave(size)[:, None, None, None].expand(-1, 1, *x.shape[2:])
    return torch.cat([x, more], 1)


def official_state(net: Generator | Discriminator, variables: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict of an official network, but for `lod`, from its variables: those that are there.

    Kernels are [h,w,in,out], those that enlarge maps [h,w,out,in] and turned by 180 degrees, with fused_scale.
    """
    levels = len(net.scaleLayers)
    names = {"formatLayer": "4x4/Dense", "groupScale0.0": "4x4/Conv", "decisionLayer": "4x4/Dense1"}
    names |= {"groupScaleZero.0": "4x4/Conv", "groupScaleZero.1": "4x4/Dense0"}
    for i in range(levels + 1):
        names |= {f"toRGBLayers.{i}": f"ToRGB_lod{levels - i}", f"fromRGBLayers.{i}": f"FromRGB_lod{levels - i}"}
        side = 8 << i
        names |= {f"scaleLayers.{i}.{j}": f"{side}x{side}/Conv{j}" for j in range(2)}
    state = {}
    for key, own in net.state_dict().items():
        layer, _, leaf = key.partition(".module.")
        for suffix in ("", "_up", "_down"):
            value = variables.get(f"{names.get(layer)}{suffix}/{leaf}")
            if value is None:
                continue
            if value.dim() == 4:
                turned = suffix == "_up"
                value = value.permute(2, 3, 0, 1).flip(2, 3) if turned else value.permute(3, 2, 0, 1)
            elif value.dim() == 2:
                value = value.view_as(own) if layer == "formatLayer" else value.t()
            state[key] = value
    return state
