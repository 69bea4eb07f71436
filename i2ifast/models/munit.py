"""MUNIT: two domains of images, translated by swapping style codes over a shared kind of content.

Huang, Liu, Belongie, Kautz. Multimodal Unsupervised Image-to-Image Translation. ECCV 2018.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _munit
from ._blocks import pad_to
from ._munit import ACTIVATIONS, MLP, AutoEncoders, ContentEncoder, Decoder, StyleEncoder
from ._system import Batch


@dataclass
class Config(_munit.Config):
    """Options of the original; those that it nests in `gen` and `dis` have these as prefixes."""

    gen_mlp_dim: int = 256
    gen_style_dim: int = 8
    recon_s_w: float = 1.0
    recon_c_w: float = 1.0
    recon_x_cyc_w: float = 0.0


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "edges2handbags":     dict(recon_x_cyc_w=0.0,  vgg_w=0.0),
    "edges2shoes":        dict(recon_x_cyc_w=0.0,  vgg_w=0.0),
    "summer2winter":      dict(recon_x_cyc_w=10.0, vgg_w=0.0),
    "synthia2cityscape":  dict(recon_x_cyc_w=10.0, vgg_w=1.0, crop_image_height=512, crop_image_width=512),
    "tiny":               dict(recon_x_cyc_w=10.0, vgg_w=0.0, crop_image_height=64,  crop_image_width=64,
                               gen_dim=8, gen_mlp_dim=16, gen_n_res=1, dis_dim=8, dis_num_scales=2, dis_n_layer=3),
}
# fmt: on


class AdaINGen(nn.Module):
    """The auto-encoder of one domain."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        options = {"pad": config.gen_pad_type, "act": ACTIVATIONS[config.gen_activ]}
        self.enc_style = StyleEncoder(channels, config.gen_dim, config.gen_style_dim, **options)
        self.enc_content = ContentEncoder(config, channels)
        self.dec = Decoder(config, channels, "adain")
        vectors = 4 * config.gen_n_res * (config.gen_dim << config.gen_n_downsample)
        self.mlp = MLP(config.gen_style_dim, vectors, config.gen_mlp_dim, act=options["act"])

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Content and style."""
        return self.enc_content(images), self.enc_style(images)

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        return self.dec(content, self.mlp(style))


class System(AutoEncoders):
    """Two auto-encoders and two discriminators; one discriminator step, then one generator step."""

    Config = Config
    PRESETS = PRESETS
    Generator = AdaINGen

    def styles(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Random styles of both domains, drawn for domain a first."""
        shape = len(like), self.config.gen_style_dim, 1, 1
        return self.randn(shape, like), self.randn(shape, like)

    def fakes(self, batch: Batch) -> dict[str, Tensor]:
        gen_a, gen_b = self.nets["gen_a"], self.nets["gen_b"]
        s_a, s_b = self.styles(batch["a"])
        return {
            "a": gen_a.decode(gen_b.enc_content(batch["b"]), s_a),
            "b": gen_b.decode(gen_a.enc_content(batch["a"]), s_b),
        }

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        config, gens = self.config, (self.nets["gen_a"], self.nets["gen_b"])
        x, drawn = (batch["a"], batch["b"]), self.styles(batch["a"])
        encoded = [gen.encode(images) for gen, images in zip(gens, x, strict=True)]
        terms = {}
        for own, other in ((0, 1), (1, 0)):
            side, across = "ab"[own], "ab"[other]
            (content, style), (foreign, foreign_style) = encoded[own], encoded[other]
            fake = gens[own].decode(foreign, drawn[own])
            content_again, style_again = gens[own].encode(fake)
            terms[f"gen_adv_{side}"] = config.gan_w * self.adversarial(side, fake)
            terms[f"gen_recon_x_{side}"] = config.recon_x_w * F.l1_loss(gens[own].decode(content, style), x[own])
            terms[f"gen_recon_s_{side}"] = config.recon_s_w * F.l1_loss(style_again, drawn[own])
            terms[f"gen_recon_c_{across}"] = config.recon_c_w * F.l1_loss(content_again, foreign)
            if config.recon_x_cyc_w:
                cycled = gens[other].decode(content_again, foreign_style)
                terms[f"gen_cycrecon_x_{across}"] = config.recon_x_cyc_w * F.l1_loss(cycled, x[other])
            if "VGG" in self.fixed:
                terms[f"gen_vgg_{side}"] = config.vgg_w * self.perceptual(fake, x[other])
        return terms

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": `a` [N,C,H,W] in domain b}, in the style of `b` if given, else in a random one."""
        images, gen_b = batch["a"], self.nets["gen_b"]
        h, w = images.shape[-2:]
        style = gen_b.enc_style(batch["b"]) if "b" in batch else self.styles(images)[1]
        content = self.nets["gen_a"].enc_content(pad_to(images, 1 << self.config.gen_n_downsample))
        return {"fake": gen_b.decode(content, style)[..., :h, :w]}
