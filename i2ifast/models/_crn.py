"""What CRN and SIMS share: convolutions with layer norm, resizes, perceptual terms, files of TensorFlow."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast import labels, ops
from i2ifast.nn.conv import convolve
from i2ifast.nn.vgg import VGG

from . import _system
from ._config import Cropped
from ._originals import load_strictly
from ._system import Batch

LAYERS = tuple(f"relu{stage}_2" for stage in range(1, 6))
# What the distances of the images and of LAYERS are multiplied with, in the originals of 256 and 512 pixels.
WEIGHTS = {
    256: (1, 1 / 1.6, 1 / 2.3, 1 / 1.8, 1 / 2.8, 10 / 0.8),
    512: (1, 1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5),
}


@dataclass
class LabelConfig(Cropped):
    """The options of systems of label maps without instances."""

    label_nc: int = 19
    contain_dontcare_label: bool = True  # label `label_nc` (the rest) is one more class
    crop_size: int = 512  # width of training images
    aspect_ratio: float = 2.0  # width / height
    vgg_weights: str = (
        ""  # file with weights of VGG19 for RGB in 0..255 less their mean; without one, pixels alone count
    )
    vgg_scales: tuple[float, float, float, float, float, float] = WEIGHTS[256]

    instance: ClassVar[bool] = False  # no instance edges

    def __post_init__(self) -> None:
        if any(side % self.stride or not side for side in self.size):
            size = f"{self.size[1]}x{self.size[0]} (crop_size {self.crop_size}, aspect_ratio {self.aspect_ratio})"
            raise ValueError(f"images of {size} pixels: both sides must be multiples of {self.stride}")

    @property
    def num_classes(self) -> int:
        """Labels are 0 .. num_classes - 1."""
        return self.label_nc + self.contain_dontcare_label

    @property
    def stride(self) -> int:
        """What both sides of images have to be multiples of."""
        raise NotImplementedError


class LayerNorm(nn.Module):
    """y = act((x - mean) / sqrt(var + eps) * gamma + beta): mean and biased variance of a sample; gamma, beta [C]."""

    def __init__(self, num_features: int, eps: float = 1e-12, act: str | float = 0.2) -> None:
        super().__init__()
        self.eps, self.act = eps, act
        self.beta = nn.Parameter(torch.zeros(num_features))
        self.gamma = nn.Parameter(torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        count = x[0].numel()
        unbiased = count / max(1, count - 1)  # what the op takes the variance, and with it eps, times
        mix = torch.cat([torch.zeros_like(self.gamma), self.gamma * unbiased**0.5, self.beta]).expand(x.size(0), -1)
        return ops.modulate_mixed(x, mix, self.act, self.eps * unbiased)


class ConvNorm(nn.Conv2d):
    """A 3x3 convolution, layer norm, and a leaky relu of slope 0.2.

    It takes its channels in parts, each with a convolution of its own. Apart, label maps cost no gradient, and all else
    has numbers of channels that `ops.conv3x3` is fast at.
    """

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__(fin, fout, 3, padding=1, bias=False)
        self.LayerNorm = LayerNorm(fout)

    def forward(self, *parts: Tensor) -> Tensor:
        weights = self.weight.split([part.size(1) for part in parts], 1)
        first, *more = (convolve(part, weight, None) for part, weight in zip(parts, weights, strict=True))
        return self.LayerNorm(sum(more, first))


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, with the middles of the corner pixels in place."""
    if tuple(size) == tuple(x.shape[2:]):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def average(x: Tensor, size: int) -> Tensor:
    """Means of squares of `size` x `size` pixels; those over the border are left out."""
    return F.avg_pool2d(x, size, ceil_mode=True)


def bytes_of(images: Tensor) -> Tensor:
    """Images in [-1, 1] as they are in the originals, 0..255."""
    return (images + 1) * 127.5


def less_mean(images: Tensor) -> Tensor:
    """RGB in 0..255 less the mean of ImageNet."""
    return images - images.new_tensor([123.68, 116.779, 103.939])[:, None, None]


class System(_system.System):
    """One generator of label maps, trained by how far its images are from the real ones, and their VGG19 features."""

    def __init__(self, config: LabelConfig) -> None:
        super().__init__()
        self.config = config
        if config.vgg_weights:
            self.fixed["VGG"] = VGG(config.vgg_weights, LAYERS, less_mean, average)
        else:
            self.warn("vgg_weights names no file, so the loss is of pixels alone")

    def init_weights(self) -> None:
        """Xavier uniform, biases zero, layer norms that change nothing."""
        for name, parameter in self.nets.named_parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.constant_(parameter, float(name.endswith("gamma")))

    def prepare(self, batch: Batch) -> Batch:
        """Add `semantics` [N,num_classes,H,W], one-hot."""
        if "semantics" in batch:
            return batch
        plan = batch.get("plan")
        if plan is None:
            plan = labels.plan(batch["label"], self.config.num_classes)
        if plan.num_channels != self.config.num_classes:
            raise ValueError(f"label plan of {plan.num_channels} channels: expected {self.config.num_classes} classes")
        return {**batch, "semantics": plan.dense()}

    def features(self, images: Tensor) -> list[Tensor]:
        """What images [N,3,H,W] in 0..255 are compared by: themselves and, with VGG19, its features."""
        return [images, *(self.fixed["VGG"](images) if "VGG" in self.fixed else ())]

    def distance(self, fake: Tensor, real: Tensor) -> Tensor:
        """Sum over features of scale * mean |fake - real|, of images in [-1, 1]."""
        with torch.no_grad():
            targets = self.features(bytes_of(real))
        made = self.features(bytes_of(fake))
        return ops.feature_matching(made, targets, self.config.vgg_scales[: len(made)]).mean()

    def load_original(self, path: str | Path) -> None:
        """Load a .npz file of the original's variables by name, as TensorFlow's checkpoint readers give them."""
        load_strictly(self.nets["G"], read_variables(path), Path(path))


def read_variables(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a .npz file of TensorFlow's variables; those of an optimizer are left out.

    "/" becomes ".", weights and biases weight and bias, and a kernel [h,w,in,out] [out,in,h,w].
    """
    names = {"weights": "weight", "biases": "bias"}
    state = {}
    with np.load(path, allow_pickle=False) as variables:
        for name in variables.files:
            *scopes, leaf = name.removesuffix(":0").split("/")
            if leaf not in ("weights", "biases", "beta", "gamma"):
                continue  # Adam's averages and powers
            value = torch.from_numpy(variables[name])
            state[".".join([*scopes, names.get(leaf, leaf)])] = value.permute(3, 2, 0, 1) if value.ndim == 4 else value
    return state
