"""SPADE on label maps: exact tables against dense convolutions."""

import torch
import torch.nn.functional as F
from plain import maps

from i2ifast.nn import SPADE
from i2ifast.testing import blocky

from . import Layer, Made, Plain, Shape

CLASSES = 35


def make(shape: Shape, g: torch.Generator) -> Made:
    n, c, h, w = shape
    layer = SPADE("spadebatch3x3", c, CLASSES)
    seg = F.one_hot(blocky(g, n, h, w, CLASSES, 16).long(), CLASSES).permute(0, 3, 1, 2).float().contiguous()
    return Made({"ours": layer, "plain": Plain(layer, maps.spade)}, {"x": torch.randn(shape, generator=g), "seg": seg})


LAYERS = [Layer("SPADE", ((1, 64, 256, 256),), make)]
