"""Layers of MUNIT and its relatives, and what it shares with UNIT: a discriminator per domain, and the training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import InstanceNormAct, LayerNorm, UpsampleConv2d
from i2ifast.nn.conv import Conv2d, NarrowConv2d
from i2ifast.nn.instance import instance_norm_act
from i2ifast.ops import instance_statistics, modulate_style

from . import _system
from ._blocks import numbered, pyramid
from ._config import check_choices
from ._losses import VGG16, cross_entropy, least_squares
from ._originals import flattened, load_strictly, named, require
from ._system import Adam, Batch, Phase

IMAGE = 4  # most channels that an image has
PADDINGS = {"reflect": "reflect", "replicate": "replicate", "zero": "zeros"}
ACTIVATIONS = {"relu": "relu", "lrelu": 0.2}
GAN_LOSSES = {"lsgan": least_squares, "nsgan": cross_entropy}


@dataclass
class Config:
    """Options of the originals; those that they nest in `gen` and `dis` have these as prefixes."""

    gen_dim: int = 64
    gen_activ: Literal["relu", "lrelu"] = "relu"
    gen_n_downsample: int = 2
    gen_n_res: int = 4
    gen_pad_type: Literal["reflect", "replicate", "zero"] = "reflect"
    dis_dim: int = 64
    dis_n_layer: int = 4
    dis_gan_type: Literal["lsgan", "nsgan"] = "lsgan"
    dis_num_scales: int = 3
    dis_pad_type: Literal["reflect", "replicate", "zero"] = "reflect"
    input_dim_a: int = 3
    input_dim_b: int = 3
    crop_image_height: int = 256
    crop_image_width: int = 256
    gan_w: float = 1.0
    recon_x_w: float = 10.0
    recon_x_cyc_w: float = 10.0
    vgg_w: float = 0.0
    vgg_weights: str = ""  # file with VGG16 weights; without one there is no perceptual term
    lr: float = 1e-4
    beta1: float = 0.5
    beta2: float = 0.999
    weight_decay: float = 1e-4
    step_size: int = 100000  # iterations after which the learning rate is multiplied by gamma
    gamma: float = 0.5

    def __post_init__(self) -> None:
        check_choices(self, gen_activ=ACTIVATIONS, gen_pad_type=PADDINGS, dis_pad_type=PADDINGS)
        check_choices(self, dis_gan_type=GAN_LOSSES)
        self.check_side("crop_image_height, crop_image_width", min(self.size))

    def check_side(self, name: str, side: int) -> None:
        """ValueError for images whose last map of the smallest scale would be empty."""
        least = ((1 << self.dis_n_layer) - 1 << self.dis_num_scales - 1) + 1
        if side < least:
            scales = f"{self.dis_num_scales} scales of {self.dis_n_layer} layers"
            raise ValueError(f"{name} {side}: {scales} in the discriminators need at least {least}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of training images."""
        return self.crop_image_height, self.crop_image_width

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> Self:
        """From the original's configuration file; ValueError for a network these systems do not have."""
        flat = options | flattened(options, "gen", "dis")
        require(flat, dis_norm="none", dis_activ="lrelu", init="kaiming", lr_policy="step")
        return cls(**named(cls, flat))


class AdaptiveInstanceNorm(nn.Module):
    """act(instance_norm(x) * style[:, C:] + style[:, :C]): the bias comes first, and the scale is not 1 + gamma."""

    def __init__(self, channels: int, act: str | float) -> None:
        super().__init__()
        self.act = act
        self.register_buffer("running_mean", torch.zeros(channels))  # in the original's checkpoints, and never used
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return modulate_style(x, style.roll(x.size(1), 1), instance_statistics(x), self.act)


def activated(x: Tensor, act: str | float) -> Tensor:
    if act == "tanh":
        return torch.tanh(x)
    return F.relu(x) if act == "relu" else F.leaky_relu(x, act)


class Conv2dBlock(nn.Module):
    """act(norm(conv(x))), with `upsample` of x upsampled x2 by nearest; an adaptive norm is given its style."""

    def __init__(
        self,
        fin: int,
        fout: int,
        kernel: int,
        stride: int = 1,
        *,
        pad: str,
        norm: Literal["none", "in", "ln", "adain"] = "none",
        act: str | float,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        kind = UpsampleConv2d if upsample else NarrowConv2d if fout <= IMAGE and stride == 1 else Conv2d
        self.conv = kind(fin, fout, kernel, stride, (kernel - 1) // 2, padding_mode=PADDINGS[pad])
        norms = {"in": InstanceNormAct, "adain": AdaptiveInstanceNorm, "ln": LayerNorm}
        self.norm = None if norm == "none" else norms[norm](fout, act=act)
        self.act = act

    def forward(self, x: Tensor, *style: Tensor) -> Tensor:
        x = self.conv(x)
        return activated(x, self.act) if self.norm is None else self.norm(x, *style)


class ResBlock(nn.Module):
    def __init__(self, channels: int, *, pad: str, norm: Literal["in", "adain"], act: str | float) -> None:
        super().__init__()
        first = Conv2dBlock(channels, channels, 3, pad=pad, norm=norm, act=act)
        self.model = nn.Sequential(first, Conv2dBlock(channels, channels, 3, pad=pad, norm=norm, act="none"))

    def forward(self, x: Tensor, styles: Iterator[Tensor] | None = None) -> Tensor:
        y = x
        for block in self.model:
            y = block(y) if styles is None else block(y, next(styles))
        return x + y


class ResBlocks(nn.Module):
    def __init__(self, count: int, channels: int, **options: Any) -> None:
        super().__init__()
        self.model = nn.Sequential(*(ResBlock(channels, **options) for _ in range(count)))

    def forward(self, x: Tensor, styles: Tensor | None = None) -> Tensor:
        """styles: (bias, scale) of each adaptive norm, [N, 4 C count]."""
        each = None if styles is None else iter(styles.split(2 * x.size(1), 1))
        for block in self.model:
            x = block(x, each)
        return x


class ContentEncoder(nn.Module):
    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        options = {"pad": config.gen_pad_type, "norm": "in", "act": ACTIVATIONS[config.gen_activ]}
        dim, layers = config.gen_dim, [Conv2dBlock(channels, config.gen_dim, 7, **options)]
        for _ in range(config.gen_n_downsample):
            layers.append(Conv2dBlock(dim, 2 * dim, 4, 2, **options))
            dim *= 2
        self.model = nn.Sequential(*layers, ResBlocks(config.gen_n_res, dim, **options))

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


class StyleEncoder(nn.Module):
    """Images, of at least 2^(n_downsample + 1) pixels a side, to vectors [N, style_dim, 1, 1]."""

    def __init__(
        self, channels: int, dim: int, style_dim: int, n_downsample: int = 4, *, pad: str, act: str | float
    ) -> None:
        super().__init__()
        layers = [Conv2dBlock(channels, dim, 7, pad=pad, act=act)]
        for i in range(n_downsample):
            factor = 2 if i < 2 else 1
            layers.append(Conv2dBlock(dim, factor * dim, 4, 2, pad=pad, act=act))
            dim *= factor
        self.model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Conv2d(dim, style_dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


class MLP(nn.Module):
    """Linear layers with activations between them."""

    def __init__(self, fin: int, fout: int, hidden: int, layers: int = 3, *, act: str | float) -> None:
        super().__init__()
        widths = fin, *[hidden] * (layers - 1), fout
        self.model = nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(a, b)}) for a, b in pairwise(widths))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = (block["fc"] for block in self.model)
        x = x.flatten(1)
        for layer in hidden:
            x = activated(layer(x), self.act)
        return last(x)


class Decoder(nn.Module):
    """Content, and the vectors of all its adaptive norms if `norm` is that, to images in [-1, 1].

    `upsampled`: the norm behind each upsampling.
    """

    def __init__(
        self, config: Config, channels: int, norm: Literal["in", "adain"], upsampled: Literal["ln", "in"] = "ln"
    ) -> None:
        super().__init__()
        pad, act = config.gen_pad_type, ACTIVATIONS[config.gen_activ]
        dim = config.gen_dim << config.gen_n_downsample
        layers: dict[int, nn.Module] = {0: ResBlocks(config.gen_n_res, dim, pad=pad, norm=norm, act=act)}
        for i in range(config.gen_n_downsample):
            layers[2 * i + 2] = Conv2dBlock(dim, dim // 2, 5, pad=pad, norm=upsampled, act=act, upsample=True)
            dim //= 2
        layers[len(layers) * 2 - 1] = Conv2dBlock(dim, channels, 7, pad=pad, act="tanh")
        self.model = numbered(layers)

    def forward(self, content: Tensor, styles: Tensor | None = None) -> Tensor:
        blocks, *layers = self.model
        content = blocks(content, styles)
        for layer in layers:
            content = layer(content)
        return content


class MsImageDis(nn.Module):
    """Patch discriminators of images at full resolution, at half, ... -> logits per scale."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.cnns = nn.ModuleList(self._single(config, channels) for _ in range(config.dis_num_scales))

    @staticmethod
    def _single(config: Config, channels: int) -> nn.Sequential:
        widths = [channels, *(config.dis_dim << i for i in range(config.dis_n_layer))]
        options = {"pad": config.dis_pad_type, "act": 0.2}
        blocks = [Conv2dBlock(fin, fout, 4, 2, **options) for fin, fout in pairwise(widths)]
        return nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [net(scale) for net, scale in zip(self.cnns, pyramid(images, len(self.cnns)), strict=True)]


class AutoEncoders(_system.System):
    """Two auto-encoders and two discriminators; one discriminator step, then one generator step."""

    Generator: ClassVar[Callable[[Config, int], nn.Module]]  # of a domain with so many channels
    data = "unpaired"
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        channels = {"a": config.input_dim_a, "b": config.input_dim_b}
        self.nets.update({f"gen_{side}": self.Generator(config, count) for side, count in channels.items()})
        self.nets.update({f"dis_{side}": MsImageDis(config, count) for side, count in channels.items()})
        if config.vgg_w and config.vgg_weights:
            self.fixed["VGG"] = VGG16(config.vgg_weights)
        elif config.vgg_w:
            self.warn("vgg_weights names no file, so there is no perceptual term")
        self.gan = GAN_LOSSES[config.dis_gan_type]
        adam = Adam(config.lr, (config.beta1, config.beta2), weight_decay=config.weight_decay)
        self.phases = [
            Phase("dis", ("dis_a", "dis_b"), self.discriminator_loss, adam),
            Phase("gen", ("gen_a", "gen_b"), self.generator_loss, adam),
        ]

    @property
    def data_settings(self) -> dict[str, Any]:
        """The shorter side to the crop's, then a crop."""
        side = self.config.crop_image_height
        return {"crop_size": side, "load_size": side, "preprocess_mode": "scale_shortside_and_crop",
                "input_nc": self.config.input_dim_a, "output_nc": self.config.input_dim_b}  # fmt: skip

    def init_weights(self) -> None:
        """Kaiming normal in generators, normal of deviation 0.02 in discriminators; biases zero."""
        for name, net in self.nets.items():
            for module in net.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    if name.startswith("gen"):
                        nn.init.kaiming_normal_(module.weight)
                    else:
                        nn.init.normal_(module.weight, 0, 0.02)
                    nn.init.zeros_(module.bias)
                elif isinstance(module, LayerNorm):
                    nn.init.uniform_(module.gamma)
                    nn.init.zeros_(module.beta)

    def rate(self, step: int) -> float:
        """gamma to the number of step_sizes done, the iteration at hand included."""
        return self.config.gamma ** ((step + 1) // self.config.step_size)

    def fakes(self, batch: Batch) -> dict[str, Tensor]:
        """Images of each domain, translated from the other one, for a discriminator step."""
        raise NotImplementedError

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            fakes = self.fakes(batch)
        terms = {}
        for side, fake in fakes.items():
            logits = (scale.chunk(2) for scale in self.nets[f"dis_{side}"](torch.cat([fake, batch[side]])))
            terms[f"dis_{side}"] = self.config.gan_w * sum(self.gan(f, False) + self.gan(r, True) for f, r in logits)
        return terms

    def adversarial(self, side: str, fake: Tensor) -> Tensor:
        """The generators' adversarial loss of images of a domain, summed over scales."""
        return sum(self.gan(scale, True) for scale in self.nets[f"dis_{side}"](fake))

    def perceptual(self, fake: Tensor, real: Tensor) -> Tensor:
        """Mean squared difference of VGG features after instance norm."""
        vgg = self.fixed["VGG"]
        return F.mse_loss(instance_norm_act(vgg(fake)), instance_norm_act(vgg(real)))

    def load_original(self, path: str | Path) -> None:
        """Load the newest gen_<iteration>.pt and dis_<iteration>.pt (may be absent) of a folder, or one such file."""
        path = Path(path)
        files = [max(path.glob(f"{kind}_*.pt"), default=None) for kind in ("gen", "dis")] if path.is_dir() else [path]
        if files[0] is None:
            raise ValueError(f"{path}: no gen_<iteration>.pt in it")
        for file in filter(None, files):
            kind = file.stem.partition("_")[0]
            if kind not in ("gen", "dis"):
                raise ValueError(f"{file}: expected a file name gen_<iteration>.pt or dis_<iteration>.pt")
            for side, state in torch.load(file, map_location="cpu", weights_only=True).items():
                net = self.nets[f"{kind}_{side}"]
                own = net.state_dict()
                # Files of PyTorch 0.3 have running statistics of instance norms too.
                stale = [key for key in state if key.endswith(("running_mean", "running_var")) and key not in own]
                load_strictly(net, {key: value for key, value in state.items() if key not in stale}, file)
