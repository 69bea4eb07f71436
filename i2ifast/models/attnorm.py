"""Attentive normalisation: holes of images filled by normalising within regions that are learned.

Wang, Chen, Zhang, Jia. Attentive Normalization for Conditional Image Generation. CVPR 2020.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from i2ifast.nn.losses import input_gradient
from i2ifast.nn.vgg import VGG, caffe, read_state

from . import _system
from ._attnorm import Confidence, Generator, GlobalDiscriminator, PatchDiscriminator, id_mrf
from ._blocks import pad_to
from ._system import Adam, Batch, Phase, every

STRIDE = 4  # of the encoder
LAYERS = {"relu3_2": 1.0, "relu4_2": 2.0}  # of VGG19, and their weights: the second is for style and for content


@dataclass
class Config:
    """Options of the original, under its names."""

    g_cnum: int = 32
    d_cnum: int = 64
    num_regions: int = 16
    size: tuple[int, int] = (256, 256)  # of training images
    pretrain_l1_alpha: float = 1.2
    l1_loss_alpha: float = 1.4  # of differences in holes, and of the Markov random field
    ae_loss_alpha: float = 1.2  # of differences outside
    mrf_alpha: float = 0.05
    orth_loss_alpha: float = 0.2
    gan_loss_alpha: float = 1e-3
    wgan_gp_lambda: float = 10.0
    D_max_iters: int = 5  # discriminator steps per generator step
    vgg_weights: str = ""  # file with VGG19 weights; without one there is no Markov random field
    lr: float = 1e-5

    def __post_init__(self) -> None:
        if any(side % STRIDE for side in self.size):
            raise ValueError(f"images of {self.size[0]}x{self.size[1]} pixels: both must be multiples of {STRIDE}")
        if self.D_max_iters < 1:
            raise ValueError(f"D_max_iters {self.D_max_iters}: must be at least 1")

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's options; names that are no options of the networks or their training are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in options.items() if name in known})


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "paris_streetview": dict(),
    "tiny":             dict(g_cnum=8, d_cnum=8, num_regions=4, size=(64, 64), D_max_iters=2),
}
# fmt: on


class System(_system.System):
    """Generator, and discriminators of whole images and of patches at holes; an iteration is a discriminator step.

    Batches are {image [N,3,H,W] in [-1, 1], mask [N,1,H,W], 1 in holes}. Of the published training this is the one of
    free-form holes; that of rectangles calls a layer which was not released. The orthogonality term is signed, as
    published.
    """

    Config = Config
    PRESETS = PRESETS
    data = "inpainting"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["G"] = Generator(config.g_cnum, config.num_regions)
        self.nets["D_global"] = GlobalDiscriminator(config.size, config.d_cnum)
        self.nets["D_patch"] = PatchDiscriminator(config.d_cnum)
        self.fixed["confidence"] = Confidence()
        if config.vgg_weights:
            self.fixed["VGG"] = VGG(config.vgg_weights, tuple(LAYERS), lambda images: caffe((images + 1) / 2))
        adam = Adam(config.lr, (0.5, 0.9))
        turn = every(config.D_max_iters, config.D_max_iters - 1)
        self.phases = [
            Phase("D", ("D_global", "D_patch"), self.discriminator_loss, adam),
            Phase("G", ("G",), self.generator_loss, adam, when=turn),
        ]

    @property
    def data_settings(self) -> dict[str, Any]:
        """Images of the size, with free-form holes."""
        height, width = self.config.size
        return {"crop_size": width, "aspect_ratio": width / height}

    def init_weights(self) -> None:
        """Glorot's uniform weights, zero biases; layouts from normal filters, and no attention at first."""
        for module in self.nets.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        attentive = self.nets["G"].sn
        nn.init.normal_(attentive.semantic.weight)
        nn.init.constant_(attentive.alpha, 0.1)
        nn.init.zeros_(attentive.sigma)

    def generate(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coarse and fine images, and the orthogonality term; keys are sampled at positions drawn here."""
        pixels = (image.size(2) // STRIDE) * (image.size(3) // STRIDE)
        positions = self.randint(pixels, (self.config.num_regions,), image)
        coarse, fine, _, orthogonality = self.nets["G"](image, mask, positions)
        return coarse, fine, orthogonality

    @staticmethod
    def merged(fine: Tensor, batch: Batch) -> Tensor:
        """The image with its holes filled."""
        return fine * batch["mask"] + batch["image"] * (1 - batch["mask"])

    def judges(self, mask: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
        """Both discriminators, as functions of some images for every mask, one behind the other."""

        def of_patches(images: Tensor) -> Tensor:
            return self.nets["D_patch"].scores(images, mask.repeat(len(images) // len(mask), 1, 1, 1))

        return {"global": self.nets["D_global"], "patch": of_patches}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Wasserstein distances, and penalties on gradients within holes at random mixtures of real and fake."""
        real, mask = batch["image"], batch["mask"]
        with torch.no_grad():
            fake = self.merged(self.generate(real, mask)[1], batch)
        terms = {}
        for name, judge in self.judges(mask).items():
            between = torch.lerp(real, fake, self.rand((len(real), 1, 1, 1), real)).requires_grad_()
            of_real, of_fake, of_between = judge(torch.cat([real, fake, between])).chunk(3)
            terms[f"D_{name}"] = of_fake.mean() - of_real.mean()
            slopes = input_gradient(of_between, between).view_as(between).square() * mask
            # An empty hole has no slope, and the root of 0 no derivative.
            norms = slopes.sum((1, 2, 3)).clamp(min=1e-12).sqrt()
            terms[f"GP_{name}"] = self.config.wgan_gp_lambda * (norms - 1).square().mean()
        return terms

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        config, real, mask = self.config, batch["image"], batch["mask"]
        coarse, fine, orthogonality = self.generate(real, mask)
        weights = self.fixed["confidence"](mask)
        differences = (coarse - real).abs() + (fine - real).abs()
        hole = config.l1_loss_alpha * config.pretrain_l1_alpha
        outside = config.ae_loss_alpha * config.pretrain_l1_alpha
        terms = {
            "L1": hole * (differences * weights).mean(),
            "AE": outside * (differences * (1 - mask)).mean() / (1 - mask).mean().clamp(min=1e-6),
            "orth": config.orth_loss_alpha * orthogonality,
        }
        fake = self.merged(fine, batch)
        for name, judge in self.judges(mask).items():
            terms[f"GAN_{name}"] = -config.gan_loss_alpha * judge(fake).mean()
        if "VGG" in self.fixed:
            with torch.no_grad():
                targets = self.fixed["VGG"](real)
            found = zip(LAYERS.values(), self.fixed["VGG"](fake), targets, strict=True)
            distance = torch.stack([weight * id_mrf(*features).mean() for weight, *features in found]).sum()
            terms["MRF"] = config.l1_loss_alpha * config.mrf_alpha * distance
        return terms

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,H,W]} of any size: the image with its holes filled."""
        h, w = batch["image"].shape[-2:]
        padded = {name: pad_to(batch[name], STRIDE) for name in ("image", "mask")}
        fine = self.generate(padded["image"], padded["mask"])[1]
        return {"fake": self.merged(fine, padded)[..., :h, :w]}

    def load_original(self, path: str | Path) -> None:
        """Load the generator's variables, by their TensorFlow names, from a .safetensors or torch file of them.

        The discriminator of patches is loaded where the file has it. ValueError for variables that are missing.
        """
        variables = read_state(path)
        try:
            self.nets["G"].load_tensorflow(variables)
            if any(name.startswith(PatchDiscriminator.scope) for name in variables):
                self.nets["D_patch"].load_tensorflow(variables)
        except KeyError as error:
            raise ValueError(f"{path} has no variable {error.args[0]}") from error
