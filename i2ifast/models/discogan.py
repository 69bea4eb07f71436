"""DiscoGAN: two translators of small images, each the inverse of the other, found without pairs.

Kim, Cha, Kim, Lee, Kim. Learning to Discover Cross-Domain Relations with Generative Adversarial Networks. ICML 2017.
"""

import pickle
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import BatchNormAct
from i2ifast.nn.conv import Conv2d, ConvTranspose2d

from . import _system
from ._blocks import pad_to, reset
from ._losses import cross_entropy
from ._originals import load_strictly, named, require
from ._system import Adam, Batch, Phase, every

LEVELS = 4  # halvings of the image
GENERATORS = {"AtoB": "generator_B", "BtoA": "generator_A"}  # a generator has the name of the domain it makes


@dataclass
class Config:
    """Options of the original, and widths and size of its networks."""

    base_channels: int = 64
    latent_channels: int = 100
    extra_layers: bool = False  # to a vector and back between the two halves of a generator
    image_size: int = 64
    learning_rate: float = 2e-4
    gan_curriculum: int = 10000  # iterations with the starting rate
    starting_rate: float = 0.01  # share of the reconstruction in the generators' loss
    default_rate: float = 0.5
    update_interval: int = (
        3  # the discriminators are trained in one of so many iterations, the generators in the others
    )

    def __post_init__(self) -> None:
        if self.image_size < 64 or self.image_size % self.stride:
            raise ValueError(f"image_size {self.image_size}: must be a multiple of {self.stride}, and 64 at least")
        if self.update_interval < 2:
            raise ValueError(f"update_interval {self.update_interval}: must be at least 2, or no generator is trained")

    @property
    def stride(self) -> int:
        """Image sizes that the generators take are multiples of it."""
        return 64 if self.extra_layers else 1 << LEVELS

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of training images."""
        return self.image_size, self.image_size

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values; ValueError for another arrangement of networks."""
        require(options, model_arch="discogan")
        return cls(**named(cls, options))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "default":      dict(base_channels=64, extra_layers=False),
    "extra_layers": dict(base_channels=64, extra_layers=True),
    "tiny":         dict(base_channels=4,  extra_layers=False, gan_curriculum=2),
}
# fmt: on


class Generator(nn.Module):
    """Images [N,3,H,W] in [0, 1] to images in [0, 1]; H and W are multiples of `Config.stride`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, code = [config.base_channels << i for i in range(LEVELS)], config.latent_channels
        layers = [nn.Conv2d(3, widths[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
        for fin, fout in pairwise(widths):
            layers += normed(Conv2d(fin, fout, 4, 2, 1, bias=False), 0.2)
        if config.extra_layers:
            layers += normed(nn.Conv2d(widths[-1], code, 4, bias=False), 0.2)
            layers += normed(nn.ConvTranspose2d(code, widths[-1], 4, bias=False), "relu")
        for fin, fout in pairwise(reversed(widths)):
            layers += normed(ConvTranspose2d(fin, fout, 4, 2, 1, bias=False), "relu")
        layers += [nn.ConvTranspose2d(widths[0], 3, 4, 2, 1, bias=False), nn.Sigmoid()]
        self.main = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)


def normed(conv: nn.Conv2d | nn.ConvTranspose2d, act: str | float) -> list[nn.Module]:
    """With its norm, which has the activation: that leaves the number of a layer free."""
    return [conv, BatchNormAct(conv.out_channels, act), nn.Identity()]


class Discriminator(nn.Module):
    """Images [N,3,64,64] in [0, 1] -> logits [N,1,1,1], and the features of three layers in front of them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [3, *(config.base_channels << i for i in range(LEVELS))]
        for i, (fin, fout) in enumerate(pairwise(widths), 1):
            self.add_module(f"conv{i}", Conv2d(fin, fout, 4, 2, 1, bias=False))
            if i > 1:
                self.add_module(f"bn{i}", BatchNormAct(fout, 0.2))
        self.conv5 = nn.Conv2d(widths[-1], 1, 4, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, features = F.leaky_relu(self.conv1(images), 0.2), []
        for i in range(2, LEVELS + 1):
            x = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x))
            features.append(x)
        return self.conv5(x), features


def mean_feature_matching(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Mean squared difference of the features' means over the batch, summed over layers."""
    return sum(F.mse_loss(f.mean(0), r.mean(0)) for r, f in zip(real, fake, strict=True))


class System(_system.System):
    """Two generators and two discriminators; an iteration trains the ones or the others.

    The original's images have their channels in the order BGR; batches have them in RGB, as everywhere. Running
    statistics of batch norms, which it does not use even for its sample images, are those of the forwards that a step
    needs.
    """

    Config = Config
    PRESETS = PRESETS
    data = "unpaired"
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        for side in "AB":
            self.nets[f"generator_{side}"] = Generator(config)
            self.nets[f"discriminator_{side}"] = Discriminator(config)
        adam = Adam(config.learning_rate, (0.5, 0.999), weight_decay=1e-5)
        judges, makers = (tuple(name for name in self.nets if name.startswith(kind)) for kind in ("dis", "gen"))
        turn, start = every(config.update_interval), config.gan_curriculum
        early, late = (partial(self.generator_loss, rate=r) for r in (config.starting_rate, config.default_rate))
        self.phases = [
            Phase("D", judges, self.discriminator_loss, adam, when=turn),
            Phase("G_start", makers, early, adam, when=lambda step: not turn(step) and step < start),
            Phase("G", makers, late, adam, when=lambda step: not turn(step) and step >= start, shares="G_start"),
        ]

    @property
    def data_settings(self) -> dict[str, Any]:
        """Resized, and neither cropped nor mirrored."""
        return {"crop_size": self.config.image_size, "preprocess_mode": "fixed", "flip": False}

    def init_weights(self) -> None:
        """As PyTorch's layers do."""
        reset(self.nets)

    def prepare(self, batch: Batch) -> Batch:
        """With the images as the networks take them, under A and B."""
        return batch | {side: to_network(batch[side.lower()]) for side in "AB"}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            fakes = {"B": self.nets["generator_B"](batch["A"]), "A": self.nets["generator_A"](batch["B"])}
        terms = {}
        for side in "AB":
            net = self.nets[f"discriminator_{side}"]
            (real, _), (fake, _) = net(batch[side]), net(fakes[side])
            terms[f"dis_{side}"] = 0.5 * cross_entropy(real, True) + 0.5 * cross_entropy(fake, False)
        return terms

    def generator_loss(self, batch: Batch, rate: float) -> dict[str, Tensor]:
        to_b, to_a = self.nets["generator_B"], self.nets["generator_A"]
        fakes = {"B": to_b(batch["A"]), "A": to_a(batch["B"])}
        cycled = {"A": to_a(fakes["B"]), "B": to_b(fakes["A"])}
        terms = {}
        for side in "AB":
            net = self.nets[f"discriminator_{side}"]
            (_, real), (logits, fake) = net(batch[side]), net(fakes[side])
            terms[f"gen_{side}"] = 0.1 * (1 - rate) * cross_entropy(logits, True)
            terms[f"fm_{side}"] = 0.9 * (1 - rate) * mean_feature_matching(real, fake)
            terms[f"recon_{side}"] = rate * F.mse_loss(cycled[side], batch[side])
        return terms

    @torch.no_grad()
    def translate(self, batch: Batch, direction: Literal["AtoB", "BtoA"] = "AtoB") -> dict[str, Tensor]:
        """{"fake": `a` [N,3,H,W] in domain b}, or `b` in domain a."""
        images = batch[direction[0].lower()]
        h, w = images.shape[-2:]
        fake = self.nets[GENERATORS[direction]](pad_to(to_network(images), self.config.stride))
        return {"fake": 2 * fake.flip(1)[..., :h, :w] - 1}

    def load_original(self, path: str | Path) -> None:
        """Load model_gen_A-<n>, model_gen_B-<n>, model_dis_A-<n>, model_dis_B-<n> (may be absent) of the largest n in a
        folder. The original writes whole modules, which only its own code can read: the files are to hold their
        state_dicts.
        """
        for name, net in self.nets.items():
            prefix = f"model_{name[:3]}_{name[-1]}-"
            files = Path(path).glob(f"{prefix}*")
            file = max(files, key=lambda file: int(file.stem.rpartition("-")[2]), default=None)
            if file is not None:
                load_strictly(net, state_of(file), file)
            elif name in GENERATORS.values():
                raise ValueError(f"{path}: no {prefix}<number> in it")


def state_of(file: Path) -> dict[str, Tensor]:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} is a whole module: save its state_dict() instead, with the original's code"
        ) from error


def to_network(images: Tensor) -> Tensor:
    """RGB in [-1, 1] as the networks take images: BGR in [0, 1]."""
    return (images.flip(1) + 1) / 2
