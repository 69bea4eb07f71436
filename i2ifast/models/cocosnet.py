"""CoCosNet: label maps to images in the style of an exemplar, which is warped by cross-domain correspondence.

Zhang, Zhang, Chen, Yuan, Wen. Cross-domain Correspondence Learning for Exemplar-based Image Translation. CVPR 2020.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast import ops
from i2ifast.nn import SelfAttention
from i2ifast.nn.cocosnet import ReflectedSPADEResnetBlock
from i2ifast.nn.losses import contextual, feature_matching, hinge, multiscale
from i2ifast.nn.vgg import VGG, caffe

from . import _system
from ._blocks import decay_from, half_size, pad_to
from ._cocosnet import Correspondence, normed
from ._config import Cropped, check_choices
from ._originals import load_nets, named, require
from ._system import Adam, Batch, Phase, every

STRIDE = 32  # between the images and the first layer of the generator
PERCEPTUAL = ("relu1_2", "relu2_2", "relu3_2", "relu4_2", "relu5_2")
FM_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)


@dataclass
class Config(Cropped):
    """Options of the original, under its names, except that negative ones (no_TTUR) are positive here."""

    label_nc: int = 150
    contain_dontcare_label: bool = True
    glasses: bool = False  # the second channel of label maps is a mask that belongs to channel -3 (celebahq)
    crop_size: int = 256
    aspect_ratio: float = 1.0  # width / height
    norm_G: str = "spectralspadesyncbatch3x3"
    norm_D: str = "spectralinstance"
    norm_E: str = "spectralinstance"
    ngf: int = 64
    nhidden: int = 128  # of the SPADE layers
    inter_channels: int = 256  # of the features that are matched
    use_attention: bool = True
    PONO: bool = True
    CBN_intype: Literal["warp", "mask", "warp_mask"] = "warp_mask"
    maskmix: bool = True
    match_kernel: int = 3
    PONO_C: bool = True
    warp_stride: Literal[2, 4] = 4
    warp_patch: bool = False
    warp_bilinear: bool = False
    warp_mask_losstype: Literal["none", "direct", "cycle"] = "direct"
    use_coordconv: bool = False
    adaptor_kernel: Literal[3, 4] = 3
    adaptor_se: bool = False
    adaptor_nonlocal: bool = False
    adaptor_res_deeper: bool = False
    dilation_conv: bool = False
    ndf: int = 64
    num_D: int = 2
    n_layers_D: int = 4
    vgg_weights: str = ""  # file with VGG19 weights; without one there are no perceptual terms
    vgg_normal_correct: bool = True
    which_perceptual: Literal["4_2", "5_2"] = "5_2"
    use_22ctx: bool = False
    weight_gan: float = 10.0
    lambda_feat: float = 10.0
    lambda_vgg: float = 10.0
    fm_ratio: float = 0.1
    weight_perceptual: float = 0.01
    ctx_w: float = 1.0
    weight_mask: float = 100.0
    novgg_featpair: float = 10.0
    warp_cycle_w: float = 0.0
    two_cycle: bool = False
    warp_self_w: float = 0.0
    lr: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    ttur: bool = True  # discriminator lr * 2 and betas (0, 0.9); the generator's is lr / 2 in any case
    D_steps_per_G: int = 1
    niter: int = 100
    niter_decay: int = 100

    def __post_init__(self) -> None:
        choices = {
            "CBN_intype": ("warp", "mask", "warp_mask"), "warp_stride": (2, 4), "adaptor_kernel": (3, 4),
            "warp_mask_losstype": ("none", "direct", "cycle"), "which_perceptual": ("4_2", "5_2"),
        }  # fmt: skip
        check_choices(self, **choices)
        height, width = self.size
        if height % STRIDE or width % STRIDE or min(self.size) < 2 * STRIDE:
            raise ValueError(f"images of {height}x{width} pixels: expected multiples of {STRIDE}, {2 * STRIDE} or more")

    @property
    def semantic_nc(self) -> int:
        return self.label_nc + self.contain_dontcare_label

    num_classes = semantic_nc

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """The config of an original's options; ValueError for what this system does not have."""
        only = {"netG": "spade", "netD": "multiscale", "netD_subarch": "n_layer", "gan_mode": "hinge", "D_cam": 0.0,
                "weight_domainC": 0.0, "domain_rela": False, "eqlr_sn": False, "mask_noise": False,
                "noise_for_mask": False, "optimizer": "adam", "mask_epoch": -1}  # fmt: skip
        require(options, **only)
        values = named(cls, options)
        values |= {"ttur": not options["no_TTUR"], "glasses": options.get("dataset_mode") == "celebahq"}
        values |= {"glasses": True} if options.get("glasses") else {}
        values |= {"lambda_feat": 0.0} if options["no_ganFeat_loss"] else {}
        return cls(**values)


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "ade20k":      dict(),
    "celebahq":    dict(label_nc=19, contain_dontcare_label=False, glasses=True, adaptor_kernel=4, warp_bilinear=True,
                        warp_cycle_w=0.1, which_perceptual="4_2", weight_perceptual=0.001, fm_ratio=1.0),
    "deepfashion": dict(label_nc=20, contain_dontcare_label=False, maskmix=False, warp_mask_losstype="none",
                        adaptor_kernel=4, warp_patch=True, warp_self_w=100.0, weight_mask=0.0),
    "tiny":        dict(label_nc=11, crop_size=128, aspect_ratio=2.0, ngf=4, nhidden=8, inter_channels=8, ndf=16),
}
# fmt: on


class Generator(nn.Module):
    """Conditions [N,C,H,W] (the warped exemplar, the label map) to images [N,3,H,W] in [-1, 1]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, nf = (
            3 * ("warp" in config.CBN_intype) + config.semantic_nc * ("mask" in config.CBN_intype),
            config.ngf,
        )

        def block(fin: int, fout: int) -> nn.Module:
            return ReflectedSPADEResnetBlock(fin, fout, config.norm_G, config.PONO, channels, config.nhidden)

        self.fc = nn.Conv2d(channels, 16 * nf, 3, padding=1)
        self.head_0 = block(16 * nf, 16 * nf)
        self.G_middle_0 = block(16 * nf, 16 * nf)
        self.G_middle_1 = block(16 * nf, 16 * nf)
        for i in range(4):
            if i == 2 and config.use_attention:
                self.attn = SelfAttention(4 * nf, config.norm_G.startswith("spectral"))
            self.add_module(f"up_{i}", block(16 * nf >> i, 8 * nf >> i))
        self.conv_img = nn.Conv2d(nf, 3, 3, padding=1)

    def forward(self, condition: Tensor) -> Tensor:
        h, w = condition.shape[2:]
        x = self.fc(F.interpolate(condition, size=(h // STRIDE, w // STRIDE), mode="nearest"))
        for name, layer in list(self.named_children())[1:-1]:
            if name not in ("head_0", "G_middle_1", "attn"):
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            if name == "up_2" and hasattr(self, "attn"):
                x = self.attn(x)
            x = x if name == "attn" else layer(x, condition)
        return torch.tanh(self.conv_img(F.leaky_relu(x, 0.2)))


class NLayerDiscriminator(nn.Module):
    """Patch discriminator of label maps and images -> the outputs of all its layers, the logits last."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        ndf, norm, last = config.ndf, config.norm_D, config.n_layers_D - 1
        widths = [min(ndf << i, 512) for i in range(last + 1)]
        if config.use_attention:
            self.attn = SelfAttention(widths[last - 1], norm.startswith("spectral"))
        # A decoder that nothing uses, but that checkpoints have.
        self.dec = nn.ModuleDict(
            {str(3 * i + 1): normed(4 * ndf >> i, 2 * ndf >> i, 3, 1, norm, 0.2) for i in range(3)}
        )
        self.dec["9"] = nn.Conv2d(ndf // 2, config.semantic_nc, 3, padding=1)
        self.model0 = nn.Sequential(nn.Conv2d(config.semantic_nc + 3, ndf, 4, 2, 1), nn.LeakyReLU(0.2))
        for i, (fin, fout) in enumerate(pairwise(widths), 1):
            self.add_module(f"model{i}", nn.Sequential(normed(fin, fout, 4, 1 if i == last else 2, norm, 0.2)))
        self.add_module(f"model{last + 1}", nn.Sequential(nn.Conv2d(widths[-1], 1, 4, 1, 1)))

    def forward(self, x: Tensor) -> list[Tensor]:
        layers, outputs = [layer for name, layer in self.named_children() if name.startswith("model")], []
        for i, layer in enumerate(layers):
            if i == len(layers) - 2 and hasattr(self, "attn"):
                x = self.attn(x)
            x = layer(x)
            outputs.append(x)
        return outputs


class MultiscaleDiscriminator(nn.Module):
    """Discriminators of label maps and images together [N,C,H,W], at full resolution, at half, ..."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        for i in range(config.num_D):
            self.add_module(f"discriminator_{i}", NLayerDiscriminator(config))

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        outputs = []
        for discriminator in self.children():
            outputs.append(discriminator(x))
            x = half_size(x)
        return outputs


class System(_system.System):
    """Correspondence network and generator, trained together, then the discriminator, on the same fake."""

    Config = Config
    PRESETS = PRESETS
    data = "exemplars"
    ema = ("G", "Corr")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["G"] = Generator(config)
        self.nets["D"] = MultiscaleDiscriminator(config)
        self.nets["Corr"] = Correspondence(config)
        if config.vgg_weights:
            self.fixed["VGG"] = VGG(config.vgg_weights, PERCEPTUAL, self.preprocess)
        else:
            self.warn("vgg_weights names no file, so there are no perceptual terms")
        betas = (0.0, 0.9) if config.ttur else (config.beta1, config.beta2)
        adam = Adam(config.lr / 2, betas, eps=1e-3)
        self.phases = [
            Phase("G", ("G", "Corr"), self.generator_loss, adam, when=every(config.D_steps_per_G)),
            Phase("D", ("D",), self.discriminator_loss, Adam(config.lr * (2 if config.ttur else 1), betas)),
        ]

    def preprocess(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] as the perceptual network takes them; not so without `vgg_normal_correct`."""
        return caffe((images + 1) / 2 if self.config.vgg_normal_correct else images)

    def init_weights(self) -> None:
        """Xavier normal with gain 0.02 and zero biases in every convolution and linear layer."""
        for module in self.nets.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                for parameter in module.parameters(recurse=False):
                    if parameter.ndim > 1:
                        nn.init.xavier_normal_(parameter, 0.02)
                    else:
                        nn.init.zeros_(parameter)

    def decay(self, epoch: int) -> float:
        return decay_from(self.config.niter, self.config.niter_decay, epoch)

    def one_hot(self, label: Tensor) -> Tensor:
        """[N,semantic_nc,H,W] of class indices [N,1,H,W], or [N,2,H,W] with glasses; floats are semantics already."""
        if label.is_floating_point():
            return label
        n, _, h, w = label.shape
        semantics = torch.zeros((n, self.config.semantic_nc, h, w), device=label.device)
        semantics.scatter_(1, label[:, :1], 1.0)
        if self.config.glasses:
            semantics[:, -3] = label[:, 1]
        return semantics

    def prepare(self, batch: Batch) -> Batch:
        """Add `semantics` and `ref_semantics`, from `label` and `label_ref`."""
        if "semantics" in batch:
            return batch
        return {
            **batch,
            "semantics": self.one_hot(batch["label"]),
            "ref_semantics": self.one_hot(batch["label_ref"]),
        }

    def generate(self, batch: Batch, real: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The fake, and what the correspondence network gives."""
        semantics = batch["semantics"]
        warped = self.nets["Corr"](semantics, batch["ref"], batch["ref_semantics"], real)
        conditions = {"warp": warped["warp_out"], "mask": semantics}
        condition = torch.cat([conditions[name] for name in self.config.CBN_intype.split("_")], 1)
        return self.nets["G"](condition), warped

    def discriminate(self, batch: Batch, fake: Tensor) -> list[list[Tensor]]:
        """Outputs [scale][layer] for fake and real images, the fake ones first, from one pass over both."""
        semantics = batch["semantics"].repeat(2, 1, 1, 1)
        return self.nets["D"](torch.cat([semantics, torch.cat([fake, batch["image"]])], 1))

    def adversarial(self, outputs: list[list[Tensor]], fakes: bool, real: bool, generator: bool = False) -> Tensor:
        """Hinge loss of the logits of the fake or the real half, averaged over scales."""
        logits = [scale[-1].chunk(2)[0 if fakes else 1] for scale in outputs]
        return self.config.weight_gan * multiscale(hinge, logits, real, generator)

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        config, real = self.config, batch["image"]
        fake, warped = self.generate(batch, real)
        batch["fake"] = fake.detach()
        outputs = self.discriminate(batch, fake)
        terms = {"GAN": self.adversarial(outputs, fakes=True, real=True, generator=True)}
        if config.lambda_feat:
            terms["GAN_Feat"] = config.lambda_feat * feature_matching(outputs)
        if "VGG" in self.fixed:
            terms |= self.perceptual_terms(batch, fake)
        if "pair" in warped:
            terms["no_vgg_feat"] = config.novgg_featpair * warped["pair"]
        if "warp_mask" in warped and config.weight_mask:
            terms["mask"] = config.weight_mask * self.mask_loss(warped["warp_mask"], batch)
        if "cycle" in warped:
            small = (lambda x: x) if config.warp_patch else self.nets["Corr"].mean
            terms["G_warp_cycle"] = config.warp_cycle_w * F.l1_loss(warped["cycle"], small(batch["ref"]))
            if config.two_cycle:
                two = F.l1_loss(warped["i2r2i"], self.nets["Corr"].mean(real))
                terms["G_warp_cycle"] = terms["G_warp_cycle"] + config.warp_cycle_w * two
        if config.warp_self_w:
            distance = (warped["warp_out"] - real).abs() * self.self_weights(batch)[:, None, None, None]
            terms["G_warp_self"] = config.warp_self_w * distance.mean()
        return terms

    @staticmethod
    def self_weights(batch: Batch) -> Tensor:
        """[N], of sum 1: samples whose exemplar is the real image itself share the terms that need one."""
        own = batch["self_ref"].reshape(len(batch["self_ref"]), -1)[:, 0]
        return own / (own.sum() + 1e-5)

    def perceptual_terms(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        config, vgg = self.config, self.fixed["VGG"]
        with torch.no_grad():
            of_real, of_ref = vgg(batch["image"]), vgg(batch["ref"])
        of_fake = vgg(fake)
        layer = -1 if config.which_perceptual == "5_2" else -2
        distances = ops.feature_matching(of_fake, of_real, FM_WEIGHTS)
        similar = 8 * contextual(of_fake[4], of_ref[4], config.PONO)
        similar = similar + 4 * contextual(of_fake[3], of_ref[3], config.PONO)
        for i, (weight, pool) in ((2, (2, 2)), (1, (1, 4)))[: 1 + config.use_22ctx]:
            pooled = (F.avg_pool2d(features[i], pool) for features in (of_fake, of_ref))
            similar = similar + weight * contextual(*pooled, config.PONO)
        return {
            "fm": config.lambda_vgg * config.fm_ratio * (distances * self.self_weights(batch)).mean(),
            "perc": config.weight_perceptual * F.mse_loss(of_fake[layer], of_real[layer]),
            "contextual": config.lambda_vgg * config.ctx_w * similar.mean(),
        }

    def mask_loss(self, warp_mask: Tensor, batch: Batch) -> Tensor:
        """Negative log likelihood of the labels that the exemplar has, but 0, under its warped ones."""
        label = self.nets["Corr"].small(batch["label"][:, :1].float()).long().flatten(1)
        shown = warp_mask.new_zeros(warp_mask.shape[:2]).scatter_(1, batch["label_ref"][:, 0].flatten(1), 1.0)
        weight = shown.gather(1, label) * (label != 0)
        likelihood = F.nll_loss(torch.log(warp_mask.flatten(2) + 1e-10), label, reduction="none")
        return (likelihood * weight).sum() / (weight.sum() + 1e-5)

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        fake = batch.get("fake")  # of the generator's step, by the weights before it
        if fake is None:
            with torch.no_grad():
                fake, _ = self.generate(batch)
        outputs = self.discriminate(batch, fake)
        return {
            "D_Fake": self.adversarial(outputs, fakes=True, real=False),
            "D_real": self.adversarial(outputs, fakes=False, real=True),
        }

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake", "warp"}: [N,3,H,W] of any size, in the style of `ref`, whose labels are `label_ref`."""
        h, w = batch["label"].shape[-2:]
        names = ("label", "label_ref", "ref")
        padded = {name: pad_to(batch[name], STRIDE) for name in names}
        fake, warped = self.generate(self.prepare(padded))
        return {"fake": fake[..., :h, :w], "warp": warped["warp_out"][..., :h, :w]}

    def load_original(self, path: str | Path, epoch: str = "latest") -> None:
        """Load <epoch>_net_{G,D,Corr}.pth of a checkpoint folder (only G needs to be there), or one such file."""
        load_nets(self.nets, path, epoch, optional=set(self.nets) - {"G"})
