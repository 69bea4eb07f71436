"""Networks and options that CycleGAN and pix2pix share, and of which BicycleGAN takes some.

Names of options and numbers of layers are the originals'. `rand(shape, like)` draws uniform numbers for dropout.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import BatchNormAct, InstanceNormAct
from i2ifast.nn.conv import Conv2d, ConvTranspose2d, NarrowConv2d
from i2ifast.nn.instance import instance_norm_act

from ._blocks import numbered, reflecting
from ._config import Cropped, check_choices
from ._losses import GAN_LOSSES
from ._originals import named

Rand = Callable[..., Tensor]
Norm = Literal["instance", "batch", "none"]
NetG = Literal["resnet_9blocks", "resnet_6blocks", "unet_256", "unet_128"]
NetD = Literal["basic", "n_layers", "pixel"]
Init = Literal["normal", "xavier", "kaiming", "orthogonal"]
Policy = Literal["linear", "step", "cosine"]

BLOCKS = {"resnet_6blocks": 6, "resnet_9blocks": 9}
DOWNS = {"unet_128": 7, "unet_256": 8}
GAN_MODES = {"lsgan": GAN_LOSSES["ls"], "vanilla": GAN_LOSSES["original"], "wgangp": GAN_LOSSES["w"]}


@dataclass
class SharedConfig(Cropped):
    """The options that both systems have, under the originals' names, except that no_dropout is positive here."""

    input_nc: int = 3  # channels of a
    output_nc: int = 3  # and of b; 1 is grey
    ngf: int = 64
    ndf: int = 64
    netG: NetG = "resnet_9blocks"
    netD: NetD = "basic"  # n_layers with 3 layers
    n_layers_D: int = 3
    norm: Norm = "instance"
    dropout: bool = False
    gan_mode: Literal["lsgan", "vanilla", "wgangp"] = "lsgan"  # wgangp without a gradient penalty, as published
    init_type: Init = "normal"
    init_gain: float = 0.02
    direction: Literal["AtoB", "BtoA"] = "AtoB"  # which of the folders' domains is a
    load_size: int = 286
    crop_size: int = 256
    lr: float = 2e-4
    beta1: float = 0.5
    lr_policy: Policy = "linear"
    n_epochs: int = 100  # before the learning rate decays
    n_epochs_decay: int = 100  # of linear decay to zero
    lr_decay_iters: int = 50  # epochs between the decays of `step`, each to a tenth

    def __post_init__(self) -> None:
        kinds = {"netG": NetG, "netD": NetD, "norm": Norm, "init_type": Init}
        check_choices(self, **{name: get_args(kind) for name, kind in kinds.items()}, gan_mode=GAN_MODES)
        if self.lr_policy == "plateau":
            raise ValueError("lr_policy 'plateau': needs a metric, which training has not; take linear, step or cosine")
        check_choices(self, lr_policy=get_args(Policy))
        if self.crop_size % self.stride:
            raise ValueError(f"crop_size {self.crop_size}: must be a multiple of {self.stride} for {self.netG}")

    @property
    def stride(self) -> int:
        """What both sides of images have to be multiples of."""
        return {"unet_256": 256, "unet_128": 128}.get(self.netG, 4)

    @property
    def per_sample(self) -> bool:
        """Whether the networks treat samples apart, so that several batches may be one."""
        return self.norm != "batch"

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> Self:
        """From the original's option names and values."""
        values = named(cls, options)
        return cls(**values, dropout=not options["no_dropout"])

    def decay(self, epoch: int) -> float:
        """Factor on learning rates in an epoch, counted from 1; the originals' schedule is one ahead.

        `linear` starts in epoch n_epochs, and in the last epoch is 0. `cosine` is 0 in epoch n_epochs, then rises.
        """
        if self.lr_policy == "step":
            return 0.1 ** (epoch // self.lr_decay_iters)
        if self.lr_policy == "cosine":
            return (1 + math.cos(math.pi * epoch / self.n_epochs)) / 2
        return max(0.0, 1 - max(0, epoch + 1 - self.n_epochs) / (self.n_epochs_decay + 1))

    def generator(self, input_nc: int, output_nc: int, rand: Rand) -> nn.Module:
        return generator(self.netG, input_nc, output_nc, self.ngf, self.norm, rand if self.dropout else None)

    def discriminator(self, input_nc: int) -> nn.Module:
        if self.netD == "pixel":
            return PixelDiscriminator(input_nc, self.ndf, self.norm)
        n_layers = 3 if self.netD == "basic" else self.n_layers_D
        return NLayerDiscriminator(input_nc, self.ndf, n_layers, self.norm)


@torch.no_grad()
def init_weights(nets: nn.Module, kind: Init, gain: float) -> None:
    """Convolutions and linear layers as `kind` has it, scales of batch norms normal around 1; all else 0."""
    initialise = {
        "normal": lambda weight: nn.init.normal_(weight, 0, gain),
        "xavier": lambda weight: nn.init.xavier_normal_(weight, gain),
        "kaiming": nn.init.kaiming_normal_,
        "orthogonal": lambda weight: nn.init.orthogonal_(weight, gain),
    }[kind]
    for module in nets.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            initialise(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, gain)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def each(net: nn.Module, per_sample: bool, *batches: Tensor) -> tuple[Tensor, ...]:
    """`net` of each of the batches, in order: of all at once where it treats samples apart and sizes agree."""
    if per_sample and len({batch.shape for batch in batches}) == 1:
        return net(torch.cat(batches)).chunk(len(batches))
    return tuple(map(net, batches))


def activation(act: str | float) -> nn.Module:
    if act == "none":
        return nn.Identity()
    return nn.ReLU(inplace=True) if act == "relu" else nn.LeakyReLU(act, inplace=True)


class BatchNorm(BatchNormAct):
    """With `apart`, every sample is normalised as if it were the batch, and no statistics are kept."""

    apart = False

    def forward(self, x: Tensor) -> Tensor:
        if self.apart:
            return instance_norm_act(x, self.weight, self.bias, self.act, self.eps)
        return super().forward(x)


def norm_act(norm: Norm, channels: int, act: str | float = "relu") -> nn.Module:
    """A norm, and the activation behind it; without a norm the activation alone."""
    if norm == "none":
        return activation(act)
    return (InstanceNormAct if norm == "instance" else BatchNorm)(channels, act)


def sequence(layers: Sequence[nn.Module | None]) -> nn.Sequential:
    """A Sequential that has no layer for None, but a number."""
    return numbered({number: layer for number, layer in enumerate(layers) if layer is not None})


class Dropout(nn.Module):
    """In training, half of the elements become 0, the others twice as large."""

    def __init__(self, rand: Rand) -> None:
        super().__init__()
        self.rand = rand

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.rand(x.shape, x) < 0.5).to(x.dtype).mul_(2) if self.training else x


@contextmanager
def as_trained(net: nn.Module) -> Iterator[None]:
    """In the block, dropout drops and batch norms normalise, as in training with batches of one."""
    drops = [(module, module.training) for module in net.modules() if isinstance(module, Dropout)]
    norms = [module for module in net.modules() if isinstance(module, BatchNorm)]
    for norm in norms:
        norm.apart = True
    for drop, _ in drops:
        drop.train()
    yield
    for norm in norms:
        norm.apart = False
    for drop, mode in drops:
        drop.train(mode)


class ResnetBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), with reflection padding, and dropout in front of the second convolution."""

    def __init__(self, channels: int, norm: Norm, rand: Rand | None = None) -> None:
        super().__init__()
        first, second = (reflecting(channels, channels, 3, bias=norm == "instance") for _ in range(2))
        layers = [None, first, norm_act(norm, channels), None]
        layers += [Dropout(rand)] if rand else []
        self.conv_block = sequence([*layers, None, second, norm_act(norm, channels, "none")])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class ResnetGenerator(nn.Module):
    """Images [N,input_nc,H,W] to images in [-1, 1], H and W multiples of 4."""

    def __init__(
        self, input_nc: int, output_nc: int, ngf: int, n_blocks: int, norm: Norm, rand: Rand | None = None
    ) -> None:
        super().__init__()
        bias = norm == "instance"
        layers = [None, reflecting(input_nc, ngf, 7, bias=bias), norm_act(norm, ngf), None]
        for width in (2 * ngf, 4 * ngf):
            layers += [Conv2d(width // 2, width, 3, 2, 1, bias=bias), norm_act(norm, width), None]
        layers += [ResnetBlock(4 * ngf, norm, rand) for _ in range(n_blocks)]
        for width in (2 * ngf, ngf):
            layers += [ConvTranspose2d(2 * width, width, 3, 2, 1, 1, bias=bias), norm_act(norm, width), None]
        last = NarrowConv2d(ngf, output_nc, 7, padding=3, padding_mode="reflect")
        self.model = sequence([*layers, None, last, nn.Tanh()])

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def upsampled(kind: Literal["basic", "bilinear"], fin: int, fout: int, bias: bool) -> list[nn.Module | None]:
    """Layers to twice the size; None is a padding, which is the convolution's."""
    if kind == "basic":
        return [ConvTranspose2d(fin, fout, 4, 2, 1, bias=bias)]
    return [nn.Upsample(scale_factor=2, mode="bilinear"), None, reflecting(fin, fout, 3, bias=bias)]


class UnetBlock(nn.Module):
    """A level of a U-Net: to half the size, through the level below, and back; x beside the result.

    x comes activated, and lies so beside the result, in front of it if `x_first`.
    """

    def __init__(self, model: nn.Sequential, x_first: bool) -> None:
        super().__init__()
        self.model, self.x_first = model, x_first

    def forward(self, x: Tensor) -> Tensor:
        y = self.model(x)
        return torch.cat([x, y] if self.x_first else [y, x], 1)


class UnetGenerator(nn.Module):
    """Images [N,input_nc,H,W] to images in [-1, 1], H and W multiples of 2^num_downs.

    Dropout is in the num_downs - 5 levels above the lowest. Activations fill the halves that the originals have them
    fill: leaky on the way down, `act` on the way up, over what comes from below and what comes from beside.
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        ngf: int,
        num_downs: int,
        norm: Norm,
        rand: Rand | None = None,
        *,
        bias: bool | None = None,
        act: str | float = "relu",
        upsample: Literal["basic", "bilinear"] = "basic",
        x_first: bool = True,
    ) -> None:
        super().__init__()
        bias = norm == "instance" if bias is None else bias
        widths = [ngf * min(2**i, 8) for i in range(num_downs)]
        block: list[nn.Module] = []
        for level in range(num_downs - 1, 0, -1):
            outer, inner = widths[level - 1], widths[level]
            down = [None, Conv2d(outer, inner, 4, 2, 1, bias=bias)]
            down += [norm_act(norm, inner, 0.2), *block] if block else []
            up = upsampled(upsample, (1 + len(block)) * inner, outer, bias)
            drop = [Dropout(rand)] if rand and block and level > 3 else []
            layers = [*down, activation(act), *up, norm_act(norm, outer, "none"), *drop]
            block = [UnetBlock(sequence(layers), x_first)]
        last = [activation(act), *upsampled(upsample, 2 * ngf, output_nc, bias=True), nn.Tanh()]
        self.model = nn.ModuleDict({"model": sequence([nn.Conv2d(input_nc, ngf, 4, 2, 1, bias=bias), *block, *last])})

    def forward(self, images: Tensor) -> Tensor:
        first, *others = self.model["model"]
        x = F.leaky_relu(first(images), 0.2, inplace=True)
        for layer in others:
            x = layer(x)
        return x


def generator(name: NetG, input_nc: int, output_nc: int, ngf: int, norm: Norm, rand: Rand | None = None) -> nn.Module:
    """The generator that the originals call so; with `rand` it has dropout."""
    if name in BLOCKS:
        return ResnetGenerator(input_nc, output_nc, ngf, BLOCKS[name], norm, rand)
    return UnetGenerator(input_nc, output_nc, ngf, DOWNS[name], norm, rand)


class NLayerDiscriminator(nn.Module):
    """Images to logits [N,1,h,w] of patches, larger ones with more layers; 70x70 pixels for 3."""

    def __init__(self, input_nc: int, ndf: int, n_layers: int, norm: Norm) -> None:
        super().__init__()
        self.model = patch_layers(input_nc, ndf, n_layers, norm, norm == "instance")

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def patch_layers(input_nc: int, ndf: int, n_layers: int, norm: Norm, bias: bool) -> nn.Sequential:
    """4x4 convolutions: n_layers of stride 2, then two of stride 1; those between the first and the last have norms."""
    widths = [ndf * min(2**i, 8) for i in range(n_layers + 1)]
    layers = [nn.Conv2d(input_nc, ndf, 4, 2, 1), activation(0.2)]
    for i, (fin, fout) in enumerate(pairwise(widths), 1):
        stride = 1 if i == n_layers else 2
        layers += [Conv2d(fin, fout, 4, stride, 1, bias=bias), norm_act(norm, fout, 0.2), None]
    return sequence([*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1)])


class PixelDiscriminator(nn.Module):
    """Images to logits [N,1,H,W] of single pixels."""

    def __init__(self, input_nc: int, ndf: int, norm: Norm) -> None:
        super().__init__()
        bias = norm == "instance"
        first, second = nn.Conv2d(input_nc, ndf, 1), nn.Conv2d(ndf, 2 * ndf, 1, bias=bias)
        norm_layer, last = norm_act(norm, 2 * ndf, 0.2), nn.Conv2d(2 * ndf, 1, 1, bias=bias)
        self.net = sequence([first, activation(0.2), second, norm_layer, None, last])

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)
