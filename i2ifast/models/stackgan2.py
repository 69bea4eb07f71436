"""StackGAN++: images of an embedding of text, or of noise alone, at several sizes at once.

Zhang, Xu, Li, Zhang, Wang, Huang, Metaxas. StackGAN++: Realistic Image Synthesis with Stacked Generative Adversarial
Networks. TPAMI 2018.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import BatchNormAct, UpsampleConv2d

from ._blocks import tiled
from ._losses import cross_entropy
from ._originals import load_strictly, named
from ._stackgan import CANet, TextSystem, VectorNormAct, conditions, convolved, down16, halved, kl_term
from ._system import Adam, Batch, Phase

BASE = 64  # pixels per side of the first branch


@dataclass
class Config:
    """Options of the original, in lower case."""

    branch_num: int = 3
    b_condition: bool = True  # on embeddings
    text_dim: int = 1024
    embedding_dim: int = 128
    z_dim: int = 100
    gf_dim: int = 64
    df_dim: int = 64
    r_num: int = 2  # residual blocks of a branch
    uncond_loss: float = 1.0
    kl: float = 2.0
    color_loss: float = 0.0  # for means and, five times as much, covariances of colours of neighbouring branches
    generator_lr: float = 2e-4
    discriminator_lr: float = 2e-4

    def __post_init__(self) -> None:
        if not 1 <= self.branch_num <= 4:
            raise ValueError(f"branch_num {self.branch_num}: expected 1 to 4")

    @property
    def data(self) -> str:
        return "embeddings" if self.b_condition else "images"

    @property
    def sides(self) -> list[int]:
        """Pixels per side of each branch."""
        return [BASE << i for i in range(self.branch_num)]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of training images."""
        return self.sides[-1], self.sides[-1]

    @property
    def condition_dim(self) -> int:
        """Of what is repeated over the maps: without a condition, the noise."""
        return self.embedding_dim if self.b_condition else self.z_dim

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values."""
        options = {name.lower(): value for name, value in options.items()}
        rates = dict.fromkeys(("generator_lr", "discriminator_lr"), options["lr"]) if "lr" in options else {}
        return cls(**rates | named(cls, options))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "birds":   dict(branch_num=3, b_condition=True),
    "bedroom": dict(branch_num=3, b_condition=False, color_loss=50.0),
    "tiny":    dict(branch_num=2, b_condition=True,  text_dim=12, embedding_dim=6, z_dim=5, gf_dim=4, df_dim=2),
}
# fmt: on


def doubled(fin: int, fout: int) -> nn.Sequential:
    """Upsampled x2, 3x3 convolution, norm, GLU."""
    conv = UpsampleConv2d(fin, 2 * fout, 3, padding=1, bias=False)
    return nn.Sequential(nn.Identity(), conv, BatchNormAct(2 * fout, "none"), nn.GLU(1))


class FirstStage(nn.Module):
    """Noise, behind conditions if there are any, to maps of ngf / 16 channels and 64 x 64 pixels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = 16 * config.gf_dim
        fin = config.z_dim + (config.embedding_dim if config.b_condition else 0)
        self.fc = nn.Sequential(nn.Linear(fin, 32 * width, bias=False), VectorNormAct(32 * width, "none"), nn.GLU(1))
        self.upsample1, self.upsample2, self.upsample3, self.upsample4 = (
            doubled(width >> i, width >> i + 1) for i in range(4)
        )

    def forward(self, code: Tensor) -> Tensor:
        x = self.fc(code).unflatten(1, (-1, 4, 4))
        return self.upsample4(self.upsample3(self.upsample2(self.upsample1(x))))


class ResBlock(nn.Module):
    """x + norm(conv(glu(norm(conv(x)))))"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, norm, _ = convolved(channels, 2 * channels, "none")
        self.block = nn.Sequential(first, norm, nn.GLU(1), *convolved(channels, channels, "none")[:2])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class NextStage(nn.Module):
    """Maps, with conditions in front of them, to maps twice as large with half of the channels."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        conv, norm, _ = convolved(config.condition_dim + width, 2 * width, "none")
        self.jointConv = nn.Sequential(conv, norm, nn.GLU(1))
        self.residual = nn.Sequential(*(ResBlock(width) for _ in range(config.r_num)))
        self.upsample = doubled(width, width // 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.upsample(self.residual(self.jointConv(torch.cat([tiled(condition, x), x], 1))))


class ToImage(nn.Module):
    """3x3 convolution and tanh."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.img = nn.Sequential(nn.Conv2d(channels, 3, 3, padding=1, bias=False), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.img(x)


class Generator(nn.Module):
    """Noise [N,z_dim], embeddings [N,text_dim] and the noise of conditions [N,embedding_dim] to images of all sizes.

    Returns them, small ones first, with mean and logarithm of the variance of conditions, None without embeddings.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.b_condition:
            self.ca_net = CANet(config.text_dim, 4 * config.embedding_dim, nn.GLU(1))
        width = config.gf_dim
        self.h_net1, self.img_net1 = FirstStage(config), ToImage(width)
        for i in range(2, config.branch_num + 1):
            self.add_module(f"h_net{i}", NextStage(config, width))
            width //= 2
            self.add_module(f"img_net{i}", ToImage(width))
        self.branches = config.branch_num

    def forward(
        self, z: Tensor, embedding: Tensor | None = None, eps: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        code, condition, mu, logvar = z, z, None, None
        if embedding is not None:
            mu, logvar = self.ca_net(embedding)
            condition = conditions(mu, logvar, eps)
            code = torch.cat([condition, z], 1)
        x, images = self.h_net1(code), []
        for i in range(1, self.branches + 1):
            x = self.get_submodule(f"h_net{i}")(x, condition) if i > 1 else x
            images.append(self.get_submodule(f"img_net{i}")(x))
        return images, mu, logvar


class Discriminator(nn.Module):
    """Images of branch `level` and conditions to logits [N,1,1,1]: of the pair, and of the image; else of the image."""

    def __init__(self, config: Config, level: int) -> None:
        super().__init__()
        ndf = config.df_dim
        width = 8 * ndf
        self.img_code_s16 = nn.Sequential(*down16(ndf))
        self.trunk = ["img_code_s16"]
        for i in range(1, level + 1):
            self.append(f"img_code_s{16 << i}", halved(width << i - 1, width << i))
        for i in range(1, level + 1):
            fin = width << level - i + 1
            self.append(f"img_code_s{16 << level}_{i}", convolved(fin, fin // 2, 0.2))
        self.logits = nn.Sequential(nn.Conv2d(width, 1, 4, 4))
        if config.b_condition:
            self.jointConv = nn.Sequential(*convolved(width + config.embedding_dim, width, 0.2))
            self.uncond_logits = nn.Sequential(nn.Conv2d(width, 1, 4, 4))

    def append(self, name: str, layers: list[nn.Module]) -> None:
        self.add_module(name, nn.Sequential(*layers))
        self.trunk.append(name)

    def forward(self, images: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        x = images
        for name in self.trunk:
            x = self.get_submodule(name)(x)
        if condition is None:
            return [self.logits(x)]
        pair = self.jointConv(torch.cat([tiled(condition, x), x], 1))
        return [self.logits(pair), self.uncond_logits(x)]


def colours(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [N,3] and covariance [N,3,3] of the pixels of each image."""
    pixels = images.flatten(2)
    mean = pixels.mean(2, keepdim=True)
    centred = pixels - mean
    return mean[..., 0], centred @ centred.transpose(1, 2) / pixels.size(2)


class System(TextSystem):
    """One discriminator after the other, then the generator of all branches; one forward of it serves all.

    Discriminators are told the mean of conditions, not what was drawn for the images. A pair of an image and the text
    of another is wrong; alone, that image counts as real.
    """

    Config = Config
    PRESETS = PRESETS

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.data = config, config.data
        self.nets["G"] = Generator(config)
        adam, g_adam = (Adam(lr, (0.5, 0.999)) for lr in (config.discriminator_lr, config.generator_lr))
        self.phases = []
        for level in range(config.branch_num):
            name, loss = f"D{level}", partial(self.discriminator_loss, level=level)
            self.nets[name] = Discriminator(config, level)
            self.phases.append(Phase(name, (name,), loss, adam))
        self.phases.append(Phase("G", ("G",), self.generator_loss, g_adam))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Orthogonal weights, scales of norms from N(1, 0.02), zero biases."""
        for module in self.nets.modules():
            if isinstance(module, BatchNormAct):
                nn.init.normal_(module.weight, 1, 0.02)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(module.weight)
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def prepare(self, batch: Batch) -> Batch:
        """With `real`, the images at the size of each branch, and, where there are texts, such that do not fit them:
        `wrong` [N,3,H,W] of the batch, or its images in another order."""
        found = {"real": self.pyramid(batch["image"])}
        if self.config.b_condition:
            found["wrong"] = self.pyramid(batch.get("wrong", batch["image"].roll(1, 0)))
        return batch | found

    def pyramid(self, images: Tensor) -> list[Tensor]:
        options = {"mode": "bilinear", "align_corners": False, "antialias": True}
        return [
            images if images.size(-1) == side else F.interpolate(images, (side, side), **options)
            for side in self.config.sides
        ]

    def embedding_of(self, batch: Batch) -> Tensor | None:
        if not self.config.b_condition:
            return None
        if "embedding" not in batch:
            raise ValueError("no embedding in the batch: without any, build the system with b_condition=False")
        return batch["embedding"]

    def generate(self, z: Tensor, embedding: Tensor | None) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        eps = None if embedding is None else self.randn((len(z), self.config.embedding_dim), z)
        return self.nets["G"](z, embedding, eps)

    def images(self, z: Tensor, embedding: Tensor | None) -> Tensor:
        return self.generate(z, self.embedding_of({} if embedding is None else {"embedding": embedding}))[0][-1]

    def discriminator_loss(self, batch: Batch, level: int) -> dict[str, Tensor]:
        if level == 0:
            self.nets["G"].requires_grad_(True)  # its step takes the fakes with their graph
            z = self.randn((len(batch["image"]), self.config.z_dim), batch["image"])
            batch["fakes"], batch["mu"], batch["logvar"] = self.generate(z, self.embedding_of(batch))
        net, real, fake = self.nets[f"D{level}"], batch["real"][level], batch["fakes"][level].detach()
        if not self.config.b_condition:
            (of_real,), (of_fake,) = net(real), net(fake)
            return {"real": cross_entropy(of_real, True), "fake": cross_entropy(of_fake, False)}
        mu, weight = batch["mu"].detach(), self.config.uncond_loss
        share = 1.0 if weight else 0.5  # of the two kinds that are not right
        targets = {
            "real": (real, True, True, 1.0),
            "wrong": (batch["wrong"][level], False, True, share),
            "fake": (fake, False, False, share),
        }
        terms = {}
        for name, (images, fits, alone, factor) in targets.items():
            pair, image = net(images, mu)
            terms[name] = factor * cross_entropy(pair, fits)
            if weight:
                terms[f"{name}_uncond"] = weight * cross_entropy(image, alone)
        return terms

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        config, fakes, mu = self.config, batch["fakes"], batch["mu"]
        terms = {}
        for level, fake in enumerate(fakes):
            logits, *alone = self.nets[f"D{level}"](fake, mu)
            terms[f"G{level}"] = cross_entropy(logits, True)
            if alone and config.uncond_loss:
                terms[f"G{level}_uncond"] = config.uncond_loss * cross_entropy(alone[0], True)
        for level in range(1, config.branch_num) if config.color_loss else ():
            (mean, covariance), (mean_before, before) = colours(fakes[level]), colours(fakes[level - 1].detach())
            terms[f"mean{level}"] = config.color_loss * F.mse_loss(mean, mean_before)
            terms[f"covariance{level}"] = 5 * config.color_loss * F.mse_loss(covariance, before)
        return terms | (kl_term(mu, batch["logvar"], config.kl) if config.b_condition else {})

    def load_original(self, path: str | Path) -> None:
        """Load netG_<count>.pth, of the largest count, and netD<level>.pth (may be absent) of a folder, or one such
        file."""
        path = Path(path)
        generators = sorted(path.glob("netG_*.pth"), key=lambda file: int(file.stem.rpartition("_")[2]))
        if path.is_dir() and not generators:
            raise ValueError(f"{path}: no netG_<number>.pth in it")
        judges = [path / f"netD{level}.pth" for level in range(self.config.branch_num)]
        for file in [generators[-1], *filter(Path.exists, judges)] if path.is_dir() else [path]:
            name = file.stem.removeprefix("net").partition("_")[0]
            if name not in self.nets:
                raise ValueError(f"{file}: expected a file name such as netG_100.pth or netD0.pth")
            state = torch.load(file, map_location="cpu", weights_only=True)
            load_strictly(self.nets[name], {key.removeprefix("module."): v for key, v in state.items()}, file)
