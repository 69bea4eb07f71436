"""SPADE on label maps: exact tables against dense convolutions."""

import torch
import torch.nn.functional as F
from torch import nn

from i2ifast.nn import SPADE
from i2ifast.testing import blocky

from . import Layer, Made, Shape

CLASSES = 35


class Plain(nn.Module):
    """The published formulation around the parameters of ours."""

    def __init__(self, layer: SPADE) -> None:
        super().__init__()
        self.layer = layer

    @staticmethod
    def convolve(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
        return F.conv2d(x, conv.weight, conv.bias, padding=1)

    def forward(self, x: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.convolve(seg, self.layer.mlp_shared[0]))
        gamma, beta = (
            F.conv2d(hidden, c.weight, c.bias, padding=1) for c in (self.layer.mlp_gamma, self.layer.mlp_beta)
        )
        return F.batch_norm(x, None, None, training=True) * (1 + gamma) + beta


def make(shape: Shape, g: torch.Generator) -> Made:
    n, c, h, w = shape
    layer = SPADE("spadebatch3x3", c, CLASSES)
    seg = F.one_hot(blocky(g, n, h, w, CLASSES, 16).long(), CLASSES).permute(0, 3, 1, 2).float().contiguous()
    return Made({"ours": layer, "plain": Plain(layer)}, {"x": torch.randn(shape, generator=g), "seg": seg})


LAYERS = [Layer("SPADE", ((1, 64, 256, 256),), make)]
