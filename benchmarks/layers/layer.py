"""Norms over whole samples, and instance norm with its activation."""

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

    def forward(self, x: Tensor, *vectors: Tensor) -> Tensor:
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
        gamma, beta = (v[..., None, None] for v in vectors) if vectors else (norm.gamma, norm.beta)
        return F.relu(y * gamma + beta)


def make_adaptive(shape: Shape, g: torch.Generator) -> Made:
    norm = AdaILN(shape[1], softmax=True, act="relu")
    inputs = {"x": torch.randn(shape, generator=g)}
    inputs |= {name: torch.randn(shape[:2], generator=g) for name in ("gamma", "beta")}
    plain = Original(norm)
    functions = {"ours": norm, "plain": plain}
    return Made(functions, inputs)


def made(norm: nn.Module, plain: nn.Module, shape: Shape, g: torch.Generator) -> Made:
    return Made({"ours": norm, "plain": plain}, {"x": torch.randn(shape, generator=g)})


def make_iln(shape: Shape, g: torch.Generator) -> Made:
    norm = ILN(shape[1], act="relu")
    return made(norm, Original(norm), shape, g)


def make_layer(shape: Shape, g: torch.Generator) -> Made:
    norm = LayerNorm(shape[1], act="relu")
    return made(norm, Original(norm), shape, g)


def make_instance(shape: Shape, g: torch.Generator) -> Made:
    return made(InstanceNormAct(shape[1]), nn.Sequential(nn.InstanceNorm2d(shape[1]), nn.ReLU()), shape, g)


def make_group(shape: Shape, g: torch.Generator) -> Made:
    """Against the fastest norm of PyTorch's own with as many statistics."""
    return made(InstanceNormAct(shape[1]), nn.Sequential(nn.GroupNorm(32, shape[1]), nn.ReLU()), shape, g)


SHAPES = ((1, 256, 64, 64), (1, 128, 128, 128), (1, 64, 256, 256))

LAYERS = [
    Layer("ILN", SHAPES, make_iln),
    Layer("AdaILN", SHAPES[:1], make_adaptive),
    Layer("LayerNorm", SHAPES[1:], make_layer),
    Layer("InstanceNormAct", SHAPES, make_instance),
    Layer("InstanceNormAct against GroupNorm", SHAPES, make_group),
]
