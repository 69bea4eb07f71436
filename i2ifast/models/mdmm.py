"""MDMM: DRIT++ of many domains, which one network of each kind translates between, told by a code of the domain.

Lee et al. DRIT++: Diverse Image-to-Image Translation via Disentangled Representations. IJCV 2020. Nothing is recorded
of an original: networks are those of two domains without their parts, with the code as further attributes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _drit, _drit_shared
from ._blocks import pad_to, tiled
from ._drit import (
    NZ,
    STYLED,
    AttributeBlock,
    LeakyConv2d,
    NormedConv2d,
    NormedUpConv2d,
    PaddedConv2d,
    ResBlock,
    StyledBlock,
    ToImages,
)
from ._drit_shared import CLIP, GENERATORS, RANDOM, RECONSTRUCTION, REGULARISATION, apart
from ._losses import cross_entropy, kl_divergence
from ._shared_graph import recording
from ._system import Batch, Phase, every

STRIDE = 4  # pixels of an image to one of its content


@dataclass
class Config(_drit_shared.Config):
    """Options of the original that two domains have too, and those of domains."""

    num_domains: int = 3
    isDcontent: bool = True  # a discriminator of contents; without one there is an update of all in every iteration
    lambda_cls: float = 1.0  # of the domain of real images, to discriminators
    lambda_cls_G: float = 5.0  # of that of fakes, to the generator

    def __post_init__(self) -> None:
        if self.isDcontent:
            self.check_content()
        if self.num_domains < 2:
            raise ValueError(f"num_domains {self.num_domains}: must be at least 2")
        super().__post_init__()


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "weather":  dict(num_domains=4, concat=True),
    "artworks": dict(num_domains=3, concat=True),
    "shapes":   dict(num_domains=3, concat=False),
    "tiny":     dict(num_domains=3, isDcontent=False, base_channels=4, dis_scale=2, crop_size=64, resize_size=72),
}
# fmt: on


class ContentEncoder(nn.Module):
    """Images of any domain to contents [N,4c,H/4,W/4]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = config.base_channels
        layers = [LeakyConv2d(3, c, 7, 1, 3), NormedConv2d(c, 2 * c), NormedConv2d(2 * c, 4 * c)]
        self.conv = nn.Sequential(*layers, *(ResBlock(4 * c) for _ in range(4)))

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images)


class VariationalEncoder(nn.Module):
    """Images and codes of their domains to [N,2nz]: mean and log variance of their attributes."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [factor * config.base_channels for factor in (1, 2, 3, 4)]
        first = PaddedConv2d(3 + config.num_domains, widths[0], 4, 2, 1)
        self.conv = nn.Sequential(first, *(AttributeBlock(*pair) for pair in pairwise(widths)))
        self.fc, self.fcVar = (nn.Linear(widths[-1], NZ) for _ in range(2))

    def forward(self, images: Tensor, code: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv(torch.cat([images, tiled(code, images)], 1)), 0.2).mean((2, 3))
        return torch.cat([self.fc(x), self.fcVar(x)], 1)


class AttributeEncoder(nn.Module):
    """Images and codes of their domains to attributes [N,nz]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = config.base_channels
        first = PaddedConv2d(3 + config.num_domains, c, 7, 1, 3)
        halving = (PaddedConv2d(a, b, 4, 2, 1) for a, b in pairwise((c, 2 * c, 4 * c, 4 * c, 4 * c)))
        self.conv, self.last = nn.ModuleList([first, *halving]), nn.Linear(4 * c, NZ)

    def forward(self, images: Tensor, code: Tensor) -> Tensor:
        x = torch.cat([images, tiled(code, images)], 1)
        for conv in self.conv:
            x = F.relu(conv(x))
        return self.last(x.mean((2, 3)))


class ConcatGenerator(nn.Module):
    """Contents, and styles [N, nz + num_domains] of attributes and codes, which are maps beside them, to images.

    As in the generator of two domains (`_drit.ConcatGenerator`) styles pass by the residual blocks.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, self.length = 4 * config.base_channels, NZ + config.num_domains
        own = width + self.length
        self.dec_share = ResBlock(width)
        self.dec1 = nn.Sequential(*(ResBlock(own) for _ in range(3)))
        for i in (2, 3):
            self.add_module(f"dec{i}", NormedUpConv2d(own + self.length, (own + self.length) // 2))
            own = (own + self.length) // 2
        self.dec4 = ToImages(own + self.length, 3)

    def begin(self, content: Tensor) -> Tensor:
        """What all images with a content have in common."""
        shared = self.dec_share(content)
        return self.dec1(torch.cat([shared, tiled(shared.new_zeros(len(shared), self.length), shared)], 1))

    def forward(self, begun: Tensor, style: Tensor) -> Tensor:
        x = begun + F.pad(style, (begun.size(1) - self.length, 0))[:, :, None, None]
        for up in (self.dec2, self.dec3):
            x = up(torch.cat([x, tiled(style, x)], 1))
        return self.dec4(x, style)


class StyledGenerator(nn.Module):
    """Contents, and styles [N, nz + num_domains] of attributes and codes, for each block, to images."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = config.base_channels
        width = 4 * c
        self.dec = nn.ModuleList(StyledBlock(width) for _ in range(STYLED))
        self.up = nn.Sequential(NormedUpConv2d(width, 2 * c), NormedUpConv2d(2 * c, c), nn.ConvTranspose2d(c, 3, 1))
        first, second = nn.Linear(NZ + config.num_domains, width), nn.Linear(width, width)
        self.mlp = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(width, STYLED * width))

    def begin(self, content: Tensor) -> Tensor:
        return content

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        for block, part in zip(self.dec, self.mlp(style).chunk(STYLED, 1), strict=True):
            x = block(x, part)
        return torch.tanh(self.up(x))


class System(_drit_shared.System):
    """The discriminator of contents, and in every d_iter-th iteration those of images, then two generator steps.

    A batch is the images and their references together; each is translated to the attributes and the domain of the one
    across, and to random ones. One discriminator judges fakes in attributes of images, the other those in random ones;
    both name the domain too. That of contents names the domain that a content is from, until it can tell none. The
    generator steps share the graph of one forward, as with two domains.
    """

    Config = Config
    PRESETS = PRESETS
    data = "domains"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        dis = _drit.MultiScaleDis if config.dis_scale > 1 else _drit.Dis
        for name in ("dis1", "dis2"):
            self.nets[name] = dis(config, 3, 1 + config.num_domains)
        self.nets["enc_c"] = ContentEncoder(config)
        self.nets["enc_a"] = (VariationalEncoder if config.concat else AttributeEncoder)(config)
        self.nets["gen"] = (ConcatGenerator if config.concat else StyledGenerator)(config)
        rarely = every(config.d_iter, config.d_iter - 1) if config.isDcontent else every(1)
        self.phases = [
            Phase("D", ("dis1", "dis2"), self.discriminator_loss, self.adam, when=rarely),
            Phase("EG", GENERATORS, self.encoded_loss, self.adam, when=rarely),
            Phase("G_alone", RANDOM, self.random_loss, self.adam, when=rarely, shares="EG"),
        ]
        if config.isDcontent:
            self.nets["disContent"] = _drit.ContentDis(config, config.num_domains)
            self.phases.insert(0, Phase("D_content", ("disContent",), self.content_loss, self.adam_content, clip=CLIP))

    @property
    def data_settings(self) -> dict[str, Any]:
        return {"load_size": self.config.resize_size, "num_references": 1}

    def code(self, domain: Tensor) -> Tensor:
        """One-hot [N,num_domains] of domains [N]."""
        return F.one_hot(domain, self.config.num_domains).to(next(self.nets["gen"].parameters()))

    def prepare(self, batch: Batch) -> Batch:
        """The batch with `real` [2N,3,H,W], the images and their references, and `domains` of them."""
        domains = torch.cat([batch["domain"], batch["reference_domain"]])
        return batch | {"domains": domains, "real": torch.cat([batch["image"], batch["reference"]])}

    def contents(self, images: Tensor) -> Tensor:
        """Contents of images, in training with noise."""
        content = self.nets["enc_c"](images)
        return content + self.randn(content.shape, content) if self.training else content

    def first_contents(self, batch: Batch) -> Tensor:
        """Contents of the batch, with which `forward` begins."""
        if "contents" not in batch:
            with recording(self.nets[name] for name in GENERATORS):
                batch["contents"] = self.contents(batch["real"])
        return batch["contents"]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """What the networks make of a batch, by the names of `made`: once, for all phases."""
        if "made" not in batch:
            content = self.first_contents(batch)
            with recording(self.nets[name] for name in GENERATORS):
                batch["made"] = self.made(batch["real"], content, self.code(batch["domains"]))
        return batch["made"]

    def made(self, real: Tensor, content: Tensor, code: Tensor) -> dict[str, Tensor]:
        """content, moments; fakes [2N,3,H,W]: encoded, itself, recon, random, random2; moments_random, of random; z,
        z2, their attributes."""
        enc_a, gen, half = self.nets["enc_a"], self.nets["gen"], len(real) // 2
        moments = enc_a(real, code)
        attributes = self.drawn(moments)
        drawn = [self.randn(attributes.shape, attributes) for _ in range(1 + self.config.ms)]
        made = {"content": content, "moments": moments} | dict(zip(("z", "z2"), drawn, strict=False))
        begun = gen.begin(content)
        across = begun.roll(half, 0)
        styles = torch.cat([torch.cat([z, code], 1) for z in (attributes, attributes, *drawn)])
        fakes = gen(torch.cat([across, begun, *[across] * len(drawn)]), styles).split(len(real))
        made |= dict(zip(("encoded", "itself", "random", "random2"), fakes, strict=False))
        again = enc_a(torch.cat([made["encoded"], made["random"]]), code.repeat(2, 1))
        of_encoded, made["moments_random"] = again.chunk(2)
        own = torch.cat([self.drawn(of_encoded), code], 1)
        made["recon"] = gen(gen.begin(self.contents(made["encoded"])).roll(half, 0), own)
        return made

    def judged(self, dis: str, images: Tensor, count: int) -> list[tuple[list[Tensor], Tensor]]:
        """Of each of `count` parts of images: logits of patches per scale, and logits [N,num_domains] of domains."""
        scales = self.nets[dis](images)
        found = []
        for parts in zip(*(scale.chunk(count) for scale in scales), strict=True):
            domains = torch.stack([part[:, 1:].mean((2, 3)) for part in parts]).mean(0)
            found.append(([part[:, :1] for part in parts], domains))
        return found

    def of_contents(self, content: Tensor) -> Tensor:
        """Logits [N,num_domains] of the domains that contents are from."""
        return self.nets["disContent"](content).unflatten(1, (self.config.num_domains, -1)).mean(2)

    def content_loss(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.of_contents(self.first_contents(batch).detach())
        return {"disContent_loss": F.cross_entropy(logits, batch["domains"])}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        made, terms = self.forward(batch), {}
        for dis, names in (("dis1", ("encoded",)), ("dis2", ("random", "random2")[: 1 + self.config.ms])):
            images = torch.cat([batch["real"], *(made[name].detach() for name in names)])
            (of_real, domains), *of_fakes = self.judged(dis, images, 1 + len(names))
            terms[f"{dis}_loss"] = sum(
                cross_entropy(real, True) + cross_entropy(fake, False)
                for scales, _ in of_fakes
                for real, fake in zip(of_real, scales, strict=True)
            )
            terms[f"{dis}_cls"] = self.config.lambda_cls * F.cross_entropy(domains, batch["domains"])
        return terms

    def deceived(self, dis: str, fakes: Sequence[Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Adversarial and domain terms of fakes, each the sum over them."""
        found = self.judged(dis, torch.cat([*fakes]), len(fakes))
        adversarial = sum(cross_entropy(scale, True) for scales, _ in found for scale in scales)
        domains = sum(F.cross_entropy(logits, batch["domains"]) for _, logits in found)
        return adversarial, self.config.lambda_cls_G * domains

    def encoded_loss(self, batch: Batch) -> dict[str, Tensor]:
        made, real = self.learnt_by(self.forward(batch), [batch["real"]], GENERATORS), batch["real"]
        moments, content, terms = made["moments"], made["content"], {}
        if self.config.isDcontent:  # none of the domains is more likely than others
            terms["gan_content"] = -self.of_contents(content).log_softmax(1).mean()
        terms["gan"], terms["gan_cls"] = self.deceived("dis1", [made["encoded"]], batch)
        regular = kl_divergence(*moments.chunk(2, 1)) if self.config.concat else moments.square().mean()
        return terms | {
            "kl_za": REGULARISATION * regular,
            "kl_zc": REGULARISATION * content.square().mean(),
            "l1_recon": RECONSTRUCTION * F.l1_loss(made["recon"], real),
            "l1_itself": RECONSTRUCTION * F.l1_loss(made["itself"], real),
        }

    def random_loss(self, batch: Batch) -> dict[str, Tensor]:
        made, z = self.learnt_by(self.forward(batch), [batch["real"]], RANDOM), batch["made"]["z"]
        fakes = [made[name] for name in ("random", "random2") if name in made]
        adversarial, domains = self.deceived("dis2", fakes, batch)
        found = made["moments_random"][:, :NZ]
        terms = {"gan2": adversarial, "gan2_cls": domains, "l1_recon_z": RECONSTRUCTION * F.l1_loss(found, z)}
        return terms | ({"lz": apart(fakes, (z, made["z2"]))} if self.config.ms else {})

    def reference_styles(self, images: Tensor, domain: Tensor) -> Tensor:
        """Attributes [N,nz] of images [N,3,H,W] of domains [N], drawn if they are distributions."""
        return self.drawn(self.nets["enc_a"](images, self.code(domain)))

    @torch.no_grad()
    def in_styles(self, images: Tensor, domain: Tensor, styles: Sequence[Tensor]) -> Tensor:
        """Images [N,3,H,W] of any size in domains [N] in each of several styles, all [N,nz]: [styles,N,3,H,W].

        Interpolated styles give a transition; so do interpolated codes, [N,num_domains] in place of domains.
        """
        h, w = images.shape[-2:]
        code = self.code(domain) if domain.ndim == 1 else domain
        begun = self.nets["gen"].begin(self.contents(pad_to(images, STRIDE)))
        return torch.stack([self.nets["gen"](begun, torch.cat([z, code], 1))[..., :h, :w] for z in styles])

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": images in domains `reference_domain`}, in the style of `reference` if given, else a random one."""
        if "reference_domain" not in batch:
            raise ValueError("the batch has no reference_domain: name the domain to translate to")
        images, domain = batch["image"], batch["reference_domain"]
        given = batch.get("reference")
        style = self.random_styles(len(images)) if given is None else self.reference_styles(given, domain)
        return {"fake": self.in_styles(images, domain, [style])[0]}
