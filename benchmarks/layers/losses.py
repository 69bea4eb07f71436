"""Feature matching of a discriminator's layers, and what matches positions of two feature maps."""

from functools import partial

import torch
import torch.nn.functional as F
from plain import convs
from torch import Tensor

from i2ifast.nn import losses
from i2ifast.nn.correspondence import attend

from . import Layer, Made, Shape

SCALES, LAYERS_OF_SCALE = 2, 4


def _ours(**features: Tensor) -> Tensor:
    flat = list(features.values())
    return losses.feature_matching([[*flat[i::SCALES], flat[i]] for i in range(SCALES)])


def _plain(**features: Tensor) -> Tensor:
    return convs.feature_matching(list(features.values())) / SCALES


def feature_matching(shape: Shape, g: torch.Generator) -> Made:
    """Discriminators at full and at half resolution, whose first layers are of this shape: fakes, then reals."""
    n, c, h, w = shape
    shapes = [
        (2 * n, c << k, (h >> k + s) + 1, (w >> k + s) + 1) for k in range(LAYERS_OF_SCALE) for s in range(SCALES)
    ]
    inputs = {f"x{i or ''}": torch.randn(size, generator=g) for i, size in enumerate(shapes)}
    return Made({"ours": _ours, "plain": _plain}, inputs)


def correspondence(shape: Shape, g: torch.Generator) -> Made:
    """An exemplar of RGB values warped by the correlation of 3x3 windows: CoCosNet."""
    n, c, h, w = shape
    inputs = {"query": F.normalize(torch.randn((n, h * w, 9 * c), generator=g), dim=2)}
    inputs |= {"key": inputs["query"].flip(1), "value": torch.randn((n, h * w, 3), generator=g)}
    functions = {"ours": attend, "plain": convs.attend}
    return Made({name: partial(function, scale=100.0) for name, function in functions.items()}, inputs)


def contextual(shape: Shape, g: torch.Generator) -> Made:
    """CoCosNet's, of features of this shape, by its definition."""
    inputs = {name: torch.randn(shape, generator=g).relu() for name in ("x", "y")}
    return Made({"ours": losses.contextual, "plain": convs.contextual}, inputs)


LAYERS = [
    Layer("contextual", ((1, 512, 32, 32),), contextual),
    Layer("correspondence", ((1, 256, 32, 32),), correspondence),
    Layer("feature_matching", ((1, 64, 128, 128),), feature_matching),
]
