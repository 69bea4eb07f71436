"""UNIT: two domains of images with one kind of code between them, on which both have an encoder and a decoder.

The codes are means of normal distributions of deviation 1: training adds noise to them, translation does not. As in
the original's present code, the domains share no weights. Its "KL" is the mean of squares over all of a code.

Liu, Breuel, Kautz. Unsupervised Image-to-Image Translation Networks. NeurIPS 2017.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _munit
from ._blocks import pad_to
from ._munit import AutoEncoders, ContentEncoder, Decoder
from ._system import Batch


@dataclass
class Config(_munit.Config):
    """Options of the original; those that it nests in `gen` and `dis` have these as prefixes."""

    recon_kl_w: float = 0.01
    recon_kl_cyc_w: float = 0.01
    vgg_w: float = 1.0


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "gta2city": dict(vgg_w=1.0),
    "tiny":     dict(vgg_w=0.0, crop_image_height=64, crop_image_width=64, gen_dim=8, gen_n_res=1, dis_dim=8,
                     dis_num_scales=2, dis_n_layer=3),
}
# fmt: on


class VAEGen(nn.Module):
    """The auto-encoder of one domain: `enc` makes codes of images, `dec` images of codes."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.enc = ContentEncoder(config, channels)
        self.dec = Decoder(config, channels, "in")


class System(AutoEncoders):
    """Two auto-encoders and two discriminators; one discriminator step, then one generator step."""

    Config = Config
    PRESETS = PRESETS
    Generator = VAEGen

    def noisy(self, codes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Codes with noise, drawn for domain a first."""
        return {side: code + self.randn(code.shape, code) for side, code in codes.items()}

    def codes(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """Codes of images by the encoders of their domains, a first."""
        return {side: self.nets[f"gen_{side}"].enc(images[side]) for side in "ab"}

    def fakes(self, batch: Batch) -> dict[str, Tensor]:
        codes = self.noisy(self.codes(batch))
        return {side: self.nets[f"gen_{side}"].dec(codes[other]) for side, other in ("ab", "ba")}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        config, nets = self.config, self.nets
        codes = self.codes(batch)
        given, recon, fakes = self.noisy(codes), {}, {}
        for side, other in ("ab", "ba"):  # the same noise for reconstruction and translation
            decoded = nets[f"gen_{side}"].dec(torch.cat([given[side], given[other]]))
            recon[side], fakes[side] = decoded.chunk(2)
        again = self.codes(fakes)
        given = self.noisy(again)
        terms = {}
        for side, other in ("ab", "ba"):
            cycled = nets[f"gen_{side}"].dec(given[other])
            cycle_kl = config.recon_kl_cyc_w * again[other].square().mean()
            terms[f"gen_adv_{side}"] = config.gan_w * self.adversarial(side, fakes[side])
            terms[f"gen_recon_x_{side}"] = config.recon_x_w * F.l1_loss(recon[side], batch[side])
            terms[f"gen_recon_kl_{side}"] = config.recon_kl_w * codes[side].square().mean()
            terms[f"gen_cyc_x_{side}"] = config.recon_x_cyc_w * F.l1_loss(cycled, batch[side])
            terms[f"gen_recon_kl_cyc_{side}{other}{side}"] = cycle_kl
            if "VGG" in self.fixed:
                terms[f"gen_vgg_{side}"] = config.vgg_w * self.perceptual(fakes[side], batch[other])
        return terms

    @torch.no_grad()
    def translate(self, batch: Batch, direction: Literal["AtoB", "BtoA"] = "AtoB") -> dict[str, Tensor]:
        """{"fake": `a` [N,C,H,W] in domain b}, or `b` in domain a."""
        source, target = direction.lower().split("to")
        h, w = batch[source].shape[-2:]
        code = self.nets[f"gen_{source}"].enc(pad_to(batch[source], 1 << self.config.gen_n_downsample))
        return {"fake": self.nets[f"gen_{target}"].dec(code)[..., :h, :w]}
