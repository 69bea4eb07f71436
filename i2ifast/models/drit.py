"""DRIT++: two domains of images, translated by content that both share and attributes of each, random or taken.

Lee, Tseng, Huang, Singh, Yang. Diverse Image-to-Image Translation via Disentangled Representations. ECCV 2018.
Lee et al. DRIT++: Diverse Image-to-Image Translation via Disentangled Representations. IJCV 2020.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _drit, _system
from ._blocks import pad_to
from ._drit import NZ
from ._losses import cross_entropy, kl_divergence
from ._originals import load_strictly, named
from ._shared_graph import recording, through
from ._system import Adam, Batch, Phase, every

STRIDE = 4  # pixels of an image to one of its content
LEAST = 212  # pixels of a side that the discriminator of contents needs
CLIP = 5.0  # norm of its gradient
RECONSTRUCTION, REGULARISATION = 10.0, 0.01  # weights
GENERATORS, RANDOM = ("enc_c", "enc_a", "gen"), ("enc_c", "gen")  # what the two generator steps update
Images = dict[str, Tensor]  # by domain, A or B


@dataclass
class Config:
    """Options of the original, under its names; no_ms is positive here, and the last two are constants there."""

    input_dim_a: int = 3
    input_dim_b: int = 3
    concat: bool = True  # attributes as maps beside the content; else feature-wise, for domains that differ in shape
    ms: bool = True  # mode seeking
    dis_scale: int = 3  # discriminators of images; 1 is a single, deeper one
    dis_spectral_norm: bool = False
    d_iter: int = 3  # iterations, in all but the last of which the discriminator of contents learns alone
    resize_size: int = 256
    crop_size: int = 216
    n_ep: int = 1200
    n_ep_decay: int = 600  # epochs before a line to zero
    lr: float = 1e-4
    lr_dcontent: float = 4e-5  # of the discriminator of contents
    base_channels: int = 64

    def __post_init__(self) -> None:
        if self.crop_size < LEAST:
            raise ValueError(f"crop_size {self.crop_size}: the discriminator of contents needs at least {LEAST}")
        for name in ("dis_scale", "d_iter", "base_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of training images."""
        return self.crop_size, self.crop_size

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values; dis_norm is left out, for it has no effect there."""
        if options.get("lr_policy", "lambda") != "lambda":
            raise ValueError(f"lr_policy {options['lr_policy']!r}: only 'lambda' is supported")
        values = named(cls, options)
        return cls(**values | {"concat": bool(options.get("concat", 1)), "ms": not options.get("no_ms", False)})


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "yosemite":       dict(concat=True),
    "cat2dog":        dict(concat=False),
    "photo2portrait": dict(concat=False),
    "tiny":           dict(concat=True, base_channels=4, dis_scale=2),
}
# fmt: on


class System(_system.System):
    """The discriminator of contents, and in every d_iter-th iteration those of images, then two generator steps.

    The first half of a batch is encoded and translated; its fakes in the attributes of the other domain are judged
    against it, those in random attributes against the second half. Both generator steps go through the graph of one
    forward, as in the original: the second meets weights that the first has changed. No discriminator has a norm: the
    original's option compares two constants, and is never true.
    """

    Config = Config
    PRESETS = PRESETS
    data = "unpaired"
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        dis = _drit.MultiScaleDis if config.dis_scale > 1 else _drit.Dis
        for name in ("disA", "disB", "disA2", "disB2"):
            self.nets[name] = dis(config, config.input_dim_a if "A" in name else config.input_dim_b)
        self.nets["disContent"] = _drit.ContentDis(config)
        self.nets["enc_c"] = _drit.ContentEncoder(config)
        self.nets["enc_a"] = (_drit.VariationalEncoder if config.concat else _drit.AttributeEncoder)(config)
        self.nets["gen"] = (_drit.ConcatGenerator if config.concat else _drit.StyledGenerator)(config)
        options = {"betas": (0.5, 0.999), "weight_decay": 1e-4}
        adam, adam_content = Adam(config.lr, **options), Adam(config.lr_dcontent, **options)
        rarely = every(config.d_iter, config.d_iter - 1)
        self.phases = [
            Phase("D_content", ("disContent",), self.content_loss, adam_content, clip=CLIP),
            Phase("D", ("disA", "disA2", "disB", "disB2"), self.discriminator_loss, adam, when=rarely),
            Phase("EG", GENERATORS, self.encoded_loss, adam, when=rarely),
            Phase("G_alone", RANDOM, self.random_loss, adam, when=rarely, shares="EG"),
        ]

    @property
    def data_settings(self) -> dict[str, Any]:
        config = self.config
        return {"load_size": config.resize_size, "input_nc": config.input_dim_a, "output_nc": config.input_dim_b}

    def init_weights(self) -> None:
        """Normal weights of convolutions, of deviation 0.02; all else as PyTorch's layers and those here start."""
        for module in self.nets.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(getattr(module, "weight_orig", module.weight), 0, 0.02)

    def decay(self, epoch: int) -> float:
        config = self.config
        return max(0.0, 1 - max(0, epoch - 1 - config.n_ep_decay) / (config.n_ep - config.n_ep_decay + 1))

    @contextmanager
    def learning(self) -> Iterator[None]:
        """A block whose forward the two generator steps, which come later, go back through."""
        for name in GENERATORS:
            self.nets[name].requires_grad_(True)  # until the next phase freezes what it does not update
        with recording():
            yield

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
        if not self.config.concat:
            return codes
        moments = {side: code.chunk(2, 1) for side, code in codes.items()}
        return {side: mu + self.randn(mu.shape, mu) * (logvar / 2).exp() for side, (mu, logvar) in moments.items()}

    def first_contents(self, batch: Batch) -> Images:
        """Contents of the images to encode, with which `forward` begins."""
        if "contents" not in batch:
            with self.learning():
                batch["contents"] = self.contents(self.halves(batch)[0])
        return batch["contents"]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """What the networks make of a batch, by the names of `made`: once, for all phases."""
        if "made" not in batch:
            contents = self.first_contents(batch)
            with self.learning():
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

    def learnt_by(self, batch: Batch, nets: Sequence[str]) -> dict[str, Tensor]:
        """`forward`, with gradients for some networks only."""
        parameters = (p for name in nets for p in self.nets[name].parameters())
        return through(self.forward(batch), [batch["a"], batch["b"], *parameters])

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
        made, (real, _) = self.learnt_by(batch, GENERATORS), self.halves(batch)
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
        made, z, terms = self.learnt_by(batch, RANDOM), batch["made"]["z_random"], {}
        for side, other in ("AB", "BA"):
            low, dis, fake = side.lower(), f"dis{side}2", made[f"fake_{side}_random"]
            terms[f"gan2_loss_{low}"] = self.adversarial(dis, fake)
            found = made[f"code_random_{side}"][:, :NZ]
            terms[f"l1_recon_z_loss_{low}"] = RECONSTRUCTION * F.l1_loss(found, z)
            if self.config.ms:
                second = made[f"fake_{side}_random2"]
                apart = F.l1_loss(second, fake) / F.l1_loss(made["z_random2"], z)
                terms[f"gan2_loss_{low}"] = terms[f"gan2_loss_{low}"] + self.adversarial(dis, second)
                terms[f"lz_{other}{side}"] = 1 / (apart + 1e-5)
        return terms

    def random_styles(self, count: int) -> Tensor:
        """Attributes [count,nz] of any domain."""
        return self.randn((count, NZ), next(self.nets["gen"].parameters()))

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

    def load_original(self, path: str | Path) -> None:
        """Load <epoch>.pth, or the newest one of a folder."""
        path = Path(path)
        file = max(path.glob("*.pth"), default=None) if path.is_dir() else path
        if file is None:
            raise ValueError(f"{path}: no <epoch>.pth in it")
        found = torch.load(file, map_location="cpu", weights_only=True)
        if missing := [name for name in self.nets if name not in found]:
            raise ValueError(f"{file} has no network {', '.join(missing)}")
        for name, net in self.nets.items():
            load_strictly(net, found[name], file)
