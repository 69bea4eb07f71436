"""CLADE's layer: a table looked up by class, with and without offsets, against maps of weights and biases."""

import torch
import torch.nn.functional as F
from plain import maps

from i2ifast import labels
from i2ifast.nn import SPADELight
from i2ifast.testing import blocky

from . import Layer, Made, Plain, Shape

CLASSES = 35


def make(add_dist: bool):
    def made(shape: Shape, g: torch.Generator) -> Made:
        n, c, h, w = shape
        layer = SPADELight("spadebatch3x3", c, CLASSES, add_dist=add_dist)
        ids = blocky(g, n, h, w, CLASSES, 16).long()
        seg = F.one_hot(ids, CLASSES).permute(0, 3, 1, 2).byte().contiguous()  # which gets no gradient
        inputs = {"x": torch.randn(shape, generator=g), "seg": seg}
        if add_dist:
            inputs["dist"] = labels.centre_offsets(ids)
        return Made({"ours": layer, "plain": Plain(layer, maps.clade)}, inputs)

    return made


SHAPES = ((1, 64, 256, 256), (4, 256, 64, 64))
LAYERS = [Layer("CLADE", SHAPES, make(False)), Layer("CLADE-ICPE", SHAPES, make(True))]
