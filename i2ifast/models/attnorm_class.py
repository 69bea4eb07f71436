"""Attentive normalisation of classes: images of classes from noise, with far parts of an image normalised together.

Wang, Chen, Zhang, Jia. Attentive Normalization for Conditional Image Generation. CVPR 2020. Networks are the residual
ones of Miyato, Koyama. cGANs with Projection Discriminator. ICLR 2018; what the layer takes the place of is of Zhang,
Goodfellow, Metaxas, Odena. Self-Attention Generative Adversarial Networks. ICML 2019.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import AttentiveNorm, BatchNormAct, ConditionalNorm, SelfAttention, UpsampleConv2d, spectral_norm
from i2ifast.nn.conv import Conv2d

from . import _semantic_pyramid, _system
from ._config import check_choices
from ._losses import hinge
from ._system import Adam, Batch, Phase, every

FIRST = 4  # side of the smallest map
WIDEST = 16  # times as many channels as the largest map


@dataclass
class Config:
    """Sizes of the networks, and their training; there is no original code that would name options."""

    num_classes: int = 1000
    image_size: int = 128
    dim_z: int = 128
    ch: int = 64  # channels of the largest maps
    attention: Literal["none", "self", "attentive"] = "attentive"  # of the generator
    d_attention: Literal["none", "self"] = "self"  # of the discriminator
    attention_size: int = 32  # side of the maps that both are applied to
    num_regions: int = 16
    temperature: float = 10.0  # of the softmax over regions
    g_spectral: bool = True  # spectral norm in the generator; the discriminator always has it
    n_critic: int = 1  # discriminator steps to one of the generator
    g_lr: float = 1e-4
    d_lr: float = 4e-4

    def __post_init__(self) -> None:
        check_choices(self, attention=("none", "self", "attentive"), d_attention=("none", "self"))
        if self.image_size < 4 * FIRST or self.image_size & (self.image_size - 1):
            raise ValueError(f"image_size {self.image_size}: must be a power of 2, at least {4 * FIRST}")
        sides = [side for side in self.sides if 2 * FIRST <= side < self.image_size]
        if (self.attention, self.d_attention) != ("none", "none") and self.attention_size not in sides:
            raise ValueError(f"attention_size {self.attention_size}: expected one of {', '.join(map(str, sides))}")
        for name in ("num_classes", "n_critic"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of images."""
        return self.image_size, self.image_size

    @property
    def sides(self) -> list[int]:
        """Of the maps, the smallest first."""
        return [FIRST << i for i in range((self.image_size // FIRST).bit_length())]

    def width(self, side: int) -> int:
        """Channels of the generator's maps of a side."""
        return self.ch * min(WIDEST, self.image_size // side)


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "imagenet":       dict(attention="attentive", d_attention="self"),
    "imagenet_sagan": dict(attention="self",      d_attention="self"),
    "imagenet_sngan": dict(attention="none",      d_attention="none", g_spectral=False, n_critic=5, g_lr=2e-4,
                           d_lr=2e-4),
    "tiny":           dict(attention="attentive", d_attention="self", num_classes=2, image_size=32, dim_z=8, ch=8,
                           attention_size=16, num_regions=4),
}
# fmt: on


class UpBlock(nn.Module):
    """skip(x) + conv(norm(conv(norm(x)))), upsampled x2 by nearest; norms with relus have the affine of the class."""

    def __init__(self, fin: int, fout: int, config: Config) -> None:
        super().__init__()
        self.norm1 = ConditionalNorm(fin, config.num_classes, act="relu")
        self.conv1 = normed(UpsampleConv2d(fin, fout, 3, padding=1), config)
        self.norm2 = ConditionalNorm(fout, config.num_classes, act="relu")
        self.conv2 = normed(Conv2d(fout, fout, 3, padding=1), config)
        self.skip = normed(nn.Conv2d(fin, fout, 1), config)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        y = self.conv2(self.norm2(self.conv1(self.norm1(x, classes)), classes))
        return y + F.interpolate(self.skip(x), scale_factor=2)


def normed(layer: nn.Module, config: Config) -> nn.Module:
    """A layer of the generator, with spectral norm if that has one."""
    return spectral_norm(layer) if config.g_spectral else layer


class Generator(nn.Module):
    """z [N,dim_z] and classes, [N] or weights [N,num_classes] of them, to images [N,3,S,S] in [-1, 1]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_size = config.attention_size
        self.linear = normed(nn.Linear(config.dim_z, config.width(FIRST) * FIRST**2), config)
        sides = config.sides[1:]
        self.blocks = nn.ModuleList(UpBlock(config.width(side // 2), config.width(side), config) for side in sides)
        channels = config.width(config.attention_size)
        self.attention = None
        if config.attention == "self":
            self.attention = SelfAttention(channels, spectral=config.g_spectral)
        elif config.attention == "attentive":
            self.attention = AttentiveNorm(channels, config.num_regions, config.temperature, "paper")
        self.norm = BatchNormAct(config.ch)
        self.to_rgb = normed(Conv2d(config.ch, 3, 3, padding=1), config)

    def forward(self, z: Tensor, classes: Tensor, positions: Tensor | None = None) -> Tensor:
        """`positions` [num_regions]: where attentive normalisation samples its keys in training."""
        x = self.linear(z).unflatten(1, (-1, FIRST, FIRST))
        for block in self.blocks:
            x = block(x, classes)
            if self.attention is not None and x.size(2) == self.attention_size:
                attentive = isinstance(self.attention, AttentiveNorm)
                x = self.attention(x, positions).output if attentive else self.attention(x)
        return torch.tanh(self.to_rgb(self.norm(x)))


def discriminator(config: Config) -> _semantic_pyramid.Discriminator:
    """Residual blocks that halve, and one that does not, with attention to the maps of attention_size; a projection."""
    blocks, channels, downsample = "", [], ""
    for side in reversed(config.sides[:-1]):
        blocks, downsample = blocks + "r", downsample + "d"
        channels.append(min(WIDEST, config.image_size // 2 // side))
        if config.d_attention == "self" and side == config.attention_size:
            blocks, downsample = blocks + "a", downsample + "n"
            channels.append(channels[-1])
    sizes = {"d_blocks": blocks + "r", "d_downsample": downsample + "n", "d_channels": (*channels, channels[-1])}
    return _semantic_pyramid.Discriminator(
        _semantic_pyramid.Config(n_class=config.num_classes, d_channel_multiplier=config.ch, **sizes)
    )


class System(_system.System):
    """A discriminator step in each iteration, a generator step in every n_critic-th; fakes have random classes.

    `attention` says what lets far parts of an image know of each other: attentive normalisation in the paper's form,
    its baselines self-attention and nothing. Code of this part was never published, and nothing is recorded of it: as
    the paper does not say where the layer is, it is where self-attention would be.
    """

    Config = Config
    PRESETS = PRESETS
    data = "domains"
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["G"], self.nets["D"] = Generator(config), discriminator(config)
        critic = every(config.n_critic, config.n_critic - 1)
        self.phases = [
            Phase("D", ("D",), self.discriminator_loss, Adam(config.d_lr, (0.0, 0.9))),
            Phase("G", ("G",), self.generator_loss, Adam(config.g_lr, (0.0, 0.9)), when=critic),
        ]

    @property
    def data_settings(self) -> dict[str, Any]:
        """The shorter side to the size of images, then a crop; no references."""
        side, classes = self.config.image_size, self.config.num_classes
        sizes = {"crop_size": side, "load_size": side, "preprocess_mode": "scale_shortside_and_crop"}
        return sizes | {"num_domains": classes, "num_references": 0, "generated": True}

    def init_weights(self) -> None:
        """Xavier uniform, biases 0; norms change nothing, attention adds nothing, layouts are of normal filters."""
        for module in self.nets.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                nn.init.xavier_uniform_(getattr(module, "weight_orig", module.weight))
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)
        for module in self.nets.modules():
            if isinstance(module, ConditionalNorm):
                scale, shift = module.embed.weight.detach().chunk(2, 1)
                nn.init.ones_(scale)
                nn.init.zeros_(shift)
            elif isinstance(module, AttentiveNorm):
                nn.init.normal_(module.semantic.weight)
                for parameter, value in ((module.alpha, 0.1), (module.sigma, 0.0), (module.weight, 1.0)):
                    nn.init.constant_(parameter, value)
                nn.init.zeros_(module.bias)
            elif isinstance(module, SelfAttention | _semantic_pyramid.SelfAttention):
                nn.init.zeros_(module.gamma)
            elif isinstance(module, BatchNormAct):
                module.reset_parameters()

    def generate(self, z: Tensor, classes: Tensor) -> Tensor:
        config, positions = self.config, None
        if self.training and config.attention == "attentive":
            positions = self.randint(config.attention_size**2, (config.num_regions,), z)
        return self.nets["G"](z, classes, positions)

    def random_classes(self, count: int, like: Tensor) -> Tensor:
        return self.randint(self.config.num_classes, (count,), like)

    def fakes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """As many images as are in the batch, and their classes."""
        like = batch["image"]
        z, classes = self.randn((len(like), self.config.dim_z), like), self.random_classes(len(like), like)
        return self.generate(z, classes), classes

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            fake, classes = self.fakes(batch)
        logits = self.nets["D"](torch.cat([batch["image"], fake]), torch.cat([batch["domain"], classes]))
        of_real, of_fake = logits.chunk(2)
        return {"D_real": hinge(of_real, True), "D_fake": hinge(of_fake, False)}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        terms = {"G": hinge(self.nets["D"](*self.fakes(batch)), True, generator=True)}
        attention = self.nets["G"].attention
        return terms | ({"orth": attention.orthogonality()} if isinstance(attention, AttentiveNorm) else {})

    def latents(self, count: int, like: Tensor, truncation: float | None = None) -> Tensor:
        """Normal z [count,dim_z]; with `truncation` > 0 those of the normal distribution within +-truncation."""
        if truncation is None:
            return self.randn((count, self.config.dim_z), like)
        if truncation <= 0:
            raise ValueError(f"truncation {truncation}: must be positive")
        uniform = 2 * self.rand((count, self.config.dim_z), like) - 1
        z = math.sqrt(2) * torch.erfinv(uniform * math.erf(truncation / math.sqrt(2)))
        return z.clamp(-truncation, truncation)  # infinite, where the last product is rounded to 1

    @torch.no_grad()
    def translate(self, batch: Batch, truncation: float | None = None) -> dict[str, Tensor]:
        """{"fake": images [N,3,S,S] of the classes `reference_domain`, `domain`, or random ones}.

        Of `latent` [N,dim_z], else of random ones, see `latents`, as many as there are images (which may be empty). The
        less `truncation`, the more typical the images, and the less they differ.
        """
        like, n = self.nets["G"].linear.bias, len(batch["latent" if "latent" in batch else "image"])
        z = batch["latent"] if "latent" in batch else self.latents(n, like, truncation)
        given = [batch[name] for name in ("reference_domain", "domain") if name in batch]
        return {"fake": self.generate(z, given[0] if given else self.random_classes(n, like))}

    def interpolate(self, first: Tensor, last: Tensor, classes: tuple[int, int], points: int = 5) -> Tensor:
        """Images [points,3,S,S] from z `first` in the first class to `last` in the last, [dim_z] each, both included.

        What norms know of the class is mixed too.
        """
        at = torch.linspace(0, 1, points, device=first.device, dtype=first.dtype)[:, None]
        ends = F.one_hot(torch.tensor(classes, device=first.device), self.config.num_classes).to(first)
        return self.translate({"latent": first.lerp(last, at), "domain": ends[0].lerp(ends[1], at)})["fake"]

    def load_original(self, path: str | Path) -> None:
        """ValueError: there is nothing to load."""
        raise ValueError(f"{path}: neither code nor weights of this system were published")
