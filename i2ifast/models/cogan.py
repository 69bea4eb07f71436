"""CoGAN: pairs of small grey images, one of each of two domains, drawn together though learned without pairs.

An image is translated by searching for the pair whose one half comes closest to it, by gradient descent on the code.
Images are those of digits, 28 x 28.

Liu, Tuzel. Coupled Generative Adversarial Networks. NeurIPS 2016.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import BatchNormAct

from . import _system
from ._originals import named
from ._system import Adam, Batch, Phase

SIZE = 28
CLASSES = 10


@dataclass
class Config:
    """Options of the original, and widths of its networks."""

    input_nc: ClassVar[int] = 1
    output_nc: ClassVar[int] = 1
    size: ClassVar[tuple[int, int]] = (SIZE, SIZE)

    variant: Literal["mnistedge", "mnist2usps"] = "mnistedge"  # the second learns a classifier and to adapt it as well
    latent_dims: int = 100
    gen_channels: tuple[int, int, int, int] = (1024, 512, 256, 128)
    dis_channels: tuple[int, int, int] = (20, 50, 500)
    mse_weight: float = 0.01  # of the difference of both halves' features
    cls_weight: float = 10.0
    lr: float = 2e-4

    def __post_init__(self) -> None:
        if self.variant not in ("mnistedge", "mnist2usps"):
            raise ValueError(f"variant {self.variant!r}: expected mnistedge or mnist2usps")

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values."""
        return cls(**named(cls, options))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "mnistedge":  dict(variant="mnistedge"),
    "mnist2usps": dict(variant="mnist2usps"),
    "tiny":       dict(variant="mnist2usps", latent_dims=8, gen_channels=(16, 8, 8, 8), dis_channels=(4, 8, 16)),
}
# fmt: on


class CoGen28x28(nn.Module):
    """Codes [N,latent_dims] to pairs of images [N,1,28,28] in [0, 1]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        fin = config.latent_dims
        for i, fout in enumerate(config.gen_channels):
            conv = nn.ConvTranspose2d(fin, fout, 3, 2, 1) if i else nn.ConvTranspose2d(fin, fout, 4)
            self.add_module(f"dconv{i}", conv)
            self.add_module(f"bn{i}", BatchNormAct(fout, "none", affine=False))
            self.add_module(f"prelu{i}", nn.PReLU())
            fin = fout
        self.dconv4_a, self.dconv4_b = (nn.ConvTranspose2d(fin, 1, 6, padding=1) for _ in range(2))

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        *shared, to_a, to_b = self.children()
        x = codes[..., None, None]
        for layer in shared:
            x = layer(x)
        return to_a(x).sigmoid(), to_b(x).sigmoid()


class CoDis28x28(nn.Module):
    """Images of both domains -> logits [2N,2] of (fake, real), and features [2N,C] in front of them, a before b."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        first, second, third = config.dis_channels
        self.conv0_a, self.conv0_b = nn.Conv2d(1, first, 5), nn.Conv2d(1, first, 5)
        self.conv1 = nn.Conv2d(first, second, 5)
        self.conv2 = nn.Conv2d(second, third, 4)
        self.prelu2 = nn.PReLU()
        self.conv3 = nn.Conv2d(third, 2, 1)
        if config.variant == "mnist2usps":
            self.conv_cl = nn.Conv2d(third, CLASSES, 1)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(torch.cat([self.conv0_a(a), self.conv0_b(b)]), 2)
        features = self.prelu2(self.conv2(F.max_pool2d(self.conv1(x), 2)))
        return self.conv3(features).flatten(1), features.flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        """Logits [N,10] of classes."""
        return self.conv_cl(features[..., None, None]).flatten(1)


class System(_system.System):
    """One generator and one discriminator of pairs; one discriminator step, then one generator step."""

    Config = Config
    PRESETS = PRESETS
    data = "unpaired"
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["gen"], self.nets["dis"] = CoGen28x28(config), CoDis28x28(config)
        adam = Adam(config.lr, (0.5, 0.999), weight_decay=5e-4)
        self.phases = [
            Phase("dis", ("dis",), self.discriminator_loss, adam),
            Phase("gen", ("gen",), self.generator_loss, adam),
        ]

    @property
    def data_settings(self) -> dict[str, Any]:
        """As they are."""
        return {"crop_size": SIZE, "preprocess_mode": "fixed", "flip": False, "one_size": True}

    def init_weights(self) -> None:
        """Xavier uniform with gain sqrt(2), biases 0.1."""
        for module in self.nets.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(module.weight, 2**0.5)
                nn.init.constant_(module.bias, 0.1)
            elif isinstance(module, nn.PReLU):
                nn.init.constant_(module.weight, 0.25)

    def draw(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """As many pairs as there are images."""
        return self.nets["gen"](self.randn((len(like), self.config.latent_dims), like))

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """With mnist2usps, `label_a` [N] of the batch are the classes of a; without them none are learned."""
        config, net, n = self.config, self.nets["dis"], len(batch["a"])
        with torch.no_grad():
            fakes = self.draw(batch["a"])
        pairs = (torch.cat([(batch[side] + 1) / 2, fake]) for side, fake in zip("ab", fakes, strict=True))
        logits, features = net(*pairs)
        (real_a, fake_a, real_b, fake_b), (known, one, _, other) = logits.split(n), features.split(n)
        terms = {
            "true": real_or_fake(torch.cat([real_a, real_b]), True),
            "fake": real_or_fake(torch.cat([fake_a, fake_b]), False),
        }
        if config.variant == "mnist2usps":
            terms["mse"] = config.mse_weight * (one - other).square().sum(1).mean()
            if "label_a" in batch:
                terms["cls"] = config.cls_weight * F.cross_entropy(net.classify(known), batch["label_a"])
        return terms

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        logits, _ = self.nets["dis"](*self.draw(batch["a"]))
        return {"fake": real_or_fake(logits, True)}

    def translate(
        self, batch: Batch, direction: Literal["AtoB", "BtoA"] = "AtoB", steps: int = 200
    ) -> dict[str, Tensor]:
        """{"fake": `a` [N,1,28,28] in domain b, three times the same channel}, or `b` in domain a.

        It is the other half of the pair that `steps` of Adam find for the image.
        """
        source = "AB".index(direction[0])
        images = batch["ab"[source]]
        if images.shape[1:] != (1, SIZE, SIZE):
            raise ValueError(f"images of {list(images.shape[1:])}: this system takes [1, {SIZE}, {SIZE}] only")
        found = self.invert((images + 1) / 2, source, steps)
        with torch.no_grad():
            return {"fake": 2 * self.nets["gen"](found)[1 - source].expand(-1, 3, -1, -1) - 1}

    @torch.inference_mode(False)  # pipelines are in it
    def invert(self, images: Tensor, half: int, steps: int) -> Tensor:
        """Codes of pairs whose half 0 (a) or 1 (b) is close to the images in [0, 1]."""
        images = images.clone()  # outside of inference mode
        codes = self.randn((len(images), self.config.latent_dims), images).requires_grad_()
        adam = torch.optim.Adam([codes], lr=0.05)
        for _ in range(steps):
            error = (self.nets["gen"](codes)[half] - images).square().sum()
            (codes.grad,) = torch.autograd.grad(error, [codes])
            adam.step()
        return codes.detach()

    def load_original(self, path: str | Path) -> None:
        """ValueError: there are no such files."""
        raise ValueError(f"{path}: the original's code for these images writes no checkpoints")


def real_or_fake(logits: Tensor, real: bool) -> Tensor:
    """Cross entropy of logits [N,2] with class 1 for real, 0 for fake."""
    return F.cross_entropy(logits, torch.full((len(logits),), int(real), device=logits.device))
