"""Norms over whole samples, and instance norm with its activation."""

from collections.abc import Callable

import torch
from plain import norms
from torch import Tensor, nn

from i2ifast.nn import ILN, AdaILN, InstanceNormAct, LayerNorm

from . import Layer, Made, Plain, Shape


class Chain(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def adaptive(shape: Shape, g: torch.Generator) -> Made:
    norm = AdaILN(shape[1], softmax=True, act="relu")
    inputs = {"x": torch.randn(shape, generator=g)}
    inputs |= {name: torch.randn(shape[:2], generator=g) for name in ("gamma", "beta")}
    return Made({"ours": norm, "plain": Plain(norm, norms.adaptive_instance_layer_norm)}, inputs)


def maker(ours: Callable[[int], nn.Module], plain: Callable[[nn.Module, int], nn.Module]) -> Callable[..., Made]:
    """Of the number of channels: our module, and of that the plain one."""

    def make(shape: Shape, g: torch.Generator) -> Made:
        norm = ours(shape[1])
        return Made({"ours": norm, "plain": plain(norm, shape[1])}, {"x": torch.randn(shape, generator=g)})

    return make


ILN_ACT = maker(lambda c: ILN(c, act="relu"), lambda norm, c: Plain(norm, norms.instance_layer_norm))
LAYER_ACT = maker(lambda c: LayerNorm(c, act="relu"), lambda norm, c: Plain(norm, norms.layer_norm))
INSTANCE_ACT = maker(InstanceNormAct, lambda norm, c: Chain(nn.InstanceNorm2d(c), nn.ReLU()))
# The fastest norm of PyTorch's own.
GROUP_ACT = maker(InstanceNormAct, lambda norm, c: Chain(nn.GroupNorm(min(32, c), c, affine=False), nn.ReLU()))

SHAPES = ((1, 256, 64, 64), (1, 128, 128, 128), (1, 64, 256, 256))

LAYERS = [
    Layer("AdaILN", SHAPES[:1], adaptive),
    Layer("ILN", SHAPES, ILN_ACT),
    Layer("InstanceNormAct", SHAPES, INSTANCE_ACT),
    Layer("InstanceNormAct against GroupNorm", SHAPES, GROUP_ACT),
    Layer("LayerNorm", SHAPES[1:], LAYER_ACT),
]
