"""DMIT: images of several domains, translated by a content, an attribute that is the domain, and a style.

Yu, Chen, Li, Liu, Li. Multi-mapping Image-to-Image Translation via Learning Disentanglement. NeurIPS 2019.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _dmit, _system
from ._blocks import pad_to
from ._config import Cropped, check_choices
from ._losses import hinge, kl_divergence, least_squares
from ._originals import load_file, load_strictly, named, require
from ._shared_graph import recording, through
from ._system import Adam, Batch, Phase

GAN_MODES = {"lsgan": least_squares, "hinge": hinge}
GENERATORS = ("dec", "enc_style", "enc_content")


@dataclass
class Config(Cropped):
    """Options of the original, under its names; load_size and crop_size are of its data."""

    input_nc: int = 3
    output_nc: int = 3
    n_attribute: int = 2  # domains
    n_style: int = 8
    norm_type: Literal["cbin", "cbbn"] = "cbin"  # conditional instance or batch norm
    up_type: Literal["transpose", "nearest", "pixelshuffle"] = "transpose"
    nef: int = 64
    ndf: int = 64
    n_style_blocks: int = 4
    n_content_resblocks: int = 4
    n_dec_resblocks: int = 6
    n_content_disblocks: int = 5
    n_image_disblocks: int = 3
    n_ds_blocks: int = 2
    use_dropout: bool = False
    use_same_dis: bool = False  # one discriminator of images for random styles and those of images
    content_gan_mode: Literal["lsgan", "hinge"] = "lsgan"
    image_gan_mode: Literal["lsgan", "hinge"] = "hinge"
    load_size: int = 286
    crop_size: int = 256
    lr: float = 1e-4
    niter: int = 100  # epochs before a line to zero
    niter_decay: int = 100
    lambda_cyc: float = 10.0
    lambda_div: float = 0.05
    lambda_style: float = 1.0
    lambda_content: float = 1.0
    lambda_kl: float = 0.01
    lambda_rec: float = 10.0

    def __post_init__(self) -> None:
        check_choices(self, norm_type=_dmit.NORMS, up_type=_dmit.UPSAMPLINGS)
        check_choices(self, content_gan_mode=GAN_MODES, image_gan_mode=GAN_MODES)
        if self.n_attribute < 2:
            raise ValueError(f"n_attribute {self.n_attribute}: there must be at least 2 domains")
        least = 1 << (self.n_ds_blocks + self.n_content_disblocks)
        if self.crop_size < least:
            raise ValueError(f"crop_size {self.crop_size}: {self.n_content_disblocks} n_content_disblocks need {least}")

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values; ValueError for what the original does not run with either."""
        require(options, rec_mode="l1", init_type="normal")
        values = named(cls, options)
        return cls(**{"crop_size": options.get("resolution", cls.crop_size)} | values)


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "summer2winter": dict(n_attribute=2, use_dropout=True),
    "tiny":          dict(n_attribute=2, crop_size=64, load_size=72, nef=4, ndf=4, n_style_blocks=3,
                          n_content_resblocks=1, n_dec_resblocks=2, n_content_disblocks=3, n_image_disblocks=2),
}
# fmt: on


class System(_system.System):
    """A step of each discriminator, then three that go back through the graph of one forward: of all that translates,
    of the decoder for its styles, and of the encoder of contents for what it finds in translations.

    As in the original the later ones meet weights that the earlier ones have changed. A batch is the images and their
    references together; each is translated to the domain and the style of the one across. Styles are always drawn from
    what the encoder finds, also in evaluation.
    """

    Config = Config
    PRESETS = PRESETS
    data = "domains"
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rand = self.later_rand()
        self.nets["dec"] = _dmit.Decoder(config, rand)
        self.nets["enc_style"], self.nets["enc_content"] = _dmit.StyleEncoder(config), _dmit.ContentEncoder(config)
        width = config.nef << config.n_ds_blocks
        self.nets["dis_content"] = _dmit.StyleDiscriminator(config, width, width, config.n_content_disblocks)
        self.nets["dis_rand_prior"] = _dmit.MultiStyleDiscriminator(config)
        other, shared = "dis_rand_prior", "dis_rand_prior"
        if not config.use_same_dis:
            other, shared = "dis_rand_enc", ""
            self.nets[other] = _dmit.MultiStyleDiscriminator(config)
        self.judges = {"dis_rand_prior": "dis_rand_prior", "dis_rand_enc": other}
        adam = Adam(config.lr, (0.5, 0.999))
        self.phases = [
            Phase("dis_content", ("dis_content",), self.content_loss, adam),
            Phase("dis_rand_prior", ("dis_rand_prior",), self.image_loss("dis_rand_prior", "random"), adam),
            Phase("dis_rand_enc", (other,), self.image_loss("dis_rand_enc", "encoded"), adam, shares=shared),
            Phase("G", GENERATORS, self.translation_loss, adam),
            Phase("Dec", ("dec",), self.style_loss, adam, shares="G"),
            Phase("Content", ("enc_content",), self.invariance_loss, adam, shares="G"),
        ]

    @property
    def data_settings(self) -> dict[str, Any]:
        return {"num_domains": self.config.n_attribute, "num_references": 1}

    def init_weights(self) -> None:
        """Normal weights of deviation 0.02, biases zero; layer norms as they start."""
        for module in self.nets.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.normal_(module.weight_orig, 0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def decay(self, epoch: int) -> float:
        return max(0.0, 1 - max(0, epoch - self.config.niter) / (self.config.niter_decay + 1))

    def attribute(self, domain: Tensor) -> Tensor:
        """One-hot [N,n_attribute] of domains [N]."""
        return F.one_hot(domain, self.config.n_attribute).to(next(self.nets["dec"].parameters()))

    def targets(self, domain: Tensor) -> Tensor:
        """The domain of the image across, or, where that is its own, another one."""
        count = self.config.n_attribute
        across = domain.roll(len(domain) // 2)
        step = 1 if count == 2 else 1 + self.randint(count - 1, domain.shape, domain)
        return torch.where(across == domain, (domain + step) % count, across)

    def prepare(self, batch: Batch) -> Batch:
        """The batch with `real` [2N,3,H,W], the images and their references, and attributes of and for them."""
        domain = torch.cat([batch["domain"], batch["reference_domain"]])
        attributes = {"source": self.attribute(domain), "target": self.attribute(self.targets(domain))}
        return batch | attributes | {"real": torch.cat([batch["image"], batch["reference"]])}

    def style(self, moments: tuple[Tensor, Tensor]) -> Tensor:
        """A style [N,n_style] of mean and log variance."""
        mu, logvar = moments
        return mu + self.randn(mu.shape, mu) * (logvar / 2).exp()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """What the networks make of a batch, by the names of `made`: once, for all phases."""
        if "made" not in batch:
            with recording(self.nets[name] for name in GENERATORS):
                batch["made"] = self.made(batch["real"], batch["source"], batch["target"])
        return batch["made"]

    def made(self, real: Tensor, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """content, style, mu, logvar; fakes: rec, encoded (in the style across), random, random2, cyc; content_rec and
        mu_rec, of random; rand, rand2, their styles."""
        nets, config = self.nets, self.config
        content, moments = nets["enc_content"](real), nets["enc_style"](real)
        style = self.style(moments)
        made = {"content": content, "style": style} | dict(zip(("mu", "logvar"), moments, strict=True))
        drawn = [self.randn(style.shape, style) for _ in range(2 if config.lambda_div else 1)]
        made |= dict(zip(("rand", "rand2"), drawn, strict=False))
        own = torch.cat([source, style], 1)
        codes = [own, *(torch.cat([target, each], 1) for each in (style.roll(len(style) // 2, 0), *drawn))]
        fakes = nets["dec"](content, torch.cat(codes)).chunk(len(codes))
        made |= dict(zip(("rec", "encoded", "random", "random2"), fakes, strict=False))
        again = nets["enc_style"](made["random"])
        self.style(again)  # as the original's encoder draws, always
        made |= {"mu_rec": again[0], "content_rec": nets["enc_content"](made["random"])}
        if config.lambda_cyc:
            made["cyc"] = nets["dec"](made["content_rec"], own)
        return made

    def learnt_by(self, batch: Batch, nets: Sequence[str]) -> dict[str, Tensor]:
        """`forward`, with gradients for some networks only."""
        return through(
            self.forward(batch), [batch["real"], *(p for name in nets for p in self.nets[name].parameters())]
        )

    def content_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The same contents are real with their attribute, and fake with the one they are translated to."""
        content, net = self.forward(batch)["content"].detach(), self.nets["dis_content"]
        gan = GAN_MODES[self.config.content_gan_mode]
        fake = gan(net(content, batch["target"]), False)
        return {"dis_content": gan(net(content, batch["source"]), True) + fake}

    def image_loss(self, judge: str, fake: str) -> Callable[[Batch], dict[str, Tensor]]:
        """The loss of a discriminator of images; every pass of it in training changes its weights."""
        gan = GAN_MODES[self.config.image_gan_mode]

        def loss(batch: Batch) -> dict[str, Tensor]:
            net, images = self.nets[self.judges[judge]], self.forward(batch)[fake].detach()
            passes = (images, batch["target"]), (batch["real"], batch["target"]), (batch["real"], batch["source"])
            of_fake, mismatched, matched = (net(*each) for each in passes)
            scales = zip(of_fake, mismatched, matched, strict=True)
            return {judge: sum(gan(m, True) + (gan(f, False) + gan(w, False)) / 2 for f, w, m in scales)}

        return loss

    def translation_loss(self, batch: Batch) -> dict[str, Tensor]:
        config, made, real = self.config, self.learnt_by(batch, GENERATORS), batch["real"]
        of_images, of_contents = GAN_MODES[config.image_gan_mode], GAN_MODES[config.content_gan_mode]
        judged = {
            judge: self.nets[self.judges[judge]](made[fake], batch["target"])
            for judge, fake in (("dis_rand_enc", "encoded"), ("dis_rand_prior", "random"))
        }
        of_content = self.nets["dis_content"](made["content"], batch["target"])
        terms = {
            "errG_content": of_contents(of_content, True, True),
            "errG_rand_prior": sum(of_images(scale, True, True) for scale in judged["dis_rand_prior"]),
            "errG_rand_enc": sum(of_images(scale, True, True) for scale in judged["dis_rand_enc"]),
            "errRec": config.lambda_rec * F.l1_loss(made["rec"], real),
            "errKL": config.lambda_kl * kl_divergence(made["mu"], made["logvar"]),
        }
        return terms | ({"errCyc": config.lambda_cyc * F.l1_loss(made["cyc"], real)} if config.lambda_cyc else {})

    def style_loss(self, batch: Batch) -> dict[str, Tensor]:
        config, made = self.config, self.learnt_by(batch, ("dec",))
        terms = {"errStyle": config.lambda_style * F.l1_loss(made["mu_rec"], made["rand"])}
        if config.lambda_div:
            apart = F.l1_loss(made["random"], made["random2"]) + 1e-5
            terms["errDiv"] = config.lambda_div * F.l1_loss(made["rand"], made["rand2"]) / apart
        return terms

    def invariance_loss(self, batch: Batch) -> dict[str, Tensor]:
        made = self.learnt_by(batch, ("enc_content",))
        return {"errContent": self.config.lambda_content * F.l1_loss(made["content"], made["content_rec"])}

    def random_styles(self, count: int) -> Tensor:
        """Styles [count,n_style] of any domain."""
        return self.randn((count, self.config.n_style), next(self.nets["dec"].parameters()))

    def reference_styles(self, images: Tensor) -> Tensor:
        """Styles [N,n_style] of images [N,3,H,W] of any domain and size, drawn from what the encoder finds."""
        return self.style(self.nets["enc_style"](images))

    @torch.no_grad()
    def in_styles(self, images: Tensor, attribute: Tensor, styles: Sequence[Tensor]) -> Tensor:
        """Images [N,3,H,W] of any size with an attribute [N,n_attribute] in each of several styles, all [N,n_style]:
        [styles,N,3,H,W]. Interpolated attributes or styles give a transition."""
        h, w = images.shape[-2:]
        content = self.nets["enc_content"](pad_to(images, 1 << self.config.n_ds_blocks))
        codes = torch.cat([torch.cat([attribute, style], 1) for style in styles])
        return self.nets["dec"](content, codes).unflatten(0, (len(styles), len(images)))[..., :h, :w]

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": images in domains `reference_domain`}, in the style of `reference` if given, else a random one."""
        if "reference_domain" not in batch:
            raise ValueError("the batch has no reference_domain: name the domain to translate to")
        images, given = batch["image"], batch.get("reference")
        style = self.random_styles(len(images)) if given is None else self.reference_styles(given)
        return {"fake": self.in_styles(images, self.attribute(batch["reference_domain"]), [style])[0]}

    def load_original(self, path: str | Path, epoch: str = "latest") -> None:
        """Load dec_<epoch>.pth, enc_style_<epoch>.pth and enc_content_<epoch>.pth of a folder, one such file, or a
        resume.pth, which has the discriminators too."""
        path = Path(path)
        if path.name == "resume.pth":
            found = torch.load(path, map_location="cpu", weights_only=True)
            if missing := [name for name in self.nets if name not in found]:
                raise ValueError(f"{path} has no network {', '.join(missing)}")
            for name, net in self.nets.items():
                load_strictly(net, found[name]["weight"], path)
            return
        files = {name: path / f"{name}_{epoch}.pth" for name in GENERATORS} if path.is_dir() else {
            path.stem.rpartition("_")[0]: path}  # fmt: skip
        for name, file in files.items():
            if name not in GENERATORS:
                raise ValueError(f"{file}: expected resume.pth, or a name {' or '.join(GENERATORS)} and _<epoch>.pth")
            load_file(self.nets[name], file)
