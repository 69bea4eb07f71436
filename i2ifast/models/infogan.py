"""InfoGAN: images from noise, a class and codes, which the discriminator finds again in them.

Networks and losses are those of the usual PyTorch port: least squares in place of cross entropy.
Chen, Duan, Houthooft, Schulman, Sutskever, Abbeel. InfoGAN: Interpretable Representation Learning by Information
Maximizing Generative Adversarial Nets. NeurIPS 2016.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import BatchNormAct, UpsampleConv2d
from i2ifast.nn.conv import Conv2d

from . import _system
from ._blocks import numbered, reset, with_channels
from ._losses import least_squares
from ._originals import named
from ._system import Adam, Batch, Phase

EPS = 0.8  # of all batch norms but the first: the original means it to be their momentum
DROPPED = 0.25  # share of the channels that Dropout drops


@dataclass
class Config:
    """Options of the original, and widths of its networks."""

    latent_dim: int = 62
    code_dim: int = 2  # continuous codes in [-1, 1]
    n_classes: int = 10
    img_size: int = 32
    channels: int = 1
    ngf: int = 128
    ndf: int = 16
    dropout: bool = True
    lambda_cat: float = 1.0
    lambda_con: float = 0.1
    lr: float = 2e-4
    b1: float = 0.5
    b2: float = 0.999

    def __post_init__(self) -> None:
        if self.img_size < 16 or self.img_size % 16:
            raise ValueError(f"img_size {self.img_size}: must be a multiple of 16")
        if self.channels not in (1, 3):
            raise ValueError(f"channels {self.channels}: expected 1 or 3")

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values."""
        divisor = options.get("width_divisor", 1)
        found = {"ngf": 128 // divisor, "ndf": 16 // divisor}
        return cls(**found | named(cls, options))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "mnist": dict(img_size=32, channels=1, ngf=128, ndf=16),
    "tiny":  dict(img_size=32, channels=3, ngf=16,  ndf=4, latent_dim=8, n_classes=4),
}
# fmt: on


class Generator(nn.Module):
    """Noise [N,latent_dim], one-hot classes [N,n_classes] and codes [N,code_dim] to images [N,channels,H,W]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, self.init_size = config.ngf, config.img_size // 4
        fin = config.latent_dim + config.n_classes + config.code_dim
        self.l1 = nn.Sequential(nn.Linear(fin, width * self.init_size**2))
        layers = {
            0: BatchNormAct(width, "none"),
            2: UpsampleConv2d(width, width, 3, padding=1),
            3: BatchNormAct(width, 0.2, EPS),
            6: UpsampleConv2d(width, width // 2, 3, padding=1),
            7: BatchNormAct(width // 2, 0.2, EPS),
            9: nn.Conv2d(width // 2, config.channels, 3, padding=1),
            10: nn.Tanh(),
        }
        self.conv_blocks = numbered(layers)

    def forward(self, noise: Tensor, classes: Tensor, codes: Tensor) -> Tensor:
        x = self.l1(torch.cat([noise, classes, codes], 1))
        return self.conv_blocks(x.unflatten(1, (-1, self.init_size, self.init_size)))


class Dropout(nn.Module):
    """x with a quarter of its channels, drawn by `rand`, set to zero and the others scaled up, in training."""

    def __init__(self, rand: Callable[..., Tensor]) -> None:
        super().__init__()
        self.rand = rand

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = self.rand((*x.shape[:2], 1, 1), x) < 1 - DROPPED
        return x * (kept / (1 - DROPPED))


class Discriminator(nn.Module):
    """Images to logits [N,1], probabilities of classes [N,n_classes] and codes [N,code_dim]."""

    def __init__(self, config: Config, rand: Callable[..., Tensor]) -> None:
        super().__init__()
        fin, number, layers = config.channels, 0, {}
        for i in range(4):
            fout = config.ndf << i
            layers |= {number: Conv2d(fin, fout, 3, 2, 1), number + 1: nn.LeakyReLU(0.2, inplace=True)}
            layers[number + 2] = Dropout(rand) if config.dropout else nn.Identity()
            layers |= {number + 3: BatchNormAct(fout, "none", EPS)} if i else {}
            fin, number = fout, number + (4 if i else 3)
        self.conv_blocks = numbered(layers)
        features = fin * (config.img_size // 16) ** 2
        self.adv_layer = nn.Sequential(nn.Linear(features, 1))
        self.aux_layer = nn.Sequential(nn.Linear(features, config.n_classes), nn.Softmax(1))
        self.latent_layer = nn.Sequential(nn.Linear(features, config.code_dim))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.conv_blocks(images).flatten(1)
        return self.adv_layer(x), self.aux_layer(x), self.latent_layer(x)


class System(_system.System):
    """Generator, discriminator, then both together so that the second finds the class and codes of the first's images.

    As in the original, the cross entropy of classes takes a softmax of the probabilities, which are one already.
    """

    Config = Config
    PRESETS = PRESETS
    data = "images"
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rand = self.later_rand()
        self.nets["G"], self.nets["D"] = Generator(config), Discriminator(config, rand)
        adam = Adam(config.lr, (config.b1, config.b2))
        self.phases = [
            Phase("G", ("G",), self.generator_loss, adam),
            Phase("D", ("D",), self.discriminator_loss, adam),
            Phase("info", ("G", "D"), self.information_loss, adam),
        ]

    @property
    def data_settings(self) -> dict[str, Any]:
        """Resized, and neither cropped nor mirrored."""
        return {"crop_size": self.config.img_size, "preprocess_mode": "fixed", "flip": False}

    def init_weights(self) -> None:
        """Convolutions from N(0, 0.02), scales of norms from N(1, 0.02), linear layers as PyTorch does."""
        reset(self.nets)
        for module in self.nets.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.02)
            elif isinstance(module, BatchNormAct):
                nn.init.normal_(module.weight, 1, 0.02)

    def prepare(self, batch: Batch) -> Batch:
        """With images of the networks' channels."""
        return batch | {"image": with_channels(batch["image"], self.config.channels)}

    def draw(self, n: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noise [N,latent_dim], classes [N] and codes [N,code_dim]."""
        config = self.config
        noise, labels = self.randn((n, config.latent_dim), like), self.randint(config.n_classes, (n,), like)
        return noise, labels, 2 * self.rand((n, config.code_dim), like) - 1

    def generate(self, noise: Tensor, labels: Tensor, codes: Tensor) -> Tensor:
        return self.nets["G"](noise, F.one_hot(labels, self.config.n_classes).to(noise), codes)

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        images = batch["image"]
        fake = self.generate(*self.draw(len(images), images))
        batch["fake"] = fake.detach()
        return {"g": least_squares(self.nets["D"](fake)[0], True)}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        (real, *others), (fake, *_) = (self.nets["D"](batch[name]) for name in ("image", "fake"))
        return {"d_real": least_squares(real, True) / 2 + without(*others), "d_fake": least_squares(fake, False) / 2}

    def information_loss(self, batch: Batch) -> dict[str, Tensor]:
        noise, labels, codes = self.draw(len(batch["image"]), batch["image"])
        validity, classes, found = self.nets["D"](self.generate(noise, labels, codes))
        return {
            "class": self.config.lambda_cat * F.cross_entropy(classes, labels) + without(validity),
            "code": self.config.lambda_con * F.mse_loss(found, codes),
        }

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,H,W]}, as many as there are of `image`, or of what is given of them.

        `latent` [N,latent_dim], `domain` [N], the class, and `code` [N,code_dim] are drawn where they are not given.
        """
        names, like = ("latent", "domain", "code"), self.nets["G"].l1[0].weight
        n = len(next(batch[name] for name in (*names, "image") if name in batch))
        drawn = zip(names, self.draw(n, like), strict=True)
        return {"fake": with_channels(self.generate(*(batch.get(name, default) for name, default in drawn)), 3)}

    def load_original(self, path: str | Path) -> None:
        """ValueError: there are no such files."""
        raise ValueError(f"{path}: the original's code writes no checkpoints")


def without(*outputs: Tensor) -> Tensor:
    """Zero, with zero gradients for the heads of these outputs, which a phase does not use.

    Several processes want all parameters of a network of two phases to have gradients; to Adam it makes no difference.
    """
    return 0 * sum(output.sum() for output in outputs)
