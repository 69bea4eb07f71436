"""Parts of networks that several systems share."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import AdaILN, InstanceNormAct, spectral_norm
from i2ifast.nn.conv import Conv2d
from i2ifast.ops import modulate_mixed

from ._originals import load_strictly, named

STRIDE = 4  # pixels of an image to one of the map that Modulation takes


@dataclass
class ModulationConfig:
    """The options that systems with a Modulation share, under the originals' names."""

    ch: int = 64
    img_ch: int = 3
    img_size: int = 256
    light: bool = False  # gamma and beta from the mean of the map instead of all of it, and images of any size
    adv_weight: float = 1.0
    cycle_weight: float = 10.0
    lr: float = 1e-4
    weight_decay: float = 1e-4
    decay_flag: bool = True  # a line to zero in the second half of the iterations

    def __post_init__(self) -> None:
        if self.img_size % STRIDE:
            raise ValueError(f"img_size {self.img_size}: must be a multiple of {STRIDE}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of training images."""
        return self.img_size, self.img_size

    @property
    def data_settings(self) -> dict[str, Any]:
        """Resized to 30 pixels more than the crop."""
        return {"crop_size": self.img_size, "load_size": self.img_size + 30, "one_size": not self.light}

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> Self:
        """From the original's option names and values."""
        return cls(**named(cls, options))


def pad_to(x: Tensor, stride: int) -> Tensor:
    """Pad [...,H,W] at the bottom and the right, by repeating the border, to multiples of `stride`."""
    sides = [(side, -(-side // stride) * stride) for side in x.shape[-2:]]
    if all(side == padded for side, padded in sides):
        return x
    rows, columns = (torch.arange(padded, device=x.device).clamp(max=side - 1) for side, padded in sides)
    return x[..., rows[:, None], columns]


def numbered(layers: dict[int, nn.Module]) -> nn.Sequential:
    """A Sequential that skips numbers: those of layers without parameters in the original's, for equal keys."""
    return nn.Sequential(OrderedDict((str(number), layer) for number, layer in layers.items()))


def reflecting(fin: int, fout: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution with reflection padding that keeps the size, or divides it by the stride."""
    padding = (kernel - 1) // 2
    return Conv2d(fin, fout, kernel, stride, padding, bias=bias, padding_mode="reflect")


class ResnetBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))) with instance norms and reflection padding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second = (reflecting(channels, channels, 3) for _ in range(2))
        layers = {1: first, 2: InstanceNormAct(channels), 5: second, 6: InstanceNormAct(channels, "none")}
        self.conv_block = numbered(layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class AdaILNBlock(nn.Module):
    """ResnetBlock whose norms are AdaILN of the vectors gamma and beta [N, C]."""

    def __init__(self, channels: int, softmax: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = (reflecting(channels, channels, 3) for _ in range(2))
        self.norm1 = AdaILN(channels, softmax=softmax, act="relu")
        self.norm2 = AdaILN(channels, softmax=softmax)

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x), gamma, beta)
        return x + self.norm2(self.conv2(y), gamma, beta)


class Modulation(nn.Module):
    """The part of a generator that makes one (gamma, beta) [N, C] of a map and passes it through all AdaILN blocks.

    A base class, for its attributes are the generator's own: FC, gamma, beta and UpBlock1_<i>. `light` takes the mean
    of the map instead of all of its `size` x `size` pixels.
    """

    def __init__(self, channels: int, n_blocks: int, size: int, light: bool, softmax: bool) -> None:
        super().__init__()
        self.light, self.size = light, size
        pixels = 1 if light else size**2
        first, second = nn.Linear(channels * pixels, channels, bias=False), nn.Linear(channels, channels, bias=False)
        self.FC = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.gamma, self.beta = (nn.Linear(channels, channels, bias=False) for _ in range(2))
        self.blocks = [f"UpBlock1_{i}" for i in range(1, n_blocks + 1)]
        for name in self.blocks:
            self.add_module(name, AdaILNBlock(channels, softmax))

    def modulated(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        if not self.light and (h, w) != (self.size, self.size):
            raise ValueError(f"map of {h}x{w} pixels: without light it must have {self.size}x{self.size}")
        hidden = self.FC(x.mean((2, 3)) if self.light else x.flatten(1))
        gamma, beta = self.gamma(hidden), self.beta(hidden)
        for name in self.blocks:
            x = self.get_submodule(name)(x, gamma, beta)
        return x


class AttentionConv2d(nn.Conv2d):
    """A 1x1 convolution of x, taken twice along channels, each time scaled by weights of a class activation map.

    As it is linear, the two halves of its weight are scaled and added up instead, and x is read once.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(2 * channels, channels, 1)

    def forward(self, x: Tensor, attention: Sequence[Tensor]) -> Tensor:
        halves = self.weight.chunk(2, 1)
        weight = sum(half * scale.view(1, -1, 1, 1) for half, scale in zip(halves, attention, strict=True))
        return F.conv2d(x, weight, self.bias)


class LayerNormAct(nn.Module):
    """relu(layer_norm(x) * weight + bias): over whole samples, by the biased variance; weight and bias [C,1,1]."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels, 1, 1)), nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # sqrt(var + eps) = sqrt(k) sqrt(var / k + eps / k) with var / k the unbiased variance. The parameters apart:
        # a graph that outlives an optimiser step (`_shared_graph`) is to meet the new ones.
        count = x[0].numel()
        k = (count - 1) / count
        zero = x.new_zeros(x.size(1))
        mix = torch.cat([zero, zero + k**-0.5, zero]).expand(x.size(0), -1)
        normalised = modulate_mixed(x, mix, eps=self.eps / k)
        return F.relu(torch.addcmul(self.bias, normalised, self.weight))


def pooled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum of every plane, [N, C] each."""
    return x.mean((2, 3)), F.adaptive_max_pool2d(x, 1).flatten(1)


@torch.no_grad()
def reset(net: nn.Module) -> None:
    """Initialise convolutions and linear layers, spectrally normalised or not, and norms as their constructors do."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module._parameters.get("weight_orig", module._parameters.get("weight"))
            nn.init.kaiming_uniform_(weight, math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(weight[0].numel())
                nn.init.uniform_(module.bias, -bound, bound)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()


def spectral(fin: int, fout: int, stride: int = 2, bias: bool = True) -> nn.Conv2d:
    """A discriminator's 4x4 convolution with reflection padding 1 and spectral norm."""
    return spectral_norm(nn.Conv2d(fin, fout, 4, stride, 1, bias=bias, padding_mode="reflect"))


def with_side(side: str, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Terms with the letter of their domain behind their names."""
    return {name + side: term for name, term in terms.items()}


def linear_decay(step: int, iterations: int) -> float:
    """1 in the first half of the iterations, then a line to 0 in the last one; `step` counts from 0."""
    half = max(1, iterations // 2)
    return max(0.0, 1 - max(0, step + 1 - half) / half)


def load_params(nets: nn.ModuleDict, path: str | Path) -> None:
    """Load a file of state dicts by name, or the newest *_params_*.pt of a folder: "latest" sorts behind numbers."""
    path = Path(path)
    file = max(path.glob("*_params_*.pt"), default=None) if path.is_dir() else path
    if file is None:
        raise ValueError(f"{path}: no <dataset>_params_<iteration>.pt in it")
    found = torch.load(file, map_location="cpu", weights_only=True)
    if missing := [name for name in nets if name not in found]:
        raise ValueError(f"{file} has no network {', '.join(missing)}")
    for name, net in nets.items():
        # A profiler may have left its counts.
        state = {key: value for key, value in found[name].items() if not key.endswith(("total_ops", "total_params"))}
        load_strictly(net, state, file)


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Images [N,1 or 3,H,W] with 1 or 3 channels: the mean of three, or three times the one."""
    if images.size(1) == channels:
        return images
    return images.mean(1, keepdim=True) if channels == 1 else images.expand(-1, channels, -1, -1)
