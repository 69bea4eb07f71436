"""StyleGAN2: latent vectors to images, by convolutions that a style modulates.

Karras, Laine, Aittala, Hellsten, Lehtinen, Aila. Analyzing and Improving the Image Quality of StyleGAN. CVPR 2020.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn.layer import minibatch_std
from i2ifast.nn.modulated_conv import normalise_second_moment
from i2ifast.nn.stylegan import (
    Blur,
    EqualConv2d,
    EqualLinear,
    FusedLeakyReLU,
    StyledConv,
    ToRGB,
)

from . import _system
from ._originals import load_strictly, named
from ._system import Adam, Batch, Phase, every


@dataclass
class Config:
    """Options of the original, under its names."""

    size: int = 256  # pixels per side, a power of 2
    latent: int = 512  # of z and w
    n_mlp: int = 8
    lr_mlp: float = 0.01
    channel_multiplier: int = 2  # of the layers beyond 32 pixels
    channel_max: int = 512
    blur_kernel: tuple[float, ...] = (1, 3, 3, 1)
    stddev_group: int = 4
    r1: float = 10.0
    path_regularize: float = 2.0
    path_batch_shrink: int = 2
    d_reg_every: int = 16
    g_reg_every: int = 4
    mixing: float = 0.9  # how often two latents share an image
    lr: float = 0.002

    def __post_init__(self) -> None:
        if self.size < 8 or self.size & (self.size - 1):
            raise ValueError(f"size {self.size}: expected a power of 2 of at least 8")
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"mixing {self.mixing}: expected a probability")

    @property
    def resolutions(self) -> list[int]:
        """4, 8, ..., size."""
        return [2**i for i in range(2, self.size.bit_length())]

    @property
    def n_latent(self) -> int:
        """Styles of an image: of each layer's own number."""
        return 2 * len(self.resolutions)

    def channels(self, resolution: int) -> int:
        return min(32 * self.channel_max * self.channel_multiplier // resolution, self.channel_max)

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values."""
        return cls(**named(cls, options))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "ffhq_256":  dict(size=256),
    "ffhq_1024": dict(size=1024),
    "tiny":      dict(size=32, latent=16, n_mlp=2, channel_max=16, d_reg_every=2, g_reg_every=2),
}
# fmt: on


class PixelNorm(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return normalise_second_moment(z)


class ConstantInput(nn.Module):
    """The learned map that every image starts from."""

    def __init__(self, channel: int, size: int = 4) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.empty(1, channel, size, size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.input)

    def forward(self, n: int) -> Tensor:
        return self.input.repeat(n, 1, 1, 1)


class Generator(nn.Module):
    """Latents z [N, latent], one or two of each image, to images [N, 3, size, size]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_latent, style, kernel = config.n_latent, config.latent, config.blur_kernel
        layers = [
            EqualLinear(style, style, lr_mul=config.lr_mlp, activation="fused_lrelu") for _ in range(config.n_mlp)
        ]
        self.style = nn.Sequential(PixelNorm(), *layers)
        channel = config.channels(4)
        self.input = ConstantInput(channel)
        self.conv1 = StyledConv(channel, channel, 3, style)
        self.to_rgb1 = ToRGB(channel, style, upsample=False)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        self.noises.register_buffer("noise_0", torch.randn(1, 1, 4, 4))
        for size in config.resolutions[1:]:
            fin, channel = channel, config.channels(size)
            for _ in range(2):
                self.noises.register_buffer(f"noise_{len(list(self.noises.buffers()))}", torch.randn(1, 1, size, size))
            self.convs.append(StyledConv(fin, channel, 3, style, upsample=True, blur_kernel=kernel))
            self.convs.append(StyledConv(channel, channel, 3, style))
            self.to_rgbs.append(ToRGB(channel, style, blur_kernel=kernel))

    @property
    def noise_sizes(self) -> list[int]:
        """Pixels per side of the noise of each layer."""
        return [noise.size(-1) for noise in self.noises.buffers()]

    def styles(self, latents: Sequence[Tensor], inject_index: int | None = None) -> Tensor:
        """[N, n_latent, latent]: of one latent w [N, latent] or [N, n_latent, latent], or of two, the second from layer
        `inject_index` on."""
        first, *second = latents
        if not second:
            return first[:, None].expand(-1, self.n_latent, -1) if first.dim() == 2 else first
        own = inject_index
        return torch.cat(
            [first[:, None].expand(-1, own, -1), second[0][:, None].expand(-1, self.n_latent - own, -1)], 1
        )

    def forward(
        self,
        latents: Sequence[Tensor],
        inject_index: int | None = None,
        truncation: float = 1.0,
        truncation_latent: Tensor | None = None,
        input_is_latent: bool = False,
        noise: Sequence[Tensor | None] | None = None,
        randomize_noise: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Images and their styles [N, n_latent, latent].

        `noise`: a map [N or 1, 1, H, W] per layer; without it standard normal noise, or the stored maps if not
        `randomize_noise`. With `truncation` below 1 styles move towards truncation_latent.
        """
        if not input_is_latent:
            latents = [self.style(z) for z in latents]
        if truncation < 1:
            latents = [truncation_latent + truncation * (w - truncation_latent) for w in latents]
        if noise is None:
            noise = [None] * len(self.noise_sizes) if randomize_noise else list(self.noises.buffers())
        w = self.styles(latents, inject_index)
        x = self.conv1(self.input(len(w)), w[:, 0], noise[0])
        image = self.to_rgb1(x, w[:, 1])
        for i, to_rgb in enumerate(self.to_rgbs):
            x = self.convs[2 * i](x, w[:, 2 * i + 1], noise[2 * i + 1])
            x = self.convs[2 * i + 1](x, w[:, 2 * i + 2], noise[2 * i + 2])
            image = to_rgb(x, w[:, 2 * i + 3], image)
        return image, w


class ConvLayer(nn.Sequential):
    """Convolution, downsampled by 2 with `downsample`, and activation with `activate`."""

    def __init__(
        self, fin: int, fout: int, kernel_size: int, blur: Sequence[float] | None = None, activate: bool = True
    ) -> None:
        blurs = [] if blur is None else [Blur(blur)]
        super().__init__(*blurs, EqualConv2d(fin, fout, kernel_size), *([FusedLeakyReLU(fout)] if activate else []))

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """`gain` scales the result."""
        *blur, conv, activation = [*self, None] if not isinstance(self[-1], FusedLeakyReLU) else self
        f = blur[0].kernel if blur else None
        return conv(x, f, gain) if activation is None else activation(conv(x, f), gain * math.sqrt(2))


class ResBlock(nn.Module):
    """(conv2(conv1(x)) + skip(x)) / sqrt(2), half as large."""

    def __init__(self, fin: int, fout: int, blur: Sequence[float]) -> None:
        super().__init__()
        self.conv1 = ConvLayer(fin, fin, 3)
        self.conv2 = ConvLayer(fin, fout, 3, blur)
        self.skip = ConvLayer(fin, fout, 1, blur, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        half = math.sqrt(0.5)
        return self.conv2(self.conv1(x), half) + self.skip(x, half)


class Discriminator(nn.Module):
    """Images [N, 3, size, size] to logits [N, 1]; N a multiple of the group that standard deviations are taken over."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.group = config.stddev_group
        widths = [config.channels(size) for size in reversed(config.resolutions)]
        blocks = [ResBlock(fin, fout, config.blur_kernel) for fin, fout in zip(widths, widths[1:], strict=False)]
        self.convs = nn.Sequential(ConvLayer(3, widths[0], 1), *blocks)
        self.final_conv = ConvLayer(widths[-1] + 1, widths[-1], 3)
        self.final_linear = nn.Sequential(
            EqualLinear(16 * widths[-1], widths[-1], activation="fused_lrelu"), EqualLinear(widths[-1], 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.final_conv(minibatch_std(self.convs(images), self.group))
        return self.final_linear(x.flatten(1))


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """R1: the mean over images of the squared length of d logits / d images, differentiable once more."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def path_lengths(images: Tensor, styles: Tensor, noise: Tensor) -> Tensor:
    """[N]: lengths of the gradient of <images, noise> / sqrt(pixels) by the styles, root mean square over layers."""
    projection = (images * noise).sum() / math.sqrt(images.size(2) * images.size(3))
    (gradient,) = torch.autograd.grad(projection, styles, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


class System(_system.System):
    """Discriminator, its gradient penalty now and then, generator, and its path lengths now and then."""

    Config = Config
    PRESETS = PRESETS
    data = "images"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["G"] = Generator(config)
        self.nets["D"] = Discriminator(config)
        self.register_buffer("mean_path_length", torch.zeros(()))
        d_adam, d_reg = self._adam(config.d_reg_every), every(config.d_reg_every)
        g_adam, g_reg = self._adam(config.g_reg_every), every(config.g_reg_every)
        self.phases = [
            Phase("D", ("D",), self.discriminator_loss, d_adam),
            Phase("D_reg", ("D",), self.gradient_loss, d_adam, d_reg, shares="D"),
            Phase("G", ("G",), self.generator_loss, g_adam),
            Phase("G_path", ("G",), self.path_loss, g_adam, g_reg, shares="G"),
        ]

    def _adam(self, interval: int) -> Adam:
        """Adam that takes interval + 1 steps in so many iterations, and learns as much in them."""
        ratio = interval / (interval + 1)
        return Adam(self.config.lr * ratio, (0.0, 0.99**ratio))

    @property
    def data_settings(self) -> dict[str, Any]:
        """The shorter side to the size of images, then a crop."""
        return {
            "crop_size": self.config.size,
            "load_size": self.config.size,
            "preprocess_mode": "scale_shortside_and_crop",
        }

    def init_weights(self) -> None:
        """Standard normal weights, zero biases; the layers scale them."""
        for module in self.nets.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def crossover(self) -> int | None:
        """The first layer of a second latent, or None for an image of one."""
        host = torch.empty(0)
        if self.rand((), host) >= self.config.mixing:
            return None
        return 1 + int(self.randint(self.config.n_latent - 1, (), host))

    def generate(self, n: int) -> tuple[Tensor, Tensor]:
        """Images of new latents and noise, and their styles."""
        generator = self.nets["G"]
        like, at = generator.input.input, self.crossover()
        shape = (n, self.config.latent)
        latents = [self.randn(shape, like)] if at is None else list(self.randn((2, *shape), like))
        noise = [self.randn((n, 1, size, size), like) for size in generator.noise_sizes]
        return generator(latents, at, noise=noise)

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            fake, _ = self.generate(len(batch["image"]))
        on_fake, on_real = self.nets["D"](fake), self.nets["D"](batch["image"])
        return {"D_fake": F.softplus(on_fake).mean(), "D_real": F.softplus(-on_real).mean()}

    def gradient_loss(self, batch: Batch) -> dict[str, Tensor]:
        """R1, as strong as if it was there in every iteration.

        Zero times a logit gives every parameter a gradient, and with it a step of the Adam that has seen others.
        """
        images = batch["image"].detach().requires_grad_()
        logits = self.nets["D"](images)
        penalty = gradient_penalty(logits, images)
        return {"R1": self.config.r1 / 2 * self.config.d_reg_every * penalty + 0 * logits[0, 0]}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        fake, _ = self.generate(len(batch["image"]))
        return {"G": F.softplus(-self.nets["D"](fake)).mean()}

    def path_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Squared distance of path lengths to their running mean, of which they are a part."""
        fake, styles = self.generate(max(1, len(batch["image"]) // self.config.path_batch_shrink))
        lengths = path_lengths(fake, styles, self.randn(fake.shape, fake))
        mean = self.mean_path_length.lerp(lengths.mean(), 0.01)
        self.mean_path_length.copy_(mean.detach())
        penalty = (lengths - mean).square().mean()
        return {"path": self.config.path_regularize * self.config.g_reg_every * penalty + 0 * fake[0, 0, 0, 0]}

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N, 3, size, size]} of `latent` [N, latent], or of as many latents as there are images."""
        z = (
            batch["latent"]
            if "latent" in batch
            else self.randn((len(batch["image"]), self.config.latent), batch["image"])
        )
        return {"fake": self.nets["G"]([z], randomize_noise=False)[0]}

    def load_original(self, path: str | Path) -> None:
        """Load a checkpoint file of the original: generator `g_ema`, discriminator `d` if it is there."""
        path = Path(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        load_strictly(self.nets["G"], state["g_ema"], path)
        if "d" in state:
            load_strictly(self.nets["D"], state["d"], path)
