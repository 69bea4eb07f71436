"""BicycleGAN: paired translation to many results, of which each has a code.

Zhu, Zhang, Pathak, Darrell, Efros, Wang, Shechtman. Toward Multimodal Image-to-Image Translation. NeurIPS 2017.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import DownsampleConv2d
from i2ifast.nn.conv import Conv2d

from . import _system
from ._blocks import pad_to, pyramid, tiled
from ._config import Cropped, check_choices
from ._cyclegan import (
    DOWNS,
    GAN_MODES,
    Dropout,
    Init,
    Rand,
    UnetGenerator,
    activation,
    init_weights,
    norm_act,
    patch_layers,
    sequence,
    upsampled,
)
from ._losses import kl_divergence
from ._originals import load_nets, named, require
from ._system import Adam, Batch, Phase

Norm = Literal["instance", "batch"]
NetD = Literal["basic_256_multi", "basic_128_multi"]
NetE = Literal["resnet_256", "resnet_128", "conv_256", "conv_128"]

D_LAYERS = {"basic_256_multi": 3, "basic_128_multi": 2}
E_LAYERS = {"resnet_256": 5, "resnet_128": 4, "conv_256": 5, "conv_128": 4}  # each to half the size
ACTIVATIONS = {"relu": "relu", "lrelu": 0.2}


@dataclass
class Config(Cropped):
    """Options of the original, under its names."""

    input_nc: int = 3  # channels of a
    output_nc: int = 3  # and of b; 1 is grey
    nz: int = 8  # of a code
    ngf: int = 64
    ndf: int = 64
    nef: int = 64
    netG: Literal["unet_256", "unet_128"] = "unet_256"
    netD: NetD = "basic_256_multi"
    netD2: NetD = "basic_256_multi"
    netE: NetE = "resnet_256"
    norm: Norm = "instance"
    nl: Literal["relu", "lrelu"] = "relu"  # of the generator's way up
    upsample: Literal["basic", "bilinear"] = "basic"
    where_add: Literal["all", "input"] = "all"  # where the generator takes the code: at every size, or with the image
    use_dropout: bool = False
    num_Ds: int = 2  # scales of a discriminator
    conditional_D: bool = False  # discriminators see a too
    use_same_D: bool = False  # one discriminator instead of two
    gan_mode: Literal["lsgan", "vanilla", "wgangp"] = "lsgan"  # wgangp without a gradient penalty, as published
    lambda_GAN: float = 1.0  # of fakes with the code of an image
    lambda_GAN2: float = 1.0  # of fakes with a random code
    lambda_L1: float = 10.0
    lambda_z: float = 0.5
    lambda_kl: float = 0.01
    init_type: Init = "xavier"
    init_gain: float = 0.02
    direction: Literal["AtoB", "BtoA"] = "AtoB"  # which half of a file is a
    load_size: int = 286
    crop_size: int = 256
    lr: float = 2e-4
    beta1: float = 0.5
    niter: int = 100  # epochs before the learning rate decays
    niter_decay: int = 100  # epochs of linear decay to zero

    # What the original calls by these names exists here in this one form.
    ONLY: ClassVar[dict[str, Any]] = {"lr_policy": "linear"}

    def __post_init__(self) -> None:
        check_choices(self, norm=get_args(Norm), where_add=("all", "input"), upsample=("basic", "bilinear"))
        check_choices(self, netG=DOWNS, netD=D_LAYERS, netD2=D_LAYERS, netE=E_LAYERS, nl=ACTIVATIONS)
        check_choices(self, gan_mode=GAN_MODES, init_type=get_args(Init))
        if self.num_Ds < 2:
            raise ValueError(f"num_Ds {self.num_Ds}: must be at least 2")
        if self.crop_size % self.stride:
            raise ValueError(f"crop_size {self.crop_size}: must be a multiple of {self.stride} for {self.netG}")

    @property
    def stride(self) -> int:
        """What both sides of images have to be multiples of."""
        return 1 << DOWNS[self.netG]

    @property
    def per_sample(self) -> bool:
        """Whether the networks treat samples apart, so that several batches may be one."""
        return self.norm != "batch"

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values; ValueError for what this system does not have."""
        require(options, **cls.ONLY)
        return cls(**named(cls, options))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "facades":     dict(direction="BtoA", niter=200, niter_decay=200, use_dropout=True, load_size=256),
    "edges2shoes": dict(direction="AtoB", niter=30,  niter_decay=30,  use_dropout=True, load_size=256),
    "tiny":        dict(netG="unet_128", netD="basic_128_multi", netD2="basic_128_multi", netE="resnet_128",
                        crop_size=128, load_size=143, ngf=4, ndf=4, nef=4),
}
# fmt: on


class CodedBlock(nn.Module):
    """A level of a U-Net that takes the code at every size; the result, then x beside it."""

    def __init__(self, down: nn.Module, submodule: nn.Module | None, up: nn.Module) -> None:
        super().__init__()
        self.down, self.submodule, self.up = down, submodule, up

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.cat([self.result(x, z), x], 1)

    def result(self, x: Tensor, z: Tensor) -> Tensor:
        y = self.down(torch.cat([x, tiled(z, x)], 1))
        return self.up(y if self.submodule is None else self.submodule(y, z))


class CodedGenerator(nn.Module):
    """Images [N,C,H,W] and codes [N,nz] to images in [-1, 1]; the code is activated with the maps that it joins."""

    def __init__(self, config: Config, rand: Rand | None) -> None:
        super().__init__()
        act, nz, ngf, norm = ACTIVATIONS[config.nl], config.nz, config.ngf, config.norm
        widths = [ngf * min(2**i, 8) for i in range(DOWNS[config.netG])]

        def up(fin: int, fout: int, *last: nn.Module) -> nn.Module:
            return sequence([activation(act), *upsampled(config.upsample, fin, fout, True), *last])

        block = None
        for level in range(len(widths) - 1, 0, -1):
            outer, inner = widths[level - 1], widths[level]
            down = [activation(0.2), Conv2d(outer + nz, inner, 4, 2, 1)]
            down += [norm_act(norm, inner, "none")] if block else []
            last = [norm_act(norm, outer, "none")]
            last += [Dropout(rand)] if rand and block and level > 3 else []
            block = CodedBlock(sequence(down), block, up(2 * inner if block else inner, outer, *last))
        first = nn.Sequential(nn.Conv2d(config.input_nc + nz, ngf, 4, 2, 1))
        self.model = CodedBlock(first, block, up(2 * ngf, config.output_nc, nn.Tanh()))

    def forward(self, images: Tensor, z: Tensor) -> Tensor:
        return self.model.result(images, z)


class InputCodedGenerator(UnetGenerator):
    """A U-Net that takes the code as channels of the image."""

    def __init__(self, config: Config, rand: Rand | None) -> None:
        options = {"bias": True, "act": ACTIVATIONS[config.nl], "upsample": config.upsample, "x_first": False}
        fin, downs = config.input_nc + config.nz, DOWNS[config.netG]
        super().__init__(fin, config.output_nc, config.ngf, downs, config.norm, rand, **options)

    def forward(self, images: Tensor, z: Tensor) -> Tensor:
        return super().forward(torch.cat([images, tiled(z, images)], 1))


class EncoderBlock(nn.Module):
    """Two convolutions behind norms and activations, and one of a pixel beside them, to half the size."""

    def __init__(self, fin: int, fout: int, norm: Norm) -> None:
        super().__init__()
        first, second = Conv2d(fin, fin, 3, padding=1), nn.Sequential(DownsampleConv2d(fin, fout))
        self.conv = sequence([norm_act(norm, fin, 0.2), None, first, norm_act(norm, fin, 0.2), None, second])
        self.shortcut = sequence([nn.AvgPool2d(2), nn.Conv2d(fin, fout, 1)])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.shortcut(x)


class Encoder(nn.Module):
    """Images to mean and log variance [N,nz] of their codes.

    The original's, of 8x8 pixels in the end, takes one size of images; the mean over whatever there is takes any.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        kind, (norm, nef) = config.netE.partition("_")[0], (config.norm, config.nef)
        widths = [nef * min(i, 4) for i in range(1, E_LAYERS[config.netE] + 1)]
        layers: list[nn.Module | None] = [nn.Conv2d(config.output_nc, nef, 4, 2, 1)]
        if kind == "resnet":
            layers += [EncoderBlock(fin, fout, norm) for fin, fout in pairwise(widths)]
            layers.append(activation(0.2))
        else:
            widths = [nef * min(2**i, 4) for i in range(len(widths))]
            layers.append(activation(0.2))
            for fin, fout in pairwise(widths):
                layers += [Conv2d(fin, fout, 4, 2, 1), norm_act(norm, fout, 0.2), None]
        self.conv = sequence(layers)
        self.fc, self.fcVar = (nn.Sequential(nn.Linear(widths[-1], config.nz)) for _ in range(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv(images).mean((2, 3))
        return self.fc(features), self.fcVar(features)


class Discriminator(nn.Module):
    """Patch discriminators of images at full size, at half, ..., each with half the width -> logits per scale."""

    def __init__(self, config: Config, kind: NetD) -> None:
        super().__init__()
        input_nc = config.output_nc + (config.input_nc if config.conditional_D else 0)
        for i in range(config.num_Ds):
            layers = patch_layers(input_nc, round(config.ndf / 2**i), D_LAYERS[kind], config.norm, bias=True)
            self.add_module(f"model_{i}", layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        nets = list(self.children())
        return [net(scale) for net, scale in zip(nets, pyramid(images, len(nets)), strict=True)]


class System(_system.System):
    """A step of generator and encoder, then one of the discriminators, which see fakes from before it.

    The first half of a batch is encoded: fakes of its a with the code of its b should be that b, and with a random code
    should have that code. The second half gives what is real to the discriminator of the latter.
    """

    Config = Config
    PRESETS = PRESETS
    data = "paired"
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rand = self.later_rand()
        make = CodedGenerator if config.where_add == "all" else InputCodedGenerator
        self.nets["G"] = make(config, rand if config.use_dropout else None)
        # Discriminator and weight of fakes with the code of an image, and of those with a random one.
        self.judges = {"D": ("D", config.lambda_GAN), "D2": ("D" if config.use_same_D else "D2", config.lambda_GAN2)}
        self.judges = {term: (name, weight) for term, (name, weight) in self.judges.items() if weight > 0}
        for name in dict.fromkeys(name for name, _ in self.judges.values()):
            self.nets[name] = Discriminator(config, getattr(config, f"net{name}"))
        self.nets["E"] = Encoder(config)
        self.gan = GAN_MODES[config.gan_mode]
        adam = Adam(config.lr, (config.beta1, 0.999))
        self.phases = [Phase("G", ("G", "E"), self.generator_loss, adam)]
        if self.judges:
            judges = tuple(name for name in self.nets if name.startswith("D"))
            self.phases.append(Phase("D", judges, self.discriminator_loss, adam))

    def init_weights(self) -> None:
        init_weights(self.nets, self.config.init_type, self.config.init_gain)

    def decay(self, epoch: int) -> float:
        """1, and from epoch niter on a line that reaches 0 behind the last one."""
        return max(0.0, 1 - max(0, epoch - self.config.niter) / (self.config.niter_decay + 1))

    def adversarial(self, logits: Sequence[Tensor], real: bool) -> Tensor:
        """Summed over scales."""
        return sum(self.gan(scale, real) for scale in logits)

    def encoded(self, images: Tensor) -> Tensor:
        """Codes [N,nz] of images of domain b, as translation takes them."""
        return self.nets["E"](images)[0]

    def fakes(self, a: Tensor, *codes: Tensor) -> tuple[Tensor, ...]:
        """Translations of the same images with each of some codes."""
        if self.config.per_sample and not self.config.use_dropout:
            return self.nets["G"](torch.cat([a] * len(codes)), torch.cat(codes)).chunk(len(codes))
        return tuple(self.nets["G"](a, z) for z in codes)

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        config, encoder = self.config, self.nets["E"]
        if len(batch["a"]) % 2:
            raise ValueError(f"batch of {len(batch['a'])} images: must be even, for its halves are used differently")
        (a, a_random), (b, b_random) = batch["a"].chunk(2), batch["b"].chunk(2)
        mu, logvar = encoder(b)
        z_encoded = mu + self.randn(mu.shape, mu) * (0.5 * logvar).exp()
        z_random = self.randn(mu.shape, mu)
        encoded, random = self.fakes(a, z_encoded, z_random)
        # Only the generator learns to keep random codes.
        frozen = {name: parameter.detach() for name, parameter in encoder.named_parameters()}
        mu2, _ = torch.func.functional_call(encoder, frozen, (random,))
        batch |= {"z_encoded": z_encoded, "fake_encoded": encoded, "fake_random": random, "mu2": mu2}
        batch |= {"mu": mu, "logvar": logvar}
        # What discriminators are to tell apart, fake and real.
        batch["judged"] = {"D": (encoded, b), "D2": (random, b_random)}
        if config.conditional_D:
            (fake, real), (fake2, real2) = batch["judged"].values()
            fake, real, fake2 = (torch.cat([a, images], 1) for images in (fake, real, fake2))
            batch["judged"] = {"D": (fake, real), "D2": (fake2, torch.cat([a_random, real2], 1))}

        gans = {"D": "G_GAN", "D2": "G_GAN2"}
        terms = {
            gans[term]: weight * self.adversarial(self.nets[name](batch["judged"][term][0]), True)
            for term, (name, weight) in self.judges.items()
        }
        terms["G_L1"] = config.lambda_L1 * F.l1_loss(encoded, b)
        terms["kl"] = config.lambda_kl * kl_divergence(mu, logvar)
        terms["z_L1"] = config.lambda_z * F.l1_loss(mu2, z_random)
        return terms

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        terms = {}
        for term, (name, _) in self.judges.items():
            fake, real = batch["judged"][term]
            fakes, reals = self.judge(self.nets[name], fake.detach(), real)
            terms[f"{term}_fake"] = self.adversarial(fakes, False)
            terms[f"{term}_real"] = self.adversarial(reals, True)
        return terms

    def judge(self, net: nn.Module, fake: Tensor, real: Tensor) -> Iterable[Sequence[Tensor]]:
        """Logits of fake and of real images, of both at once where samples are treated apart."""
        if self.config.per_sample:
            return zip(*(scale.chunk(2) for scale in net(torch.cat([fake, real]))), strict=True)
        return net(fake), net(real)

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": `a` [N,C,H,W] in domain b}, of any size: with the codes `z` [N,nz] if given, which may lie between
        those of images (`encoded`), else in the style of `b` if given, else with random codes."""
        images = batch["a"]
        h, w = images.shape[-2:]
        if "z" in batch:
            z = batch["z"]
        elif "b" in batch:
            z = self.encoded(batch["b"])
        else:
            z = self.randn((len(images), self.config.nz), images)
        return {"fake": self.nets["G"](pad_to(images, self.config.stride), z)[..., :h, :w]}

    def load_original(self, path: str | Path, epoch: str = "latest") -> None:
        """Load <epoch>_net_{G,D,D2,E}.pth of a checkpoint folder (all but G may be absent), or one such file."""
        load_nets(self.nets, path, epoch, optional=("D", "D2", "E"))
