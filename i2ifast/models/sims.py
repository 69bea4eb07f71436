"""SIMS: label maps to images from segments of other photographs, which a network joins and completes.

Qi, Chen, Jia, Koltun. Semi-parametric Image Synthesis. CVPR 2018.
The canvas of segments is made as `_sims.Bank` says: each is fitted by the box of its shape and cut to the label map.
With `transformer` a network fits it further, with `ordering` it is not cut, and another network says which of two
neighbours is in front, see `_sims_placing`. Nothing is recorded of the original's.
"""

import re
from collections.abc import Iterable, Sequence
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
from ._sims import Bank, Piece, Segments, cut, key_of, segments
from ._sims_placing import (
    Ordering,
    Transformer,
    box_of,
    disturbances,
    nearer,
    neighbours,
    order,
    pair_patch,
    transformed,
    wanted,
    warp,
)
from ._system import Adam, Batch, Phase

PATCH_STRIDE = 32  # of the networks of patches
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
    transformer: bool = False  # a network that fits segments into the canvas
    ordering: bool = False  # a network that says which of them are in front; learns from disparities
    patch: int = 128  # side of what both see of an image
    patch_dim: int = 64  # channels of their first levels

    def __post_init__(self) -> None:
        if self.patch < PATCH_STRIDE or self.patch % PATCH_STRIDE:
            raise ValueError(f"patch {self.patch}: must be a multiple of {PATCH_STRIDE}")
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
    """A generator, and the bank of segments that its canvases are made of; networks T and O that place these.

    T learns to undo random transformations of a photograph's own segments, O which of two neighbours in it is nearer.

    To make one: `system.build_bank(items)` of a data set of one size, `system.bank.save(file)`; then option `bank`. The
    segments of a photograph itself, known by the name of its label map, are left out in its own canvas.
    """

    Config = Config
    PRESETS = PRESETS

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.nets["G"] = Generator(config)
        self.bank = Bank.load(config.bank) if config.bank else None
        adam = Adam(config.lr, (0.9, 0.999))
        self.phases = [Phase("G", ("G",), self.generator_loss, adam)]
        if config.transformer:
            self.nets["T"] = Transformer(config.num_classes, config.patch_dim)
            self.phases.append(Phase("T", ("T",), self.transformer_loss, adam))
        if config.ordering:
            self.nets["O"] = Ordering(config.num_classes, config.patch_dim)
            self.phases.append(Phase("O", ("O",), self.ordering_loss, adam))

    @property
    def data_settings(self) -> dict[str, Any]:
        return {"disparity": self.config.ordering}

    def init_weights(self) -> None:
        """As CRN; transformations are the identity."""
        super().init_weights()
        if self.config.transformer:
            self.nets["T"].reset_theta()

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
            placing = self.place if self.config.transformer or self.config.ordering else None
            made = [
                self.bank.canvas(*each, placing)
                for each in zip(labels, [self.config.elide] * len(seg), without, strict=True)
            ]
            canvas, mask = (torch.stack(each).to(seg) for each in zip(*made, strict=True))
        return {**batch, "canvas": canvas, "mask": mask}

    @torch.no_grad()
    def place(self, pieces: dict[int, Piece], query: Segments) -> list[Piece]:
        """See `_sims.Placing`."""
        config = self.config
        if config.transformer:
            pieces = transformed(self.nets["T"], pieces, query, config.patch, config.num_classes)
        if not config.ordering:
            return list(cut(pieces, query).values())
        return [pieces[i] for i in order(self.nets["O"], pieces, query, config.patch, config.num_classes)]

    def segments_of(self, batch: Batch) -> list[Segments]:
        """Those of the label maps of a batch, once for all phases."""
        if "segments" not in batch:
            batch["segments"] = [segments(label) for label in batch["semantics"].argmax(1).cpu()]
        return batch["segments"]

    def one_of(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.randint(len(choices), (1,), torch.empty(0)))]

    def transformer_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Of a segment of each photograph, transformed at random: how far from where it was the network puts it."""
        net, config, true, asked = self.nets["T"], self.config, [], []
        for found, image in zip(self.segments_of(batch), batch["image"].cpu(), strict=True):
            if not len(found.label):
                continue
            i = self.one_of(range(len(found.label)))
            box, shape = box_of(found, i).wider(found.number.shape), (found.number == i).float()[None]
            true.append(box.patch(torch.cat([(image + 1) / 2 * shape, shape]), config.patch))
            asked.append(wanted(found, i, box, config.patch, config.num_classes))
        if not true:
            return {"T": 0 * net.theta.bias.sum()}
        true, asked = (torch.stack(each).to(batch["image"]) for each in (true, asked))
        start = warp(true, disturbances(self.rand((len(true), 4), true)))
        errors = (warp(start, net(start, asked)) - true)[:, :3].abs().mean(1, keepdim=True)
        mask = asked[:, :1]
        return {"T": (errors * mask).sum() / (mask.sum() + 1)}

    def ordering_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Of two neighbours of different classes in each photograph: cross entropy of the nearer one's class."""
        if "disparity" not in batch:
            raise ValueError("the batch has no disparity: what is in front is learned from it")
        net, config, shown, front = self.nets["O"], self.config, [], []
        given = zip(self.segments_of(batch), batch["image"].cpu(), batch["disparity"].cpu(), strict=True)
        for found, image, disparity in given:
            pairs = [pair for pair in neighbours(found.number) if found.label[pair[0]] != found.label[pair[1]]]
            near = nearer(found.number, disparity[0], pair := self.one_of(pairs)) if pairs else None
            if near is not None:
                picture = (image + 1) / 2 * ((found.number == pair[0]) | (found.number == pair[1]))
                shown.append(pair_patch(picture, found, pair, config.patch, config.num_classes))
                front.append(found.label[near])
        if not shown:
            return {"O": 0 * net.logits.bias.sum()}
        shown = torch.stack(shown).to(batch["image"])
        kept = self.rand((len(shown), net.hidden.out_features), shown) < 0.5
        return {"O": F.cross_entropy(net(shown, kept), torch.stack(front).to(shown.device))}

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
