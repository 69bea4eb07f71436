"""CLADE's layer: a table looked up by class, with and without offsets, against maps of weights and biases."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast import labels
from i2ifast.nn import SPADELight
from i2ifast.testing import blocky

from . import Layer, Made, Shape

CLASSES = 35


class Published(nn.Module):
    """The published formulation around the parameters of ours: classes by argmax, an embedding of each map."""

    def __init__(self, layer: SPADELight) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, seg: Tensor, dist: Tensor | None = None) -> Tensor:
        affine, classes = self.layer.class_specified_affine, seg.argmax(1)
        weight, bias = (F.embedding(classes, table).permute(0, 3, 1, 2) for table in (affine.weight, affine.bias))
        if dist is not None:
            weight, bias = weight * (1 + affine.dist_conv_w(dist)), bias * (1 + affine.dist_conv_b(dist))
        return F.batch_norm(x, None, None, training=True) * weight + bias


def make(add_dist: bool):
    def made(shape: Shape, g: torch.Generator) -> Made:
        n, c, h, w = shape
        layer = SPADELight("spadebatch3x3", c, CLASSES, add_dist=add_dist)
        maps = blocky(g, n, h, w, CLASSES, 16).long()
        seg = F.one_hot(maps, CLASSES).permute(0, 3, 1, 2).byte().contiguous()  # which gets no gradient
        inputs = {"x": torch.randn(shape, generator=g), "seg": seg}
        if add_dist:
            inputs["dist"] = labels.centre_offsets(maps)
        return Made({"ours": layer, "plain": Published(layer)}, inputs)

    return made


SHAPES = ((1, 64, 256, 256), (4, 256, 64, 64))
LAYERS = [Layer("CLADE", SHAPES, make(False)), Layer("CLADE-ICPE", SHAPES, make(True))]
