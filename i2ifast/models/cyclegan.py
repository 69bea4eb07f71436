"""CycleGAN: unpaired translation both ways, held together by the images that come back.

Zhu, Park, Isola, Efros. Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks. ICCV 2017.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _system
from ._blocks import pad_to
from ._cyclegan import GAN_MODES, SharedConfig, each, init_weights
from ._originals import load_file, load_nets
from ._pool import ImagePool
from ._system import Adam, Batch, Phase

ALONE = ("G", "G_A", "G_B")  # networks of which one file may be the only one


@dataclass
class Config(SharedConfig):
    """Options of the original, under its names."""

    pool_size: int = 50  # fakes from which discriminators learn
    lambda_A: float = 10.0  # of a -> b -> a
    lambda_B: float = 10.0
    lambda_identity: float = 0.5  # of images of a generator's own output domain, relative to lambda_A and lambda_B

    def __post_init__(self) -> None:
        if self.lambda_identity > 0 and self.input_nc != self.output_nc:
            channels = f"input_nc {self.input_nc} and output_nc {self.output_nc}"
            raise ValueError(f"{channels}: with lambda_identity both domains must have the same channels")
        super().__post_init__()


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "horse2zebra": dict(netG="resnet_9blocks", crop_size=256, load_size=286),
    "small":       dict(netG="resnet_6blocks", crop_size=128, load_size=143),
    "tiny":        dict(netG="resnet_6blocks", crop_size=64,  load_size=72, ngf=4, ndf=4),
}
# fmt: on


class System(_system.System):
    """Two generators, then two discriminators; G_A makes b of a, and D_A, which judges it, belongs to domain b.

    The discriminators see fakes from before the generators' step, or older ones of a pool.
    """

    Config = Config
    PRESETS = PRESETS
    data = "unpaired"
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rand = self.later_rand()
        self.nets["G_A"] = config.generator(config.input_nc, config.output_nc, rand)
        self.nets["G_B"] = config.generator(config.output_nc, config.input_nc, rand)
        self.nets["D_A"], self.nets["D_B"] = map(config.discriminator, (config.output_nc, config.input_nc))
        self.pools = torch.nn.ModuleDict({name: ImagePool(config.pool_size) for name in ("fake_B", "fake_A")})
        self.gan = GAN_MODES[config.gan_mode]
        adam = Adam(config.lr, (config.beta1, 0.999))
        self.phases = [
            Phase("G", ("G_A", "G_B"), self.generator_loss, adam),
            Phase("D", ("D_A", "D_B"), self.discriminator_loss, adam),
        ]

    def init_weights(self) -> None:
        init_weights(self.nets, self.config.init_type, self.config.init_gain)

    def decay(self, epoch: int) -> float:
        return self.config.decay(epoch)

    def images(self, batch: Batch) -> dict[str, Tensor]:
        """Fakes and reconstructions of both domains and, for identity losses, what generators make of their own."""
        to_b, to_a, a, b = self.nets["G_A"], self.nets["G_B"], batch["a"], batch["b"]
        if self.config.lambda_identity == 0:
            fake_b = to_b(a)
            rec_a, fake_a = to_a(fake_b), to_a(b)
            return {"fake_B": fake_b, "rec_A": rec_a, "fake_A": fake_a, "rec_B": to_b(fake_a)}
        if self.config.per_sample:
            (fake_b, idt_a), (fake_a, idt_b) = each(to_b, True, a, b), each(to_a, True, b, a)
            rec_a, rec_b = to_a(fake_b), to_b(fake_a)
        else:  # in the original's order, which running statistics follow
            fake_b = to_b(a)
            rec_a, fake_a = to_a(fake_b), to_a(b)
            rec_b, idt_a, idt_b = to_b(fake_a), to_b(b), to_a(a)
        return {"fake_B": fake_b, "rec_A": rec_a, "fake_A": fake_a, "rec_B": rec_b, "idt_A": idt_a, "idt_B": idt_b}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        config, a, b = self.config, batch["a"], batch["b"]
        batch |= self.images(batch)
        terms = {
            "G_A": self.gan(self.nets["D_A"](batch["fake_B"]), True),
            "G_B": self.gan(self.nets["D_B"](batch["fake_A"]), True),
            "cycle_A": config.lambda_A * F.l1_loss(batch["rec_A"], a),
            "cycle_B": config.lambda_B * F.l1_loss(batch["rec_B"], b),
        }
        if config.lambda_identity > 0:
            terms["idt_A"] = config.lambda_identity * config.lambda_B * F.l1_loss(batch["idt_A"], b)
            terms["idt_B"] = config.lambda_identity * config.lambda_A * F.l1_loss(batch["idt_B"], a)
        return terms

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        terms = {}
        for name, fake, side in (("D_A", "fake_B", "b"), ("D_B", "fake_A", "a")):
            pooled = self.pools[fake].query(batch[fake].detach(), self.rand, self.randint)
            real, fake = each(self.nets[name], self.config.per_sample, batch[side], pooled)
            terms[name] = (self.gan(real, True) + self.gan(fake, False)) / 2
        return terms

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": `a` [N,C,H,W] in domain b or, of a batch without a, `b` in domain a}, of any size."""
        side, name = ("a", "G_A") if "a" in batch else ("b", "G_B")
        h, w = batch[side].shape[-2:]
        return {"fake": self.nets[name](pad_to(batch[side], self.config.stride))[..., :h, :w]}

    def load_original(self, path: str | Path, epoch: str = "latest") -> None:
        """Load <epoch>_net_{G_A,G_B,D_A,D_B}.pth of a checkpoint folder (D_A and D_B may be absent), or one such file.

        <epoch>_net_G.pth of published models, in a folder or alone, and any other single generator become G_A, which
        is the one that translates.
        """
        path = Path(path)
        alone = path / f"{epoch}_net_G.pth" if path.is_dir() else path
        if alone.is_file() and alone.stem.rpartition("_net_")[2] in ALONE:
            load_file(self.nets["G_A"], alone)
        else:
            load_nets(self.nets, path, epoch, optional=("D_A", "D_B"))
