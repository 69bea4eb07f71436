"""Region normalisation: images with holes to whole ones.

Yu, Guo, Jin, Wu, Chen, Li, Zhang, Liu. Region Normalization for Image Inpainting. AAAI 2020.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import RN_B, RN_L, spectral_norm
from i2ifast.nn.conv import Conv2d

from . import _system
from ._blocks import pad_to
from ._losses import cross_entropy
from ._originals import load_nets, named
from ._system import Adam, Batch, Phase

STRIDE = 4  # of the encoder


@dataclass
class Config:
    """Options of the original, under its names; `width_divisor` makes a smaller network of the same form."""

    threshold: float = 0.8  # of the residual blocks' region maps; the decoder's are at 0.8 whatever this is
    residual_blocks: int = 8
    lr: float = 1e-4
    lr_d: float = 1e-5
    gan_weight: float = 0.1
    l1_weight: float = 1.0
    decay_rate: float = 0.8  # of the learning rates, per epoch
    size: tuple[int, int] = (256, 256)  # of training images
    width_divisor: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold {self.threshold}: expected a number between 0 and 1")
        if 64 % self.width_divisor:
            raise ValueError(f"width_divisor {self.width_divisor}: expected a divisor of 64")

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's options; names that are no options of the networks or their training are left out."""
        return cls(**named(cls, options))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "places2": dict(),
    "tiny":    dict(residual_blocks=1, width_divisor=8, size=(64, 64)),
}
# fmt: on


class ResnetBlock(nn.Module):
    """x + RN_L(conv(relu(RN_L(dilated conv(x))))), with reflection padding."""

    def __init__(self, channels: int, threshold: float) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(2),
            nn.Conv2d(channels, channels, 3, dilation=2),
            RN_L(channels, threshold, act="relu"),
            nn.Identity(),  # where the original has its activations, so that keys have its numbers
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            RN_L(channels, threshold),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Generator(nn.Module):
    """Images [N,3,H,W] in [0, 1] and masks [N,1,H,W] of holes (1) to images in [0, 1]; H, W multiples of 4."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        a, b, c = (width // config.width_divisor for width in (64, 128, 256))
        self.encoder_prePad = nn.ReflectionPad2d(3)
        self.encoder_conv1, self.encoder_in1 = nn.Conv2d(3, a, 7), RN_B(a, "relu")
        self.encoder_conv2, self.encoder_in2 = Conv2d(a, b, 4, 2, 1), RN_B(b, "relu")
        self.encoder_conv3, self.encoder_in3 = Conv2d(b, c, 4, 2, 1), RN_B(c, "relu")
        self.middle = nn.Sequential(*(ResnetBlock(c, config.threshold) for _ in range(config.residual_blocks)))
        self.decoder = nn.Sequential(
            Conv2d(c, 4 * b, 3, padding=1), nn.PixelShuffle(2), RN_L(b, act="relu"), nn.Identity(),
            Conv2d(b, 4 * a, 3, padding=1), nn.PixelShuffle(2), RN_L(a, act="relu"), nn.Identity(),
            nn.ReflectionPad2d(3), nn.Conv2d(a, 3, 7),
        )  # fmt: skip

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """What is in the holes is not looked at: they are white."""
        x = self.encoder_prePad(images * (1 - mask) + mask)
        for i in (1, 2, 3):
            x = self.get_submodule(f"encoder_in{i}")(self.get_submodule(f"encoder_conv{i}")(x), mask)
        return (torch.tanh(self.decoder(self.middle(x))) + 1) / 2


class Discriminator(nn.Module):
    """Images [N,3,H,W] in [0, 1] to logits of patches [N,1,H',W'].

    The original returns their sigmoid and takes its cross entropy: the same loss.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [3, *(width // config.width_divisor for width in (64, 128, 256, 512)), 1]
        for i, (fin, fout, stride) in enumerate(zip(widths, widths[1:], (2, 2, 2, 1, 1), strict=False), 1):
            layers = [spectral_norm(Conv2d(fin, fout, 4, stride, 1, bias=False))]
            self.add_module(f"conv{i}", nn.Sequential(*layers, *[nn.LeakyReLU(0.2, inplace=True)] * (i < 5)))

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.children():
            images = layer(images)
        return images


class System(_system.System):
    """Generator and discriminator; one discriminator step, then one generator step, on the same prediction.

    Batches are {image [N,3,H,W] in [-1, 1], mask [N,1,H,W], 1 in holes}. As in the original, the discriminator also
    steps along the gradient that the generator's loss of the iteration before had in its parameters. That gradient is
    no part of a checkpoint: the first step after a resumption goes without it.
    """

    Config = Config
    PRESETS = PRESETS
    data = "inpainting"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["G"], self.nets["D"] = Generator(config), Discriminator(config)
        self.phases = [
            Phase("D", ("D",), self.discriminator_loss, Adam(config.lr_d, (0.0, 0.9))),
            Phase("G", ("G",), self.generator_loss, Adam(config.lr, (0.0, 0.9))),
        ]
        self._carried: dict[str, Tensor] = {}  # copies of the discriminator's parameters, with that gradient

    @property
    def data_settings(self) -> dict[str, Any]:
        """Images of the size."""
        height, width = self.config.size
        return {"crop_size": width, "aspect_ratio": width / height}

    def init_weights(self) -> None:
        """Generator: a tenth of Kaiming's normal, biases of unit variance, as published. Discriminator: torch's."""
        for module in self.nets["G"].modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                with torch.no_grad():
                    module.weight.mul_(0.1)
                if module.bias is not None:
                    nn.init.normal_(module.bias, 1e-4)
        for parameter in self.nets["D"].parameters():
            nn.init.kaiming_uniform_(parameter, 5**0.5)

    def decay(self, epoch: int) -> float:
        return self.config.decay_rate ** (epoch - 1)

    def prepare(self, batch: Batch) -> Batch:
        """Add `truth`, the image in [0, 1]."""
        return {**batch, "truth": (batch["image"] + 1) / 2}

    def predict(self, batch: Batch) -> Tensor:
        """The generator's prediction with its graph, also while the generator is frozen."""
        trained = next(self.nets["G"].parameters()).requires_grad
        self.nets["G"].requires_grad_(True)
        fake = self.nets["G"](batch["truth"], batch["mask"])
        self.nets["G"].requires_grad_(trained)
        return fake

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        batch["fake"] = self.predict(batch)  # for the generator's step too, before which it does not change
        fake, discriminate = batch["fake"].detach(), self.nets["D"]
        real = cross_entropy(discriminate(batch["truth"]), True)
        terms = {"D_real": real / 2, "D_fake": cross_entropy(discriminate(fake), False) / 2}
        carried = {name: copy.grad for name, copy in self._carried.items() if copy.grad is not None}
        if carried:  # zero, with the carried gradient
            zeros = {name: p - p.detach() for name, p in discriminate.named_parameters()}
            terms["D_carried"] = torch.stack([(zeros[name] * carried[name]).sum() for name in carried]).sum()
        return terms

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        mask, truth = batch["mask"], batch["truth"]
        fake = batch.pop("fake", None)
        if fake is None or fake.requires_grad != torch.is_grad_enabled():
            fake = self.predict(batch)
        parameters = {k: p.detach().clone().requires_grad_() for k, p in self.nets["D"].named_parameters()}
        if torch.is_grad_enabled():
            self._carried = parameters
        logits = torch.func.functional_call(self.nets["D"], parameters, (fake,))
        merged = fake * mask + truth * (1 - mask)
        return {
            "GAN": self.config.gan_weight * cross_entropy(logits, True),
            "L1": self.config.l1_weight * F.l1_loss(merged, truth) / mask.mean(),
        }

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,H,W]} of any size: the image with its holes filled."""
        h, w = batch["image"].shape[-2:]
        image, mask = (pad_to(batch[name], STRIDE) for name in ("image", "mask"))
        fake = 2 * self.nets["G"]((image + 1) / 2, mask) - 1
        return {"fake": (fake * mask + image * (1 - mask))[..., :h, :w]}

    def load_original(self, path: str | Path, epoch: str = "latest") -> None:
        """Load <epoch>_net_{G,D}.pth of a checkpoint folder (D may be absent), or one such file."""
        load_nets(self.nets, path, epoch, optional=("D",))
