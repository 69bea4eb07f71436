"""CRN: label maps to images by cascaded refinement, several different ones at once, without adversary.

Chen, Koltun. Photographic Image Synthesis with Cascaded Refinement Networks. ICCV 2017.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _crn
from ._blocks import pad_to
from ._crn import WEIGHTS, ConvNorm, LabelConfig, bytes_of, read_variables, resize
from ._system import Adam, Batch, Phase

FIRST = 4  # height of the smallest level


@dataclass
class Config(LabelConfig):
    """Options of the original, under its names where it names them."""

    dim: int = 1024  # channels of levels below 128 pixels; a half of it at 128 and 256, 1/8 at 512, 1/32 above
    images: int = 9  # made at once, of which each class of a label map needs one to be right; 1 has the plain loss
    train_from: int = FIRST  # height of the smallest level that is trained
    init: str = ""  # a .npz file of the original's variables, of a smaller model that this one starts from
    lr: float = 1e-4

    def __post_init__(self) -> None:
        height, width = self.size
        if height < FIRST or height & (height - 1):
            raise ValueError(f"images {height} pixels high: must be a power of 2 of at least {FIRST}")
        if self.images < 1:
            raise ValueError(f"images {self.images}: must be at least 1")
        if self.train_from not in self.levels:
            raise ValueError(f"train_from {self.train_from}: expected one of {', '.join(map(str, self.levels))}")
        super().__post_init__()

    @property
    def levels(self) -> list[int]:
        """Heights of the levels for training images."""
        return [FIRST << i for i in range((self.size[0] // FIRST).bit_length())]

    @property
    def stride(self) -> int:
        return self.size[0] // FIRST

    def channels(self, level: int) -> int:
        """Channels of the level of this height."""
        if level < 128:
            return self.dim
        return self.dim // (2 if level < 512 else 8 if level < 1024 else 32)

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From what recordings name of the original, whose settings are in its code."""
        return cls(label_nc=options["classes"] - 1, crop_size=2 * options["sp"], dim=1024 // options["width_divisor"])


# fmt: off
GTA = (1, 1 / 1.4, 1 / 1.8, 1 / 1.3, 1 / 2.2, 10 / 0.62)
PRESETS: dict[str, dict[str, Any]] = {
    "cityscapes_256":  dict(crop_size=512,  images=9, vgg_scales=WEIGHTS[256]),
    "gta_256":         dict(crop_size=512,  images=9, vgg_scales=GTA),
    "cityscapes_512":  dict(crop_size=1024, images=1, vgg_scales=WEIGHTS[512]),
    "cityscapes_1024": dict(crop_size=2048, images=1, vgg_scales=WEIGHTS[512], train_from=512),
    "tiny":            dict(crop_size=64,   images=3, vgg_scales=WEIGHTS[256], label_nc=5, dim=16),
}
# fmt: on


class Generator(nn.Module):
    """One-hot label maps [N,L,H,W] to images [N,K,3,H,W] around [-1, 1]; H and W are multiples of config.stride.

    A level is two convolutions of the label map at its size, next to the level below, which is half as large.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        below = 0
        for level in config.levels:
            width = config.channels(level)
            self.add_module(f"g_{level}_conv1", ConvNorm(below + config.num_classes, width))
            self.add_module(f"g_{level}_conv2", ConvNorm(width, width))
            below = width
        self.head = f"g_{config.levels[-1]}_conv100"
        self.add_module(self.head, nn.Conv2d(below, 3 * config.images, 1))

    def forward(self, seg: Tensor) -> Tensor:
        pyramid = [seg]
        for _ in self.config.levels[1:]:
            pyramid.insert(0, F.avg_pool2d(pyramid[0], 2))
        x = None
        for level, at in zip(self.config.levels, pyramid, strict=True):
            parts = [at] if x is None else [resize(x, at.shape[2:]), at]
            x = self.get_submodule(f"g_{level}_conv1")(*parts)
            x = self.get_submodule(f"g_{level}_conv2")(x)
        colours = self.get_submodule(self.head)(x)  # image i is channels i, K + i and 2 K + i
        return colours.unflatten(1, (3, -1)).transpose(1, 2)

    def frozen(self) -> Iterator[nn.Parameter]:
        """Parameters of the levels that are not trained."""
        for level in self.config.levels:
            for i in (1, 2) if level < self.config.train_from else ():
                yield from self.get_submodule(f"g_{level}_conv{i}").parameters()


def class_errors(fake: Tensor, real: Tensor, seg: Tensor) -> Tensor:
    """Mean over pixels of label * mean over channels of |fake - real|, for each image and class.

    fake [N,K,C,h,w] or another number of images, real [N,1,C,h,w], seg [N,L,h,w] -> [N,K,L].
    """
    distance = (fake - real).abs().mean(2)
    return distance.flatten(2) @ seg.flatten(2).transpose(1, 2) / seg[0, 0].numel()


def diversity(errors: Tensor) -> Tensor:
    """Sum over classes of .999 of the least and .001 of the mean error [N,K,L] of the images; mean over the batch."""
    return (0.999 * errors.amin(1) + 0.001 * errors.mean(1)).sum(1).mean()


class System(_crn.System):
    """A generator; the largest level only is of the size of the label map, so each trains with all smaller ones."""

    Config = Config
    PRESETS = PRESETS

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.nets["G"] = Generator(config)
        self.phases = [Phase("G", ("G",), self.generator_loss, Adam(config.lr, (0.9, 0.999)))]

    def init_weights(self) -> None:
        """Xavier uniform, biases zero, layer norms that change nothing; then levels of `init`."""
        super().init_weights()
        if self.config.init:
            own, given = self.nets["G"].state_dict(), read_variables(self.config.init)
            levels = {key: value for key, value in given.items() if key in own and "_conv100" not in key}
            if not levels:
                raise ValueError(f"{self.config.init} has no level of this model")
            self.nets["G"].load_state_dict(own | levels)

    def freeze_all_but(self, phase: Phase) -> None:
        super().freeze_all_but(phase)
        for parameter in self.nets["G"].frozen():
            parameter.requires_grad_(False)

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        seg, real = batch["semantics"], batch["image"]
        fakes = self.nets["G"](seg)
        if self.config.images == 1:
            return {"G": self.distance(fakes[:, 0], real)}
        with torch.no_grad():
            targets = self.features(bytes_of(real))
        made, errors = self.features(bytes_of(fakes.flatten(0, 1))), []
        for scale, fake, target in zip(self.config.vgg_scales, made, targets, strict=False):
            while seg.size(2) > target.size(2):
                seg = F.avg_pool2d(seg, 2)
            errors.append(scale * class_errors(fake.unflatten(0, fakes.shape[:2]), target[:, None], seg))
        return {"G": diversity(torch.stack(errors).sum(0))}

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": the first image [N,3,H,W], "fakes": all K of them [N,K,3,H,W]}, of any size."""
        h, w = batch["label"].shape[-2:]
        if h % self.config.stride or w % self.config.stride:
            batch = {"label": pad_to(batch["label"], self.config.stride)}
        fakes = self.nets["G"](self.prepare(batch)["semantics"])[..., :h, :w].clamp(-1, 1)
        return {"fake": fakes[:, 0], "fakes": fakes}
