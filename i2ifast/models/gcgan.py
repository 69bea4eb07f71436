"""GcGAN: translation one way without pairs, which has to commute with a rotation or a flip of the image.

Fu, Gong, Wang, Batmanghelich, Zhang, Tao. Geometry-Consistent Generative Adversarial Networks for One-Sided
Unsupervised Domain Mapping. CVPR 2019.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _system
from ._blocks import pad_to, reset
from ._config import check_choices
from ._cyclegan import BLOCKS, DOWNS, NLayerDiscriminator, generator
from ._losses import cross_entropy, least_squares
from ._originals import load_nets, named, require
from ._pool import ImagePool
from ._system import Adam, Batch, Phase

# A map of images and its inverse: 90 degrees clockwise and back, or upside down.
GEOMETRIES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "rot": (lambda x: x.rot90(-1, (2, 3)), lambda x: x.rot90(1, (2, 3))),
    "vf": (lambda x: x.flip(2), lambda x: x.flip(2)),
}


@dataclass
class Config:
    """Options of the original, its `no_dropout` and `no_lsgan` turned positive."""

    model: Literal["gc_gan_share", "gc_gan_cross"] = "gc_gan_share"  # one generator for images as they are and turned
    geometry: Literal["rot", "vf"] = "rot"
    which_model_netG: Literal["resnet_6blocks", "resnet_9blocks", "unet_128", "unet_256"] = "resnet_9blocks"
    input_nc: int = 3
    output_nc: int = 3
    ngf: int = 64
    ndf: int = 64
    n_layers_D: int = 3
    dropout: bool = True
    lsgan: bool = True  # least squares; else cross entropy
    fineSize: int = 256
    loadSize: int = 288
    lambda_AB: float = 10.0
    lambda_gc: float = 2.0
    lambda_G: float = 1.0
    identity: float = 0.5
    pool_size: int = 50
    lr: float = 2e-4
    beta1: float = 0.5
    niter: int = 100  # epochs with the full learning rate
    niter_decay: int = 100  # and of a line towards zero

    def __post_init__(self) -> None:
        models = ("gc_gan_share", "gc_gan_cross")
        check_choices(self, model=models, geometry=GEOMETRIES, which_model_netG=BLOCKS | DOWNS)
        if self.fineSize % self.stride:
            raise ValueError(f"fineSize {self.fineSize}: {self.which_model_netG} takes multiples of {self.stride}")
        if self.identity and self.input_nc != self.output_nc:
            raise ValueError(f"identity {self.identity}: needs as many channels of both domains")

    @property
    def stride(self) -> int:
        """Image sizes that the generator takes are multiples of it."""
        return 4 if self.which_model_netG in BLOCKS else 1 << DOWNS[self.which_model_netG]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of training images."""
        return self.fineSize, self.fineSize

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values; ValueError for a network this system does not have."""
        require(options, which_model_netD="basic", norm="instance", lr_policy="lambda")
        positive = {name: not options[f"no_{name}"] for name in ("dropout", "lsgan") if f"no_{name}" in options}
        return cls(**positive, **named(cls, options))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "default":       dict(),
    "city2parsing":  dict(which_model_netG="resnet_6blocks", fineSize=128, loadSize=144, identity=0.5),
    "parsing2city":  dict(which_model_netG="resnet_6blocks", fineSize=128, loadSize=144, identity=0.3),
    "tiny":          dict(which_model_netG="resnet_6blocks", fineSize=32,  loadSize=36,  ngf=4, ndf=4, n_layers_D=2,
                          pool_size=4),
}
# fmt: on


class System(_system.System):
    """A generator, or one for images as they are and one for turned ones, and a discriminator of each of these.

    One step of the generators, then one of the discriminators on what these made. In evaluation there is no dropout;
    the original leaves it on.
    """

    Config = Config
    PRESETS = PRESETS
    data = "unpaired"
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rand = self.later_rand() if config.dropout else None
        for name in ("netG_AB", "netG_gc_AB") if config.model == "gc_gan_cross" else ("netG_AB",):
            channels = config.input_nc, config.output_nc
            self.nets[name] = generator(config.which_model_netG, *channels, config.ngf, "instance", rand)
        for name in ("netD_B", "netD_gc_B"):
            self.nets[name] = NLayerDiscriminator(config.output_nc, config.ndf, config.n_layers_D, "instance")
        self.pool, self.gc_pool = ImagePool(config.pool_size), ImagePool(config.pool_size)
        self.gan = least_squares if config.lsgan else cross_entropy
        self.turn, self.turn_back = GEOMETRIES[config.geometry]
        adam = Adam(config.lr, (config.beta1, 0.999))
        makers = tuple(name for name in self.nets if name.startswith("netG"))
        self.phases = [
            Phase("G", makers, self.generator_loss, adam),
            Phase("D", ("netD_B", "netD_gc_B"), self.discriminator_loss, adam),
        ]

    @property
    def data_settings(self) -> dict[str, Any]:
        return {"crop_size": self.config.fineSize, "load_size": self.config.loadSize}

    def init_weights(self) -> None:
        """Xavier normal with gain 0.02; biases as PyTorch's layers have them."""
        reset(self.nets)
        for module in self.nets.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_normal_(module.weight, 0.02)

    def decay(self, epoch: int) -> float:
        """1 until the epoch `niter` - 1, then a line to 0."""
        return max(0.0, 1 - max(0, epoch + 1 - self.config.niter) / (self.config.niter_decay + 1))

    def generate(self, images: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N,C,H,W] and turned ones in domain B; a generator that they share runs once."""
        if "netG_gc_AB" in self.nets:
            return self.nets["netG_AB"](images), self.nets["netG_gc_AB"](turned)
        return self.nets["netG_AB"](torch.cat([images, turned])).chunk(2)

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        config, n = self.config, len(batch["a"])
        # with a weight for the identity, images of B are to stay what they are
        images = torch.cat([batch["a"], batch["b"]]) if config.identity else batch["a"]
        turned = self.turn(images)
        made, made_gc = self.generate(images, turned)
        fake, fake_gc = batch["fake"], batch["fake_gc"] = made[:n], made_gc[:n]
        consistency = F.l1_loss(fake, self.turn_back(fake_gc.detach())) + F.l1_loss(fake_gc, self.turn(fake.detach()))
        terms = {
            "G_AB": config.lambda_G * self.gan(self.nets["netD_B"](fake), True),
            "G_gc_AB": config.lambda_G * self.gan(self.nets["netD_gc_B"](fake_gc), True),
            "gc": config.lambda_AB * config.lambda_gc * consistency,
        }
        if config.identity:
            weight = config.lambda_AB * config.identity
            terms["idt"] = weight * F.l1_loss(made[n:], images[n:])
            terms["idt_gc"] = weight * F.l1_loss(made_gc[n:], turned[n:])
        return terms

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        reals = {"B": batch["b"], "gc_B": self.turn(batch["b"])}
        fakes = {"B": self.pool.query(batch["fake"].detach(), self.rand, self.randint),
                 "gc_B": self.gc_pool.query(batch["fake_gc"].detach(), self.rand, self.randint)}  # fmt: skip
        terms = {}
        for name, real in reals.items():
            judged, judged_fake = self.nets[f"netD_{name}"](torch.cat([real, fakes[name]])).chunk(2)
            terms[f"D_{name}"] = 0.5 * (self.gan(judged, True) + self.gan(judged_fake, False))
        return terms

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": `a` [N,C,H,W] in domain b}."""
        h, w = batch["a"].shape[-2:]
        fake = self.nets["netG_AB"](pad_to(batch["a"], self.config.stride))
        return {"fake": fake[..., :h, :w]}

    def load_original(self, path: str | Path, epoch: str = "latest") -> None:
        """Load <epoch>_net_{G_AB,G_gc_AB,D_B,D_gc_B}.pth of a folder, all but the first if they are there, or one file.

        The original's files of G_gc_AB hold the weights of G_AB: it never saves those of the other generator.
        """
        nets = nn.ModuleDict({name.removeprefix("net"): net for name, net in self.nets.items()})
        load_nets(nets, path, epoch, optional=("D_B", "D_gc_B", "G_gc_AB"))
