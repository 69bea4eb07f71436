"""Few-shot vid2vid: label maps of a video to frames of whoever, or wherever, a few reference images show.

Wang, Liu, Tao, Liu, Kautz, Catanzaro. Few-shot Video-to-Video Synthesis. NeurIPS 2019.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn.conv import Conv2d

from . import _system
from ._blocks import pad_to
from ._fs_vid2vid import SLOPE, Generated, Generator, Warped, convolution, norm_act, picked
from ._losses import VGG19, feature_matching, hinge, perceptual
from ._originals import load_nets, named
from ._system import Adam, Batch, Phase
from .vid2vid import masked_l1

Features = list[list[Tensor]]  # discriminator outputs [scale][layer], the last layer being the logits


@dataclass
class Config:
    """Options of the original, under its names, except that negative ones (no_sep_warp_embed, no_TTUR) are positive
    here."""

    label_nc: int = 0  # classes; 0 for label maps that are taken as they are, such as drawings
    input_nc: int = 1  # channels of those
    output_nc: int = 3
    n_shot: int = 1  # references
    ngf: int = 32
    n_downsample_G: int = 5
    n_adaptive_layers: int = 4  # finest levels, whose weights come from references
    n_fc_layers: int = 2  # of the networks that make these, before their last
    n_downsample_A: int = 2  # of the attention between several references
    norm_G: str = "spectralspadesyncbatch"
    warp_ref: bool = True  # also warp a reference
    temporal: bool = True  # also warp the frame before
    spade_combine: bool = True  # features of warped images modulate the generator's; else images are mixed by masks
    n_sc_layers: int = 2  # finest levels that they modulate
    add_raw_output_loss: bool = False  # also judge images made without them
    sep_flow_prev: bool = False  # a flow network for the frame before that is not the references'
    sep_warp_embed: bool = True  # the same of the embedding of the warped image
    nff: int = 32
    n_downsample_F: int = 3
    n_blocks_F: int = 6
    norm_F: str = "spectralsyncbatch"
    flow_multiplier: float = 20.0
    ndf: int = 32
    n_layers_D: int = 4
    num_D: int = 1
    norm_D: str = "spectralinstance"
    lambda_feat: float = 10.0
    lambda_vgg: float = 10.0
    vgg_weights: str = ""  # file with VGG19 weights; without one there is no perceptual term
    lambda_flow: float = 10.0
    lambda_mask: float = 10.0
    lr: float = 4e-4
    beta1: float = 0.0
    beta2: float = 0.999
    ttur: bool = True  # generator lr / 2, discriminator lr * 2
    niter_single: int = 50  # epochs in which single frames are trained on, with `temporal`
    niter: int = 100  # epochs before the learning rate decays
    niter_decay: int = 100  # epochs of linear decay to zero
    fineSize: int = 256  # width of frames
    aspect_ratio: float = 1.0  # width / height

    # What the original calls by these names exists here in this one form.
    ONLY: ClassVar[dict[str, Any]] = {
        "adaptive_spade": True, "no_adaptive_embed": False, "adaptive_conv": False, "use_label_ref": "mul",
        "res_for_ref": False, "netS": "encoderdecoder", "sc_arch": "unet", "conv_ks": 3, "embed_ks": 1, "spade_ks": 1,
        "lambda_kld": 0.0, "n_frames_G": 2,
    }  # fmt: skip

    def __post_init__(self) -> None:
        for name, most in {"n_adaptive_layers": self.n_downsample_G, "n_sc_layers": self.n_downsample_G + 1,
                           "n_downsample_A": self.n_downsample_G}.items():  # fmt: skip
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} {getattr(self, name)}: must be from 1 to {most}")
        if self.n_shot < 1:
            raise ValueError(f"n_shot {self.n_shot}: expected at least 1 reference")
        if any(side % self.stride or not side for side in self.size):
            size = f"{self.size[1]}x{self.size[0]} (fineSize {self.fineSize}, aspect_ratio {self.aspect_ratio})"
            raise ValueError(f"frames of {size} pixels: both sides must be multiples of {self.stride}")

    @property
    def semantic_nc(self) -> int:
        """Channels of the label map as the networks see it."""
        return self.label_nc or self.input_nc

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of training frames."""
        return round(self.fineSize / self.aspect_ratio), self.fineSize

    @property
    def stride(self) -> int:
        """Pixels of a frame to one of the coarsest map."""
        return 1 << max(self.n_downsample_G, self.n_downsample_F)

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values; ValueError for what this system does not have."""
        for name, value in cls.ONLY.items():
            if options.get(name, value) != value:
                raise ValueError(f"{name} {options[name]!r}: only {value!r} is supported")
        values = named(cls, options)
        return cls(**values, sep_warp_embed=not options["no_sep_warp_embed"], ttur=not options.get("no_TTUR", False))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "face_256": dict(),
    "tiny":     dict(label_nc=12, ngf=8, n_downsample_G=3, n_adaptive_layers=2, nff=8, n_downsample_F=2, n_blocks_F=2,
                     ndf=8, n_layers_D=2, niter_single=1, fineSize=64),
}
# fmt: on


class NLayerDiscriminator(nn.Module):
    """Patch discriminator -> the outputs of all its layers, the logits last."""

    def __init__(self, fin: int, config: Config) -> None:
        super().__init__()
        sizes = [fin, *(min(512, config.ndf << i) for i in range(config.n_layers_D + 1))]
        for i, (a, b) in enumerate(pairwise(sizes)):
            stride = 1 if i == config.n_layers_D else 2
            if i:
                conv = convolution(config.norm_D, Conv2d(a, b, 4, stride, 2, bias=False))
                layer = nn.Sequential(nn.Sequential(conv, norm_act(config.norm_D, b)))
            else:
                layer = nn.Sequential(Conv2d(a, b, 4, stride, 2), nn.LeakyReLU(SLOPE))
            self.add_module(f"model{i}", layer)
        self.add_module(f"model{config.n_layers_D + 1}", nn.Sequential(nn.Conv2d(sizes[-1], 1, 4, 1, 2)))

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for layer in self.children():
            x = layer(x)
            outputs.append(x)
        return outputs


class MultiscaleDiscriminator(nn.Module):
    """Patch discriminators at full resolution, at half, ..."""

    def __init__(self, fin: int, config: Config) -> None:
        super().__init__()
        for i in range(config.num_D):
            self.add_module(f"discriminator_{i}", NLayerDiscriminator(fin, config))

    def forward(self, x: Tensor) -> Features:
        outputs = []
        for i, discriminator in enumerate(self.children()):
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False) if i else x
            outputs.append(discriminator(x))
        return outputs


def mask_loss(warped: Warped, target: Tensor) -> Tensor:
    """Mean of mask * confidence + (1 - mask) * (1 - confidence): 0 where the warped image is right, 1 where it is not.

    confidence = 1 - sum over channels of |warped - target|, at least 0.
    """
    confidence = (1 - (warped.image - target).abs().sum(1, keepdim=True)).clamp(min=0)
    return (warped.mask * confidence + (1 - warped.mask) * (1 - confidence)).mean()


class System(_system.System):
    """A generator and a discriminator of frames; one generator step, then one discriminator step.

    A batch has `label` [N, T, 1, H, W] integers, of classes (label_nc 0: grey values, or input_nc channels of floats),
    `image` [N, T, 3, H, W], and K references of the same sequences, `label_refs` [N, K, 1, H, W], `image_refs`
    [N, K, 3, H, W]. For training there are known flows in pixels with confidences of one channel: `flow_refs`
    [N, T, K, 2, H, W] and `confidence_refs`, to the references; `flow` [N, T - 1, 2, H, W] and `confidence`, of each
    frame but the first to the one before, of which it is made too with `temporal`.

    The generator's adversarial term is the hinge of real images, which is zero where the discriminator is sure: as in
    the original.
    """

    Config = Config
    PRESETS = PRESETS
    data = "videos"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["G"] = Generator(config)
        self.nets["D"] = MultiscaleDiscriminator(2 * (config.semantic_nc + config.output_nc), config)
        betas, rate = (config.beta1, config.beta2), 2 if config.ttur else 1
        of_g, of_d = Adam(config.lr / rate, betas), Adam(config.lr * rate, betas)
        if config.temporal and config.niter_single:
            single = partial(self.generator_loss, frames=1)
            self.phases = [
                Phase("G_single", ("G",), single, of_g, epochs=lambda epoch: epoch <= config.niter_single),
                Phase("G", ("G",), self.generator_loss, of_g, epochs=lambda epoch: epoch > config.niter_single,
                      shares="G_single"),
            ]  # fmt: skip
        else:
            self.phases = [Phase("G", ("G",), self.generator_loss, of_g)]
        self.phases.append(Phase("D", ("D",), self.discriminator_loss, of_d))
        if config.lambda_vgg and config.vgg_weights:
            self.fixed["VGG"] = VGG19(config.vgg_weights)

    @property
    def data_settings(self) -> dict[str, Any]:
        """Frames resized to one size, not cropped. Of drawings, grey values are read as labels."""
        config = self.config
        return {"instance": False, "label_nc": config.label_nc or 256, "crop_size": config.fineSize,
                "preprocess_mode": "fixed"}  # fmt: skip

    def init_weights(self) -> None:
        """Convolutions and linear layers Xavier normal with gain 0.02, scales of norms N(1, 0.02); biases zero."""
        for name, parameter in self.nets.named_parameters():
            if parameter.ndim > 1:
                nn.init.xavier_normal_(parameter, 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, 1, 0.02)

    def decay(self, epoch: int) -> float:
        """1 up to epoch niter, then a line to 0 after epoch niter + niter_decay."""
        if not self.config.niter_decay:
            return 1.0
        return min(1.0, max(0.0, 1 - (epoch - 1 - self.config.niter) / (self.config.niter_decay + 1)))

    def semantics(self, label: Tensor) -> Tensor:
        """Label maps [N, T, 1, H, W] as the networks see them, [N, T, semantic_nc, H, W]."""
        classes, like = self.config.label_nc, next(self.nets["G"].parameters())
        if label.is_floating_point():
            return label
        if not classes:
            return label.to(like) / 255
        if label.numel() and int(label.max()) >= classes:
            raise ValueError(f"label {int(label.max())}: must be less than label_nc, {classes}")
        return F.one_hot(label[:, :, 0].long(), classes).movedim(-1, 2).to(like)

    def prepare(self, batch: Batch) -> Batch:
        """Add `semantics` of the label maps, and `semantic_refs` of the references'."""
        if "label_refs" not in batch or "image_refs" not in batch:
            raise ValueError("the batch has no references: name images, and their label maps")
        maps = {"semantics": self.semantics(batch["label"]), "semantic_refs": self.semantics(batch["label_refs"])}
        return {**batch, **maps}

    def generate(self, batch: Batch, frames: int | None = None) -> list[Generated]:
        """The first `frames` of each video, or all; no gradient goes from frame to frame."""
        net, before, made, reference = self.nets["G"], None, [], None
        refs = batch["semantic_refs"], batch["image_refs"]
        for label in batch["semantics"][:, :frames].unbind(1):
            if reference is None or refs[0].size(1) > 1:
                reference = net.refer(*refs, label)
            made.append(net(label, *refs, before, reference))
            if self.config.temporal:
                before = label, made[-1].image.detach()
        return made

    def judge(self, batch: Batch, t: int, fake: Tensor) -> Features:
        """Outputs for frame t as generated and as it is, from one pass over both: the generated ones come first."""
        shown = [picked(batch[name], batch["made"][t].index) for name in ("semantic_refs", "image_refs")]
        shown.append(batch["semantics"][:, t])
        return self.nets["D"](torch.cat([torch.cat([*shown, image], 1) for image in (fake, batch["image"][:, t])]))

    @staticmethod
    def adversarial(outputs: Features, real: bool, generated: bool) -> Tensor:
        """Hinge of the logits of the half of the batch that is generated or of the other, averaged over scales."""
        return torch.stack([hinge(scale[-1].chunk(2)[0 if generated else 1], real) for scale in outputs]).mean()

    def judged(self, frame: Generated) -> list[Tensor]:
        """The images of a frame that the discriminator sees."""
        return [frame.image] + ([frame.raw] if self.config.add_raw_output_loss and frame.raw is not None else [])

    def generator_loss(self, batch: Batch, frames: int | None = None) -> dict[str, Tensor]:
        """Terms of the first `frames`, or of all, averaged over them."""
        config, found = self.config, defaultdict[str, list[Tensor]](list)
        made = batch["made"] = self.generate(batch, frames)
        for t, frame in enumerate(made):
            target = batch["image"][:, t]
            for image in self.judged(frame):
                outputs = self.judge(batch, t, image)
                found["G_GAN"].append(self.adversarial(outputs, real=True, generated=True))
                if config.lambda_feat:
                    found["G_GAN_Feat"].append(config.lambda_feat * feature_matching(outputs))
                if "VGG" in self.fixed:
                    found["G_VGG"].append(config.lambda_vgg * perceptual(self.fixed["VGG"], image, target))
            for warped, flow in zip(frame.warped, self.flows(batch, t), strict=True):
                if warped is not None:
                    found["F_Flow"].append(config.lambda_flow * masked_l1(warped.flow, *flow))
                    found["F_Warp"].append(config.lambda_flow * F.l1_loss(warped.image, target))
                    found["F_Mask"].append(config.lambda_mask * mask_loss(warped, target))
        return {name: torch.stack(values).sum() / len(made) for name, values in found.items()}

    @staticmethod
    def flows(batch: Batch, t: int) -> Iterator[tuple[Tensor, Tensor] | None]:
        """Known flow and confidence of frame t to the reference that it is most like, and to the frame before."""
        index = batch["made"][t].index
        yield picked(batch["flow_refs"][:, t], index), picked(batch["confidence_refs"][:, t], index)
        yield (batch["flow"][:, t - 1], batch["confidence"][:, t - 1]) if t else None

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """On the frames that the generator's phase has made."""
        found, made = defaultdict[str, list[Tensor]](list), batch["made"]
        for t, frame in enumerate(made):
            for image in self.judged(frame):
                outputs = self.judge(batch, t, image.detach())
                found["D_fake"].append(self.adversarial(outputs, real=False, generated=True))
                found["D_real"].append(self.adversarial(outputs, real=True, generated=False))
        return {name: torch.stack(values).sum() / len(made) for name, values in found.items()}

    @torch.no_grad()
    def stream(self, batch: Batch) -> Iterator[Tensor]:
        """What `translate` makes, frame by frame [N, 3, H, W], with the memory of one."""
        net, config, (h, w) = self.nets["G"], self.config, batch["label"].shape[-2:]
        like = next(net.parameters())
        batch = {name: pad_to(batch[name].to(like.device), config.stride) for name in
                 ("label", "label_refs", "image_refs") if name in batch}  # fmt: skip
        refs = self.prepare({**batch, "label": batch["label"][:, :0]})
        refs, reference, before = (refs["semantic_refs"], refs["image_refs"].to(like)), None, None
        for label in batch["label"].split(1, 1):
            (label,) = self.semantics(label).unbind(1)
            if reference is None or refs[0].size(1) > 1:
                reference = net.refer(*refs, label)
            image = net(label, *refs, before, reference).image
            before = (label, image) if config.temporal else None
            yield image[..., :h, :w]

    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N * T, 3, H, W]}, all frames of each video, of any size; references have the size of the frames.

        With them `label` and `image` of these frames, as far as they are given.
        """
        given = {name: batch[name].flatten(0, 1) for name in ("label", "image") if name in batch}
        return given | {"fake": torch.stack(list(self.stream(batch)), 1).flatten(0, 1)}

    def load_original(self, path: str | Path, epoch: str = "latest") -> None:
        """Load <epoch>_net_{G,D}.pth of a checkpoint folder, or one such file; the discriminator may be absent.

        Checkpoints of the first epochs, on single frames, fit without `temporal`.
        """
        load_nets(self.nets, path, epoch, optional=("D",))
