"""StarGAN v2: images of any domain to any other, in a style drawn at random or taken from a reference image.

Choi, Uh, Yoo, Ha. StarGAN v2: Diverse Image Synthesis for Multiple Domains. CVPR 2020.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn.losses import cross_entropy, r1_penalty

from . import _system
from ._blocks import pad_to
from ._originals import load_strictly, named
from ._starganv2 import Discriminator, Generator, MappingNetwork, StyleEncoder
from ._system import Adam, Batch, Phase

FAN_SIZE = 256  # pixels of a side that the landmark network takes
TRUNCATION = 10000  # latents whose styles are averaged


@dataclass
class Config:
    """Options of the original, under its names; the last four are constants there."""

    img_size: int = 256
    num_domains: int = 2
    latent_dim: int = 16
    style_dim: int = 64
    lambda_reg: float = 1.0
    lambda_sty: float = 1.0
    lambda_ds: float = 1.0
    lambda_cyc: float = 1.0
    ds_iter: int = 100000  # iterations in which lambda_ds falls to 0
    w_hpf: float = 1.0  # the high-pass filter divides by it; 0 is none, and blocks with shortcuts instead
    fan_weights: str = ""  # TorchScript file: images [N,3,256,256] in [0, 1] to two heat maps [N,1,h,w]; for w_hpf
    lr: float = 1e-4
    f_lr: float = 1e-6  # of the mapping network
    beta1: float = 0.0
    beta2: float = 0.99
    weight_decay: float = 1e-4
    channel_base: int = 1 << 14  # channels next to the image, times its size
    max_conv_dim: int = 512
    mapping_hidden: int = 512
    ema_beta: float = 0.999

    def __post_init__(self) -> None:
        if self.img_size < 16 or self.img_size & (self.img_size - 1):
            raise ValueError(f"img_size {self.img_size}: must be a power of two, at least 16")
        if self.w_hpf < 0:
            raise ValueError(f"w_hpf {self.w_hpf}: must be at least 0")
        if self.num_domains < 1 or self.ds_iter < 1:
            raise ValueError(f"num_domains {self.num_domains}, ds_iter {self.ds_iter}: both must be at least 1")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of training images."""
        return self.img_size, self.img_size

    @property
    def stages(self) -> int:
        """How often the generator halves an image."""
        return self.img_size.bit_length() - 5 + (self.w_hpf > 0)

    def widths(self, halvings: int) -> list[int]:
        """Channels at full size and after each halving."""
        widths = [self.channel_base // self.img_size]
        for _ in range(halvings):
            widths.append(min(2 * widths[-1], self.max_conv_dim))
        return widths

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values."""
        return cls(**named(cls, options))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "celeba_hq": dict(num_domains=2, w_hpf=1.0, lambda_ds=1.0),
    "afhq":      dict(num_domains=3, w_hpf=0.0, lambda_ds=2.0),
    "tiny":      dict(num_domains=3, w_hpf=0.0, lambda_ds=2.0, img_size=32, channel_base=256, max_conv_dim=16,
                      mapping_hidden=16, style_dim=8, latent_dim=4),
}
# fmt: on


class System(_system.System):
    """Two steps of the discriminator, then two of the generator: each with styles of latents, then of references.

    Of the last step only the generator learns, as in the original. The averaged networks start from the initial
    weights of the trained ones; the original's start from others, which are forgotten.
    """

    Config = Config
    PRESETS = PRESETS
    data = "domains"
    ema = ("generator", "mapping_network", "style_encoder")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["generator"], self.nets["mapping_network"] = Generator(config), MappingNetwork(config)
        self.nets["style_encoder"], self.nets["discriminator"] = StyleEncoder(config), Discriminator(config)
        if config.w_hpf and config.fan_weights:
            self.fixed["fan"] = torch.jit.load(config.fan_weights, "cpu")
        self.register_buffer("iterations", torch.zeros((), dtype=torch.int64))  # done so far
        adam = Adam(config.lr, (config.beta1, config.beta2), weight_decay=config.weight_decay)
        of_d, of_g = self.discriminator_loss, self.generator_loss
        self.phases = [
            Phase("D_latent", ("discriminator",), partial(of_d, source="latent"), adam),
            Phase("D_ref", ("discriminator",), partial(of_d, source="reference"), adam, shares="D_latent"),
            Phase("G_latent", self.ema, partial(of_g, source="latent"), adam, rates={"mapping_network": config.f_lr}),
            Phase("G_ref", ("generator",), partial(of_g, source="reference"), adam, shares="G_latent",
                  after=self.count),
        ]  # fmt: skip

    @property
    def data_settings(self) -> dict[str, Any]:
        """As many images of each domain, whatever their numbers."""
        return {"crop_size": self.config.img_size, "balanced": True}

    def init_weights(self) -> None:
        """Kaiming normal weights; biases zero."""
        for module in self.nets.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.InstanceNorm2d):
                module.reset_parameters()

    def ema_decay(self, step: int) -> float:
        return self.config.ema_beta

    def count(self) -> None:
        self.iterations.add_(1)

    @property
    def lambda_ds(self) -> Tensor:
        """The weight of diversity: a line to 0 in ds_iter iterations."""
        return self.config.lambda_ds * (1 - self.iterations / self.config.ds_iter).clamp(min=0)

    def masks(self, images: Tensor) -> Sequence[Tensor] | None:
        """Heat maps of facial landmarks, where the high-pass filter is to keep details; None without it."""
        if not self.config.w_hpf:
            return None
        if "fan" not in self.fixed:
            raise ValueError(
                f"w_hpf {self.config.w_hpf}: fan_weights must name a file of the landmark network; w_hpf 0 does without"
            )
        with torch.no_grad():
            fan = self.fixed["fan"].eval()  # in training too
            return fan(F.interpolate(images, (FAN_SIZE, FAN_SIZE), mode="bilinear") * 0.5 + 0.5)

    def prepare(self, batch: Batch) -> Batch:
        """The batch with two latents for every sample, and the masks of its images."""
        image = batch["image"]
        shape = len(image), self.config.latent_dim
        drawn = {name: self.randn(shape, image) for name in ("latent", "latent2")}
        return batch | drawn | {"masks": self.masks(image)}

    def style(self, batch: Batch, source: str) -> Tensor:
        """Of a latent or a reference, whichever `source` is the name of."""
        net = self.nets["style_encoder" if source.startswith("reference") else "mapping_network"]
        return net(batch[source], batch["reference_domain"])

    def discriminator_loss(self, batch: Batch, source: str) -> dict[str, Tensor]:
        generator, discriminator = self.nets["generator"], self.nets["discriminator"]
        with torch.no_grad():
            if source == "latent":  # the generator is the same in the step behind it
                batch["content"] = generator.analyse(batch["image"], batch["masks"])
            fake = generator.synthesise(batch["content"], self.style(batch, source))
        real = batch["image"].detach().requires_grad_()
        logits = discriminator(real, batch["domain"])
        return {
            "real": cross_entropy(logits, True),
            "fake": cross_entropy(discriminator(fake, batch["reference_domain"]), False),
            "reg": self.config.lambda_reg * r1_penalty(logits, real),
        }

    def generator_loss(self, batch: Batch, source: str) -> dict[str, Tensor]:
        config, real, target = self.config, batch["image"], batch["reference_domain"]
        generator, encoder = self.nets["generator"], self.nets["style_encoder"]
        content, style = generator.analyse(real, batch["masks"]), self.style(batch, source)
        fake = generator.synthesise(content, style)
        with torch.no_grad():
            other = generator.synthesise(content, self.style(batch, f"{source}2"))
        cycled = generator(fake, encoder(real, batch["domain"]), self.masks(fake))
        return {
            "adv": cross_entropy(self.nets["discriminator"](fake, target), True),
            "sty": config.lambda_sty * F.l1_loss(encoder(fake, target), style),
            "ds": -self.lambda_ds * F.l1_loss(fake, other),
            "cyc": config.lambda_cyc * F.l1_loss(cycled, real),
        }

    def random_styles(self, domain: Tensor, psi: float = 1.0) -> Tensor:
        """Styles of domains [N]; psi below 1 draws them nearer to the mean style of their domain."""
        net = self.nets["mapping_network"]
        like = net.shared[0].weight
        style = net(self.randn((len(domain), self.config.latent_dim), like), domain)
        if psi == 1:
            return style
        mean = net.styles(self.randn((TRUNCATION, self.config.latent_dim), like)).mean(0)
        return mean[domain].lerp(style, psi)

    def reference_styles(self, images: Tensor, domain: Tensor) -> Tensor:
        """Styles of images [N,3,H,W] of any size, of domains [N]."""
        if images.shape[2:] != self.config.size:
            images = F.interpolate(images, self.config.size, mode="bilinear", antialias=True)
        return self.nets["style_encoder"](images, domain)

    @torch.no_grad()
    def in_styles(self, images: Tensor, styles: Sequence[Tensor]) -> Tensor:
        """Images [N,3,H,W] of any size in each of several styles, all [N, style_dim]: [styles,N,3,H,W].

        Styles of all domains give an image in each, interpolated ones a transition.
        """
        h, w = images.shape[-2:]
        padded, generator = pad_to(images, 1 << self.config.stages), self.nets["generator"]
        content = generator.analyse(padded, self.masks(padded))
        return torch.stack([generator.synthesise(content, style)[..., :h, :w] for style in styles])

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": images in the domains `reference_domain`}, in the style of `reference` if given, else a random one.

        `references` [N,K,3,H,W], if given, take the place of `reference`: the style is the mean of theirs.
        """
        if "reference_domain" not in batch:
            raise ValueError("the batch has no reference_domain: name the domain to translate to")
        domain = batch["reference_domain"]
        if "references" in batch:
            each = [self.reference_styles(images, domain) for images in batch["references"].unbind(1)]
            style = torch.stack(each).mean(0)
        elif "reference" in batch:
            style = self.reference_styles(batch["reference"], domain)
        else:
            style = self.random_styles(domain)
        return {"fake": self.in_styles(batch["image"], [style])[0]}

    def load_original(self, path: str | Path) -> None:
        """Load a file <iteration>_nets_ema.ckpt or _nets.ckpt, or of a folder the newest averaged networks, and the
        discriminator of the same iteration if it is there."""
        path = Path(path)
        files = {path: None}
        if path.is_dir():
            averaged = max(path.glob("*_nets_ema.ckpt"), default=None)
            if averaged is None:
                raise ValueError(f"{path}: no <iteration>_nets_ema.ckpt in it")
            files = {averaged: self.ema} | {
                file: ("discriminator",) for file in path.glob(averaged.name.replace("_ema", ""))
            }
        for file, names in files.items():
            found = torch.load(file, map_location="cpu", weights_only=True)
            names = names or [name for name in self.nets if name in found or name in self.ema]
            if missing := [name for name in names if name not in found]:
                raise ValueError(f"{file} has no network {', '.join(missing)}")
            for name in names:
                load_strictly(self.nets[name], found[name], file)
