"""DRIT++: two domains of images, translated by content that both share and attributes of each, random or taken.

Lee, Tseng, Huang, Singh, Yang. Diverse Image-to-Image Translation via Disentangled Representations. ECCV 2018.
Lee et al. DRIT++: Diverse Image-to-Image Translation via Disentangled Representations. IJCV 2020.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _drit, _drit_shared
from ._blocks import pad_to
from ._drit import NZ
from ._drit_shared import CLIP, GENERATORS, RANDOM, RECONSTRUCTION, REGULARISATION, apart
from ._losses import cross_entropy, kl_divergence
from ._shared_graph import recording
from ._system import Batch, Phase, every

STRIDE = 4  # pixels of an image to one of its content
Images = dict[str, Tensor]  # by domain, A or B


@dataclass
class Config(_drit_shared.Config):
    """Options of the original."""

    input_dim_a: int = 3
    input_dim_b: int = 3

    def __post_init__(self) -> None:
        self.check_content()
        super().__post_init__()


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "yosemite":       dict(concat=True),
    "cat2dog":        dict(concat=False),
    "photo2portrait": dict(concat=False),
    "tiny":           dict(concat=True, base_channels=4, dis_scale=2),
}
# fmt: on


class System(_drit_shared.System):
    """The discriminator of contents, and in every d_iter-th iteration those of images, then two generator steps.

    The first half of a batch is encoded and translated; its fakes in the attributes of the other domain are judged
    against it, those in random attributes against the second half. Both generator steps go through the graph of one
    forward, as in the original: the second meets weights that the first has changed. No discriminator has a norm: the
    original's option compares two constants, and is never true.
    """

    Config = Config
    PRESETS = PRESETS
    data = "unpaired"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        dis = _drit.MultiScaleDis if config.dis_scale > 1 else _drit.Dis
        for name in ("disA", "disB", "disA2", "disB2"):
            self.nets[name] = dis(config, config.input_dim_a if "A" in name else config.input_dim_b)
        self.nets["disContent"] = _drit.ContentDis(config)
        self.nets["enc_c"] = _drit.ContentEncoder(config)
        self.nets["enc_a"] = (_drit.VariationalEncoder if config.concat else _drit.AttributeEncoder)(config)
        self.nets["gen"] = (_drit.ConcatGenerator if config.concat else _drit.StyledGenerator)(config)
        rarely = every(config.d_iter, config.d_iter - 1)
        self.phases = [
            Phase("D_content", ("disContent",), self.content_loss, self.adam_content, clip=CLIP),
            Phase("D", ("disA", "disA2", "disB", "disB2"), self.discriminator_loss, self.adam, when=rarely),
            Phase("EG", GENERATORS, self.encoded_loss, self.adam, when=rarely),
            Phase("G_alone", RANDOM, self.random_loss, self.adam, when=rarely, shares="EG"),
        ]

    @property
    def data_settings(self) -> dict[str, Any]:
        config = self.config
        return {"load_size": config.resize_size, "input_nc": config.input_dim_a, "output_nc": config.input_dim_b}

    def halves(self, batch: Batch) -> tuple[Images, Images]:
        """The images to encode, and those to judge random fakes against; of a batch of one it is both."""
        n = max(1, len(batch["a"]) // 2)
        return {side: batch[side.lower()][:n] for side in "AB"}, {side: batch[side.lower()][-n:] for side in "AB"}

    def contents(self, images: Images) -> Images:
        """Contents of images, in training with noise."""
        found = dict(zip(images, self.nets["enc_c"](**images), strict=True))
        if self.training:
            found = {side: content + self.randn(content.shape, content) for side, content in found.items()}
        return found

    def codes(self, images: Images) -> Images:
        """What the encoder of attributes makes of images: mean and log variance, or attributes."""
        return dict(zip(images, self.nets["enc_a"](**images), strict=True))

    def attributes(self, codes: Images) -> Images:
        """Attributes [N,nz] of codes, drawn if these are distributions."""
        return {side: self.drawn(code) for side, code in codes.items()}

    def first_contents(self, batch: Batch) -> Images:
        """Contents of the images to encode, with which `forward` begins."""
        if "contents" not in batch:
            with recording(self.nets[name] for name in GENERATORS):
                batch["contents"] = self.contents(self.halves(batch)[0])
        return batch["contents"]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """What the networks make of a batch, by the names of `made`: once, for all phases."""
        if "made" not in batch:
            contents = self.first_contents(batch)
            with recording(self.nets[name] for name in GENERATORS):
                batch["made"] = self.made(self.halves(batch)[0], contents)
        return batch["made"]

    def made(self, real: Images, contents: Images) -> dict[str, Tensor]:
        """content_A, code_A, z_attr_A, fakes of A, and code_random_A, of one of them; those of B; z_random, z_random2.

        Fakes have the originals' names: encoded ones have the attributes of real images, recon is there and back.
        """
        gen, made = self.nets["gen"], {f"content_{side}": content for side, content in contents.items()}
        codes = self.codes(real)
        z = self.attributes(codes)
        drawn = [self.randn((len(real["A"]), NZ), real["A"]) for _ in range(1 + self.config.ms)]
        made |= dict(zip(("z_random", "z_random2"), drawn, strict=False))
        shared = dict(zip("AB", gen.share(torch.cat([contents["A"], contents["B"]])).chunk(2), strict=True))
        for side, other in ("AB", "BA"):
            names = [f"{side}_encoded", f"{side}{side}_encoded", f"{side}_random", f"{side}_random2"][: 2 + len(drawn)]
            across, itself = gen.begin(torch.cat([shared[other], shared[side]]), side).chunk(2)
            begun = torch.cat([across, itself, *[across] * len(drawn)])
            fakes = gen(begun, torch.cat([z[side], z[side], *drawn]), side).chunk(len(names))
            made |= {f"fake_{name}": fake for name, fake in zip(names, fakes, strict=True)}
            made |= {f"code_{side}": codes[side], f"z_attr_{side}": z[side]}

        again = self.contents({side: made[f"fake_{side}_encoded"] for side in "AB"})
        fakes = {side: torch.cat([made[f"fake_{side}_encoded"], made[f"fake_{side}_random"]]) for side in "AB"}
        codes = {side: code.chunk(2) for side, code in self.codes(fakes).items()}
        z = self.attributes({side: encoded for side, (encoded, _) in codes.items()})
        shared = dict(zip("BA", gen.share(torch.cat([again["A"], again["B"]])).chunk(2), strict=True))
        for side in "AB":
            made[f"fake_{side}_recon"] = gen(gen.begin(shared[side], side), z[side], side)
            made[f"code_random_{side}"] = codes[side][1]
        return made

    def content_loss(self, batch: Batch) -> dict[str, Tensor]:
        contents = self.first_contents(batch)
        of_a, of_b = self.nets["disContent"](torch.cat([contents["A"], contents["B"]]).detach()).chunk(2)
        return {"disContent_loss": cross_entropy(of_a, False) + cross_entropy(of_b, True)}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        made = {name: value.detach() for name, value in self.forward(batch).items()}
        encoded, random = self.halves(batch)
        terms = {}
        for side in "AB":
            drawn = [made[name] for name in (f"fake_{side}_random", f"fake_{side}_random2") if name in made]
            terms[f"dis{side}_loss"] = self.told_apart(f"dis{side}", [made[f"fake_{side}_encoded"]], encoded[side])
            terms[f"dis{side}2_loss"] = self.told_apart(f"dis{side}2", drawn, random[side])
        return terms

    def told_apart(self, dis: str, fakes: Sequence[Tensor], real: Tensor) -> Tensor:
        """A discriminator's loss of each of the fakes and, as often, of the real images."""
        net = self.nets[dis]
        if self.config.dis_spectral_norm:  # every pass changes the weights
            pairs = [(net(fake), net(real)) for fake in fakes]
        else:
            parts = [scale.split(len(real)) for scale in net(torch.cat([*fakes, real]))]
            pairs = [([scale[i] for scale in parts], [scale[-1] for scale in parts]) for i in range(len(fakes))]
        logits = (both for pair in pairs for both in zip(*pair, strict=True))
        return sum(cross_entropy(fake, False) + cross_entropy(real, True) for fake, real in logits)

    def adversarial(self, dis: str, fake: Tensor) -> Tensor:
        return sum(cross_entropy(scale, True) for scale in self.nets[dis](fake))

    def encoded_loss(self, batch: Batch) -> dict[str, Tensor]:
        real, _ = self.halves(batch)
        made = self.learnt_by(self.forward(batch), [batch["a"], batch["b"]], GENERATORS)
        of_contents = self.nets["disContent"](torch.cat([made["content_A"], made["content_B"]])).chunk(2)
        terms = {}
        for side, logits in zip("AB", of_contents, strict=True):
            low, code, content = side.lower(), made[f"code_{side}"], made[f"content_{side}"]
            regular = kl_divergence(*code.chunk(2, 1)) if self.config.concat else code.square().mean()
            recon, itself = made[f"fake_{side}_recon"], made[f"fake_{side}{side}_encoded"]
            terms |= {
                f"gan_loss_{low}": self.adversarial(f"dis{side}", made[f"fake_{side}_encoded"]),
                f"gan_loss_{low}content": (cross_entropy(logits, True) + cross_entropy(logits, False)) / 2,
                f"kl_loss_za_{low}": REGULARISATION * regular,
                f"kl_loss_zc_{low}": REGULARISATION * content.square().mean(),
                f"l1_recon_{side}_loss": RECONSTRUCTION * F.l1_loss(recon, real[side]),
                f"l1_recon_{side}{side}_loss": RECONSTRUCTION * F.l1_loss(itself, real[side]),
            }
        return terms

    def random_loss(self, batch: Batch) -> dict[str, Tensor]:
        made, terms = self.learnt_by(self.forward(batch), [batch["a"], batch["b"]], RANDOM), {}
        z = batch["made"]["z_random"]
        for side, other in ("AB", "BA"):
            low, dis, fake = side.lower(), f"dis{side}2", made[f"fake_{side}_random"]
            terms[f"gan2_loss_{low}"] = self.adversarial(dis, fake)
            found = made[f"code_random_{side}"][:, :NZ]
            terms[f"l1_recon_z_loss_{low}"] = RECONSTRUCTION * F.l1_loss(found, z)
            if self.config.ms:
                second = made[f"fake_{side}_random2"]
                terms[f"gan2_loss_{low}"] = terms[f"gan2_loss_{low}"] + self.adversarial(dis, second)
                terms[f"lz_{other}{side}"] = apart((second, fake), (made["z_random2"], z))
        return terms

    def reference_styles(self, images: Tensor) -> Tensor:
        """Attributes [N,nz] of images [N,C,H,W] of domain b, drawn if they are distributions."""
        return self.attributes(self.codes({"B": images}))["B"]

    @torch.no_grad()
    def in_styles(self, images: Tensor, styles: Sequence[Tensor]) -> Tensor:
        """Images [N,C,H,W] of domain a, of any size, in domain b in each of several styles, all [N,nz]:
        [styles,N,C,H,W]. Interpolated styles give a transition."""
        h, w = images.shape[-2:]
        gen = self.nets["gen"]
        begun = gen.begin(gen.share(self.contents({"A": pad_to(images, STRIDE)})["A"]), "B")
        return torch.stack([gen(begun, style, "B")[..., :h, :w] for style in styles])

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": `a` [N,C,H,W] in domain b}, in the style of `b` if given, else in a random one."""
        images = batch["a"]
        style = self.reference_styles(batch["b"]) if "b" in batch else self.random_styles(len(images))
        return {"fake": self.in_styles(images, [style])[0]}
