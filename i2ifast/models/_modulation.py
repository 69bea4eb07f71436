"""What U-GAT-IT and NICE-GAN share: generators modulated by vectors that they make of their own map."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import AdaILN, spectral_norm
from i2ifast.nn.conv import Conv2d

from . import _system
from ._blocks import reflecting
from ._originals import load_strictly, named

STRIDE = 4  # pixels of an image to one of the map that Modulation takes


@dataclass
class Config:
    """The options that both have, under the originals' names."""

    ch: int = 64
    img_ch: int = 3
    img_size: int = 256
    light: bool = False  # gamma and beta from the mean of the map instead of all of it, and images of any size
    adv_weight: float = 1.0
    cycle_weight: float = 10.0
    lr: float = 1e-4
    weight_decay: float = 1e-4
    iteration: int = 1000000
    decay_flag: bool = True  # a line to zero in the second half of the iterations

    def __post_init__(self) -> None:
        if self.img_size % STRIDE:
            raise ValueError(f"img_size {self.img_size}: must be a multiple of {STRIDE}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of training images."""
        return self.img_size, self.img_size

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> Self:
        """From the original's option names and values."""
        return cls(**named(cls, options))


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


def pooled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum of every plane, [N, C] each."""
    return x.mean((2, 3)), F.adaptive_max_pool2d(x, 1).flatten(1)


def spectral(fin: int, fout: int, stride: int = 2, bias: bool = True) -> nn.Conv2d:
    """A discriminator's 4x4 convolution with reflection padding 1 and spectral norm."""
    return spectral_norm(Conv2d(fin, fout, 4, stride, 1, bias=bias, padding_mode="reflect"))


def with_side(side: str, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Terms with the letter of their domain behind their names."""
    return {name + side: term for name, term in terms.items()}


class ModulationSystem(_system.System):
    """Generators with a Modulation, and discriminators, of unpaired images."""

    data = "unpaired"
    ema = ()

    @property
    def data_settings(self) -> dict[str, Any]:
        """Resized to 30 pixels more than the crop."""
        side = self.config.img_size
        return {"crop_size": side, "load_size": side + 30, "one_size": not self.config.light}

    def rate(self, step: int) -> float:
        """1 in the first half of the iterations, then a line to 0 in the last one; always 1 without decay_flag."""
        if not self.config.decay_flag:
            return 1.0
        half = max(1, self.config.iteration // 2)
        return max(0.0, 1 - max(0, step + 1 - half) / half)

    def load_original(self, path: str | Path) -> None:
        """Load <dataset>_params_latest.pt, or the newest <dataset>_params_<iteration>.pt, of a folder, or one file."""
        path = Path(path)
        # "latest" sorts behind numbers.
        file = max(path.glob("*_params_*.pt"), default=None) if path.is_dir() else path
        if file is None:
            raise ValueError(f"{path}: no <dataset>_params_<iteration>.pt in it")
        found = torch.load(file, map_location="cpu", weights_only=True)
        if missing := [name for name in self.nets if name not in found]:
            raise ValueError(f"{file} has no network {', '.join(missing)}")
        counts = "total_ops", "total_params"  # which a profiler may have left
        for name, net in self.nets.items():
            load_strictly(net, {key: value for key, value in found[name].items() if not key.endswith(counts)}, file)
