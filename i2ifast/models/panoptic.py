"""Panoptic-aware synthesis: SPADE whose convolutions and upsampling keep the instances of a label map apart.

Dundar, Sapra, Liu, Tao, Catanzaro. Panoptic-based Image Synthesis. CVPR 2020.

There is no public original. Choices made here: all 3x3 convolutions of the generator are panoptic-aware, but for those
that make gamma and beta of the label map (1x1 ones are so anyway); holes of an enlarged map are filled by a convolution
over the label map and its instance edges; discriminator, losses and schedule are SPADE's.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from i2ifast.nn import SPADE, PanopticConv2d, PanopticPlan, PanopticUpsample
from i2ifast.nn.conv import Conv2d
from i2ifast.nn.label_conv import resized
from i2ifast.nn.spade import ModulatedResnetBlock, modulated_twice

from . import spade
from ._config import check_choices
from ._system import Batch
from .spade import Semantics

Candidates = Literal["nearest3x3", "window2x2", "bilinear2x2"]


@dataclass
class Config(spade.Config):
    """SPADE's options, and `candidates`: the pixels that an upsampled one may be a copy of (ops.panoptic_sources)."""

    candidates: Candidates = "nearest3x3"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.instance:
            raise ValueError("instance False: it is instances that the networks keep apart")
        check_choices(self, candidates=get_args(Candidates))


PRESETS: dict[str, dict[str, Any]] = {name: spade.PRESETS[name] for name in ("coco", "cityscapes", "tiny")}


def panoptic_conv(fin: int, fout: int, kernel: int, padding: int = 0, bias: bool = True) -> nn.Conv2d:
    """A convolution that keeps the size; with one tap it sees one segment anyway."""
    return Conv2d(fin, fout, 1, bias=bias) if kernel == 1 else PanopticConv2d(fin, fout, kernel, bias=bias)


class PanopticResnetBlock(ModulatedResnetBlock):
    """SPADE's residual block of panoptic-aware convolutions, with `up` in front of it where the generator upsamples."""

    def __init__(self, fin: int, fout: int, norm_G: str, semantic_nc: int, nhidden: int) -> None:
        layer = partial(SPADE, norm_G.replace("spectral", ""), label_nc=semantic_nc, nhidden=nhidden)
        super().__init__(fin, min(fin, fout), fout, panoptic_conv, layer, "spectral" in norm_G)

    def forward(self, x: Tensor, seg: Semantics, ids: PanopticPlan, upsample: bool = False) -> Tensor:
        """x [N, fin, H, W] -> [N, fout, H, W], both x2 with `upsample`."""
        if upsample:
            h, w = x.shape[2:]
            x, _ = self.up(x, ids, resized(seg, (2 * h, 2 * w)) if isinstance(seg, Tensor) else seg)
        if self.learned_shortcut:
            h, shortcut = modulated_twice(x, seg, self.norm_0.layer, self.norm_s.layer, 0.2, upsample=False)
            shortcut = self.conv_s(shortcut)
        else:
            h, shortcut = self.norm_0(x, seg, 0.2), x
        h = self.norm_1(self.conv_0(h, ids), seg, 0.2)
        return self.conv_1(h, ids) + shortcut


class PanopticGenerator(spade.SPADEGenerator):
    """Label map, ids of its segments, and noise z [N,256] if use_vae, to images [N,3,H,W] in [-1, 1]."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not config.use_vae:
            self.fc = PanopticConv2d(config.semantic_nc, self.fc.out_channels, 3)
        self.conv_img = PanopticConv2d(self.conv_img.in_channels, 3, 3)
        enlarging = ("G_middle_0", "up_") if config.num_upsampling_layers == "normal" else ("G_middle_", "up_")
        for name, block in self.named_children():
            if name.startswith(enlarging):
                fill = PanopticConv2d(config.semantic_nc, block.conv_0.in_channels, 3)
                block.up = PanopticUpsample(config.candidates, fill)

    def block(self, fin: int, fout: int) -> nn.Module:
        return PanopticResnetBlock(fin, fout, self.config.norm_G, self.config.semantic_nc, self.config.nhidden)

    def forward(self, seg: Semantics, ids: PanopticPlan, z: Tensor | None = None) -> Tensor:
        return self.decode(self.first(seg, z, ids), seg, ids)

    def first(self, seg: Semantics, z: Tensor | None, ids: PanopticPlan) -> Tensor:
        if self.config.use_vae:
            return super().first(seg, z)
        size = tuple(side // self.config.stride for side in ids.ids.shape[1:])
        return self.fc(resized(seg, size) if isinstance(seg, Tensor) else seg.dense(size), ids)

    def head(self, x: Tensor, seg: Semantics, ids: PanopticPlan) -> Tensor:
        return torch.tanh(self.conv_img(x, ids))


class System(spade.System):
    """SPADE's losses and order of optimisation."""

    Config = Config
    PRESETS = PRESETS
    Generator = PanopticGenerator

    def prepare(self, batch: Batch) -> Batch:
        """SPADE's, and `ids`, the plan of segments: pixels of one label and one instance."""
        batch = super().prepare(batch)
        if "ids" not in batch:
            ids = batch["instance"].long() * self.config.num_classes + batch["label"]
            batch = {**batch, "ids": PanopticPlan(ids[:, 0])}
        return batch

    def generate(self, batch: Batch, z: Tensor | None) -> Tensor:
        return self.nets["G"](batch["semantics"], batch["ids"], z)
