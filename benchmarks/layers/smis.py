"""Grouped SPADE layers: tables of the groups' blocks against grouped convolutions."""

import torch
import torch.nn.functional as F
from plain import maps
from torch import Tensor

from i2ifast.nn import GROUP_SPADE
from i2ifast.testing import blocky

from . import Layer, Made, Plain, Shape


def plain(layer: GROUP_SPADE, x: Tensor, seg: Tensor) -> Tensor:
    return maps.spade(layer, x, seg.float())


def make(classes: int, groups: int, mode: str):
    def made(shape: Shape, g: torch.Generator) -> Made:
        n, c, h, w = shape
        layer = GROUP_SPADE(c - c % classes if mode == "cityscapes" else c, classes, groups, data_mode=mode)
        seg = (
            F.one_hot(blocky(g, n, h, w, classes, 16).long(), classes).permute(0, 3, 1, 2).byte().contiguous()
        )  # no gradient
        x = torch.randn((n, layer.param_free_norm.num_features, h, w), generator=g)
        return Made({"ours": layer, "plain": Plain(layer, plain)}, {"x": x, "seg": seg})

    return made


LAYERS = [
    Layer("SMIS-deepfashion", ((1, 640, 128, 128),), make(8, 2, "deepfashion")),
    Layer("SMIS-cityscapes", ((1, 1120, 64, 128),), make(35, 4, "cityscapes")),
    Layer("SMIS-ade20k", ((1, 512, 128, 128),), make(151, 2, "ade20k")),
]
