"""SMIS: label maps to images with a style of its own for every class, by grouped convolutions (GroupDNet).

Zhu, Xu, You, Bai. Semantically Multi-modal Image Synthesis. CVPR 2020.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.labels import LabelPlan
from i2ifast.nn import InstanceNormAct, SPADEV2ResnetBlock, spectral_norm

from . import spade
from ._blocks import pad_to
from ._config import check_choices
from ._system import Batch
from .spade import Semantics

CODE = 8  # channels of a class's style
BLOCKS = ("head_0", "G_middle_0", "G_middle_1", "up_0", "up_1", "up_2", "up_3")
ENCODER_NDF = {"deepfashion": 256, "Cityscapes": 350, "ADE20K": 604}


@dataclass
class Config(spade.Config):
    """Options of the original, under its names, except that negative ones are positive here. nhidden has no effect."""

    label_nc: int = 8
    contain_dontcare_label: bool = False
    instance: bool = False  # instance edges, which the Cityscapes generator takes, and no other
    num_upsampling_layers: Literal["normal", "more", "most"] = "more"
    use_vae: bool = True
    niter: int = 10
    niter_decay: int = 5
    netG: Literal["deepfashion", "Cityscapes", "ADE20K"] = "deepfashion"
    group_nums: tuple[int, ...] = ()  # of the generator's blocks from head_0 to up_3; the published ones if empty
    encoder_ndf: int = 0  # channels of the encoder's first layer; the published ones if 0

    ONLY: ClassVar[dict[str, Any]] = {
        **{name: value for name, value in spade.Config.ONLY.items() if name != "netG"}, "netE": "conv"
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, netG=ENCODER_NDF)
        has_only = {"num_upsampling_layers": "more", "use_vae": True, "instance": self.netG == "Cityscapes"}
        for name, only in has_only.items():
            if getattr(self, name) != only:
                raise ValueError(f"{name} {getattr(self, name)!r}: netG {self.netG} has only {only!r}")
        self.group_nums = tuple(self.group_nums) or self.published_groups
        self.encoder_ndf = self.encoder_ndf or ENCODER_NDF[self.netG]
        if len(self.group_nums) != len(BLOCKS):
            raise ValueError(f"group_nums {self.group_nums}: expected one for each of {', '.join(BLOCKS)}")
        for name, groups, *channels in zip(BLOCKS, self.group_nums, self.widths, self.widths[1:], strict=False):
            if any(count % groups for count in channels):
                given = f"ngf {self.ngf}, group_nums {self.group_nums}"
                raise ValueError(f"{given}: {name} has {channels[0]} and {channels[1]} channels for {groups} groups")
        if self.encoder_ndf % self.num_classes:
            raise ValueError(f"encoder_ndf {self.encoder_ndf}: expected a multiple of the {self.num_classes} classes")

    @property
    def one_size(self) -> bool:
        return False  # styles are maps

    @property
    def published_groups(self) -> tuple[int, ...]:
        nc = self.num_classes
        return {
            "deepfashion": (nc, nc, nc // 2, nc // 2, nc // 4, nc // 4, nc // 8),
            "Cityscapes": (nc, nc, 20, 14, 10, 4, 1),
            "ADE20K": (nc, 16, 16, 8, 4, 2, 1),
        }[self.netG]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the generator's maps, from that in front of head_0 to that behind up_3."""
        nf, nc = self.ngf, self.num_classes
        if self.netG == "ADE20K":
            return 16 * nc, 16 * nc, 32 * nf, 16 * nf, 16 * nf, 8 * nf, 4 * nf, 2 * nf
        return 16 * nf, 16 * nf, 16 * nf, 16 * nf, 8 * nf, 4 * nf, 2 * nf, nf

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        if not options["no_TTUR"]:  # implies them there
            options = options | {"beta1": 0.0, "beta2": 0.9}
        return super().from_original(options)


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "deepfashion": dict(label_nc=8,   ngf=160, niter=60,  niter_decay=40),
    "cityscapes":  dict(label_nc=35,  ngf=280, niter=100, niter_decay=100, netG="Cityscapes", instance=True,
                        crop_size=512, aspect_ratio=2.0),
    "ade20k":      dict(label_nc=150, ngf=64,  niter=100, niter_decay=100, netG="ADE20K", contain_dontcare_label=True),
    "tiny":        dict(label_nc=12,  ngf=4,   niter=100, niter_decay=0,   netG="ADE20K", aspect_ratio=2.0,
                        ndf=8, encoder_ndf=12, lambda_vgg=0.0),
}
# fmt: on


def interleaved(seg: Semantics, classes: int) -> Semantics:
    """For every class its channel and that of the edges, from the classes' channels and, last, the edges'."""
    if isinstance(seg, LabelPlan):
        values = interleaved(seg.values[..., None, None], classes).flatten(1)
        return replace(seg, values=values, pooled={}, maps={})  # all that depends on symbols alone is shared
    seg = seg.detach()  # as in the original
    return torch.stack([seg[:, :classes], seg[:, -1:].expand(-1, classes, -1, -1)], 2).flatten(1, 2)


class SMISGenerator(nn.Module):
    """Label map and a code of every class [N, 8 * classes, H / 64, W / 64] to images [N,3,H,W] in [-1, 1]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        first, *_, last = widths = config.widths
        classes, mode = config.num_classes, config.netG.lower()
        options = {"use_instance": config.instance, "data_mode": mode}
        self.fc = nn.Conv2d(CODE * classes, first, 3, padding=1, groups=classes)
        for name, (fin, fout), groups in zip(BLOCKS, pairwise(widths), config.group_nums, strict=True):
            self.add_module(name, SPADEV2ResnetBlock(fin, fout, config.norm_G, classes, groups, **options))
        if config.netG == "ADE20K":  # which the original has and does not use
            self.up_4 = SPADEV2ResnetBlock(last, config.ngf, config.norm_G, classes, 1, **options)
        self.conv_img = nn.Conv2d(last, 3, 3, padding=1)

    def forward(self, seg: Semantics, z: Tensor) -> Tensor:
        if self.config.instance:
            seg = interleaved(seg, self.config.num_classes)
        x = self.fc(z)
        for i, name in enumerate(BLOCKS):
            x = self.get_submodule(name)(x, seg, upsample=i > 0)
        return torch.tanh(self.conv_img(F.leaky_relu(x, 0.2, inplace=True)))


def class_crops(images: Tensor, seg: Semantics, classes: int) -> Tensor:
    """The pixels of each class, black elsewhere, cut to their bounding box and resized to the image's size by nearest.

    images [N,3,H,W] -> [N,3*classes,H,W]; a class without pixels is all black. Pixels whose channels sum to zero do not
    count for the box. All boxes come from one pass, and nothing waits for the device.
    """
    masks = (seg if isinstance(seg, Tensor) else seg.dense())[:, :classes].to(images.dtype)
    with torch.no_grad():
        seen = images.sum(1, keepdim=True) * masks != 0
        rows, columns = stretched(seen.any(3)), stretched(seen.any(2))
        at = (rows[..., None] * images.size(3) + columns[..., None, :]).flatten(2)  # [N, classes, H * W]
    masks = masks.flatten(2).gather(2, at)
    pixels = images.flatten(2)[:, None].expand(-1, classes, -1, -1).gather(3, at[:, :, None].expand(-1, -1, 3, -1))
    return (pixels * masks[:, :, None]).view(len(images), 3 * classes, *images.shape[2:])


def stretched(seen: Tensor) -> Tensor:
    """Where each of L pixels comes from when those from the first to the last that is seen, [..., L], fill the line."""
    length = seen.size(-1)
    place = torch.arange(length, device=seen.device)
    first = torch.where(seen, place, length).amin(-1, keepdim=True) % length  # all of the line where nothing is seen
    end = torch.where(seen, place + 1, 0).amax(-1, keepdim=True)
    extent = torch.where(end == 0, length, end) - first
    return first + (place * (extent.float() / length)).long().minimum(extent - 1)


class ConvEncoder(nn.Module):
    """Crops of every class (see class_crops) to means and log variances of codes, each [N,8*classes,H/64,W/64]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        classes, nf = config.num_classes, config.encoder_ndf
        for n, (fin, fout) in enumerate(pairwise([3 * classes, nf, 2 * nf, 4 * nf, 8 * nf, 8 * nf, 8 * nf]), 1):
            conv = spectral_norm(nn.Conv2d(fin, fout, 3, 2, 1, bias=False, groups=classes))
            self.add_module(f"layer{n}", nn.Sequential(conv, InstanceNormAct(fout, 0.2)))
        self.fc_mu = nn.Conv2d(8 * nf, CODE * classes, 3, padding=1, groups=classes)
        self.fc_var = nn.Conv2d(8 * nf, CODE * classes, 3, padding=1, groups=classes)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        for n in range(1, 7):
            crops = self.get_submodule(f"layer{n}")(crops)
        return self.fc_mu(crops), self.fc_var(crops)


class System(spade.System):
    """SPADE's losses and order of optimisation, with an encoder of every class's pixels."""

    Config = Config
    PRESETS = PRESETS
    Generator = SMISGenerator
    Encoder = ConvEncoder
    optional = ("D", "E")

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of `image` drawn from the encoder's normal distributions, their means and log variances."""
        crops = batch.get("crops")
        if crops is None:
            crops = class_crops(batch["image"], batch["semantics"], self.config.num_classes)
        if not crops.requires_grad:
            batch["crops"] = crops  # both phases take them
        mu, logvar = self.nets["E"](crops)
        return self.randn(mu.shape, mu) * torch.exp(0.5 * logvar) + mu, mu, logvar

    @torch.no_grad()
    def codes(self, batch: Batch) -> Tensor:
        """Codes [N,8*classes,H/64,W/64] for `translate`: of `image` if there is one, else random."""
        batch = self._padded(batch)
        if "image" in batch:
            return self.encode(batch)[0]
        n, _, h, w = batch["label"].shape
        stride, weight = self.config.stride, self.nets["G"].fc.weight
        return self.randn((n, CODE * self.config.num_classes, h // stride, w // stride), weight)

    def resample(self, codes: Tensor, classes: Sequence[int]) -> Tensor:
        """`codes` with new random ones for `classes`."""
        codes = codes.unflatten(1, (-1, CODE)).clone()
        for label in classes:
            codes[:, label] = self.randn(codes[:, label].shape, codes)
        return codes.flatten(1, 2)

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,H,W]} of any size, in the styles `codes` if given, else in those that `codes()` gives."""
        h, w = batch["label"].shape[-2:]
        codes = batch["codes"] if "codes" in batch else self.codes(batch)
        return {"fake": self.generate(self._padded(batch), codes)[..., :h, :w]}

    def _padded(self, batch: Batch) -> Batch:
        """The prepared batch, padded where the size is no multiple of the stride."""
        if any(side % self.config.stride for side in batch["label"].shape[-2:]):
            names = [name for name in ("label", "instance", "image") if name in batch]
            batch = {name: pad_to(batch[name], self.config.stride) for name in names}
        return self.prepare(batch)
