"""COCO-FUNIT: FUNIT whose code of a class depends on the content that it is for, and so not on the pose of the example.

Losses are FUNIT's without the penalty of gradients, in place of which the discriminator's weights are normalised.

Saito, Saenko, Liu. COCO-FUNIT: Few-Shot Unsupervised Image Translation with a Content Conditioned Style Encoder.
ECCV 2020.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import AdaIN, UpsampleConv2d
from i2ifast.nn.instance import instance_norm_act

from ._blocks import reflecting
from ._funit import FewShot, FewShotConfig, GPPatchMcResDis
from ._munit import activated
from ._originals import flattened, load_strictly, named
from ._system import Adam


@dataclass
class Config(FewShotConfig):
    """Options of the original; those that it nests in `gen` and `dis` have these as prefixes."""

    gen_num_filters: int = 64
    gen_num_filters_mlp: int = 256
    gen_style_dims: int = 64
    gen_usb_dims: int = 1024  # of a style that is the same for all images
    gen_num_res_blocks: int = 2
    gen_num_mlp_blocks: int = 3
    gen_num_downsamples_style: int = 4
    gen_num_downsamples_content: int = 2
    dis_num_filters: int = 64
    dis_max_num_filters: int = 1024
    dis_num_layers: int = 6
    dis_num_classes: int = 305
    new_size: int = 286
    crop_image_height: int = 256
    crop_image_width: int = 256
    lr: float = 1e-4
    beta1: float = 0.0
    beta2: float = 0.999

    def __post_init__(self) -> None:
        for name in ("gen_num_downsamples_style", "dis_num_layers", "dis_num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> Self:
        """From the sections `gen` and `dis` of the original's configuration file."""
        return cls(**named(cls, flattened(options, *options.keys() & {"gen", "dis"})))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "mammals": dict(dis_num_classes=305, gen_num_downsamples_content=4, gen_num_downsamples_style=5),
    "tiny":    dict(dis_num_classes=4,   gen_num_filters=8, gen_num_filters_mlp=16, gen_style_dims=8, gen_usb_dims=16,
                    gen_num_res_blocks=1, dis_num_filters=8, dis_num_layers=3, new_size=70, crop_image_height=64,
                    crop_image_width=64),
}
# fmt: on


class AdaptiveNorm(nn.Module):
    """act(instance_norm(x) * (1 + gamma) + beta), gamma and beta linear in a style [N,style_dims]."""

    def __init__(self, channels: int, style_dims: int, act: str | float) -> None:
        super().__init__()
        self.fc = nn.ModuleDict({"layers": nn.ModuleDict({"conv": nn.Linear(style_dims, 2 * channels)})})
        self.norm = AdaIN(act)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.norm(x, self.fc["layers"]["conv"](style))


class LinearBlock(nn.Module):
    def __init__(self, fin: int, fout: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"conv": nn.Linear(fin, fout)})

    def forward(self, x: Tensor) -> Tensor:
        return self.layers["conv"](x).relu()


class Conv2dBlock(nn.Module):
    """act(norm(conv(x))), with `upsample` of x upsampled x2 by nearest; an adaptive norm is given a style."""

    def __init__(
        self,
        fin: int,
        fout: int,
        kernel: int,
        stride: int = 1,
        *,
        norm: Literal["none", "instance", "adaptive"] = "none",
        act: str | float = "relu",
        style_dims: int = 0,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        if upsample:
            conv = UpsampleConv2d(fin, fout, kernel, padding=kernel // 2, padding_mode="reflect")
        else:
            conv = reflecting(fin, fout, kernel, stride, bias=True) if kernel > 1 else nn.Conv2d(fin, fout, 1)
        self.layers = nn.ModuleDict({"conv": conv})
        if norm == "instance":
            self.layers["norm"] = nn.InstanceNorm2d(fout, affine=True)
        elif norm == "adaptive":
            self.layers["norm"] = AdaptiveNorm(fout, style_dims, act)
        self.norm, self.act = norm, act

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        x = self.layers["conv"](x)
        if self.norm == "none":
            return activated(x, self.act)
        norm = self.layers["norm"]
        if self.norm == "instance":
            return instance_norm_act(x, norm.weight, norm.bias, self.act, norm.eps)
        return norm(x, style)


class Res2dBlock(nn.Module):
    """x + act(norm(conv(act(norm(conv(x))))))."""

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__()
        self.conv_block_0, self.conv_block_1 = (Conv2dBlock(channels, channels, 3, **options) for _ in range(2))

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        return x + self.conv_block_1(self.conv_block_0(x, style), style)


class UpRes2dBlock(nn.Module):
    """up(shortcut(x)) + block(up(block(x)))."""

    def __init__(self, fin: int, fout: int, **options: Any) -> None:
        super().__init__()
        self.conv_block_0 = Conv2dBlock(fin, fout, 5, **options)
        self.conv_block_1 = Conv2dBlock(fout, fout, 5, upsample=True, **options)
        self.conv_block_s = Conv2dBlock(fin, fout, 1, **options)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        # A 1x1 convolution, and the statistics of a plane, are the same before upsampling.
        shortcut = F.interpolate(self.conv_block_s(x, style), scale_factor=2)
        return shortcut + self.conv_block_1(self.conv_block_0(x, style), style)


class Encoder(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def style_encoder(config: Config) -> Encoder:
    """Images to codes [N,style_dims,1,1]."""
    n = config.gen_num_filters
    layers: list[nn.Module] = [Conv2dBlock(3, n, 7)]
    for i in range(config.gen_num_downsamples_style):
        factor = 2 if i < 2 else 1
        layers.append(Conv2dBlock(n, factor * n, 4, 2))
        n *= factor
    return Encoder([*layers, nn.AdaptiveAvgPool2d(1), nn.Conv2d(n, config.gen_style_dims, 1)])


def content_encoder(config: Config) -> Encoder:
    n = config.gen_num_filters
    layers: list[nn.Module] = [Conv2dBlock(3, n, 7, norm="instance")]
    for _ in range(config.gen_num_downsamples_content):
        layers.append(Conv2dBlock(n, 2 * n, 4, 2, norm="instance"))
        n *= 2
    return Encoder([*layers, *(Res2dBlock(n, norm="instance") for _ in range(config.gen_num_res_blocks))])


def mlp(fin: int, fout: int, hidden: int, blocks: int) -> Encoder:
    """Two layers, and one more for every block from the fourth on; an activation behind the last one, too."""
    widths = [fin, *[hidden] * (1 + max(0, blocks - 3)), fout]
    return Encoder([LinearBlock(a, b) for a, b in pairwise(widths)])


class Decoder(nn.Module):
    """Content and style [N,style_dims] to images in [-1, 1]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        options: dict[str, Any] = {"norm": "adaptive", "style_dims": config.gen_num_filters_mlp}
        n = config.gen_num_filters << config.gen_num_downsamples_content
        layers: list[nn.Module] = [Res2dBlock(n, **options) for _ in range(2)]
        for _ in range(config.gen_num_downsamples_content):
            layers.append(UpRes2dBlock(n, n // 2, **options))
            n //= 2
        self.decoder = nn.ModuleList([*layers, Conv2dBlock(n, 3, 7, act="tanh")])

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        for layer in self.decoder:
            x = layer(x, style)
        return x


class Generator(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        style, hidden, blocks = config.gen_style_dims, config.gen_num_filters_mlp, config.gen_num_mlp_blocks
        self.usb = nn.Parameter(torch.randn(1, config.gen_usb_dims))
        self.style_encoder, self.content_encoder = style_encoder(config), content_encoder(config)
        self.decoder = Decoder(config)
        content = config.gen_num_filters << config.gen_num_downsamples_content
        self.mlp = mlp(style, hidden, hidden, blocks)
        self.mlp_content = mlp(content, style, hidden, blocks)
        self.mlp_style = mlp(style + config.gen_usb_dims, style, hidden, blocks)

    def encode(self, images: Tensor) -> Tensor:
        return self.content_encoder(images)

    def classify(self, images: Tensor) -> Tensor:
        return self.style_encoder(images)

    def decode(self, content: Tensor, codes: Tensor) -> Tensor:
        styles = torch.cat([codes.flatten(1), self.usb.expand(len(codes), -1)], 1)
        mixed = self.mlp_style(styles) * self.mlp_content(content.mean((2, 3)))
        return self.decoder(content, self.mlp(mixed))


class System(FewShot):
    """A generator and a discriminator; one discriminator step, then one generator step."""

    Config = Config
    PRESETS = PRESETS

    def __init__(self, config: Config) -> None:
        dis = GPPatchMcResDis(
            config.dis_num_filters,
            2 * config.dis_num_layers,
            config.dis_num_classes,
            largest=config.dis_max_num_filters,
            spectral=True,
        )
        adam = Adam(config.lr, (config.beta1, config.beta2))
        super().__init__(config, Generator(config), dis, adam, adam)

    @property
    def stride(self) -> int:
        return 1 << self.config.gen_num_downsamples_content

    def init_weights(self) -> None:
        super().init_weights()
        nn.init.normal_(self.nets["gen"].usb)

    def penalty(self, logits: Tensor, real: Tensor) -> dict[str, Tensor]:
        return {}

    def load_original(self, path: str | Path) -> None:
        """Load the generator of a checkpoint file, the averaged one if it is there."""
        state = torch.load(path, map_location="cpu", weights_only=True).get("net_G", {})
        ends = [key for key in state if key.endswith("usb")]
        if not ends:
            raise ValueError(f"{path} has no network net_G with a usb")
        prefix = max(ends, key=lambda key: "averaged_model" in key).removesuffix("usb")
        found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        load_strictly(self.nets["gen"], found, Path(path))
