"""Semantic Pyramid: images from the features of other images, of any level of a classifier, whole or in part.

Shocher, Gandelsman, Mosseri, Yarom, Irani, Freeman, Dekel. Semantic Pyramid for Image Generation. CVPR 2020.
Networks, losses and settings are those of the PyTorch port that is best known, as there is no original.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _system
from ._losses import least_squares
from ._originals import load_strictly
from ._semantic_pyramid import SPATIAL, Classifier, Config, Discriminator, Generator
from ._system import Adam, Batch, Phase

# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "imagenet":  dict(n_class=1000),
    "places365": dict(n_class=365, feature_channels=(64, 128, 256, 512, 512, 4096, 365)),
    "tiny":      dict(n_class=10,  feature_channels=(4, 4, 8, 8, 8, 16, 10), crop_size=64, size=2, dim_z=8, dim_class=8,
                      channel_multiplier=8, channels=(2, 2, 1, 1, 1, 1), d_channel_multiplier=8,
                      d_channels=(1, 1, 1, 2, 2, 2, 2)),
}
# fmt: on


def reconstruction(fake: list[Tensor], real: list[Tensor], masks: list[Tensor]) -> Tensor:
    """Sum over levels of mean |fake - real| * mask; maps and their masks are pooled 2x2 by maximum before."""
    terms = []
    for a, b, mask in zip(fake, real, masks, strict=True):
        if a.ndim == 4:
            a, b, mask = (F.max_pool2d(t, 2, ceil_mode=True) for t in (a, b, mask))
        else:
            mask = mask[..., 0]
        terms.append(((a - b).abs() * mask).mean())
    return torch.stack(terms).sum()


def diversity(z: list[Tensor], fakes: list[Tensor]) -> Tensor:
    """Mean over samples of mean |z1 - z2| / (mean |fake1 - fake2| + 1e-8)."""
    of_z, of_fakes = ((a - b).abs().flatten(1).mean(1) for a, b in (z, fakes))
    return (of_z / (of_fakes + 1e-8)).mean()


class System(_system.System):
    """A discriminator step, then a generator step on the same two fakes, which differ in z."""

    Config = Config
    PRESETS = PRESETS
    data = "images"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["G"], self.nets["D"] = Generator(config), Discriminator(config)
        self.fixed["VGG"] = Classifier(config)
        adam = Adam(config.lr, (0.0, 0.999))
        self.phases = [
            Phase("D", ("D",), self.discriminator_loss, adam),
            Phase("G", ("G",), self.generator_loss, adam),
        ]

    def init_weights(self) -> None:
        """Xavier uniform with gain sqrt(2), biases and gammas of attention 0; embeddings normal, norms 1."""
        for name, parameter in self.nets.named_parameters():
            if name.endswith("weight_orig"):
                nn.init.xavier_uniform_(parameter, 2**0.5)
            elif name.endswith("embed.weight"):
                nn.init.normal_(parameter)
            else:
                nn.init.constant_(parameter, float(name.endswith("weight")))

    def extract(self, images: Tensor) -> list[Tensor]:
        """Features of all levels."""
        return self.fixed["VGG"](images)

    def classes(self, batch: Batch, logits: Tensor) -> Tensor:
        """`class` [N] of the batch, else what the classifier says."""
        if "class" in batch:
            return batch["class"]
        if logits.size(1) != self.config.n_class:
            raise ValueError(
                f"the classifier has {logits.size(1)} classes, the networks {self.config.n_class}: give `class`"
            )
        return logits.argmax(1)

    def masks(self, features: list[Tensor]) -> list[Tensor]:
        """Of one level of each sample's, drawn; sometimes with an elliptic hole, where that is a map."""
        n, like = len(features[0]), features[0]
        level, holed = self.randint(len(features), (n,), like), self.rand((n,), like) < self.config.crop_probability
        y, x, height, width = self.rand((4, n, 1, 1), like)
        masks = []
        for i, feature in enumerate(features):
            mask = (level == i).to(like)[:, None, None]
            if feature.ndim == 4:
                h, w = feature.shape[2:]
                rows, columns = ((torch.arange(side, device=like.device) + 0.5) / side for side in (h, w))
                radius = [0.1 + 0.3 * t for t in (height, width)]
                inside = ((rows[:, None] - y) / radius[0]).square() + ((columns - x) / radius[1]).square() < 1
                mask = (mask * ~(inside & holed[:, None, None]))[:, None]
            masks.append(mask)
        return masks

    def prepare(self, batch: Batch) -> Batch:
        """Add `features`, `masks` and `class` where they are not given."""
        if "features" not in batch:
            with torch.no_grad():
                batch = {**batch, "features": self.extract(batch["image"])}
        masks = batch["masks"] if "masks" in batch else self.masks(batch["features"])
        return {**batch, "class": self.classes(batch, batch["features"][-1]), "masks": masks}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        generator, discriminator = self.nets["G"], self.nets["D"]
        generator.requires_grad_(True)  # its step takes the fakes with their graph
        batch["z"] = [self.randn((len(batch["image"]), self.config.dim_z), batch["image"]) for _ in range(2)]
        batch["fakes"] = [generator(z, batch["class"], batch["features"], batch["masks"]) for z in batch["z"]]
        real = discriminator(batch["image"], batch["class"])
        fake = discriminator(batch["fakes"][0].detach(), batch["class"])
        return {"D_real": least_squares(real, True), "D_fake": least_squares(fake, False)}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        fakes, config = batch["fakes"], self.config
        found = self.extract(fakes[0])
        return {
            "adv": least_squares(self.nets["D"](fakes[0], batch["class"]), True),
            "rec": config.rec_weight * reconstruction(found, batch["features"], batch["masks"]),
            "div": config.div_weight * diversity(batch["z"], fakes),
        }

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,crop_size,crop_size]} from one level of `image`, resized to that size, with random z.

        `level` [N] or a number, 0 (large maps) to 6 (fc8), by default the smallest maps, 4; `mask` [N,1,H,W] is 1 where
        maps are given, by default everywhere; or `masks` of all levels. Images without pixels have no features: classes
        are those of `class`, else random.
        """
        images, config = batch["image"], self.config
        n, side = len(images), config.crop_size
        if images.numel() == 0:
            images = images.new_zeros(n, 3, side, side)
            made = {"features": self.extract(images)}
            made["masks"] = [torch.zeros_like(mask) for mask in self.masks(made["features"])]
            made["class"] = batch["class"] if "class" in batch else self.randint(config.n_class, (n,), images)
        else:
            features = self.extract(F.interpolate(images, size=(side, side), mode="bilinear", antialias=True))
            made = {"features": features, "class": self.classes(batch, features[-1])}
            made["masks"] = batch["masks"] if "masks" in batch else self.given(batch, features)
        z = self.randn((n, config.dim_z), images)
        return {"fake": self.nets["G"](z, made["class"], made["features"], made["masks"])}

    def given(self, batch: Batch, features: list[Tensor]) -> list[Tensor]:
        """Masks of the `level` asked for, with `mask` on maps."""
        level = torch.as_tensor(batch.get("level", SPATIAL - 1), device=features[0].device).expand(len(features[0]))
        masks = []
        for i, feature in enumerate(features):
            mask = (level == i).to(feature)[:, None, None]
            if feature.ndim == 4:
                mask = mask[:, None].expand(-1, 1, *feature.shape[2:])
                mask = mask * F.interpolate(batch["mask"].to(feature), feature.shape[2:]) if "mask" in batch else mask
            masks.append(mask)
        return masks

    def load_original(self, path: str | Path) -> None:
        """Load a checkpoint of the port: its averaged generator (g_ema), else g, and its discriminator d."""
        found = torch.load(path, "cpu", weights_only=True)
        for net, names in {"G": ("g_ema", "g"), "D": ("d",)}.items():
            name = next((name for name in names if name in found), None)
            if name is None:
                raise ValueError(f"{path} has none of {', '.join(names)}")
            load_strictly(self.nets[net], found[name], Path(path))
