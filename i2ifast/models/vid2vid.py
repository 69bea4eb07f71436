"""vid2vid: label maps of a video to its frames, each from the frames before it.

Wang, Liu, Zhu, Liu, Tao, Kautz, Catanzaro. Video-to-Video Synthesis. NeurIPS 2018.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn.flow import resample2d

from . import _system
from ._blocks import half_size, pad_to
from ._config import check_choices
from ._losses import VGG19, least_squares, perceptual
from ._originals import load_strictly, named, require
from ._system import Adam, Batch, Phase
from ._vid2vid import NORMS, Features, Generator, MultiscaleDiscriminator

Pyramid = list[Tensor]  # [N, T, C, H, W] at full resolution, at half, ...


@dataclass
class Config:
    """Options of the original, under its names, except that negative ones (no_flow, no_first_img) are positive here."""

    label_nc: int = 35
    use_instance: bool = True  # instance edges are the last channel
    output_nc: int = 3
    n_scales_spatial: int = 1  # generators, each twice as large as the one before
    n_frames_G: int = 3  # frames that the generator sees, the one that it makes included
    ngf: int = 128
    n_downsample_G: int = 3
    n_blocks: int = 9
    n_blocks_local: int = 3  # of the larger generators
    norm: Literal["batch", "instance"] = "batch"
    flow: bool = True
    fg: bool = False  # a branch of its own for the labels fg_labels
    fg_labels: tuple[int, ...] = (26,)
    first_img: bool = True  # the first frames are given; else the generator makes them, too
    n_frames_D: int = 3
    n_scales_temporal: int = 1  # discriminators of frames n_frames_D ** scale apart
    ndf: int = 64
    n_layers_D: int = 3
    num_D: int = 2
    ganFeat: bool = True  # match features of the discriminators
    lambda_feat: float = 10.0  # of that, and of the perceptual term
    lambda_F: float = 10.0
    lambda_T: float = 10.0
    vgg_weights: str = ""  # file with VGG19 weights; without one there is no perceptual term
    lr: float = 2e-4
    beta1: float = 0.5
    niter: int = 10  # epochs before the learning rate decays
    niter_decay: int = 10  # epochs of linear decay to zero
    loadSize: int = 512  # width of frames

    def __post_init__(self) -> None:
        check_choices(self, norm=NORMS)
        if self.n_frames_G < 2 or self.n_frames_D < 2:
            raise ValueError(f"n_frames_G {self.n_frames_G}, n_frames_D {self.n_frames_D}: expected at least 2 frames")
        if self.fg and max(self.fg_labels) >= self.label_nc:
            raise ValueError(f"fg_labels {self.fg_labels}: labels are 0 to {self.label_nc - 1}; fg False does without")

    @property
    def semantic_nc(self) -> int:
        """Channels of the label map as the networks see it."""
        return self.label_nc + self.use_instance

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values; ValueError for what this system does not have.

        gan_mode is not read: the original minimises squared distances whatever it says.
        """
        only = {"netG": "composite", "use_single_G": False, "add_face_disc": False, "sparse_D": False, "TTUR": False,
                "openpose_only": False, "niter_fix_global": 0}  # fmt: skip
        require(options, **only)
        values = named(cls, options)
        values |= {name: not options[f"no_{name}"] for name in ("flow", "first_img", "ganFeat")}
        return cls(**values)


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "cityscapes_512":  dict(fg=True),
    "cityscapes_1024": dict(fg=True, n_scales_spatial=2, loadSize=1024),
    "tiny":            dict(label_nc=12, loadSize=64, ngf=8, ndf=8, n_blocks=3, n_downsample_G=2, n_frames_D=2),
}
# fmt: on


def masked_l1(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Mean over all elements, masked ones included, of |a - b| * mask."""
    return F.l1_loss(a * mask, b * mask)


def adversarial(outputs: Features, real: bool) -> Tensor:
    """Squared distance of the logits to 1 (real) or 0, summed over scales."""
    return torch.stack([least_squares(scale[-1], real) for scale in outputs]).sum()


def matching(fake: Features, real: Features) -> Tensor:
    """Mean absolute difference of features, 4 / layers of each scale, averaged over scales."""
    pairs = [pair for scales in zip(fake, real, strict=True) for pair in list(zip(*scales, strict=True))[:-1]]
    return torch.stack([F.l1_loss(f, r.detach()) for f, r in pairs]).sum() * 4 / (len(fake[0]) - 1) / len(fake)


def edges(instances: Tensor) -> Tensor:
    """1 where an instance id [..., H, W] differs from one of its four neighbours."""
    edge = torch.zeros_like(instances, dtype=torch.bool)
    across = instances[..., 1:] != instances[..., :-1]
    down = instances[..., 1:, :] != instances[..., :-1, :]
    edge[..., 1:] |= across
    edge[..., :-1] |= across
    edge[..., 1:, :] |= down
    edge[..., :-1, :] |= down
    return edge.float()


def pyramid(frames: Tensor, scales: int) -> Pyramid:
    levels = [frames]
    for _ in range(scales - 1):
        small = half_size(levels[-1].flatten(0, 1))
        levels.append(small.unflatten(0, frames.shape[:2]))
    return levels


class Video(NamedTuple):
    """Generated frames [N, T, C, H, W], and the last n_frames_G - 1 of them, of all sizes, for what comes next."""

    fake: Tensor
    raw: Tensor
    flow: Tensor | None
    weight: Tensor | None
    last: Pyramid


class System(_system.System):
    """Generators of all scales, a discriminator of frames, and discriminators of frames that follow each other.

    A batch has `label` and, with use_instance, `instance` [N, T, 1, H, W], `image` [N, T, 3, H, W], and for training
    `flow` [N, T - n_frames_G + 1, 2, H, W] in pixels, from each frame that is made to the one before, with its
    `confidence` of 1 channel. `flow_T1`, ... are flows between frames as far apart as temporal scale 1, ... takes them.
    """

    Config = Config
    PRESETS = PRESETS
    data = "videos"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        names = [f"netG{scale}" for scale in range(config.n_scales_spatial)]
        for scale, name in enumerate(names):
            self.nets[name] = Generator(config, scale)
        self.nets["netD"] = MultiscaleDiscriminator(config.semantic_nc + config.output_nc, config)
        self.ema = tuple(names)
        adam = Adam(config.lr, (config.beta1, 0.999))
        self.phases = [
            Phase("G", self.ema, self.generator_loss, adam),
            Phase("D", ("netD",), self.discriminator_loss, adam),
        ]
        for scale in range(config.n_scales_temporal):
            channels = config.output_nc * config.n_frames_D + 2 * (config.n_frames_D - 1)
            self.nets[f"netD_T{scale}"] = MultiscaleDiscriminator(channels, config)
            loss = partial(self.temporal_loss, scale=scale)
            self.phases.append(Phase(f"D_T{scale}", (f"netD_T{scale}",), loss, adam))
        if config.lambda_feat and config.vgg_weights:
            self.fixed["VGG"] = VGG19(config.vgg_weights)

    @property
    def data_settings(self) -> dict[str, Any]:
        """Frames of the width loadSize, not cropped."""
        size = self.config.loadSize
        return {"instance": self.config.use_instance, "crop_size": size, "load_size": size,
                "preprocess_mode": "scale_width"}  # fmt: skip

    def init_weights(self) -> None:
        """Convolutions N(0, 0.02), scales of norms N(1, 0.02), biases of norms zero."""
        for module in self.nets.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.02)
                nn.init.zeros_(module.bias)

    def decay(self, epoch: int) -> float:
        """1 up to epoch niter, then a line to 0 after epoch niter + niter_decay."""
        if not self.config.niter_decay:
            return 1.0
        return min(1.0, max(0.0, 1 - (epoch - 1 - self.config.niter) / (self.config.niter_decay + 1)))

    def prepare(self, batch: Batch) -> Batch:
        """Add `semantics` [N, T, semantic_nc, H, W]."""
        label = batch["label"][:, :, 0]
        if label.numel() and int(label.max()) >= self.config.label_nc:
            raise ValueError(f"label {int(label.max())}: must be less than label_nc, {self.config.label_nc}")
        maps = [F.one_hot(label.long(), self.config.label_nc).movedim(-1, 2).to(batch["image"].dtype)]
        maps += [edges(batch["instance"]).to(maps[0].dtype)] if self.config.use_instance else []
        return {**batch, "semantics": torch.cat(maps, 2)}

    def first(self, batch: Batch) -> Pyramid:
        """The frames before the first that is made: given ones, or zeros."""
        images = batch["image"][:, : self.config.n_frames_G - 1]
        return pyramid(images if self.config.first_img else torch.zeros_like(images), self.config.n_scales_spatial)

    def generate(self, semantics: Tensor, before: Pyramid, first: bool = True) -> Video:
        """Frames n_frames_G - 1, ... of a part of a video, from those before; no gradient goes from frame to frame.

        `first`: whether it is the beginning of the video.
        """
        config, scales = self.config, self.config.n_scales_spatial
        seen, raw_only = config.n_frames_G, first and not config.first_img
        labels, before, made = pyramid(semantics, scales), list(before), []
        for t in range(semantics.size(1) - seen + 1):
            coarse: tuple[Tensor | None, ...] = (None, None, None)
            for scale in range(scales):
                level = scales - 1 - scale
                window = labels[level][:, t : t + seen]
                mask = window[:, -1, list(config.fg_labels)].sum(1, keepdim=True).clamp(0, 1) if config.fg else None
                frame = self.nets[f"netG{scale}"](
                    window.flatten(1, 2), before[level].flatten(1, 2), mask, coarse, raw_only
                )
                coarse = frame.features
                before[level] = torch.cat([before[level][:, 1:], frame.image.detach()[:, None]], 1)
            made.append(frame)
        rows = ([getattr(frame, name) for frame in made] for name in ("image", "raw", "flow", "weight"))
        return Video(*(None if row[0] is None else torch.stack(row, 1) for row in rows), last=before)

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        config, ahead = self.config, self.config.n_frames_G - 1
        video = batch["video"] = self.generate(batch["semantics"], self.first(batch))
        real, before = batch["image"][:, ahead:], batch["image"][:, ahead - 1 : -1]
        terms = self.frame_terms(batch, video)
        flow, confidence = batch["flow"].flatten(0, 1), batch["confidence"].flatten(0, 1)
        fake_before = torch.cat([before[:, :1], video.fake[:, :-1].detach()], 1).flatten(0, 1)
        warped = resample2d(fake_before, flow)
        terms["G_Warp"] = config.lambda_T * masked_l1(video.fake.flatten(0, 1), warped, confidence)
        if video.flow is not None:
            made = video.flow.flatten(0, 1)
            coarser = 2 ** (config.n_scales_spatial - 1)
            terms["F_Flow"] = config.lambda_F / coarser * masked_l1(made, flow, confidence)
            real_warped = resample2d(before.flatten(0, 1), made)
            terms["F_Warp"] = config.lambda_T * masked_l1(real_warped, real.flatten(0, 1), confidence)
            if not config.first_img:
                weight = video.weight.flatten(0, 1)
                terms["W"] = masked_l1(weight, torch.zeros_like(weight), confidence)
        for scale in range(config.n_scales_temporal):
            if pair := self.temporal_pair(batch, scale):
                on_real, on_fake = (self.nets[f"netD_T{scale}"](x) for x in pair)
                suffix = str(scale) if scale else ""
                terms[f"G_T_GAN{suffix}"] = adversarial(on_fake, True)
                if config.ganFeat:
                    terms[f"G_T_GAN_Feat{suffix}"] = config.lambda_feat * matching(on_fake, on_real)
        return terms

    def frame_terms(self, batch: Batch, video: Video) -> dict[str, Tensor]:
        """Adversarial, feature and perceptual terms of the images and of the raw ones."""
        found: dict[str, list[Tensor]] = {}
        for real, fake in self.frame_pairs(batch, video):
            on_real, on_fake = self.nets["netD"](real), self.nets["netD"](fake)
            found.setdefault("G_GAN", []).append(adversarial(on_fake, True))
            if self.config.ganFeat:
                found.setdefault("G_GAN_Feat", []).append(self.config.lambda_feat * matching(on_fake, on_real))
            if "VGG" in self.fixed:
                images = (x[:, -self.config.output_nc :] for x in (fake, real))
                found.setdefault("G_VGG", []).append(self.config.lambda_feat * perceptual(self.fixed["VGG"], *images))
        return {name: torch.stack(values).sum() for name, values in found.items()}

    def frame_pairs(self, batch: Batch, video: Video) -> Iterator[tuple[Tensor, Tensor]]:
        """What netD takes, real and fake: label maps with images, of the images and of the raw ones."""
        ahead = self.config.n_frames_G - 1
        labels = batch["semantics"][:, ahead:].flatten(0, 1)
        real = torch.cat([labels, batch["image"][:, ahead:].flatten(0, 1)], 1)
        for images in (video.fake, video.raw):
            yield real, torch.cat([labels, images.flatten(0, 1)], 1)

    def temporal_pair(self, batch: Batch, scale: int) -> tuple[Tensor, Tensor] | None:
        """What netD_T takes, real and fake: n_frames_D frames n_frames_D ** scale apart, and the flows between them.

        None where the part of the video is too short, or flows between frames so far apart are not given.
        """
        count, apart = self.config.n_frames_D, self.config.n_frames_D**scale
        flows = batch["flow"] if scale == 0 else batch.get(f"flow_T{scale}")
        fake, real = batch["video"].fake, batch["image"][:, self.config.n_frames_G - 1 :]
        span = apart * (count - 1)
        if flows is None or fake.size(1) <= span:
            return None
        ends = range(fake.size(1) - 1, span - 1, -count)

        def groups(frames: Tensor, members: Sequence[int]) -> Tensor:
            return torch.cat([frames[:, [end - apart * back for back in members]].flatten(1, 2) for end in ends])

        frames, between = range(count - 1, -1, -1), range(count - 2, -1, -1)
        flow = groups(flows / 20, between)
        return torch.cat([groups(real, frames), flow], 1), torch.cat([groups(fake, frames), flow], 1)

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """On the frames that the generator's phase has made."""
        terms: dict[str, list[Tensor]] = {"D_real": [], "D_fake": []}
        for real, fake in self.frame_pairs(batch, batch["video"]):
            terms["D_real"].append(0.5 * adversarial(self.nets["netD"](real), True))
            terms["D_fake"].append(0.5 * adversarial(self.nets["netD"](fake.detach()), False))
        return {name: torch.stack(values).sum() for name, values in terms.items()}

    def temporal_loss(self, batch: Batch, scale: int) -> dict[str, Tensor]:
        net, pair = self.nets[f"netD_T{scale}"], self.temporal_pair(batch, scale)
        if pair is None:  # this part of the video is too short
            return {"D_T_real": 0 * next(net.parameters()).sum()}
        real, fake = pair
        return {
            "D_T_real": 0.5 * adversarial(net(real), True),
            "D_T_fake": 0.5 * adversarial(net(fake.detach()), False),
        }

    @torch.no_grad()
    def stream(self, batch: Batch) -> Iterator[Tensor]:
        """What `translate` makes, frame by frame [N, 3, H, W], with the memory of n_frames_G frames."""
        seen, made, window = self.config.n_frames_G, None, deque[Tensor](maxlen=self.config.n_frames_G)
        like, (h, w) = next(self.nets["netG0"].parameters()), batch["label"].shape[-2:]
        stride, names = 1 << self.config.n_downsample_G + self.config.n_scales_spatial - 1, ("label", "instance")
        for t in range(batch["label"].size(1)):
            maps = {name: pad_to(batch[name][:, t : t + 1].to(like.device), stride) for name in names if name in batch}
            window.append(self.prepare({**maps, "image": like})["semantics"])
            if t >= seen - 1:
                given = pad_to(batch["image"][:, : seen - 1].to(like), stride)
                before = made.last if made else self.first({"image": given})
                made = self.generate(torch.cat(list(window), 1), before, first=made is None)
                yield made.fake[:, 0, :, :h, :w]

    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N * T', 3, H, W]}, the T' = T - n_frames_G + 1 frames of any size behind the first of each video.

        With them `label` and `image` of these frames, as far as they are given.
        """
        given = {name: batch[name][:, self.config.n_frames_G - 1 :].flatten(0, 1) for name in ("label", "image")}
        return given | {"fake": torch.stack(list(self.stream(batch)), 1).flatten(0, 1)}

    def load_original(self, path: str | Path, epoch: str = "latest") -> None:
        """Load <epoch>_net_{G0,G1,D,D_T0,...}.pth of a checkpoint folder; discriminators may be absent."""
        for name, net in self.nets.items():
            file = Path(path) / f"{epoch}_net_{name.removeprefix('net')}.pth"
            if file.exists() or name in self.ema:
                load_strictly(net, torch.load(file, map_location="cpu", weights_only=True), file)
