"""CVAE-GAN: digits from a class and a code, which an encoder finds for images to change their class.

Bao, Chen, Wen, Li, Hua. CVAE-GAN: Fine-Grained Image Generation through Asymmetric Training. ICCV 2017. Networks and
losses are those of its usual small port: cross entropies where the paper matches features of discriminator and
classifier.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import BatchNormAct
from i2ifast.nn.conv import Conv2d, ConvTranspose2d

from . import _system
from ._blocks import numbered, reset, with_channels
from ._losses import cross_entropy, kl_divergence
from ._originals import load_strictly, named
from ._system import Adam, Batch, Phase

SIZE = 28
FILES = {"vae": "VAE", "D": "Discriminator", "C": "Classifier"}  # in the names of the original's checkpoints


@dataclass
class Config:
    """Sizes of the networks."""

    nz: int = 100
    n_classes: int = 10
    encoder_width: int = 16
    judge_width: int = 32  # of discriminator and classifier
    judge_features: int = 1024
    lr: float = 1e-4

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of images."""
        return SIZE, SIZE

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values."""
        divisor = options.get("width_divisor", 1)
        widths = {"encoder_width": 16 // divisor, "judge_width": 32 // divisor, "judge_features": 1024 // divisor}
        return cls(**widths | named(cls, options))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "mnist": dict(nz=100, n_classes=10, encoder_width=16, judge_width=32, judge_features=1024),
    "tiny":  dict(nz=8,   n_classes=2,  encoder_width=4,  judge_width=4,  judge_features=32),
}
# fmt: on


class VAE(nn.Module):
    """Encoder of grey images [N,1,28,28] in [0, 1], and decoder of codes and classes.

    The original runs the convolutions twice, once for each of its two outputs: running statistics move as if by two
    batches, which is what their momentum is for.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.encoder_width
        layers, fin = {}, 1
        for i, (fout, stride) in enumerate(((width, 2), (2 * width, 2), (2 * width, 1))):
            layers |= {3 * i: Conv2d(fin, fout, 3, stride, 1), 3 * i + 1: BatchNormAct(fout, 0.2)}
            layers[3 * i + 1].momentum = 1 - (1 - 0.1) ** 2
            fin = fout
        self.encoder_conv = numbered(layers)
        features = fin * (SIZE // 4) ** 2
        self.encoder_fc1, self.encoder_fc2 = (nn.Linear(features, config.nz) for _ in range(2))
        self.decoder_fc = nn.Linear(config.nz + config.n_classes, features)
        up = [ConvTranspose2d(fin, width, 4, 2, 1), nn.ReLU(inplace=True), nn.ConvTranspose2d(width, 1, 4, 2, 1)]
        self.decoder_deconv = nn.Sequential(*up, nn.Sigmoid())

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation of codes, [N,nz] each."""
        x = self.encoder_conv(images).flatten(1)
        return self.encoder_fc1(x), self.encoder_fc2(x)

    def decode(self, codes: Tensor) -> Tensor:
        """Images of codes with classes behind them, [N, nz + n_classes]."""
        return self.decoder_deconv(self.decoder_fc(codes).unflatten(1, (-1, SIZE // 4, SIZE // 4)))


class Judge(nn.Module):
    """Images [N,1,28,28] to logits [N,outputs]: the discriminator, and the classifier."""

    def __init__(self, config: Config, outputs: int) -> None:
        super().__init__()
        width = config.judge_width
        layers = []
        for fin, fout in ((1, width), (width, 2 * width)):
            layers += [Conv2d(fin, fout, 3, padding=1), nn.LeakyReLU(0.2, inplace=True), nn.MaxPool2d(2)]
        self.dis = nn.Sequential(*layers)
        first = nn.Linear(2 * width * (SIZE // 4) ** 2, config.judge_features)
        self.fc = nn.Sequential(first, nn.LeakyReLU(0.2, inplace=True), nn.Linear(config.judge_features, outputs))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.dis(images).flatten(1))


class System(_system.System):
    """Classifier, discriminator, then the autoencoder, whose reconstructions both are to take for real.

    As in the original, the classifier answers for each class by itself, the divergence is a sum while the error of
    reconstructions is a mean, and the discriminator's fakes are of random numbers in place of classes too.
    """

    Config = Config
    PRESETS = PRESETS
    data = "domains"
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["vae"], self.nets["D"], self.nets["C"] = (
            VAE(config),
            Judge(config, 1),
            Judge(config, config.n_classes),
        )
        adam = Adam(config.lr, (0.9, 0.999))
        self.phases = [
            Phase("C", ("C",), self.classifier_loss, adam),
            Phase("D", ("D",), self.discriminator_loss, adam),
            Phase("vae", ("vae",), self.autoencoder_loss, adam),
        ]

    @property
    def data_settings(self) -> dict[str, Any]:
        """Resized, and neither cropped nor mirrored."""
        domains = {"num_domains": self.config.n_classes, "num_references": 0}
        return {"crop_size": SIZE, "preprocess_mode": "fixed", "flip": False, "one_size": True, **domains}

    def init_weights(self) -> None:
        """As PyTorch's layers do."""
        reset(self.nets)

    def prepare(self, batch: Batch) -> Batch:
        """With `x`, images as the networks take them, and `classes`, one-hot."""
        x = to_network(batch["image"])
        return batch | {"x": x, "classes": self.one_hot(batch["domain"], x)}

    def one_hot(self, domain: Tensor, like: Tensor) -> Tensor:
        return F.one_hot(domain, self.config.n_classes).to(like)

    def classifier_loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"C": F.binary_cross_entropy_with_logits(self.nets["C"](batch["x"]), batch["classes"])}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Real and fake go through the discriminator together: it has no norms."""
        x, config = batch["x"], self.config
        with torch.no_grad():
            fake = self.nets["vae"].decode(self.randn((len(x), config.nz + config.n_classes), x))
        real, fake = self.nets["D"](torch.cat([x, fake])).chunk(2)
        return {"D_real": cross_entropy(real, True), "D_fake": cross_entropy(fake, False)}

    def autoencoder_loss(self, batch: Batch) -> dict[str, Tensor]:
        x, vae = batch["x"], self.nets["vae"]
        mean, logstd = vae.encode(x)
        codes = mean + self.randn(mean.shape, mean) * logstd.exp()
        decoded = vae.decode(torch.cat([codes, batch["classes"]], 1))
        return {
            "recon": F.mse_loss(decoded, x),
            "kl": kl_divergence(mean, 2 * logstd),
            "adv": cross_entropy(self.nets["D"](decoded), True),
            "class": F.binary_cross_entropy_with_logits(self.nets["C"](decoded), batch["classes"]),
        }

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,28,28]}: images with the mean of their codes in the class `reference_domain`, or `domain`.

        Without images in `image` [N, 0] their codes are drawn; without a class so are their classes.
        """
        config, images, like = self.config, batch["image"], self.nets["vae"].decoder_fc.weight
        n = len(images)
        codes = self.encode(images) if images.numel() else self.randn((n, config.nz), like)
        drawn = batch.get("domain")
        domain = batch.get("reference_domain", self.randint(config.n_classes, (n,), like) if drawn is None else drawn)
        return {"fake": self.decode(codes, domain)}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The means of codes [N,nz] of images [N,C,28,28] in [-1, 1]; ValueError for images of another size."""
        if images.shape[-2:] != (SIZE, SIZE):
            raise ValueError(f"images of {list(images.shape[1:])}: this system takes {SIZE}x{SIZE} only")
        return self.nets["vae"].encode(to_network(images))[0]

    @torch.no_grad()
    def decode(self, codes: Tensor, domain: Tensor) -> Tensor:
        """Images [N,3,28,28] in [-1, 1] of codes [N,nz] in the classes `domain` [N]."""
        decoded = self.nets["vae"].decode(torch.cat([codes, self.one_hot(domain, codes)], 1))
        return with_channels(2 * decoded - 1, 3)

    def interpolate(self, first: Tensor, last: Tensor, domain: Tensor, points: int = 5) -> Tensor:
        """Images [points,3,28,28] of a class `domain` [] on the line between two codes [nz], both included."""
        at = torch.linspace(0, 1, points, device=first.device, dtype=first.dtype)[:, None]
        return self.decode(first.lerp(last, at), domain.expand(points))

    def load_original(self, path: str | Path) -> None:
        """Load *VAE*.pth, *Discriminator*.pth and *Classifier*.pth of a folder, the last two of which may be absent, or
        one such file."""
        path = Path(path)
        for name, part in FILES.items():
            file = path if part in path.name else max(path.glob(f"*{part}*.pth"), default=None)
            if file is not None:
                load_strictly(self.nets[name], torch.load(file, map_location="cpu", weights_only=True), file)
            elif path.is_dir() and name == "vae":
                raise ValueError(f"{path}: no *{part}*.pth in it")
        if path.is_file() and not any(part in path.name for part in FILES.values()):
            raise ValueError(f"{path}: expected a file name with {' or '.join(FILES.values())}")


def to_network(images: Tensor) -> Tensor:
    """Images in [-1, 1] as the networks take them: grey, in [0, 1]."""
    return (with_channels(images, 1) + 1) / 2
