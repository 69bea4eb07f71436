"""pix2pix: paired translation by a conditional GAN.

Isola, Zhu, Zhou, Efros. Image-to-Image Translation with Conditional Adversarial Networks. CVPR 2017.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _system
from ._blocks import pad_to
from ._cyclegan import GAN_MODES, NetG, Norm, SharedConfig, as_trained, each, init_weights
from ._originals import load_nets
from ._system import Adam, Batch, Phase


@dataclass
class Config(SharedConfig):
    """Options of the original, under its names."""

    netG: NetG = "unet_256"
    norm: Norm = "batch"
    dropout: bool = True  # the generator's only noise
    gan_mode: Literal["lsgan", "vanilla", "wgangp"] = "vanilla"
    lambda_L1: float = 100.0
    eval: bool = False  # translate with running statistics and without dropout, which is not how it was published


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "facades":     dict(direction="BtoA", n_epochs=100, n_epochs_decay=100),
    "maps":        dict(direction="AtoB", n_epochs=100, n_epochs_decay=100),
    "edges2shoes": dict(direction="AtoB", n_epochs=15,  n_epochs_decay=0, load_size=256),
    "day2night":   dict(direction="AtoB", n_epochs=17,  n_epochs_decay=0),
    "tiny":        dict(direction="AtoB", netG="unet_128", crop_size=128, load_size=143, ngf=4, ndf=4),
}
# fmt: on


class System(_system.System):
    """A discriminator step, then a generator step against the discriminator that it leaves, on the same fakes."""

    Config = Config
    PRESETS = PRESETS
    data = "paired"
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rand = self.later_rand()
        self.nets["G"] = config.generator(config.input_nc, config.output_nc, rand)
        self.nets["D"] = config.discriminator(config.input_nc + config.output_nc)
        self.gan = GAN_MODES[config.gan_mode]
        adam = Adam(config.lr, (config.beta1, 0.999))
        self.phases = [
            Phase("D", ("D",), self.discriminator_loss, adam),
            Phase("G", ("G",), self.generator_loss, adam),
        ]

    def init_weights(self) -> None:
        init_weights(self.nets, self.config.init_type, self.config.init_gain)

    def decay(self, epoch: int) -> float:
        return self.config.decay(epoch)

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        self.nets["G"].requires_grad_(True)  # its step takes the fakes with their graph
        batch["fake"] = self.nets["G"](batch["a"])
        pairs = (torch.cat([batch["a"], b], 1) for b in (batch["fake"].detach(), batch["b"]))
        fake, real = each(self.nets["D"], self.config.per_sample, *pairs)
        return {"D_fake": self.gan(fake, False) / 2, "D_real": self.gan(real, True) / 2}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        fake = batch["fake"]
        logits = self.nets["D"](torch.cat([batch["a"], fake], 1))
        return {"G_GAN": self.gan(logits, True), "G_L1": self.config.lambda_L1 * F.l1_loss(fake, batch["b"])}

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": `a` [N,C,H,W] in domain b}, of any size.

        Each image by itself with its own statistics, and with dropout: as in training, unless `eval`.
        """
        generator, (h, w) = self.nets["G"], batch["a"].shape[-2:]
        with nullcontext() if self.config.eval else as_trained(generator):
            return {"fake": generator(pad_to(batch["a"], self.config.stride))[..., :h, :w]}

    def load_original(self, path: str | Path, epoch: str = "latest") -> None:
        """Load <epoch>_net_{G,D}.pth of a checkpoint folder (D may be absent), or one such file."""
        load_nets(self.nets, path, epoch, optional=("D",))
