"""CC-FPSE: label maps to images by conditional convolutions and a feature-pyramid semantics-embedding discriminator.

Liu, Yin, Shao, Wang, Li. Learning to Predict Layout-to-image Conditional Convolutions for Semantic Image Synthesis.
NeurIPS 2019.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import BatchNormAct, DepthsepCCBlock, InstanceNormAct, label_conv2d, spectral_norm
from i2ifast.nn.conv import Conv2d

from . import spade
from ._losses import feature_matching
from .spade import UPSAMPLINGS, Z_DIM, Features, LabelConv2d, Semantics


@dataclass
class Config(spade.Config):
    """Options of the original, under its names, except that negative ones (no_instance, no_TTUR) are positive here."""

    norm_G: str = "spectralsync_batch"
    lambda_feat: float = 20.0

    ONLY: ClassVar[dict[str, Any]] = {
        **spade.Config.ONLY, "netG": "condconv", "netD": "fpse", "norm_G": "spectralsync_batch",
    }  # fmt: skip

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        forced = {"num_upsampling_layers": "more" if options["dataset_mode"] == "cityscapes" else "normal"}
        forced |= {} if options["no_TTUR"] else {"beta1": 0.0, "beta2": 0.9}
        return super().from_original({**options, **forced})


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "coco":       dict(label_nc=182, instance=True,  use_vae=True,  niter=100, niter_decay=100),
    "ade20k":     dict(label_nc=150, instance=False, use_vae=True,  niter=100, niter_decay=100),
    "cityscapes": dict(label_nc=35,  instance=True,  use_vae=True,  niter=100, niter_decay=100,
                       contain_dontcare_label=False, crop_size=512, aspect_ratio=2.0, num_upsampling_layers="more"),
    "tiny":       dict(label_nc=12,  instance=True,  use_vae=False, niter=100, niter_decay=100,
                       contain_dontcare_label=False, crop_size=128, aspect_ratio=2.0, ngf=8, nhidden=16, ndf=8,
                       lambda_vgg=0.0),
}
# fmt: on


def encoder(conv: nn.Conv2d) -> nn.Sequential:
    """Convolution with spectral norm, batch norm, leaky relu."""
    return nn.Sequential(nn.Sequential(spectral_norm(conv), BatchNormAct(conv.out_channels, 0.2)))


class CondConvGenerator(nn.Module):
    """Label map, and noise z [N,256] if use_vae, to images [N,3,H,W] in [-1, 1].

    Without use_vae H and W are those of the label map, and must be multiples of config.stride.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        nf, (sh, sw), depth = config.ngf, config.latent, UPSAMPLINGS[config.num_upsampling_layers]
        if config.use_vae:
            self.fc: nn.Module = nn.Linear(Z_DIM, 16 * nf * sh * sw)
        else:
            self.fc = LabelConv2d(config.semantic_nc, 16 * nf, 3, padding=1)
        self.labelenc1 = encoder(LabelConv2d(config.semantic_nc, nf, 3, padding=1, bias=False))
        for k in range(2, depth + 2):
            self.add_module(f"labelenc{k}", encoder(Conv2d(nf, nf, 3, 2, 1, bias=False)))
        for k in range(1, depth + 1):
            self.add_module(f"labellat{k}", encoder(nn.Conv2d(nf, nf, 1, bias=False)))
            self.add_module(f"labeldec{k}", encoder(Conv2d(nf, nf, 3, padding=1, bias=False)))
        names = ("head_0", "G_middle_0", "G_middle_1", "up_0", "up_1", "up_2", "up_3")
        widths = [nf << k for k in (4, 4, 4, 4, 3, 2, 1, 0)]
        for name, (fin, fout) in zip(names, pairwise(widths), strict=True):
            block = DepthsepCCBlock(fin, fout, config.norm_G, config.semantic_nc + nf, config.nhidden)
            self.add_module(name, block)
        self.conv_img = nn.Conv2d(nf, 3, 3, padding=1)
        # Of every block: its level of the pyramid, the deepest first.
        levels = [0, 1, 2, 3, 4, 5, 6] if depth == 6 else [0, 1, 1, 2, 3, 4, 5]
        self.blocks = dict(zip(names, levels, strict=True))

    def pyramid(self, seg: Semantics) -> list[Tensor]:
        """Features of the label map at every resolution of the generator, the deepest first."""
        depth = UPSAMPLINGS[self.config.num_upsampling_layers]
        encoded = [self.labelenc1(seg)]
        for k in range(2, depth + 2):
            encoded.append(self.get_submodule(f"labelenc{k}")(encoded[-1]))
        pyramid = [encoded.pop()]
        for k in range(1, depth + 1):
            lateral = self.get_submodule(f"labellat{k}")(encoded.pop())
            pyramid.append(self.get_submodule(f"labeldec{k}")(upsampled(pyramid[-1]) + lateral))
        return pyramid

    def forward(self, seg: Semantics, z: Tensor | None = None) -> Tensor:
        pyramid = self.pyramid(seg)
        x = (
            self.fc(z).unflatten(1, (-1, *self.config.latent))
            if self.config.use_vae
            else self.fc(seg, pyramid[0].shape[2:])
        )
        for name, level in self.blocks.items():
            if x.shape[2:] != pyramid[level].shape[2:]:
                x = upsampled(x)
            x = self.get_submodule(name)(x, seg, pyramid[level])
        return torch.tanh(self.conv_img(F.leaky_relu(x, 0.2)))


def upsampled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def normalised(conv: nn.Conv2d) -> nn.Sequential:
    """Convolution with spectral norm, instance norm, leaky relu."""
    return nn.Sequential(nn.Sequential(spectral_norm(conv), InstanceNormAct(conv.out_channels, 0.2)))


class FPSEDiscriminator(nn.Module):
    """Images and their label map to features [4] and, at strides 4, 8 and 16, logits [3].

    Logits are of the image alone, plus how well its features agree with the embedded labels. Sides of the images are
    multiples of 32.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        nf = config.ndf
        widths = [3, nf, 2 * nf, 4 * nf, 8 * nf, 8 * nf]
        for k, (fin, fout) in enumerate(pairwise(widths), 1):
            self.add_module(f"enc{k}", normalised(Conv2d(fin, fout, 3, 2, 1, bias=False)))
        for k in range(2, 6):
            self.add_module(f"lat{k}", normalised(nn.Conv2d(widths[k], 4 * nf, 1, bias=False)))
        for k in range(2, 5):
            self.add_module(f"final{k}", normalised(Conv2d(4 * nf, 2 * nf, 3, padding=1, bias=False)))
        self.tf = nn.Conv2d(2 * nf, 1, 1)
        self.seg = nn.Conv2d(2 * nf, 2 * nf, 1)
        self.embedding = nn.Conv2d(config.semantic_nc, 2 * nf, 1)

    def embedded(self, seg: Semantics) -> Tensor:
        """The embedding of labels averaged over 4x4 pixels: one convolution, on distinct windows where they are few."""
        weight = self.embedding.weight.expand(-1, -1, 4, 4) / 16
        return label_conv2d(seg, weight, self.embedding.bias, stride=4)

    def forward(self, seg: Semantics, images: Tensor) -> Features:
        """images [kN,3,H,W] of the N label maps, k times over."""
        encoded, x = [], images
        for k in range(1, 6):
            x = self.get_submodule(f"enc{k}")(x)
            encoded.append(x)
        features, top, tops = encoded[1:], None, []
        for k in range(5, 1, -1):
            lateral = self.get_submodule(f"lat{k}")(encoded[k - 1])
            top = lateral if top is None else F.interpolate(top, scale_factor=2, mode="bilinear") + lateral
            tops.append(top)
        labels, logits = self.embedded(seg), []
        for k in range(2, 5):
            x = self.get_submodule(f"final{k}")(tops[5 - k])
            agreement = self.seg(x).unflatten(0, (-1, len(labels))) * labels
            logits.append(self.tf(x) + agreement.sum(2, keepdim=True).flatten(0, 1))
            labels = F.avg_pool2d(labels, 2)
        return [features, logits]


class System(spade.System):
    """Generator, discriminator and, with use_vae, encoder; one generator step, then one discriminator step."""

    Config = Config
    PRESETS = PRESETS
    Generator = CondConvGenerator
    Discriminator = FPSEDiscriminator

    plan_sizes = ()  # windows of one convolution, no tables
    plan_windows = ()

    def adversarial(self, outputs: Features, real: bool, generator: bool = False) -> Tensor:
        """The GAN loss of the logits, averaged over resolutions."""
        return torch.stack([self.gan(logits, real, generator) for logits in outputs[1]]).mean()

    def matching(self, outputs: Features) -> Tensor:
        """Mean absolute difference of features, averaged over layers."""
        features, logits = outputs
        return feature_matching([[*features, logits]]) / len(features)
