"""What FUNIT and its relatives share: a discriminator of many classes, losses, training and translation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import spectral_norm

from . import _system
from ._blocks import pad_to, reflecting
from ._losses import hinge
from ._originals import flattened, load_strictly, named, require
from ._system import Adam, Batch, Phase, RMSprop

SLOPE = 0.2
GRADIENT_PENALTY = 10.0


@dataclass
class FewShotConfig:
    """The options that the whole family has."""

    dis_num_classes: int = 119
    new_size: int = 140  # of the shorter side, before the crop
    crop_image_height: int = 128
    crop_image_width: int = 128
    gan_w: float = 1.0
    r_w: float = 0.1
    fm_w: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of training images."""
        return self.crop_image_height, self.crop_image_width


@dataclass
class Config(FewShotConfig):
    """Options of the originals; those that they nest in `gen` and `dis` have these as prefixes."""

    gen_nf: int = 64
    gen_n_res_blks: int = 2
    gen_nf_mlp: int = 256
    gen_latent_dim: int = 64  # of the code of a class
    gen_n_mlp_blks: int = 3
    gen_n_downs_content: int = 3
    gen_n_downs_class: int = 4
    dis_nf: int = 64
    dis_n_res_blks: int = 10
    lr_gen: float = 1e-4
    lr_dis: float = 1e-4
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if self.dis_n_res_blks < 2 or self.dis_n_res_blks % 2:
            raise ValueError(f"dis_n_res_blks {self.dis_n_res_blks}: must be an even number, at least 2")
        for name, least in {"gen_n_mlp_blks": 2, "gen_n_downs_class": 2, "dis_num_classes": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least {least}")

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> Self:
        """From the original's configuration file; ValueError for an initialisation that it is not trained with."""
        flat = options | flattened(options, "gen", "dis")
        require(flat, init="kaiming")
        return cls(**named(cls, flat))


class ActFirstResBlock(nn.Module):
    """skip + conv(act(conv(act(x)))): skip is x, through a 1x1 convolution where the widths differ.

    `activated_skip`: where they do not, skip is act(x).
    """

    def __init__(self, fin: int, fout: int, activated_skip: bool) -> None:
        super().__init__()
        hidden = min(fin, fout)
        self.activated_skip = activated_skip
        self.conv_0 = nn.ModuleDict({"conv": reflecting(fin, hidden, 3, bias=True)})
        self.conv_1 = nn.ModuleDict({"conv": reflecting(hidden, fout, 3, bias=True)})
        if fin != fout:
            self.conv_s = nn.ModuleDict({"conv": nn.Conv2d(fin, fout, 1, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(x, SLOPE)
        if hasattr(self, "conv_s"):
            skip = self.conv_s["conv"](x)
        else:
            skip = y if self.activated_skip else x
        y = F.leaky_relu(self.conv_0["conv"](y), SLOPE)
        return skip + self.conv_1["conv"](y)


class GPPatchMcResDis(nn.Module):
    """Patch discriminator with an output for each class: images and labels [N] to logits [N,h,w] of these classes, and
    the features [N,C,h,w] that they are made of.

    `in_place`: as the first of its originals computes it, whose activations change what other layers read: skips are
    activated, and features too.
    """

    def __init__(
        self,
        nf: int,
        n_res_blks: int,
        num_classes: int,
        *,
        in_place: bool = False,
        largest: int = 1024,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        self.in_place = in_place
        layers: list[nn.Module] = [nn.ModuleDict({"conv": reflecting(3, nf, 7, bias=True)})]
        for stage in range(n_res_blks // 2):
            if stage:
                layers += [nn.ReflectionPad2d(1), nn.AvgPool2d(3, 2)]
            wider = min(2 * nf, largest)
            layers += [ActFirstResBlock(nf, nf, in_place), ActFirstResBlock(nf, wider, in_place)]
            nf = wider
        self.cnn_f = nn.ModuleList(layers)
        self.cnn_c = nn.ModuleList([nn.ModuleDict({"conv": nn.Conv2d(nf, num_classes, 1)})])
        if spectral:
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    spectral_norm(module)

    def features(self, images: Tensor) -> Tensor:
        first, *layers = self.cnn_f
        x = first["conv"](images)
        for layer in layers:
            x = layer(x)
        return F.leaky_relu(x, SLOPE) if self.in_place else x

    def judge(self, features: Tensor) -> Tensor:
        """Logits [N,classes,h,w] of features."""
        return self.cnn_c[0]["conv"](features if self.in_place else F.leaky_relu(features, SLOPE))

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return self.judge(features)[torch.arange(len(labels), device=labels.device), labels], features


def pooled_features(features: Tensor) -> Tensor:
    return features.mean((2, 3))


class FewShot(_system.System):
    """A generator, which makes an image of the content of one and the class of another, and a discriminator of classes.

    The generator has `encode(images)`, contents, `classify(images)`, codes of their classes [N,C,1,1], and
    `decode(content, codes)`. Batches: `image`, `domain` (its class), `reference`, `reference_domain`.
    """

    data = "domains"
    ema = ("gen",)

    def __init__(
        self, config: Any, gen: nn.Module, dis: nn.Module, of_gen: Adam | RMSprop, of_dis: Adam | RMSprop
    ) -> None:
        super().__init__()
        self.config = config
        self.nets["gen"], self.nets["dis"] = gen, dis
        self.phases = [
            Phase("dis", ("dis",), self.discriminator_loss, of_dis),
            Phase("gen", ("gen",), self.generator_loss, of_gen),
        ]

    @property
    def data_settings(self) -> dict[str, Any]:
        """The shorter side resized, then a crop; one reference."""
        config = self.config
        return {"crop_size": config.crop_image_height, "load_size": config.new_size, "num_references": 1,
                "preprocess_mode": "scale_shortside_and_crop", "num_domains": config.dis_num_classes}  # fmt: skip

    def init_weights(self) -> None:
        """Kaiming normal; biases zero."""
        for module in self.nets.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def ema_decay(self, step: int) -> float:
        return 0.999

    def options(self, batch: Batch) -> dict[str, Any]:
        """What the generator is given with images and codes."""
        return {}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        gen, dis, options = self.nets["gen"], self.nets["dis"], self.options(batch)
        real, label = batch["reference"].detach().requires_grad_(), batch["reference_domain"]
        with torch.no_grad():
            fake = gen.decode(gen.encode(batch["image"], **options), gen.classify(real, **options), **options)
        logits, _ = dis(real, label)
        return {
            "dis_real": self.config.gan_w * hinge(logits, True),
            "dis_fake": self.config.gan_w * hinge(dis(fake, label)[0], False),
            **self.penalty(logits, real),
        }

    def penalty(self, logits: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Of the gradient at real images: that of the mean over all logits, not of an image's sum."""
        (gradient,) = torch.autograd.grad(logits.mean(), real, create_graph=True)
        return {"dis_reg": GRADIENT_PENALTY * gradient.square().sum() / len(real)}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        config, gen, dis, options = self.config, self.nets["gen"], self.nets["dis"], self.options(batch)
        image, reference = batch["image"], batch["reference"]
        real, label = torch.cat([image, reference]), torch.cat([batch["domain"], batch["reference_domain"]])
        content, codes = gen.encode(image, **options), gen.classify(real, **options)
        fake = gen.decode(twice(content), codes, **options)  # reconstructions, then translations
        logits, features = dis(fake, label)
        wanted = pooled_features(dis.features(real))
        of_image, of_reference = (pooled_features(features) - wanted).abs().chunk(2)
        return {
            "gen_adv": config.gan_w * hinge(logits, True, generator=True),
            "gen_recon_x": config.r_w * F.l1_loss(fake[: len(image)], image),
            "gen_recon_c": config.fm_w * of_image.mean(),
            "gen_recon_s": config.fm_w * of_reference.mean(),
            **self.more_terms(batch, content, codes, fake),
        }

    def more_terms(self, batch: Batch, content: Any, codes: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Terms that a relative adds: of contents, codes of images and references, reconstructions and translations."""
        return {}

    def codes(self, batch: Batch, weights: Sequence[float] | None = None) -> Tensor:
        """Codes [N,C,1,1] of the class of `reference`, or the mean of those of `references` [N,K,3,H,W]."""
        gen, options = self.nets["gen"], self.options(batch)
        if "references" not in batch:
            if "reference" not in batch:
                raise ValueError("the batch has no reference: name images of the class to translate to")
            return gen.classify(batch["reference"], **options)
        references = batch["references"]
        n, k = references.shape[:2]
        each = gen.classify(references.flatten(0, 1), **options).unflatten(0, (n, k))
        if weights is None:
            return each.mean(1)
        if len(weights) != k:
            raise ValueError(f"{len(weights)} weights for {k} references")
        return torch.tensordot(each, each.new_tensor(weights), ([1], [0]))

    @torch.no_grad()
    def translate(self, batch: Batch, weights: Sequence[float] | None = None) -> dict[str, Tensor]:
        """{"fake": images of the class of `reference`, or of `references` [N,K,3,H,W], whose codes are averaged}.

        `weights` [K] of the references in place of equal ones interpolate between their classes.
        """
        images, gen, options = batch["image"], self.nets["gen"], self.options(batch)
        h, w = images.shape[-2:]
        content = gen.encode(pad_to(images, self.stride), **options)
        return {"fake": gen.decode(content, self.codes(batch, weights), **options)[..., :h, :w]}

    @property
    def stride(self) -> int:
        """Pixels of an image that one of its content stands for."""
        return 1 << self.config.gen_n_downs_content

    def load_original(self, path: str | Path) -> None:
        """Load the newest gen_<iteration>.pt, of which the averaged generator, and the dis_<iteration>.pt of the same
        iteration (may be absent) of a folder, or one such file."""
        path = Path(path)
        files = [path]
        if path.is_dir():
            newest = max(path.glob("gen_*.pt"), default=None)
            if newest is None:
                raise ValueError(f"{path}: no gen_<iteration>.pt in it")
            files = [newest, *path.glob(newest.name.replace("gen_", "dis_"))]
        for file in files:
            found = torch.load(file, map_location="cpu", weights_only=True)
            keys = {"gen": "gen_test", "dis": "dis"}
            loaded = [name for name, key in keys.items() if key in found]
            if not loaded:
                raise ValueError(f"{file} has no network {' or '.join(keys.values())}")
            for name in loaded:
                load_strictly(self.nets[name], found[keys[name]], file)


def twice(content: Any) -> Any:
    """A content, or a tuple of its parts, two times along the batch."""
    if isinstance(content, Tensor):
        return torch.cat([content, content])
    return type(content)(*(None if part is None else twice(part) for part in content))
