"""HiDT: photographs in the light of another time of day, learned without labels of it, at high resolution.

Anokhin et al. High-Resolution Daytime Translation Without Domain Labels. CVPR 2020.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from i2ifast.nn import LayerNorm

from . import _system
from ._blocks import pad_to
from ._config import Cropped, check_choices
from ._hidt import SHIFTS, SKIPPED, STRIDE, Discriminator, Generator, RRDBNet
from ._losses import VGG19, feature_matching, least_squares, perceptual
from ._originals import flattened, load_strictly, named
from ._system import Adam, Batch, Phase

ENDINGS = {".pt": "gen", ".pth": "enhancer"}  # of the original's files
LEAST = 32  # pixels of a side of images that have a style
GRID = SHIFTS * STRIDE  # sides of images that are enhanced are multiples of it, and SHIFTS more
FIXED = {
    "content_encoder": {"num_downsamples": 2, "norm": "in", "activ": "relu", "pad_type": "reflect", "skip_dim": 5},
    "style_encoder": {"norm": "none", "activ": "lrelu", "pad_type": "reflect"},
    "decoder": {"res_norm": "adain", "up_norm": "ln", "num_upsamples": 2, "activ": "relu", "pad_type": "reflect",
                "num_res_conv": 0, "skip_dim": 5},
    "adain_net": {"num_blocks": 3, "norm": "none", "activ": "relu"},
    "enhancer": {"in_nc": 48, "out_nc": 3},
}  # fmt: skip


@dataclass
class Config(Cropped):
    """Options of the original, with the module that it has them in as prefix, and those of the paper's training."""

    content_encoder_dim: int = 48
    content_encoder_num_blocks: int = 4
    style_encoder_dim: int = 48
    style_encoder_num_downsamples: int = 4
    style_encoder_output_dim: int = 3
    decoder_num_blocks: int = 5
    adain_net_dim: int = 64
    segmentation_dim: int = 3  # channels of segmentation maps: classes to learn from; with 0 there are none
    enhancer_nf: int = 64
    enhancer_nb: int = 5
    enhancer_gc: int = 32
    enhancement: Literal["generator", "fullconv"] = "fullconv"  # translate at a quarter and enhance, or all at once
    stage: Literal["generator", "enhancer"] = "generator"  # what is trained
    load_pretrain: str = ""  # weights to begin with: files of the original, or a .safetensors checkpoint
    contain_dontcare_label: bool = False  # 255 (unknown) counts for nothing
    dis_dim: int = 64
    dis_n_layer: int = 4
    dis_num_scales: int = 3
    dis_pad_type: Literal["reflect", "replicate", "zero"] = "reflect"
    crop_size: int = 256
    lambda_adv: float = 5.0
    lambda_rec: float = 2.0  # of images: encoded and decoded, there and back, and there and back by a random style
    lambda_seg: float = 3.0
    lambda_c: float = 1.0
    lambda_s: float = 0.1  # of styles taken from images
    lambda_s_r: float = 4.0  # of random styles
    lambda_dist: float = 1.0  # of the distribution of styles
    lambda_feat: float = 10.0  # of the enhancer: features of the discriminator, and of VGG19
    style_pool: int = 100  # newest styles, whose distribution is compared with the normal one
    vgg_weights: str = ""  # file with VGG19 weights; without one the enhancer learns without a perceptual term
    lr: float = 1e-4
    beta1: float = 0.5
    beta2: float = 0.999
    step_size: int = 200000  # iterations after which the learning rate is multiplied by gamma
    gamma: float = 0.5

    def __post_init__(self) -> None:
        check_choices(self, enhancement=("generator", "fullconv"), stage=("generator", "enhancer"))
        if self.content_encoder_dim < SKIPPED:
            raise ValueError(f"content_encoder_dim {self.content_encoder_dim}: skip connections take {SKIPPED} of them")
        if self.style_pool < 2:
            raise ValueError(f"style_pool {self.style_pool}: a distribution takes at least 2 styles")
        if self.stage == "enhancer" and self.crop_size < LEAST * SHIFTS + SHIFTS:
            raise ValueError(
                f"crop_size {self.crop_size}: an enhancer learns from at least {LEAST * SHIFTS + SHIFTS}, "
                f"for its copies to have {LEAST} pixels"
            )

    @property
    def data(self) -> str:
        """Where segmentation is not learned photographs alone: contents and styles, which may be the same folder."""
        return "segmented" if self.segmentation_dim and self.stage == "generator" else "unpaired"

    @property
    def label_nc(self) -> int:
        return self.segmentation_dim

    @property
    def num_classes(self) -> int:
        """Labels are 0 .. num_classes - 1."""
        return self.segmentation_dim + self.contain_dontcare_label

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's configuration: its `gen`, and `enhancer` if given; ValueError for other networks."""
        modules = dict(options["gen"]["modules"])
        decoder, outputs = modules["decoder"], modules["decoder"]["output_data"]
        parts = {**modules, "adain_net": decoder["adain_net"], "enhancer": options.get("enhancer", {})}
        for part, values in FIXED.items():
            for name, value in values.items():
                if parts[part].get(name, value) != value:
                    raise ValueError(f"{name} {parts[part][name]!r} of {part}: only {value!r} is supported")
        if outputs["images"]["dim"] != 3:
            raise ValueError(f"images of {outputs['images']['dim']} channels: only 3 are supported")
        if decoder["dim"] != STRIDE * modules["content_encoder"]["dim"]:
            raise ValueError(f"dim {decoder['dim']} of decoder: must be {STRIDE} times that of content_encoder")
        own = named(cls, flattened(parts, *parts))
        return cls(**own, segmentation_dim=outputs.get("segmentation_maps", {"dim": 0})["dim"])


SMALL = dict(content_encoder_dim=8, content_encoder_num_blocks=1, style_encoder_dim=8, decoder_num_blocks=1,
             adain_net_dim=16, enhancer_nf=8, enhancer_nb=1, enhancer_gc=4, dis_dim=8, dis_n_layer=3,
             dis_num_scales=2)  # fmt: skip
# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "daytime":       dict(style_encoder_output_dim=3,  segmentation_dim=3),
    "enhanced":      dict(style_encoder_output_dim=3,  segmentation_dim=3, enhancement="generator", stage="enhancer",
                          crop_size=516),
    "wikiart":       dict(style_encoder_output_dim=12, segmentation_dim=0),
    "tiny":          dict(style_encoder_output_dim=3,  segmentation_dim=12, crop_size=64, **SMALL),
    "tiny_enhanced": dict(style_encoder_output_dim=3,  segmentation_dim=0, enhancement="generator", stage="enhancer",
                          crop_size=132, **SMALL),
}
# fmt: on


class System(_system.System):
    """Auto-encoder, an unconditional discriminator and one that knows the style, an enhancer of high resolution.

    A batch has images `a`, images `b` in whose styles they are put, and with segmentation maps `label` [N,1,H,W] of
    `a`. As in the original images get noise of one level of 8 bits, in translation too. What is trained is the stage:

    generator   `a` is encoded and decoded, in its own style, that of `b`, and a random one; then the generator's step,
                and one of the discriminators, which see images of another style and of a random one
    enhancer    the generator is kept; the enhancer restores `a` from what the generator makes of its shifted, smaller
                copies in their own styles, by the losses of pix2pixHD
    """

    Config = Config
    PRESETS = PRESETS
    data = "segmented"
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.data = config, config.data
        self.nets["gen"] = Generator(config)
        self.nets["enhancer"] = RRDBNet(config)
        self.nets["dis"] = Discriminator(config, style=False)
        self.nets["dis_style"] = Discriminator(config, style=True)
        self.register_buffer("styles", torch.empty(0, config.style_encoder_output_dim))  # of the images before
        adam = Adam(config.lr, (config.beta1, config.beta2))
        if config.stage == "generator":
            self.phases = [
                Phase("gen", ("gen",), self.generator_loss, adam),
                Phase("dis", ("dis", "dis_style"), self.discriminator_loss, adam),
            ]
            return
        self.phases = [
            Phase("enhancer", ("enhancer",), self.enhancer_loss, adam),
            Phase("dis", ("dis",), self.enhancer_discriminator_loss, adam),
        ]
        if config.vgg_weights:
            self.fixed["VGG"] = VGG19(config.vgg_weights)
        elif config.lambda_feat:
            self.warn("vgg_weights names no file, so there is no perceptual term")

    @property
    def data_settings(self) -> dict[str, Any]:
        """The shorter side to the crop's, then a crop."""
        side = self.config.crop_size
        return {"crop_size": side, "load_size": side, "preprocess_mode": "scale_shortside_and_crop"}

    def init_weights(self) -> None:
        """Kaiming normal, in discriminators normal of deviation 0.02, biases zero; then what load_pretrain has."""
        for name, module in self.nets.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                if name.startswith("dis"):
                    nn.init.normal_(module.weight, 0, 0.02)
                else:
                    nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, LayerNorm):
                nn.init.uniform_(module.gamma)
                nn.init.zeros_(module.beta)
        path = self.config.load_pretrain
        if path.endswith(".safetensors"):
            tensors = load_file(path)
            for name, net in self.nets.items():
                start = f"nets.{name}."
                state = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
                load_strictly(net, state, Path(path))
        elif path:
            self.load_original(path)

    def rate(self, step: int) -> float:
        """gamma to the number of step_sizes done, the iteration at hand included."""
        return self.config.gamma ** ((step + 1) // self.config.step_size)

    def dequantized(self, images: Tensor) -> Tensor:
        """Images with noise of one level of 8 bits."""
        return images + self.rand(images.shape, images) * (2 / 255)

    def prepare(self, batch: Batch) -> Batch:
        return {**batch, "a": self.dequantized(batch["a"]), "b": self.dequantized(batch["b"])}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Leaves images in another style, and in a random one, with these styles, for the discriminators."""
        config, gen, a = self.config, self.nets["gen"], batch["a"]
        n = len(a)
        images = torch.cat([a, batch["b"]])
        content, skips = gen.content_encoder(images)
        style, style_b = gen.style_encoder(images).chunk(2)
        drawn = self.randn(style.shape, style)

        # a in its own style, in that of b, in a random one, and b in that of a.
        fakes, maps = gen.decoder(
            torch.cat([content[:n]] * 3 + [content[n:]]),
            [torch.cat([skip[:n]] * 3 + [skip[n:]]) for skip in skips],
            torch.cat([style, style_b, drawn, style]),
        )
        own, across, random, back = fakes.split(n)
        content_again, skips_again = gen.content_encoder(fakes[n : 3 * n])
        across_style, random_style, back_style = gen.style_encoder(fakes[n:]).split(n)
        again, _ = gen.decoder(content_again, skips_again, torch.cat([back_style, random_style]))
        batch["fakes"], batch["styles"] = (t.detach() for t in (fakes[n : 3 * n], torch.cat([style_b, drawn, style])))

        terms = {
            "adv": config.lambda_adv * self.adversarial(across, style_b.detach()),
            "adv_r": config.lambda_adv * self.adversarial(random, drawn),
            "rec": config.lambda_rec * F.l1_loss(own, a),
            "rec_cyc": config.lambda_rec * F.l1_loss(again[:n], a),
            "rec_r": config.lambda_rec * F.l1_loss(again[n:], random),
            "c": config.lambda_c * F.l1_loss(content_again[:n], content[:n]),
            "c_r": config.lambda_c * F.l1_loss(content_again[n:], content[:n]),
            "s": config.lambda_s * F.l1_loss(across_style, style_b),
            "s_r": config.lambda_s_r * F.l1_loss(random_style, drawn),
            "dist": config.lambda_dist * self.style_distribution(style),
        }
        if config.segmentation_dim:
            for name, logits in {"seg": maps[n : 2 * n], "seg_r": maps[2 * n : 3 * n]}.items():
                known = F.cross_entropy(logits, batch["label"][:, 0], ignore_index=config.segmentation_dim)
                terms[name] = config.lambda_seg * known
        return terms

    def style_distribution(self, styles: Tensor) -> Tensor:
        """|mean| + |covariance - I| + |variances - 1|, summed, of the newest styles: these, and those before."""
        pool = torch.cat([styles.to(self.styles), self.styles])[: self.config.style_pool]
        self.styles = pool.detach()
        centred = pool - pool.mean(0)
        covariance = (centred[:, :, None] * centred[:, None]).sum(0) / max(1, len(pool) - 1)  # not at half precision
        identity = torch.eye(pool.size(1), device=pool.device, dtype=pool.dtype)
        return pool.mean(0).abs().sum() + (covariance - identity).abs().sum() + (covariance.diag() - 1).abs().sum()

    def adversarial(self, fake: Tensor, style: Tensor) -> Tensor:
        """The generator's loss by both discriminators, summed over scales."""
        outputs = self.nets["dis"](fake) + self.nets["dis_style"](fake, style)
        return sum(least_squares(scale[-1], True) for scale in outputs)

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        images = torch.cat([batch["fakes"], batch["a"]])
        made = len(batch["fakes"])
        terms = {}
        for name, given in {"dis": (), "dis_style": (batch["styles"],)}.items():
            logits = [scale[-1] for scale in self.nets[name](images, *given)]
            terms[name] = self.config.lambda_adv * sum(
                least_squares(x[:made], False) + least_squares(x[made:], True) for x in logits
            )
        return terms

    def shifted(self, images: Tensor, translate: Callable[[Tensor], Tensor]) -> Tensor:
        """What `translate` makes of 16 copies of images [N,3,4h+4,4w+4], as the enhancer takes it: [N,48,h+1,w+1].

        A copy lacks the first 0 to 3 rows and columns, and is a quarter as large.
        """
        h, w = (side - SHIFTS for side in images.shape[-2:])
        copies = []
        for top, left in product(range(SHIFTS), repeat=2):
            part = images[..., top : top + h, left : left + w]
            small = F.interpolate(part, size=(h // SHIFTS, w // SHIFTS), mode="bicubic", antialias=True)
            # Enlarged to its place in the image, and every fourth pixel of that taken.
            border = (int(left > 0), int(left == 0), int(top > 0), int(top == 0))
            copies.append(F.pad(translate(small), border, value=-1.0))
        return torch.cat(copies, 1)

    def enhancer_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Leaves restored images, and real ones of their size, for the discriminator."""
        config, dis = self.config, self.nets["dis"]
        h, w = ((side - SHIFTS) // GRID * GRID + SHIFTS for side in batch["a"].shape[-2:])
        batch["real"] = real = batch["a"][..., :h, :w]
        with torch.no_grad():
            made = self.shifted(real, lambda small: self.in_style(small, self.nets["gen"].style_encoder(small)))
        fake = self.nets["enhancer"](made)
        batch["restored"] = fake.detach()
        on_fake = dis(fake)
        terms = {"adv": sum(least_squares(scale[-1], True) for scale in on_fake)}
        if config.lambda_feat:
            with torch.no_grad():
                on_real = dis(real)
            terms["feat"] = config.lambda_feat * feature_matching(on_fake, on_real)
        if "VGG" in self.fixed:
            terms["vgg"] = config.lambda_feat * perceptual(self.fixed["VGG"], fake, real)
        return terms

    def enhancer_discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        logits = [scale[-1].chunk(2) for scale in self.nets["dis"](torch.cat([batch["restored"], batch["real"]]))]
        return {"dis": sum(least_squares(fake, False) + least_squares(real, True) for fake, real in logits)}

    def in_style(self, images: Tensor, style: Tensor) -> Tensor:
        """Images, whose sides are multiples of 4, in styles [N or 1, style_encoder_output_dim]."""
        gen = self.nets["gen"]
        content, skips = gen.content_encoder(images)
        return gen.decoder(content, skips, style.expand(len(images), -1))[0]

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": `a` [N,3,H,W] in the style of `b` if given, or of `style` [N or 1, S], else of a random one}.

        With enhancement "generator" the translations are of images a quarter as large, from which the enhancer makes
        one at full size: for photographs larger than those of training, about four times.
        """
        images, gen = self.dequantized(batch["a"]), self.nets["gen"]
        h, w = images.shape[-2:]
        if "b" in batch:
            style = gen.style_encoder(self.dequantized(batch["b"]))
        elif "style" in batch:
            style = batch["style"]
        else:
            style = self.randn((len(images), self.config.style_encoder_output_dim), images)
        if self.config.enhancement == "fullconv":
            return {"fake": self.in_style(pad_to(images, STRIDE), style)[..., :h, :w]}
        more = GRID - SHIFTS
        padded = pad_to(F.pad(images, (0, more, 0, more), mode="replicate"), GRID)[..., :-more, :-more]
        made = self.shifted(padded, lambda small: self.in_style(small, style))
        return {"fake": self.nets["enhancer"](made)[..., :h, :w].clamp(-1, 1)}

    def load_original(self, path: str | Path) -> None:
        """Load a generator (.pt), an enhancer (.pth), or the one of each that there is in a folder and those in it."""
        path = Path(path)
        if path.is_dir():
            found = {name: sorted(path.rglob(f"*{ending}")) for ending, name in ENDINGS.items()}
            if len(found["gen"]) != 1 or len(found["enhancer"]) > 1:
                names = ", ".join(str(file.relative_to(path)) for files in found.values() for file in files)
                raise ValueError(f"{path}: expected one generator .pt, and at most one enhancer .pth; found {names}")
            files = [file for found_files in found.values() for file in found_files]
        elif path.suffix in ENDINGS:
            files = [path]
        else:
            raise ValueError(f"{path}: expected a generator .pt or an enhancer .pth")
        for file in files:
            state = torch.load(file, map_location="cpu", weights_only=True)
            state = {key.removeprefix("module."): value for key, value in state.items()}
            load_strictly(self.nets[ENDINGS[file.suffix]], state, file)
