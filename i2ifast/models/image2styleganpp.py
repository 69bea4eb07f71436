"""Image2StyleGAN++: an image, or parts of two, as latents and noise of a trained StyleGAN, to edit it there.

Abdal, Qin, Wonka. Image2StyleGAN++: How to Edit the Embedded Images? CVPR 2020.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from i2ifast.nn.vgg import VGG, read_state

from . import _system
from ._config import check_choices
from ._originals import load_strictly, named
from ._stylegan import Mapping, Synthesis
from ._system import Adam, Batch, Phase

FEATURES = ("relu1_1", "relu1_2", "relu3_2", "relu4_2")  # of VGG16
STYLE = 2  # the one of them whose distance is of style
BLUR = 5  # pixels per side of the box that masks are blurred with


@dataclass
class Config:
    """Options of the reimplementation that cases are recorded from, under its names; there is no official code."""

    generator: str = ""  # file with the weights of a StyleGAN; without one they are random, and always the same
    vgg_weights: str = ""  # file with VGG16 weights; without one there are no perceptual and style terms
    resolution: int = 1024
    fmap_base: int = 8192
    fmap_max: int = 512
    dlatent_size: int = 512
    mapping_layers: int = 8  # of which the mean style is made
    init: Literal["zeros", "mean"] = "zeros"  # style to start from
    mask: str = ""  # file of a mask, white in what is taken from the image; without one all is
    reference: str = ""  # file of an image that the rest is taken from; without one nothing is asked of the rest
    edit: Literal["crossover", "style"] = "crossover"  # whether styles make the rest alike, or of the same style
    blur_mask: bool = True
    scale: float = 0.25  # of images as the perceptual network sees them
    lamb_p: float = 1e-5
    lamb_mse1: float = 1e-5
    lamb_mse2: float = 1e-5
    lamb_style: float = 5e-7
    w_steps: int = 1500
    n_steps: int = 1500
    lr: float = 0.01
    noise_lr: float = 0.01

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            raise ValueError(f"resolution {self.resolution}: expected a power of 2 of at least 8")
        check_choices(self, init=("zeros", "mean"), edit=("crossover", "style"))

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the options' names and values; one learning rate is that of styles and of noise."""
        noise_lr = {"noise_lr": options["lr"]} if "lr" in options else {}
        return cls(**noise_lr | named(cls, options))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "ffhq_1024": dict(),
    "paper":     dict(init="mean", w_steps=5000, n_steps=3000, noise_lr=5.0),
    "tiny":      dict(resolution=32, fmap_base=128, fmap_max=16, dlatent_size=16, mapping_layers=2, w_steps=2,
                      n_steps=2, lamb_mse1=1.0, lamb_mse2=1.0),
}
# fmt: on


def read_image(file: str, size: int, channels: int = 3) -> Tensor:
    """[1, channels, size, size] in [0, 1]."""
    with Image.open(file) as image:
        image = image.convert("RGB" if channels == 3 else "L").resize((size, size), Image.Resampling.LANCZOS)
        values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return values.view(1, size, size, channels).movedim(3, 1).float() / 255


def blurred(mask: Tensor) -> Tensor:
    """The mean of a box around each pixel, of which those at the border are repeated."""
    return F.avg_pool2d(F.pad(mask, [BLUR // 2] * 4, mode="replicate"), BLUR, 1)


class Styles(nn.Module):
    """The styles that are looked for, [1, layers, C]: one for each layer, W+."""

    def __init__(self, layers: int, channels: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, layers, channels))


class Noise(nn.Module):
    """The noise that is looked for, a map [1, 1, H, W] for each layer."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.maps = nn.ParameterList(torch.zeros(1, 1, size, size) for size in sizes)


class System(_system.System):
    """Styles in w_steps iterations, then noise: one after the other, since noise would take over what styles can say.

    A batch has one `image` [1,3,H,W] in [-1, 1], of the generator's resolution, and may have `mask` [1,1,H,W], 1 in
    what is taken from it, and `reference`, another image; else those of the config's files. Masks multiply images in
    front of the perceptual network, means are over all pixels, and the style term has no Gram matrix, as in the
    reimplementation. `blend` edits activations.
    """

    Config = Config
    PRESETS = PRESETS
    data = "images"
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            generator = Synthesis(config.resolution, config.fmap_base, config.fmap_max, config.dlatent_size)
            mapping = Mapping(config.dlatent_size, config.mapping_layers)
        self.fixed["G"], self.fixed["mapping"] = generator.requires_grad_(False), mapping.requires_grad_(False)
        if config.generator:
            self.load_original(config.generator)
        else:
            self.warn("generator names no file, so its weights are random")
        if config.vgg_weights:
            self.fixed["VGG"] = VGG(config.vgg_weights, FEATURES)
        sizes = generator.noise_sizes
        self.nets["styles"], self.nets["noise"] = Styles(len(sizes), config.dlatent_size), Noise(sizes)
        betas = (0.9, 0.999)
        self.phases = [
            Phase("W", ("styles",), self.style_step, Adam(config.lr, betas), when=lambda step: step < config.w_steps),
            Phase(
                "noise",
                ("noise",),
                self.noise_step,
                Adam(config.noise_lr, betas),
                when=lambda step: config.w_steps <= step < config.w_steps + config.n_steps,
            ),
        ]

    @property
    def data_settings(self) -> dict[str, Any]:
        """The whole image, or its middle, as large as the generator's."""
        size = self.config.resolution
        return {"crop_size": size, "load_size": size, "preprocess_mode": "scale_shortside_and_crop", "flip": False}

    @torch.no_grad()
    def init_weights(self) -> None:
        """Styles zero, or the mean of 10,000 of the generator's; standard normal noise."""
        w = self.nets["styles"].w
        if self.config.init == "mean":
            w.copy_(self.fixed["mapping"](self.randn((10_000, w.size(2)), w)).mean(0))
        else:
            nn.init.zeros_(w)
        for noise in self.nets["noise"].maps:
            noise.copy_(self.randn(noise.shape, noise))

    def prepare(self, batch: Batch) -> Batch:
        """Add `truth`, `other`, in [0, 1], and `keep`, what is taken from the first; the last two only if asked for."""
        config, image = self.config, batch["image"]
        if len(image) != 1:
            raise ValueError(f"a batch of {len(image)} images: one is embedded at a time")
        found = {"truth": (image + 1) / 2}
        if "reference" in batch:
            found["other"] = (batch["reference"] + 1) / 2
        elif config.reference:
            found["other"] = read_image(config.reference, config.resolution).to(image)
        keep = batch.get("mask")
        if keep is None and config.mask:
            keep = read_image(config.mask, config.resolution, channels=1).to(image)
        if keep is not None:
            found["keep"] = blurred(keep) if config.blur_mask else keep
        elif "other" in found:
            raise ValueError("a reference, but no mask: nothing says what is to be taken from which image")
        return batch | found

    def synthesise(self) -> Tensor:
        """The image [1,3,H,W] in [0, 1] of styles and noise as they are."""
        return (self.fixed["G"](self.nets["styles"].w, list(self.nets["noise"].maps)) + 1) / 2

    def features(self, images: Tensor) -> list[Tensor]:
        """What the perceptual network says of images, made smaller."""
        scale = self.config.scale
        return self.fixed["VGG"](F.interpolate(images, scale_factor=scale, mode="bilinear") if scale != 1 else images)

    def alike(self, image: Tensor, target: Tensor, mask: Tensor | float = 1.0) -> Tensor:
        """Squared distances of pixels and of all features where the mask is."""
        image, target = image * mask, target * mask
        distance = self.config.lamb_mse1 * F.mse_loss(image, target)
        if "VGG" in self.fixed:
            with torch.no_grad():
                wanted = self.features(target)
            pairs = zip(self.features(image), wanted, strict=True)
            distance = distance + self.config.lamb_p * torch.stack([F.mse_loss(*pair) for pair in pairs]).sum()
        return distance

    def style(self, image: Tensor, target: Tensor, mask: Tensor | float = 1.0) -> Tensor:
        """Squared distance of the features of style where the mask is."""
        if "VGG" not in self.fixed:
            raise ValueError("edit 'style' needs vgg_weights")
        with torch.no_grad():
            wanted = self.features(target * mask)[STYLE]
        return self.config.lamb_style * F.mse_loss(self.features(image * mask)[STYLE], wanted)

    def style_step(self, batch: Batch) -> dict[str, Tensor]:
        image, keep = self.synthesise(), batch.get("keep", 1.0)
        terms = {"W": self.alike(image, batch["truth"], keep)}
        if "other" in batch:
            distance = self.alike if self.config.edit == "crossover" else self.style
            terms["W_reference"] = distance(image, batch["other"], 1 - keep)
        return terms

    def noise_step(self, batch: Batch) -> dict[str, Tensor]:
        config, image, keep = self.config, self.synthesise(), batch.get("keep", 1.0)
        terms = {"noise": config.lamb_mse1 * F.mse_loss(image * keep, batch["truth"] * keep)}
        if "other" in batch:
            rest = 1 - keep
            terms["noise_reference"] = config.lamb_mse2 * F.mse_loss(image * rest, batch["other"] * rest)
        return terms

    @torch.no_grad()
    def blend(self, other: Tensor, mask: Tensor, resolution: int) -> Tensor:
        """The image [1,3,H,W] in [-1, 1] with activations of the block of `resolution` copied from another's.

        other [1, layers, C], its styles; mask [1,1,H,W], 1 where the image's own activations stay.
        """
        generator = self.fixed["G"]
        if resolution not in generator.resolutions:
            raise ValueError(f"resolution {resolution}: expected one of {', '.join(map(str, generator.resolutions))}")
        stay = F.interpolate(mask, size=(resolution, resolution), mode="area")

        def edit(at: int, x: Tensor) -> Tensor:
            return torch.lerp(x[1:], x[:1], stay) if at == resolution else x

        return generator(torch.cat([self.nets["styles"].w, other]), list(self.nets["noise"].maps), edit)

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,H,W]}: what was found, as many times as there are images."""
        return {"fake": (2 * self.synthesise() - 1).expand(len(batch["image"]), -1, -1, -1)}

    def load_original(self, path: str | Path) -> None:
        """Load the generator's file, with keys g_synthesis.* and, for the mean style, g_mapping.*"""
        path, state = Path(path), read_state(path)
        for name, prefix in (("G", "g_synthesis."), ("mapping", "g_mapping.")):
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            if own or name == "G" or self.config.init == "mean":
                load_strictly(self.fixed[name], own, path)
