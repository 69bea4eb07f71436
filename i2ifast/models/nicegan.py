"""NICE-GAN: unpaired translation in which the discriminator's first layers are the encoder.

Chen, Huang, Huang, Sun, Huang. Reusing Discriminators for Encoding. CVPR 2020.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import ILN, spectral_norm

from . import _modulation
from ._blocks import numbered, pad_to, reflecting, reset
from ._losses import least_squares
from ._modulation import STRIDE, AttentionConv2d, Modulation, ModulationSystem, pooled, spectral, with_side
from ._system import Adam, Batch, Phase


@dataclass
class Config(_modulation.Config):
    """Options of the original, under its names."""

    n_res: int = 6
    n_dis: int = 7
    recon_weight: float = 10.0
    iteration: int = 300000

    def __post_init__(self) -> None:
        if self.n_dis < 6:
            raise ValueError(f"n_dis {self.n_dis}: must be at least 6, for the two heads of the discriminator")
        super().__post_init__()


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "full":  dict(ch=64, light=False),
    "light": dict(ch=64, light=True),
    "tiny":  dict(ch=4,  light=True, img_size=96, n_res=1),
}
# fmt: on


class Judged(NamedTuple):
    """What the discriminator makes of images."""

    local: Tensor
    overall: Tensor
    cam_logit: Tensor
    heatmap: Tensor
    code: Tensor


class Discriminator(nn.Module):
    """Images [N,3,H,W] -> a code [N,2ch,H/4,W/4], and logits of patches of two sizes made of it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        first = config.n_dis - 4  # layers in front of the small patches' head
        widths = [config.img_ch, *(config.ch << i for i in range(config.n_dis))]

        def trunk(start: int, stop: int) -> nn.Sequential:
            layers: dict[int, nn.Module] = {}
            for i, (fin, fout) in enumerate(zip(widths[start:stop], widths[start + 1 : stop + 1], strict=True)):
                layers |= {3 * i + 1: spectral(fin, fout), 3 * i + 2: nn.LeakyReLU(0.2)}
            return numbered(layers)

        def last(index: int) -> nn.Sequential:
            return numbered({1: spectral(widths[index], widths[index + 1], stride=1), 2: nn.LeakyReLU(0.2)})

        self.model = trunk(0, 2)
        self.fc = spectral_norm(nn.Linear(2 * widths[2], 1, bias=False))
        self.conv1x1 = AttentionConv2d(widths[2])
        self.lamda = nn.Parameter(torch.zeros(1))
        self.Dis0_0, self.Dis0_1 = trunk(2, first), last(first)
        self.conv0 = spectral(widths[first + 1], 1, stride=1, bias=False)
        self.Dis1_0, self.Dis1_1 = trunk(first, first + 2), last(first + 2)
        self.conv1 = spectral(widths[first + 3], 1, stride=1, bias=False)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The code, and the logit of its class activation map."""
        x = self.model(images)
        cam_logit = self.fc(torch.cat(pooled(x), 1))
        attention = self.fc.weight_orig[0].chunk(2)  # as it is, not divided by its spectral norm
        x = x + self.lamda * self.conv1x1(x, attention)
        return F.leaky_relu(x, 0.2), cam_logit

    def forward(self, images: Tensor) -> Judged:
        code, cam_logit = self.encode(images)
        x = self.Dis0_0(code)
        local, overall = self.conv0(self.Dis0_1(x)), self.conv1(self.Dis1_1(self.Dis1_0(x)))
        return Judged(local, overall, cam_logit, code.sum(1, keepdim=True), code)


class ResnetGenerator(Modulation):
    """A code [N,2ch,H/4,W/4] to images [N,3,H,W] in [-1, 1]."""

    def __init__(self, config: Config) -> None:
        channels = 4 * config.ch
        super().__init__(channels, config.n_res, config.img_size // STRIDE, config.light, softmax=True)
        first = ILN(channels, softmax=True, act="relu")
        self.UpBlock0 = numbered({1: reflecting(channels // 2, channels, 3, bias=True), 2: first})
        layers: dict[int, nn.Module] = {}
        for start in (0, 8):
            half = channels // 2
            layers |= {
                start + 1: reflecting(channels, half, 3),
                start + 2: ILN(half, softmax=True, act="relu"),
                start + 4: nn.Conv2d(half, 4 * half, 1),
                start + 5: nn.PixelShuffle(2),
                start + 6: ILN(half, softmax=True, act="relu"),
            }
            channels = half
        self.UpBlock2 = numbered({**layers, 17: reflecting(channels, config.img_ch, 7), 18: nn.Tanh()})

    def forward(self, code: Tensor) -> Tensor:
        return self.UpBlock2(self.modulated(self.UpBlock0(code)))


class System(ModulationSystem):
    """Two discriminators, which encode, and two generators; one discriminator step, then one generator step.

    The encoders are trained as discriminators only.
    """

    Config = Config
    PRESETS = PRESETS

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["gen2B"], self.nets["gen2A"] = ResnetGenerator(config), ResnetGenerator(config)
        self.nets["disA"], self.nets["disB"] = Discriminator(config), Discriminator(config)
        adam = Adam(config.lr, (0.5, 0.999), weight_decay=config.weight_decay)
        self.phases = [
            Phase("D", ("disA", "disB"), self.discriminator_loss, adam),
            Phase("G", ("gen2A", "gen2B"), self.generator_loss, adam),
        ]

    def init_weights(self) -> None:
        """As PyTorch's layers do; the code starts without attention."""
        reset(self.nets)
        for name in ("disA", "disB"):
            nn.init.zeros_(self.nets[name].lamda)

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        nets = self.nets
        real = {"A": nets["disA"](batch["a"]), "B": nets["disB"](batch["b"])}
        with torch.no_grad():
            fakes = {"A": nets["gen2A"](real["B"].code), "B": nets["gen2B"](real["A"].code)}
        terms = {}
        for side, fake in fakes.items():
            terms |= with_side(side, self.adversarial("D", nets[f"dis{side}"](fake), real[side]))
        return terms

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        config, nets, images = self.config, self.nets, {"A": batch["a"], "B": batch["b"]}
        codes = {side: nets[f"dis{side}"](images[side]).code for side in images}
        other, judged, terms = {"A": "B", "B": "A"}, {}, {}
        for side in images:
            judged[side] = nets[f"dis{side}"](nets[f"gen2{side}"](codes[other[side]]))
            terms |= with_side(side, self.adversarial("G", judged[side]))
        for side, real in images.items():
            generator = nets[f"gen2{side}"]
            cycle, recon = F.l1_loss(generator(judged[other[side]].code), real), F.l1_loss(generator(codes[side]), real)
            terms |= {f"G_cycle_loss_{side}": config.cycle_weight * cycle}
            terms |= {f"G_recon_loss_{side}": config.recon_weight * recon}
        return terms

    def adversarial(self, who: str, fake: Judged, real: Judged | None = None) -> dict[str, Tensor]:
        """Least squares of the three logits: of fakes and reals for the discriminator, of fakes for the generator."""
        names = {"loss_G": "overall", "loss_L": "local", "cam_loss_": "cam_logit"}
        terms = {}
        for name, field in names.items():
            loss = least_squares(getattr(fake, field), real is None)
            if real is not None:
                loss = loss + least_squares(getattr(real, field), True)
            terms[f"{who}_ad_{name}"] = self.config.adv_weight * loss
        return terms

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": `a` [N,C,H,W] in domain B}, of any size with `light`."""
        h, w = batch["a"].shape[-2:]
        code, _ = self.nets["disA"].encode(pad_to(batch["a"], STRIDE))
        return {"fake": self.nets["gen2B"](code)[..., :h, :w]}
