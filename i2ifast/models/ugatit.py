"""U-GAT-IT: unpaired translation with attention from class activation maps, and norms that learn their kind.

Kim, Kim, Kang, Lee. U-GAT-IT: Unsupervised Generative Attentional Networks with Adaptive Layer-Instance Normalization
for Image-to-Image Translation. ICLR 2020.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import ILN, AdaILN, InstanceNormAct, UpsampleConv2d, spectral_norm

from . import _modulation
from ._blocks import ResnetBlock, numbered, pad_to, reflecting, reset
from ._losses import cross_entropy, least_squares
from ._modulation import STRIDE, AttentionConv2d, Modulation, ModulationSystem, pooled, spectral, with_side
from ._system import Adam, Batch, Phase

LAYERS = {"G": 7, "L": 5}  # of the discriminators of the whole image and of patches


@dataclass
class Config(_modulation.Config):
    """Options of the original, under its names; its n_dis has no effect there and is left out."""

    n_res: int = 4
    identity_weight: float = 10.0
    cam_weight: float = 1000.0


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "full":  dict(ch=64, light=False),
    "light": dict(ch=64, light=True),
    "tiny":  dict(ch=4,  light=True, img_size=96, n_res=1),
}
# fmt: on


class Output(NamedTuple):
    """Images or logits, the logits [N, 2] of the class activation maps, and the map of attention."""

    out: Tensor
    cam_logit: Tensor
    heatmap: Tensor


class ResnetGenerator(Modulation):
    """Images [N,3,H,W] to images in [-1, 1]."""

    def __init__(self, config: Config) -> None:
        ch, channels = config.ch, 4 * config.ch
        super().__init__(channels, config.n_res, config.img_size // STRIDE, config.light, softmax=False)
        layers: dict[int, nn.Module] = {
            1: reflecting(config.img_ch, ch, 7),
            2: InstanceNormAct(ch),
            5: reflecting(ch, 2 * ch, 3, 2),
            6: InstanceNormAct(2 * ch),
            9: reflecting(2 * ch, channels, 3, 2),
            10: InstanceNormAct(channels),
        }
        self.DownBlock = numbered({**layers, **{12 + i: ResnetBlock(channels) for i in range(config.n_res)}})
        self.gap_fc, self.gmp_fc = (nn.Linear(channels, 1, bias=False) for _ in range(2))
        self.conv1x1 = AttentionConv2d(channels)
        layers = {}
        for start in (0, 5):
            upsample = UpsampleConv2d(channels, channels // 2, 3, padding=1, bias=False, padding_mode="reflect")
            channels //= 2
            layers |= {start + 2: upsample, start + 3: ILN(channels, act="relu")}
        self.UpBlock2 = numbered({**layers, 11: reflecting(ch, config.img_ch, 7), 12: nn.Tanh()})

    def forward(self, images: Tensor) -> Output:
        x = self.DownBlock(images)
        mean, largest = pooled(x)
        cam_logit = torch.cat([self.gap_fc(mean), self.gmp_fc(largest)], 1)
        x = F.relu(self.conv1x1(x, (self.gap_fc.weight, self.gmp_fc.weight)))
        return Output(self.UpBlock2(self.modulated(x)), cam_logit, x.sum(1, keepdim=True))


class Discriminator(nn.Module):
    """Images to logits of patches, larger ones with more layers."""

    def __init__(self, config: Config, n_layers: int) -> None:
        super().__init__()
        widths = [config.img_ch, *(config.ch << i for i in range(n_layers - 1))]
        layers: dict[int, nn.Module] = {}
        for i, (fin, fout) in enumerate(zip(widths, widths[1:], strict=False)):
            stride = 1 if i == n_layers - 2 else 2
            layers |= {3 * i + 1: spectral(fin, fout, stride), 3 * i + 2: nn.LeakyReLU(0.2)}
        self.model = numbered(layers)
        self.gap_fc, self.gmp_fc = (spectral_norm(nn.Linear(widths[-1], 1, bias=False)) for _ in range(2))
        self.conv1x1 = AttentionConv2d(widths[-1])
        self.conv = spectral(widths[-1], 1, stride=1, bias=False)

    def forward(self, images: Tensor) -> Output:
        x = self.model(images)
        mean, largest = pooled(x)
        cam_logit = torch.cat([self.gap_fc(mean), self.gmp_fc(largest)], 1)
        # The attention is of the weights as they are, not divided by their spectral norm.
        x = F.leaky_relu(self.conv1x1(x, (self.gap_fc.weight_orig, self.gmp_fc.weight_orig)), 0.2)
        return Output(self.conv(x), cam_logit, x.sum(1, keepdim=True))


class System(ModulationSystem):
    """Two generators and a discriminator of two kinds for each domain; a discriminator step, then a generator step."""

    Config = Config
    PRESETS = PRESETS

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["genA2B"], self.nets["genB2A"] = ResnetGenerator(config), ResnetGenerator(config)
        for kind, n_layers in LAYERS.items():
            for side in "AB":
                self.nets[f"dis{kind}{side}"] = Discriminator(config, n_layers)
        adam = Adam(config.lr, (0.5, 0.999), weight_decay=config.weight_decay)
        judges = tuple(name for name in self.nets if name.startswith("dis"))
        self.phases = [
            Phase("D", judges, self.discriminator_loss, adam),
            Phase("G", ("genA2B", "genB2A"), self.generator_loss, adam, after=self.clip_rho),
        ]

    def init_weights(self) -> None:
        """As PyTorch's layers do."""
        reset(self.nets)

    def clip_rho(self) -> None:
        """Keep the mixing weights of all norms in [0, 1]."""
        for module in self.nets.modules():
            if isinstance(module, AdaILN):
                module.clip_rho()

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            fakes = {"A": self.nets["genB2A"](batch["b"]).out, "B": self.nets["genA2B"](batch["a"]).out}
        terms = {}
        for side, fake in fakes.items():
            terms |= with_side(side, self.adversarial("D", side, fake, batch[side.lower()]))
        return terms

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        config, terms, images = self.config, {}, {"A": batch["a"], "B": batch["b"]}
        generators = {"A": self.nets["genB2A"], "B": self.nets["genA2B"]}  # by the domain they make
        other = {"A": "B", "B": "A"}
        fakes = {side: generator(images[other[side]]) for side, generator in generators.items()}
        for side, real in images.items():
            cycled = generators[side](fakes[other[side]].out).out
            same = generators[side](real)
            cam = cross_entropy(fakes[side].cam_logit, True) + cross_entropy(same.cam_logit, False)
            terms |= with_side(side, self.adversarial("G", side, fakes[side].out))
            terms |= {
                f"G_recon_loss_{side}": config.cycle_weight * F.l1_loss(cycled, real),
                f"G_identity_loss_{side}": config.identity_weight * F.l1_loss(same.out, real),
                f"G_cam_loss_{side}": config.cam_weight * cam,
            }
        return terms

    def adversarial(self, who: str, side: str, fake: Tensor, real: Tensor | None = None) -> dict[str, Tensor]:
        """Least squares of logits: of real images and fakes for the discriminator, of fakes for the generator."""
        terms = {}
        for kind in LAYERS:
            net = self.nets[f"dis{kind}{side}"]
            judged = [] if real is None else [(net(real), True)]
            judged.append((net(fake), real is None))
            for name, field in {"loss": "out", "cam_loss": "cam_logit"}.items():
                loss = sum(least_squares(getattr(output, field), target) for output, target in judged)
                terms[f"{who}_ad_{name}_{kind}"] = self.config.adv_weight * loss
        return terms

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": `a` [N,C,H,W] in domain B}, of any size with `light`."""
        h, w = batch["a"].shape[-2:]
        return {"fake": self.nets["genA2B"](pad_to(batch["a"], STRIDE)).out[..., :h, :w]}
