"""SEAN: label maps to images, the style of every region taken from an image.

Zhu, Abdal, Qin, Wonka. SEAN: Image Synthesis with Semantic Region-Adaptive Normalization. CVPR 2020.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import InstanceNormAct, SEANResnetBlock
from i2ifast.nn.conv import Conv2d, ConvTranspose2d
from i2ifast.nn.sean import Noise, standard_normal
from i2ifast.nn.styles import region_means

from . import spade
from ._system import Batch
from .spade import NLayerDiscriminator, Semantics


@dataclass
class Config(spade.Config):
    """Options of the original, under its names, except that negative ones (no_instance, no_TTUR) are positive here."""

    label_nc: int = 19
    contain_dontcare_label: bool = False
    instance: bool = False
    num_upsampling_layers: Literal["normal", "more"] = "normal"
    n_layers_D: int = 3
    niter_decay: int = 50
    style_length: int = 512
    zencoder_ngf: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_vae or self.num_upsampling_layers == "most":
            raise ValueError("use_vae, or num_upsampling_layers 'most': networks that the original does not have")

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values; ValueError for a network this system does not have."""
        betas = {} if options["no_TTUR"] else {"beta1": 0.0, "beta2": 0.9}  # its trainer ignores the options then
        return super().from_original({**options, **betas})


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "celebamask_hq": dict(label_nc=19, crop_size=256),
    "tiny":          dict(label_nc=12, crop_size=64, ngf=8, nhidden=32, ndf=16, style_length=24, zencoder_ngf=8,
                          lambda_vgg=0.0),
}
# fmt: on


class ReflectConv2d(Conv2d):
    """3x3 convolution with reflection padding: the inside of one with zero padding over the map so padded."""

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__(fin, fout, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, [1] * 4, mode="reflect"))[..., 1:-1, 1:-1]


class Zencoder(nn.Module):
    """Images [N,3,H,W] and label map to the style of every region, [N, R, style_length]; zeros for absent regions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        nf = config.zencoder_ngf

        def normed(conv: nn.Module, width: int) -> list[nn.Module]:
            return [conv, InstanceNormAct(width, 0.2), nn.Identity()]

        # Places of the original, in which padding and activation are layers of their own.
        self.model = nn.Sequential(
            nn.ReflectionPad2d(1),
            *normed(nn.Conv2d(3, nf, 3), nf),
            *normed(Conv2d(nf, 2 * nf, 3, 2, 1), 2 * nf),
            *normed(Conv2d(2 * nf, 4 * nf, 3, 2, 1), 4 * nf),
            *normed(ConvTranspose2d(4 * nf, 8 * nf, 3, 2, 1, 1), 8 * nf),
            nn.Identity(),
            ReflectConv2d(8 * nf, config.style_length),
            nn.Tanh(),
        )

    def forward(self, images: Tensor, seg: Semantics) -> Tensor:
        return region_means(self.model(images), seg)


class SEANGenerator(spade.SPADEGenerator):
    """Label map and styles of its regions to images [N,3,H,W] in [-1, 1], of the label map's size.

    H and W must be multiples of config.stride. Every layer adds `noise`, in evaluation too.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.Zencoder = Zencoder(config)

    def block(self, fin: int, fout: int) -> SEANResnetBlock:
        config, use_rgb = self.config, fout > self.config.ngf  # the last block knows no styles
        widths = config.nhidden, config.style_length
        return SEANResnetBlock(fin, fout, config.norm_G, config.semantic_nc, use_rgb, *widths)

    def forward(
        self,
        seg: Semantics,
        images: Tensor | None = None,
        styles: Tensor | None = None,
        noise: Noise = standard_normal,
    ) -> Tensor:
        """styles [N, R, style_length], by default those that the regions of seg have in `images`."""
        styles = self.Zencoder(images, seg) if styles is None else styles
        return self.decode(self.first(seg, None), seg, styles, noise)


class MultiscaleDiscriminator(spade.MultiscaleDiscriminator):
    """That of SPADE, with stride 2 in all layers but the last."""

    def discriminator(self, config: Config) -> NLayerDiscriminator:
        return NLayerDiscriminator(config.semantic_nc, config.ndf, config.n_layers_D, flat=0)


class System(spade.System):
    """Generator with style encoder, and discriminator; one generator step, then one discriminator step."""

    Config = Config
    PRESETS = PRESETS
    Generator = SEANGenerator
    Discriminator = MultiscaleDiscriminator
    plan_per_sample = True

    def prepare(self, batch: Batch) -> Batch:
        """Add `semantics`: the batch's plan, else one made of `label` and `instance` ([N,1,H,W] integers)."""
        batch = super().prepare(batch)
        semantics = batch["semantics"]
        return batch if isinstance(semantics, Tensor) else {**batch, "semantics": semantics.per_sample()}

    def generate(self, batch: Batch, z: Tensor | None) -> Tensor:
        return self.nets["G"](batch["semantics"], batch.get("image"), z, self.randn)

    @torch.no_grad()
    def codes(self, batch: Batch) -> Tensor:
        """Styles [N, R, style_length] of the regions of `label`, from a batch of any size: `styles` if given (see
        `mix`), else those in `image`, else zeros, as regions have that the image of the style does not have."""
        if "styles" in batch:
            return batch["styles"]
        if "image" in batch:
            return self.nets["G"].Zencoder(batch["image"], self.prepare(batch)["semantics"])
        shape = len(batch["label"]), self.config.semantic_nc, self.config.style_length
        return self.nets["G"].fc.weight.new_zeros(shape)

    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,H,W]} of any size, in the styles that `codes` gives."""
        return super().translate(self.prepare(batch))  # once for both


def mix(styles: Tensor, others: Tensor, share: Tensor | float) -> Tensor:
    """styles [N, R, S] with a share of others (same shape) in them: one number, or one for each region, [R] or [N, R].

    Shares of 0 and 1 give regions of one image the style that they have in another, those between interpolate.
    """
    share = torch.as_tensor(share, dtype=styles.dtype, device=styles.device)
    return torch.lerp(styles, others, share[..., None] if share.dim() else share)
