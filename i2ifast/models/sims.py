"""SIMS: label maps to images from segments of other photographs, which a network joins and completes.

Qi, Chen, Jia, Koltun. Semi-parametric Image Synthesis. CVPR 2018.
The canvas of segments is made as `_sims.Bank` says: each is fitted by the box of its shape and cut to the label map.
The paper's networks for a finer transformation of segments and for their order are not here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _crn
from ._blocks import pad_to
from ._crn import WEIGHTS, ConvNorm, LabelConfig, read_variables, resize
from ._originals import load_strictly
from ._sims import Bank, key_of
from ._system import Adam, Batch, Phase

REPEATS = (2, 2, 3, 3, 3, 3)  # convolutions of the encoder's levels
HEADS = {r"g_\d+_conv100": "g_conv100", r"g_semantic_\d+": "g_semantic"}  # of files, with the size in their names


@dataclass
class Config(LabelConfig):
    """Options of the original, under its names where it names them."""

    dim: int = 64  # channels of the encoder's first level
    halved: bool = False  # the encoder sees the input at half of its size, and a decoder more follows (512 pixels)
    final: int = 128  # channels of the last decoder, or with `halved` the last but one
    semantic: int = 20  # classes that the label map is predicted in too; 0 does without
    lambda_semantic: float = 10.0
    bank: str = ""  # file of a memory bank (`System.bank.save`); without one there is nothing on the canvas
    elide: int = 2  # pixels on both sides of borders between segments that the canvas leaves out
    lr: float = 1e-6  # of the first epoch
    max_lr: float = 1e-4  # reached by 10 % each epoch

    def __post_init__(self) -> None:
        if self.semantic and self.semantic < self.num_classes:
            raise ValueError(
                f"semantic {self.semantic}: must be 0 or at least the number of classes, {self.num_classes}"
            )
        super().__post_init__()

    @property
    def stride(self) -> int:
        return 2 ** (len(REPEATS) + self.halved)

    @property
    def encoder(self) -> list[int]:
        """Channels of the encoder's levels, the largest first."""
        return [self.dim * factor for factor in (1, 2, 4, 8, 8, 8)]

    @property
    def decoder(self) -> dict[str, int]:
        """Channels of the decoders by name, the smallest first."""
        wide = 8 * self.dim
        levels = {f"g_decoder_conv{i}": wide if i > 1 else wide // 2 for i in range(len(REPEATS), 0, -1)}
        return levels | {"g_decoder_final": self.final} | ({"g_decoder_512": 2 * self.dim} if self.halved else {})


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "cityscapes_256": dict(crop_size=512,  halved=False, final=128, vgg_scales=WEIGHTS[256]),
    "cityscapes_512": dict(crop_size=1024, halved=True,  final=256, vgg_scales=WEIGHTS[512]),
    "tiny":           dict(crop_size=128,  halved=False, final=4,   vgg_scales=WEIGHTS[256], label_nc=5, dim=2),
}
# fmt: on


class Scope(nn.Sequential):
    """Convolutions, which are numbered from 1; the first one takes parts."""

    def __init__(self, name: str, widths: list[int]) -> None:
        super().__init__()
        for i, (fin, fout) in enumerate(pairwise(widths), 1):
            self.add_module(f"{name}_{i}", ConvNorm(fin, fout))

    def forward(self, *parts: Tensor) -> Tensor:
        first, *more = self
        x = first(*parts)
        for layer in more:
            x = layer(x)
        return x


def halve(x: Tensor) -> Tensor:
    """Means of 3x3 pixels at a distance of 2, without what is over the border: at the right and the bottom."""
    return F.avg_pool2d(x, 3, 2, ceil_mode=True)


class Generator(nn.Module):
    """One-hot label maps [N,L,H,W], canvases [N,3,H,W] in 0..255 and their masks [N,1,H,W] to images around [-1, 1] and
    the logits of label maps [N,semantic,H,W]; H and W are multiples of config.stride."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        given, below = config.num_classes + 4, 0
        for i, (fin, fout) in enumerate(pairwise([given, *config.encoder]), 1):
            name = f"g_encoder_conv{i}"
            self.add_module(name, Scope(name, [fin, *[fout] * REPEATS[i - 1]]))
        skips = [*reversed(config.encoder), 0, 0]
        for (name, width), skip in zip(config.decoder.items(), skips, strict=False):
            self.add_module(name, Scope(name, [given + skip + below, width, width]))
            below = width
        self.g_conv100 = nn.Conv2d(below, 3, 1)
        self.g_semantic = nn.Conv2d(below, config.semantic, 1) if config.semantic else None

    def forward(self, seg: Tensor, canvas: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        whole = torch.cat([seg, canvas, mask], 1)
        given = resize(whole, [side // 2 for side in whole.shape[2:]]) if self.config.halved else whole
        x, skips = given, []
        for i in range(1, len(REPEATS) + 1):
            x = halve(self.get_submodule(f"g_encoder_conv{i}")(x))
            skips.append(x)
        x = None
        for name in self.config.decoder:
            size = skips[-1].shape[2:] if skips else whole.shape[2:] if name == "g_decoder_512" else given.shape[2:]
            below = ([skips.pop()] if skips else []) + ([] if x is None else [resize(x, size)])
            x = self.get_submodule(name)(resize(whole, size), torch.cat(below, 1))
        return self.g_conv100(x), None if self.g_semantic is None else self.g_semantic(x)


class System(_crn.System):
    """A generator, and the bank of segments that its canvases are made of.

    To make one: `system.build_bank(items)` of a data set of one size, `system.bank.save(file)`; then option `bank`. The
    segments of a photograph itself, known by the name of its label map, are left out in its own canvas.
    """

    Config = Config
    PRESETS = PRESETS

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.nets["G"] = Generator(config)
        self.bank = Bank.load(config.bank) if config.bank else None
        self.phases = [Phase("G", ("G",), self.generator_loss, Adam(config.lr, (0.9, 0.999)))]

    def build_bank(self, dataset: Iterable[Batch]) -> None:
        """Take the segments of a data set's items, which must have one size."""
        self.bank = Bank.of(dataset)

    def decay(self, epoch: int) -> float:
        """10 % more each epoch, up to max_lr."""
        return min(1.1 ** (epoch - 1), self.config.max_lr / self.config.lr)

    def prepare(self, batch: Batch) -> Batch:
        """Add `semantics`, and `canvas` [N,3,H,W] in 0..255 and `mask` [N,1,H,W] where they are not given."""
        batch = super().prepare(batch)
        if "canvas" in batch:
            return batch
        seg = batch["semantics"]
        if self.bank is None:
            canvas, mask = (seg.new_zeros(len(seg), channels, *seg.shape[2:]) for channels in (3, 1))
        else:
            without = map(key_of, batch["path"]) if "path" in batch else [None] * len(seg)
            labels = seg.argmax(1).cpu()
            made = [
                self.bank.canvas(*each) for each in zip(labels, [self.config.elide] * len(seg), without, strict=True)
            ]
            canvas, mask = (torch.stack(each).to(seg) for each in zip(*made, strict=True))
        return {**batch, "canvas": canvas, "mask": mask}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        seg = batch["semantics"]
        fake, logits = self.nets["G"](seg, batch["canvas"], batch["mask"])
        terms = {"G": self.distance(fake, batch["image"])}
        if logits is not None:
            terms["semantic"] = self.config.lambda_semantic * F.cross_entropy(logits, seg.argmax(1))
        return terms

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,H,W]} of any size, on the canvases of the bank or on those given (`canvas`, `mask`)."""
        h, w = batch["label"].shape[-2:]
        if h % self.config.stride or w % self.config.stride:
            names = ("label", "canvas", "mask")
            padded = {name: pad_to(batch[name], self.config.stride) for name in names if name in batch}
            batch = padded | ({"path": batch["path"]} if "path" in batch else {})
        batch = self.prepare(batch)
        fake, _ = self.nets["G"](batch["semantics"], batch["canvas"], batch["mask"])
        return {"fake": fake[..., :h, :w].clamp(-1, 1)}

    def load_original(self, path: str | Path) -> None:
        """Load a .npz file of the original's variables by name, as TensorFlow's checkpoint readers give them."""
        load_strictly(self.nets["G"], {own_name(key): v for key, v in read_variables(path).items()}, Path(path))


def own_name(key: str) -> str:
    """A key without the size of images in the name of a head."""
    for pattern, name in HEADS.items():
        key = re.sub(rf"^{pattern}\.", f"{name}.", key)
    return key
