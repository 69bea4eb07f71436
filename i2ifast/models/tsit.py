"""TSIT: content and style streams, for arbitrary style transfer, semantic and multi-modal image synthesis.

Jiang, Zhang, Huang, Liu, Shi, Loy. TSIT: A Simple and Versatile Framework for Image-to-Image Translation. ECCV 2020.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.labels import LabelPlan
from i2ifast.nn import FAdaIN, FADEResnetBlock, InstanceNormAct, spectral_norm
from i2ifast.nn.conv import Conv2d

from . import spade
from ._blocks import pad_to
from ._config import check_choices
from ._system import Batch
from .spade import Z_DIM, Features, LabelConv2d, NLayerDiscriminator, Semantics

TASKS = ("AST", "SIS", "MMIS")
LEVELS = 8  # resolutions of a stream, each half of the one before


@dataclass
class Config(spade.Config):
    """Options of the original, under its names, except that negative ones (no_ss, no_instance) are positive here."""

    task: Literal["AST", "SIS", "MMIS"] = "AST"  # style transfer; semantic, multi-modal image synthesis
    norm_G: str = "spectralfadesyncbatch3x3"
    num_upsampling_layers: Literal["more"] = "more"
    ss: bool = True  # a style stream, which SIS does not have
    alpha: float = 1.0  # share of the style's statistics
    batch_statistics: bool = False  # translate with those of the batch: the original's tests of MMIS and photo2art
    n_layers_D: int = 3

    ONLY: ClassVar[dict[str, Any]] = {
        **spade.Config.ONLY, "netG": "tsit", "norm_S": "spectralinstance", "num_upsampling_layers": "more",
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_choices(self, task=TASKS)
        if self.num_upsampling_layers != "more":
            raise ValueError(f"num_upsampling_layers {self.num_upsampling_layers!r}: only 'more' is supported")
        if self.labelled and self.ss:
            raise ValueError("ss: the task SIS has no style stream")
        super().__post_init__()

    @property
    def labelled(self) -> bool:
        """Whether the content is a label map, which the discriminator sees; else an image, which it does not."""
        return self.task == "SIS"

    @property
    def data(self) -> str:
        return "labels" if self.labelled else "unpaired"

    @property
    def semantic_nc(self) -> int:
        return self.num_classes + self.instance if self.labelled else 3

    @property
    def stride(self) -> int:
        return 2 ** (LEVELS - 1)

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        labelled = options["task"] == "SIS"
        forced = {"ss": not (options["no_ss"] or labelled)}
        forced["batch_statistics"] = options["task"] == "MMIS" or options["dataset_mode"] == "photo2art"
        forced |= {} if labelled else {"n_layers_D": 3}
        forced |= {} if options["no_TTUR"] else {"beta1": 0.0, "beta2": 0.9}
        return super().from_original({**options, **forced})


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "summer2winter":  dict(task="AST",  crop_size=256, aspect_ratio=1.0, lambda_vgg=1.0,  lambda_feat=1.0,  niter=200),
    "day2night":      dict(task="AST",  crop_size=512, aspect_ratio=2.0, lambda_vgg=2.0,  lambda_feat=1.0,  niter=10),
    "photo2art":      dict(task="AST",  crop_size=256, aspect_ratio=1.0, lambda_vgg=1.0,  lambda_feat=2.0,  niter=40,
                           batch_statistics=True),
    "mmis":           dict(task="MMIS", crop_size=512, aspect_ratio=2.0, lambda_vgg=1.0,  lambda_feat=1.0,  niter=20,
                           batch_statistics=True),
    "sis_ade20k":     dict(task="SIS",  crop_size=256, aspect_ratio=1.0, lambda_vgg=20.0, lambda_feat=10.0, niter=100,
                           niter_decay=100, ss=False, n_layers_D=4, use_vae=True, label_nc=150, instance=False),
    "sis_cityscapes": dict(task="SIS",  crop_size=512, aspect_ratio=2.0, lambda_vgg=20.0, lambda_feat=10.0, niter=100,
                           niter_decay=100, ss=False, n_layers_D=4, use_vae=True, label_nc=35,
                           contain_dontcare_label=False),
    "tiny":           dict(task="SIS",  crop_size=256, aspect_ratio=2.0, lambda_vgg=0.0,  lambda_feat=10.0, niter=100,
                           ss=False, n_layers_D=4, label_nc=12, contain_dontcare_label=False, ngf=4, ndf=8),
}
# fmt: on


class StreamResnetBlock(nn.Module):
    """y = shortcut + act(conv_1(act(conv_0(x)))), act an instance norm and a leaky relu; shortcut x or act(conv_s(x)).

    With `of_labels` it also takes a label plan, whose convolutions are of the distinct windows.
    """

    def __init__(self, fin: int, fout: int, of_labels: bool = False) -> None:
        super().__init__()
        conv = LabelConv2d if of_labels else Conv2d
        self.conv_0 = spectral_norm(conv(fin, fin, 3, padding=1))
        self.conv_1 = spectral_norm(Conv2d(fin, fout, 3, padding=1))
        self.learned_shortcut = fin != fout
        if self.learned_shortcut:
            self.conv_s = spectral_norm(conv(fin, fout, 1, bias=False))
        self.act = InstanceNormAct(fout, 0.2)

    def forward(self, x: Semantics) -> Tensor:
        h = self.act(self.conv_1(self.act(self.conv_0(x))))
        if self.learned_shortcut:
            x = self.act(self.conv_s(x))
        elif isinstance(x, LabelPlan):
            x = x.dense()
        return h + x if torch.is_grad_enabled() else h.add_(x)


class Stream(nn.Module):
    """Features of a map [N, fin, H, W] at full resolution, at half, ..., widths ngf to 16 ngf."""

    def __init__(self, fin: int, ngf: int, of_labels: bool = False) -> None:
        super().__init__()
        widths = [fin, *(ngf << min(k, 4) for k in range(LEVELS))]
        for k, (before, after) in enumerate(pairwise(widths)):
            self.add_module(f"res_{k}", StreamResnetBlock(before, after, of_labels and k == 0))

    def forward(self, x: Semantics) -> list[Tensor]:
        features = []
        for block in self.children():
            x = block(F.interpolate(x, scale_factor=0.5, mode="nearest") if features else x)
            features.append(x)
        return features


class TSITGenerator(nn.Module):
    """Content to images [N,3,H,W] in [-1, 1], in the style of other images.

    content: a label map, or images; style: images, or None without style stream; noise: what the first map is made of,
    [N,256] with use_vae, else [N,3,h,w] for the task's first map of h x w, None for label maps.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        nf, (sh, sw) = 16 * config.ngf, config.latent
        self.content_stream = Stream(config.semantic_nc, config.ngf, config.labelled)
        self.style_stream = Stream(config.semantic_nc, config.ngf) if config.ss else None
        if config.use_vae:
            self.fc: nn.Module = nn.Linear(Z_DIM, nf * sh * sw)
        elif config.labelled:
            self.fc = LabelConv2d(config.semantic_nc, nf, 3, padding=1)
        else:
            self.fc = nn.Conv2d(3, nf, 3, padding=1)
        self.fadain = FAdaIN(config.alpha)
        names = ("head_0", "G_middle_0", "G_middle_1", "up_0", "up_1", "up_2", "up_3")
        widths = [nf, nf, nf, nf, nf // 2, nf // 4, nf // 8, nf // 16]
        for name, (fin, fout) in zip(names, pairwise(widths), strict=True):
            self.add_module(name, FADEResnetBlock(fin, fout, config.norm_G))
        self.blocks = names
        self.conv_img = nn.Conv2d(config.ngf, 3, 3, padding=1)

    def first(self, content: Semantics, noise: Tensor | None) -> Tensor:
        if self.config.use_vae:
            return self.fc(noise).unflatten(1, (-1, *self.config.latent))
        if not self.config.labelled:
            return self.fc(noise)
        h, w = content.shape[-2:] if isinstance(content, Tensor) else content.size
        return self.fc(content, (h // self.config.stride, w // self.config.stride))

    def forward(self, content: Semantics, style: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        features = self.content_stream(content)
        styles = self.style_stream(style) if self.style_stream is not None else [None] * LEVELS
        x = self.first(content, noise)
        for i, name in enumerate(self.blocks):
            # x is upsampled x2 inside of a block: a map of four times as many elements takes the style.
            level, upsample = LEVELS - 1 - i, i > 0
            if styles[level] is not None:
                x = self.fadain(x, styles[level], repeats=4 if upsample else 1)
            x = self.get_submodule(name)(x, features[level], upsample)
        x = F.interpolate(F.leaky_relu(x, 0.2), scale_factor=2, mode="nearest")
        return torch.tanh(self.conv_img(x))


class MultiscaleDiscriminator(spade.MultiscaleDiscriminator):
    """Patch discriminators of images, together with label maps for SIS, at full resolution, at half, ..."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.conditional = config.labelled

    def discriminator(self, config: Config) -> NLayerDiscriminator:
        return NLayerDiscriminator(config.semantic_nc if config.labelled else 0, config.ndf, config.n_layers_D, flat=3)

    def forward(self, seg: Semantics, images: Tensor) -> Features:
        return super().forward(seg if self.conditional else None, images)


class System(spade.System):
    """Generator, discriminator and, with use_vae, encoder; one generator step, then one discriminator step.

    Batches of AST and MMIS are unpaired: contents `a` and styles `b`, [N,3,H,W] in [-1, 1].
    """

    plan_sizes = ()  # windows of one convolution, no tables

    Config = Config
    PRESETS = PRESETS
    Generator = TSITGenerator
    Discriminator = MultiscaleDiscriminator

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.data = config.data

    def prepare(self, batch: Batch) -> Batch:
        if self.config.labelled:
            return super().prepare(batch)
        return {**batch, "semantics": batch["a"], "image": batch["b"]}

    def generate(self, batch: Batch, z: Tensor | None) -> Tensor:
        content = batch["semantics"]
        if z is None and not self.config.labelled:
            sides = (side // self.config.stride for side in content.shape[-2:])
            z = self.randn((len(content), 3, *sides), content)
        return self.nets["G"](content, batch["image"] if self.config.ss else None, z)

    def target(self, batch: Batch) -> Tensor:
        """The content image, but for label maps the photograph."""
        return batch["image" if self.config.labelled else "semantics"]

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,H,W]}: for AST and MMIS the contents `a` of any size, in the styles of `b`."""
        training = self.nets["G"].training
        self.nets["G"].train(training or self.config.batch_statistics)
        try:
            return super().translate(batch) if self.config.labelled else self.stylise(batch)
        finally:
            self.nets["G"].train(training)

    def stylise(self, batch: Batch) -> dict[str, Tensor]:
        if "b" not in batch:
            raise ValueError("tsit: no `b` in the batch; translation needs images of the style (--styles)")
        h, w = batch["a"].shape[-2:]
        padded = self.prepare({name: pad_to(batch[name], self.config.stride) for name in ("a", "b")})
        z = self.encode({"image": batch["b"]})[0] if self.config.use_vae else None
        return {"fake": self.generate(padded, z)[..., :h, :w]}
