"""Norms over whole samples, and instance norm with its activation."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import ILN, AdaILN, InstanceNormAct, LayerNorm

from . import Layer, Made, Shape


class Original(nn.Module):
    """A norm as published, around the parameters of ours: every step is a pass over the image."""

    def __init__(self, norm: AdaILN | LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
        norm = self.norm
        if isinstance(norm, LayerNorm):
            rows = x.reshape(x.size(0), -1)
            mean, std = rows.mean(1).view(-1, 1, 1, 1), rows.std(1).view(-1, 1, 1, 1)
            y = (x - mean) / (std + norm.eps)
            return F.relu(y * norm.gamma.view(1, -1, 1, 1) + norm.beta.view(1, -1, 1, 1))
        of_instance, of_layer = (
            (x - x.mean(dims, keepdim=True)) / torch.sqrt(x.var(dims, keepdim=True) + norm.eps)
            for dims in ((2, 3), (1, 2, 3))
        )
        if norm.softmax:
            rho = norm.rho.softmax(2).unbind(2)
            y = sum(r[..., None, None] * part for r, part in zip(rho, (of_instance, of_layer), strict=True))
        else:
            y = norm.rho * of_instance + (1 - norm.rho) * of_layer
        if gamma is None:
            return F.relu(y * norm.gamma + norm.beta)
        return F.relu(y * gamma[..., None, None] + beta[..., None, None])


class Chain(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def adaptive(shape: Shape, g: torch.Generator) -> Made:
    norm = AdaILN(shape[1], softmax=True, act="relu")
    inputs = {"x": torch.randn(shape, generator=g)}
    inputs |= {name: torch.randn(shape[:2], generator=g) for name in ("gamma", "beta")}
    return Made({"ours": norm, "plain": Original(norm)}, inputs)


def maker(ours: Callable[[int], nn.Module], plain: Callable[[nn.Module, int], nn.Module]) -> Callable[..., Made]:
    """Of the number of channels: our module, and of that the plain one."""

    def make(shape: Shape, g: torch.Generator) -> Made:
        norm = ours(shape[1])
        return Made({"ours": norm, "plain": plain(norm, shape[1])}, {"x": torch.randn(shape, generator=g)})

    return make


ILN_ACT = maker(lambda c: ILN(c, act="relu"), lambda norm, c: Original(norm))
LAYER_ACT = maker(lambda c: LayerNorm(c, act="relu"), lambda norm, c: Original(norm))
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
