"""AdaIN: photographs in the style of any other image, by giving their features its means and deviations.

Huang, Belongie. Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization. ICCV 2017.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import UpsampleConv2d
from i2ifast.nn.conv import Conv2d
from i2ifast.nn.instance import adain, mean_and_deviation
from i2ifast.nn.vgg import read_state

from . import _system
from ._blocks import numbered, reset
from ._config import Cropped
from ._originals import load_strictly, named
from ._system import Adam, Batch, Phase

STRIDE = 8  # pixels of an image to one of its deepest features


@dataclass
class Config(Cropped):
    """Options of the original, the width of its networks and the size of training images."""

    channels: int = 64  # of the first features
    vgg_weights: str = ""  # file of the original's encoder, vgg_normalised.pth; without one it has random weights
    alpha: float = 1.0  # share of the stylised features; the rest is of the content's own
    content_weight: float = 1.0
    style_weight: float = 10.0
    lr: float = 1e-4
    lr_decay: float = 5e-5
    load_size: int = 512
    crop_size: int = 256

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values; `channel_divisor` is what divides all widths."""
        options = options | {"channels": 64 // options.get("channel_divisor", 1)}
        return cls(**named(cls, options))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "default": dict(channels=64, load_size=512, crop_size=256),
    "tiny":    dict(channels=4,  load_size=72,  crop_size=64),
}
# fmt: on


def conv(fin: int, fout: int, upsample: bool = False) -> nn.Conv2d:
    return (UpsampleConv2d if upsample else Conv2d)(fin, fout, 3, padding=1, padding_mode="reflect")


class Encoder(nn.Sequential):
    """Images [N,3,H,W] in [0, 1] -> features relu1_1, relu2_1, relu3_1, relu4_1 of a VGG19, frozen.

    The original's variant of it: padding is by reflection, poolings take what is left over at borders too, and a first
    convolution of 1x1 prepares colours.
    """

    POOLINGS = (7, 14, 27)
    FEATURES = (3, 10, 17, 30)

    def __init__(self, channels: int) -> None:
        c = channels
        layers: dict[int, nn.Module] = {0: nn.Conv2d(3, 3, 1)}
        layers |= {at: nn.MaxPool2d(2, ceil_mode=True) for at in self.POOLINGS}
        widths = {2: (3, c), 5: (c, c), 9: (c, 2 * c), 12: (2 * c, 2 * c), 16: (2 * c, 4 * c)}
        widths |= {at: (4 * c, 4 * c) for at in (19, 22, 25)} | {29: (4 * c, 8 * c)}
        for at, width in widths.items():
            layers |= {at: conv(*width), at + 1: nn.ReLU(inplace=True)}
        super().__init__(OrderedDict((str(at), layers[at]) for at in sorted(layers)))
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        x, features = images, []
        for at, layer in self.named_children():
            x = layer(x)
            if int(at) in self.FEATURES:
                features.append(x)
        return features

    def read(self, file: str | Path) -> None:
        """Take the weights of the original's file, which has deeper layers too."""
        state = {
            key: value for key, value in read_state(file).items() if int(key.partition(".")[0]) <= self.FEATURES[-1]
        }
        load_strictly(self, state, Path(file))


def decoder(channels: int) -> nn.Sequential:
    """The encoder backwards: features [N,8C,h,w] to images [N,3,8h,8w] in [0, 1], more or less."""
    c = channels
    layers: dict[int, nn.Module] = {1: conv(8 * c, 4 * c), 5: conv(4 * c, 4 * c, upsample=True)}
    layers |= {at: conv(4 * c, 4 * c) for at in (8, 11)}
    layers |= {14: conv(4 * c, 2 * c), 18: conv(2 * c, 2 * c, upsample=True)}
    layers |= {21: conv(2 * c, c), 25: conv(c, c, upsample=True)}
    layers |= {at + 1: nn.ReLU(inplace=True) for at in layers}
    return numbered({at: layers[at] for at in sorted(layers)} | {28: conv(c, 3)})


def coral(source: Tensor, target: Tensor) -> Tensor:
    """Images [N,3,H,W] with the colours of others [N,3,H',W']: their means, deviations and correlations.

    With pixels x of the source and y of the target, each normalised by channel, and C their covariance,
    root(C(y)) root(C(x))^-1 x, denormalised as the target. C(x) = count(y) / count(x) * x x^T + 1: the original leaves
    out that factor, by which contrasts would depend on the sizes of both.
    """

    def normalised(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pixels = images.flatten(2).double()
        mean, std = pixels.mean(2, keepdim=True), pixels.std(2, keepdim=True)
        return (pixels - mean) / std.clamp_min(1e-12), mean, std

    def power(products: Tensor, exponent: float) -> Tensor:
        values, vectors = torch.linalg.eigh(products + torch.eye(3, device=products.device))
        return (vectors * values[:, None] ** exponent) @ vectors.mT

    (x, _, _), (y, mean, std) = normalised(source), normalised(target)
    whiten, colour = power(y.size(2) / x.size(2) * x @ x.mT, -0.5), power(y @ y.mT, 0.5)
    return (colour @ whiten @ x * std + mean).view(source.shape).to(source.dtype)


class System(_system.System):
    """A decoder, trained between two runs of the frozen encoder: `a` is content, `b` is style."""

    Config = Config
    PRESETS = PRESETS
    data = "unpaired"
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["decoder"], encoder = decoder(config.channels), Encoder(config.channels)
        self.fixed["VGG"] = encoder
        if config.vgg_weights:
            encoder.read(config.vgg_weights)
        else:
            self.warn("vgg_weights names no file, so the encoder has random weights")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # the same ones in translation as in training
                for layer in encoder:
                    if isinstance(layer, nn.Conv2d):
                        nn.init.kaiming_normal_(layer.weight)
                        nn.init.zeros_(layer.bias)
        self.phases = [Phase("decoder", ("decoder",), self.loss, Adam(config.lr, (0.9, 0.999)))]

    @property
    def data_settings(self) -> dict[str, Any]:
        """Resized to a square and cropped, not mirrored."""
        return {"flip": False}

    def init_weights(self) -> None:
        """As PyTorch's layers do."""
        reset(self.nets)

    def rate(self, step: int) -> float:
        return 1 / (1 + self.config.lr_decay * step)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """What the encoder sees in the decoded image is to be what was decoded, with the style's statistics."""
        config, encoder = self.config, self.fixed["VGG"]
        content, style = ((batch[side] + 1) / 2 for side in "ab")
        with torch.no_grad():
            styles = encoder(style)
            target = adain(encoder(content)[-1], styles[-1], alpha=config.alpha)
            statistics = [mean_and_deviation(features) for features in styles]
        found = encoder(self.nets["decoder"](target))
        pairs = [
            pair
            for features, wanted in zip(found, statistics, strict=True)
            for pair in zip(mean_and_deviation(features), wanted, strict=True)
        ]
        return {
            "content": config.content_weight * F.mse_loss(found[-1], target),
            "style": config.style_weight * sum(F.mse_loss(*pair) for pair in pairs),
        }

    @torch.no_grad()
    def translate(
        self,
        batch: Batch,
        alpha: float | None = None,
        weights: Sequence[float] = (1.0,),
        preserve_color: bool = False,
    ) -> dict[str, Tensor]:
        """{"fake": content `a` [N,3,H,W] in the style of `b` [N,3,H',W'], or of a mix of styles [N,K,3,H',W']}.

        `alpha`, by default the configured one, is how much of the style there is; `weights` are the K styles' shares in
        the mix; with `preserve_color` the styles are given the colours of the content first.
        """
        if "b" not in batch:
            raise ValueError("adain: no `b` in the batch; translation needs images of the style")
        content, styles = (batch["a"] + 1) / 2, (batch["b"] + 1) / 2
        styles = styles.unbind(1) if styles.dim() == 5 else [styles]
        if len(weights) != len(styles) or not sum(weights) > 0:
            raise ValueError(f"weights {list(weights)}: expected as many as styles, {len(styles)}, of a positive sum")
        alpha, encoder = self.config.alpha if alpha is None else alpha, self.fixed["VGG"]
        h, w = content.shape[-2:]
        features, mixed = encoder(content)[-1], 0
        for weight, style in zip(weights, styles, strict=True):
            style = coral(style, content) if preserve_color else style
            mixed = mixed + weight / sum(weights) * adain(features, encoder(style)[-1], alpha=alpha)
        return {"fake": 2 * self.nets["decoder"](mixed)[..., :h, :w] - 1}

    def load_original(self, path: str | Path) -> None:
        """Load the newest decoder_iter_<n>.pth.tar, else decoder.pth, of a folder, or one such file, and the encoder's
        vgg_normalised.pth beside it, which may be absent if `vgg_weights` names one.
        """
        path = Path(path)
        if path.is_dir():
            files = [path / "decoder.pth", *path.glob("decoder_iter_*.pth.tar")]
            file = max(
                filter(Path.exists, files),
                key=lambda file: [int(n) for n in re.findall(r"\d+", file.name)],
                default=None,
            )
            if file is None:
                raise ValueError(f"{path}: no decoder_iter_<iteration>.pth.tar and no decoder.pth in it")
        else:
            file = path
        encoder = file.with_name("vgg_normalised.pth")
        if encoder.exists():
            self.fixed["VGG"].read(encoder)
        elif not self.config.vgg_weights:
            raise ValueError(f"{encoder.parent}: no vgg_normalised.pth in it, and vgg_weights names no file")
        load_strictly(self.nets["decoder"], torch.load(file, map_location="cpu", weights_only=True), file)
