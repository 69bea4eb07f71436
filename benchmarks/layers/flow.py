"""Cost volumes: products of lines by the library's matrix product, against one pass over both maps per displacement."""

import torch
import torch.nn.functional as F
from torch import Tensor

from i2ifast.nn.flow import correlation

from . import Layer, Made, Shape


def plain(a: Tensor, b: Tensor) -> Tensor:
    h, w = a.shape[2:]
    padded = F.pad(b, [20] * 4)
    steps = range(0, 41, 2)
    return torch.stack([(a * padded[:, :, y : y + h, x : x + w]).mean(1) for y in steps for x in steps], 1)


def make(shape: Shape, g: torch.Generator) -> Made:
    inputs = {name: torch.randn(shape, generator=g) for name in ("a", "b")}
    return Made({"ours": correlation, "plain": plain}, inputs)


LAYERS = [Layer("correlation", ((1, 256, 32, 64),), make)]
