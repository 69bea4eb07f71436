"""BachGAN: boxes of objects to images, with a background hallucinated from label maps of images whose boxes are alike.

Li, Cheng, Gan, Yu, Wang, Liu. BachGAN: High-Resolution Image Synthesis from Salient Object Layout. CVPR 2020.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast import labels
from i2ifast.labels import LabelPlan
from i2ifast.nn.conv import Conv2d

from . import spade
from ._blocks import pad_to
from ._originals import load_nets
from ._system import Batch
from .spade import LabelConv2d, Semantics

NOTHING = -1  # in a retrieved label map, where an object was
UNKNOWN = 255  # in a label map, what the segmentation is not trained on
# In checkpoint files, though the original does not use them.
UNUSED = ("conv1_1", "conv1_1_memory", "conv1_2", "conv2_1", "conv2_2", "upscore")


@dataclass
class Config(spade.Config):
    """Options of the original, under its names, except that negative ones (no_TTUR) are positive here."""

    instance: bool = False
    niter: int = 100
    niter_decay: int = 100
    seg: bool = False  # the generator learns to segment its images too

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.instance or self.use_vae:
            raise ValueError("instance, use_vae: boxes have neither edges nor styles")

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        if not options["retrival_memory"]:
            raise ValueError("retrival_memory False: only the generator with retrieved label maps is supported")
        betas = {} if options["no_TTUR"] else {"beta1": 0.0, "beta2": 0.9}
        return super().from_original({**options, **betas})


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "cityscapes": dict(label_nc=35,  contain_dontcare_label=False, crop_size=512, aspect_ratio=2.0,
                       num_upsampling_layers="more"),
    "ade20k":     dict(label_nc=150, contain_dontcare_label=True,  crop_size=256, aspect_ratio=1.0),
    "tiny":       dict(label_nc=12,  contain_dontcare_label=False, crop_size=128, aspect_ratio=2.0,
                       ngf=8, nhidden=32, ndf=16, lambda_vgg=0.0),
}
# fmt: on


def joined(boxes: Semantics, retrieved: LabelPlan) -> Semantics:
    """The maps of each sample one after another: its boxes, then the label maps retrieved for it."""
    if isinstance(boxes, Tensor):
        others = retrieved.dense().unflatten(0, (len(boxes), -1))
        return torch.cat([boxes[:, None], others], 1).flatten(0, 1)
    others = retrieved.symbols.unflatten(0, (len(boxes.symbols), -1)) + len(boxes.values)
    symbols = torch.cat([boxes.symbols[:, None], others], 1).flatten(0, 1)
    return LabelPlan(torch.cat([boxes.values, retrieved.values]), symbols)


class BachGANGenerator(spade.SPADEGenerator):
    """Maps as `joined`, 1 + R for each of N samples, to images [N,3,H,W], and with seg logits [N,nc,H,W] of classes.

    SPADE's generator of m + a_0, m = relu(conv(a_0 + mean(a_1, ..., a_R))), a_i = relu(conv(map i)), instead of a label
    map. H and W must be multiples of config.stride. There are no logits where gradients are off.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        nc = config.semantic_nc
        self.conv_seg = nn.Conv2d(config.ngf, nc, 3, padding=1)
        self.encode_shared = nn.Sequential(LabelConv2d(nc, nc, 3, padding=1), nn.ReLU(inplace=True))
        self.memory_shared = nn.Sequential(Conv2d(nc, nc, 3, padding=1), nn.ReLU(inplace=True))

    def forward(self, maps: Semantics, retrieved: int) -> tuple[Tensor, Tensor | None]:
        layout, others = self.encode_shared(maps).unflatten(0, (-1, 1 + retrieved)).split([1, retrieved], 1)
        layout = layout[:, 0]
        seg = layout + self.memory_shared(layout + others.mean(1))
        return self.decode(self.first(seg, None), seg)

    def head(self, x: Tensor, seg: Tensor) -> tuple[Tensor, Tensor | None]:
        segments = self.config.seg and torch.is_grad_enabled()
        return super().head(x), self.conv_seg(x) if segments else None


class System(spade.System):
    """SPADE's losses and order of optimisation. Discriminators see the boxes, and not what was retrieved.

    Batches have `boxes` [N,nc,H,W], 1 within those of a class, and the label maps `retrieved` [N,R,H,W], -1 where their
    own objects are; with seg `label` [N,1,H,W] too.
    """

    Config = Config
    PRESETS = PRESETS
    Generator = BachGANGenerator
    data = "boxes"

    plan_sizes = ()  # windows of single convolutions; the generator's blocks take soft maps

    def prepare(self, batch: Batch) -> Batch:
        """Add `semantics`, the plan of the boxes (or they, if it does not pay), and `background`, that of retrieved."""
        boxes, retrieved = batch["boxes"], batch["retrieved"]
        if boxes.size(1) != self.config.num_classes:
            raise ValueError(f"boxes of {boxes.size(1)} classes: the networks take {self.config.num_classes}")
        background = labels.plan(retrieved.flatten(0, 1), self.config.num_classes, ignore_index=NOTHING)
        return {**batch, "semantics": labels.plan_dense(boxes) or boxes, "background": background}

    def generate(self, batch: Batch, z: Tensor | None) -> Tensor:
        """Images. In the batch, `maps` is kept for the phases to come, `segmentation` for the loss of these images."""
        boxes, maps = batch["semantics"], batch.get("maps")
        if maps is None:
            maps = joined(boxes, batch["background"])
            if isinstance(maps, LabelPlan):
                batch["maps"] = maps
        fake, batch["segmentation"] = self.nets["G"](maps, batch["retrieved"].size(1))
        return fake

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        terms = super().generator_loss(batch)
        if self.config.seg:
            logits, classes = batch.pop("segmentation"), batch["label"][:, 0].long()
            terms["segfine"] = F.cross_entropy(logits, classes, ignore_index=UNKNOWN)
        return terms

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,H,W]} of `boxes` and `retrieved` of any size."""
        h, w = batch["boxes"].shape[-2:]
        padded = {name: pad_to(batch[name], self.config.stride) for name in ("boxes", "retrieved")}
        return {"fake": self.generate(self.prepare(padded), None)[..., :h, :w]}

    def load_original(self, path: str | Path, epoch: str = "latest") -> None:
        """Load <epoch>_net_{G,D}.pth of a checkpoint folder (D may be absent), or one such file."""
        load_nets(self.nets, path, epoch, self.optional, UNUSED)
