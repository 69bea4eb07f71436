"""SPADE: label maps to images by spatially-adaptive normalisation.

Park, Liu, Wang, Zhu. Semantic Image Synthesis with Spatially-Adaptive Normalization. CVPR 2019.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast import labels
from i2ifast.nn import InstanceNormAct, SPADEResnetBlock, label_conv2d, spectral_norm
from i2ifast.nn.conv import Conv2d

from . import _system
from ._blocks import decay_from, half_size, pad_to
from ._config import Cropped, check_choices
from ._losses import GAN_LOSSES, VGG19, feature_matching, kl_divergence, perceptual
from ._originals import load_nets, named, require
from ._system import Adam, Batch, Phase, every

Semantics = Tensor | labels.LabelPlan
Features = list[list[Tensor]]  # discriminator outputs [scale][layer], the last layer being the logits

UPSAMPLINGS = {"normal": 5, "more": 6, "most": 7}
Z_DIM = 256  # fixed by the original's encoder


@dataclass
class Config(Cropped):
    """Options of the original, under its names, except that negative ones (no_instance, no_TTUR) are positive here."""

    label_nc: int = 182
    contain_dontcare_label: bool = True  # label `label_nc` (unknown) is one more class
    instance: bool = True  # instance edges are the last channel
    crop_size: int = 256  # width of training images
    aspect_ratio: float = 1.0  # width / height
    norm_G: str = "spectralspadesyncbatch3x3"
    ngf: int = 64
    nhidden: int = 128  # of the SPADE layers
    num_upsampling_layers: Literal["normal", "more", "most"] = "normal"
    use_vae: bool = False
    ndf: int = 64
    num_D: int = 2
    n_layers_D: int = 4
    gan_mode: Literal["hinge", "ls", "original", "w"] = "hinge"
    lambda_feat: float = 10.0
    lambda_vgg: float = 10.0
    vgg_weights: str = ""  # file with VGG19 weights; without one there is no perceptual term
    lambda_kld: float = 0.05
    lr: float = 2e-4
    beta1: float = 0.0
    beta2: float = 0.9
    ttur: bool = True  # generator lr / 2, discriminator lr * 2
    D_steps_per_G: int = 1
    niter: int = 50  # epochs before the learning rate decays
    niter_decay: int = 0  # epochs of linear decay to zero

    # What the original calls by these names exists here in this one form.
    ONLY: ClassVar[dict[str, Any]] = {
        "netG": "spade", "netD": "multiscale", "netD_subarch": "n_layer", "norm_D": "spectralinstance",
        "norm_E": "spectralinstance", "output_nc": 3, "optimizer": "adam",
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_choices(self, gan_mode=GAN_LOSSES, num_upsampling_layers=UPSAMPLINGS)
        if any(side % self.stride or not side for side in self.size):
            size = f"{self.size[1]}x{self.size[0]} (crop_size {self.crop_size}, aspect_ratio {self.aspect_ratio})"
            raise ValueError(f"images of {size} pixels: both sides must be multiples of {self.stride}")
        if self.one_size and self.crop_size < 256:
            raise ValueError(f"crop_size {self.crop_size}: use_vae needs at least 256, the encoder's resolution")

    @property
    def semantic_nc(self) -> int:
        """Channels of the label map as the networks see it."""
        return self.num_classes + self.instance

    @property
    def num_classes(self) -> int:
        """Labels are 0 .. num_classes - 1."""
        return self.label_nc + self.contain_dontcare_label

    @property
    def stride(self) -> int:
        """Pixels per side of the generator's first map."""
        return 2 ** UPSAMPLINGS[self.num_upsampling_layers]

    @property
    def one_size(self) -> bool:
        """Whether the generator makes images of that size only: its first map is made of a style."""
        return self.use_vae

    @property
    def latent(self) -> tuple[int, int]:
        """Height and width of the generator's first map for training images."""
        return self.size[0] // self.stride, self.size[1] // self.stride

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values; ValueError for a network this system does not have."""
        require(options, **cls.ONLY, **({"z_dim": Z_DIM} if options["use_vae"] else {}))
        values = named(cls, options)
        values |= {"instance": not options["no_instance"], "ttur": not options["no_TTUR"]}
        values |= {"lambda_feat": 0.0} if options["no_ganFeat_loss"] else {}
        values |= {"lambda_vgg": 0.0} if options["no_vgg_loss"] else {}
        return cls(**values)


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "coco":       dict(label_nc=182, instance=True,  niter=100, niter_decay=0),
    "ade20k":     dict(label_nc=150, instance=False, niter=100, niter_decay=100),
    "cityscapes": dict(label_nc=35,  instance=True,  niter=100, niter_decay=100, contain_dontcare_label=False,
                       crop_size=512, aspect_ratio=2.0, num_upsampling_layers="more"),
    "tiny":       dict(label_nc=12,  instance=True,  niter=100, niter_decay=0,   contain_dontcare_label=False,
                       crop_size=128, aspect_ratio=2.0, ngf=8, nhidden=32, ndf=16, lambda_vgg=0.0),
}
# fmt: on


class LabelConv2d(nn.Conv2d):
    """Convolution over a label map, first resized by nearest neighbour to `size` (h, w) if given."""

    def forward(self, seg: Semantics, size: tuple[int, int] | None = None) -> Tensor:
        return label_conv2d(seg, self.weight, self.bias, size, self.stride[0], self.padding[0])


class SPADEGenerator(nn.Module):
    """Label map, and noise z [N,256] if use_vae, to images [N,3,H,W] in [-1, 1].

    Without use_vae H and W are those of the label map, and must be multiples of config.stride.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        nf, (sh, sw) = 16 * config.ngf, config.latent
        if config.use_vae:
            self.fc: nn.Module = nn.Linear(Z_DIM, nf * sh * sw)
        else:
            self.fc = LabelConv2d(config.semantic_nc, nf, 3, padding=1)
        self.head_0 = self.block(nf, nf)
        self.G_middle_0 = self.block(nf, nf)
        self.G_middle_1 = self.block(nf, nf)
        widths = [nf >> i for i in range(6 if config.num_upsampling_layers == "most" else 5)]
        for i, (fin, fout) in enumerate(pairwise(widths)):
            self.add_module(f"up_{i}", self.block(fin, fout))
        self.conv_img = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def block(self, fin: int, fout: int) -> nn.Module:
        return SPADEResnetBlock(fin, fout, self.config.norm_G, self.config.semantic_nc, self.config.nhidden)

    def forward(self, seg: Semantics, z: Tensor | None = None) -> Tensor:
        return self.decode(self.first(seg, z), seg)

    def first(self, seg: Semantics, z: Tensor | None) -> Tensor:
        """The smallest map."""
        if self.config.use_vae:
            return self.fc(z).unflatten(1, (-1, *self.config.latent))
        h, w = seg.shape[-2:] if isinstance(seg, Tensor) else seg.size
        return self.fc(seg, (h // self.config.stride, w // self.config.stride))

    def decode(self, x: Tensor, *conditions: Semantics | None) -> Tensor:
        """The smallest map to images, by blocks of (x, *conditions)."""
        x = self.head_0(x, *conditions)
        x = self.G_middle_0(x, *conditions, upsample=True)
        x = self.G_middle_1(x, *conditions, upsample=self.config.num_upsampling_layers != "normal")
        for name, block in self.named_children():
            if name.startswith("up_"):
                x = block(x, *conditions, upsample=True)
        return self.head(F.leaky_relu(x, 0.2, inplace=True), *conditions)

    def head(self, x: Tensor, *conditions: Semantics | None) -> Tensor:
        """The largest map to images."""
        return torch.tanh(self.conv_img(x))


class NLayerDiscriminator(nn.Module):
    """Patch discriminator of a label map and images -> the outputs of all its layers, the logits last.

    Layers have stride 2, except for layer `flat` and the last one.
    """

    def __init__(self, label_nc: int, ndf: int, n_layers: int, flat: int) -> None:
        super().__init__()
        self.label_nc = label_nc
        self.model0 = nn.Sequential(nn.Conv2d(label_nc + 3, ndf, 4, 2, 2), nn.LeakyReLU(0.2))
        for n in range(1, n_layers):
            fin, ndf = ndf, min(2 * ndf, 512)
            conv = spectral_norm(Conv2d(fin, ndf, 4, 1 if n == flat else 2, 2, bias=False))
            self.add_module(f"model{n}", nn.Sequential(nn.Sequential(conv), InstanceNormAct(ndf, 0.2)))
        self.add_module(f"model{n_layers}", nn.Sequential(nn.Conv2d(ndf, 1, 4, 1, 2)))

    def forward(self, seg: Semantics | None, images: Tensor) -> list[Tensor]:
        """images [kN,3,H,W] of the N label maps, k times over; seg None if it has label_nc 0.

        The first convolution is linear in its input: of a plan, the label map's part of it is computed once for all k,
        on the distinct label windows.
        """
        conv, act = self.model0
        if seg is None:
            x = conv(images)
        elif isinstance(seg, Tensor):
            x = conv(torch.cat([seg.repeat(len(images) // len(seg), 1, 1, 1), images], 1))
        else:
            of_labels, of_images = conv.weight.split([self.label_nc, 3], 1)
            shared = label_conv2d(seg, of_labels, conv.bias, images.shape[-2:], conv.stride[0], conv.padding[0])
            x = F.conv2d(images, of_images, None, conv.stride, conv.padding)
            x = (x.unflatten(0, (-1, len(shared))) + shared).flatten(0, 1)
        outputs = [x := act(x)]
        for layer in list(self.children())[1:]:
            x = layer(x)
            outputs.append(x)
        return outputs


class MultiscaleDiscriminator(nn.Module):
    """Patch discriminators of label map and images together, at full resolution, at half, ..."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        for i in range(config.num_D):
            self.add_module(f"discriminator_{i}", self.discriminator(config))

    def discriminator(self, config: Config) -> NLayerDiscriminator:
        return NLayerDiscriminator(config.semantic_nc, config.ndf, config.n_layers_D, config.n_layers_D - 1)

    def forward(self, seg: Semantics | None, images: Tensor) -> Features:
        """images [kN,3,H,W] of the N label maps, k times over."""
        outputs = []
        for i, discriminator in enumerate(self.children()):
            if i:
                images, seg = half_size(images), None if seg is None else half_size(seg)
            outputs.append(discriminator(seg, images))
        return outputs


class ConvEncoder(nn.Module):
    """Images [N,3,H,W] to the mean and log variance [N,256] of their style."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        nf = config.ngf
        for n, (fin, fout) in enumerate(pairwise([3, nf, 2 * nf, 4 * nf, 8 * nf, 8 * nf, 8 * nf]), 1):
            conv = spectral_norm(Conv2d(fin, fout, 3, 2, 1, bias=False))
            self.add_module(f"layer{n}", nn.Sequential(conv, InstanceNormAct(fout, 0.2)))
        self.fc_mu = nn.Linear(8 * nf * 4 * 4, Z_DIM)
        self.fc_var = nn.Linear(8 * nf * 4 * 4, Z_DIM)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[-2:] != (256, 256):
            images = F.interpolate(images, size=(256, 256), mode="bilinear")
        for n in range(1, 7):
            images = self.get_submodule(f"layer{n}")(images)
        style = images.flatten(1)
        return self.fc_mu(style), self.fc_var(style)


class System(_system.System):
    """Generator, discriminator and, with use_vae, encoder; one generator step, then one discriminator step."""

    Config = Config
    PRESETS = PRESETS
    Generator: ClassVar[type[nn.Module]] = SPADEGenerator
    Discriminator: ClassVar[type[nn.Module]] = MultiscaleDiscriminator
    Encoder: ClassVar[type[nn.Module]] = ConvEncoder
    optional: ClassVar[tuple[str, ...]] = ("D",)  # networks that translation does without

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["G"] = self.Generator(config)
        self.nets["D"] = self.Discriminator(config)
        if config.use_vae:
            self.nets["E"] = self.Encoder(config)
        if config.lambda_vgg and config.vgg_weights:
            self.fixed["VGG"] = VGG19(config.vgg_weights)
        elif config.lambda_vgg:
            self.warn("vgg_weights names no file, so there is no perceptual term")
        self.gan = GAN_LOSSES[config.gan_mode]
        betas, rate = (config.beta1, config.beta2), 2 if config.ttur else 1
        generator = tuple(name for name in self.nets if name != "D")
        self.phases = [
            Phase("G", generator, self.generator_loss, Adam(config.lr / rate, betas), when=every(config.D_steps_per_G)),
            Phase("D", ("D",), self.discriminator_loss, Adam(config.lr * rate, betas)),
        ]

    def init_weights(self) -> None:
        """Xavier normal with gain 0.02; biases zero."""
        for parameter in self.nets.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_normal_(parameter, 0.02)
            else:
                nn.init.zeros_(parameter)

    @property
    def plan_sizes(self) -> list[tuple[int, int]]:
        (h, w), stride = self.config.latent, self.config.stride
        return [(h << i, w << i) for i in range(stride.bit_length())]

    @property
    def plan_windows(self) -> list[labels.PooledWindows]:
        h, w = self.config.size
        of_d = [(i, (-(-h >> i), -(-w >> i)), 4, 2, 2) for i in range(self.config.num_D)]
        return of_d if self.config.use_vae else [(0, self.config.latent, 3, 1, 1), *of_d]

    def decay(self, epoch: int) -> float:
        return decay_from(self.config.niter, self.config.niter_decay, epoch)

    def prepare(self, batch: Batch) -> Batch:
        """Add `semantics`: the batch's plan, else one made of `label` and `instance` ([N,1,H,W] integers)."""
        if "semantics" in batch:
            return batch
        plan = batch.get("plan")
        if plan is None:
            instances = batch["instance"] if self.config.instance else None
            plan = labels.plan(batch["label"], self.config.num_classes, instances=instances)
        if plan.num_channels != self.config.semantic_nc:
            classes = f"{self.config.num_classes} classes and {int(self.config.instance)} for instance edges"
            raise ValueError(f"label plan of {plan.num_channels} channels: the networks take {classes}")
        return {**batch, "semantics": plan}

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Style of `image` drawn from the encoder's normal distribution, its mean and its log variance."""
        mu, logvar = self.nets["E"](batch["image"])
        return self.randn(mu.shape, mu) * torch.exp(0.5 * logvar) + mu, mu, logvar

    def generate(self, batch: Batch, z: Tensor | None) -> Tensor:
        return self.nets["G"](batch["semantics"], z)

    def target(self, batch: Batch) -> Tensor:
        """What the perceptual term compares fakes with."""
        return batch["image"]

    def judge(self, batch: Batch, fake: Tensor) -> Features:
        """Outputs for fake and real images, from one pass over both: the fake ones come first."""
        return self.nets["D"](batch["semantics"], torch.cat([fake, batch["image"]]))

    def discriminate(self, batch: Batch, fake: Tensor) -> tuple[Features, Features]:
        """Outputs for fake and for real images."""
        outputs, n = self.judge(batch, fake), len(fake)
        return [[x[:n] for x in scale] for scale in outputs], [[x[n:] for x in scale] for scale in outputs]

    def adversarial(self, outputs: Features, real: bool, generator: bool = False) -> Tensor:
        """The GAN loss of the logits, averaged over scales."""
        return torch.stack([self.gan(scale[-1], real, generator) for scale in outputs]).mean()

    def matching(self, outputs: Features) -> Tensor:
        """The feature matching loss of what `judge` returns."""
        return feature_matching(outputs)

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        terms, z = {}, None
        if self.config.use_vae:
            z, mu, logvar = self.encode(batch)
            terms["KLD"] = self.config.lambda_kld * kl_divergence(mu, logvar)
        fake = self.generate(batch, z)
        outputs = self.judge(batch, fake)
        on_fake = [[x[: len(fake)] for x in scale] for scale in outputs]
        terms["GAN"] = self.adversarial(on_fake, real=True, generator=True)
        if self.config.lambda_feat:
            terms["GAN_Feat"] = self.config.lambda_feat * self.matching(outputs)
        if "VGG" in self.fixed:
            terms["VGG"] = self.config.lambda_vgg * perceptual(self.fixed["VGG"], fake, self.target(batch))
        return terms

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():  # a second fake, by the generator just updated
            z = self.encode(batch)[0] if self.config.use_vae else None
            fake = self.generate(batch, z)
        on_fake, on_real = self.discriminate(batch, fake)
        return {"D_Fake": self.adversarial(on_fake, real=False), "D_real": self.adversarial(on_real, real=True)}

    def codes(self, batch: Batch) -> Tensor | None:
        """What `translate` generates with: a style, that of `image` if given, with use_vae, else None."""
        if not self.config.use_vae:
            return None
        (h, w), (height, width) = batch["label"].shape[-2:], self.config.size
        if (h, w) != (height, width):
            raise ValueError(f"label map of {h}x{w} pixels: with use_vae it must have {height}x{width}")
        if "image" in batch:
            return self.encode(batch)[0]
        return self.randn((len(batch["label"]), Z_DIM), self.nets["G"].fc.weight)

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,H,W]} of any size without use_vae; with it of config.size, in the style of `image` if given."""
        h, w = batch["label"].shape[-2:]
        stride, z = self.config.stride, self.codes(batch)
        if h % stride or w % stride:
            batch = {name: pad_to(batch[name], stride) for name in ("label", "instance", "dist") if name in batch}
        return {"fake": self.generate(self.prepare(batch), z)[..., :h, :w]}

    def load_original(self, path: str | Path, epoch: str = "latest") -> None:
        """Load <epoch>_net_{G,D,E}.pth of a checkpoint folder (`optional` ones may be absent), or one such file."""
        load_nets(self.nets, path, epoch, self.optional)
