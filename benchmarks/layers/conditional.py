"""Layers conditioned on features: FADE, FAdaIN, positional norm, predicted convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import FADE, DepthsepCC, DepthsepCCBlock, FAdaIN, ReflectionSPADE
from i2ifast.testing import blocky

from . import Layer, Made, Shape

CLASSES = 35


class PlainFADE(nn.Module):
    """The published formulation around the parameters of ours."""

    def __init__(self, layer: FADE) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        gamma, beta = (
            F.conv2d(features, c.weight, c.bias, padding=1) for c in (self.layer.mlp_gamma, self.layer.mlp_beta)
        )
        return F.batch_norm(x, None, None, training=True) * (1 + gamma) + beta


def fade(shape: Shape, g: torch.Generator) -> Made:
    layer = FADE("fadebatch3x3", shape[1], shape[1])
    maps = {name: torch.randn(shape, generator=g) for name in ("x", "features")}
    return Made({"ours": layer, "plain": PlainFADE(layer)}, maps)


def plain_fadain(alpha: float):
    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.reshape(*x.shape[:2], -1)
        return rows.mean(2)[..., None, None], (rows.var(2) + 1e-5).sqrt()[..., None, None]

    def forward(x: Tensor, style: Tensor) -> Tensor:
        (mean, std), (style_mean, style_std) = statistics(x), statistics(style)
        y = (x - mean) / std * style_std + style_mean
        return y if alpha == 1 else alpha * y + (1 - alpha) * x

    return forward


def fadain(alpha: float):
    def make(shape: Shape, g: torch.Generator) -> Made:
        maps = {name: torch.randn(shape, generator=g) for name in ("x", "style")}
        return Made({"ours": FAdaIN(alpha), "plain": plain_fadain(alpha)}, maps)

    return make


class PlainReflectionSPADE(nn.Module):
    def __init__(self, layer: ReflectionSPADE) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        hidden = F.pad(self.layer.mlp_shared(segmap), [1] * 4, mode="reflect")
        gamma, beta = self.layer.mlp_gamma(hidden), self.layer.mlp_beta(hidden)
        std = (x.var(1, keepdim=True) + 1e-5).sqrt()
        return (x - x.mean(1, keepdim=True)) / std * (1 + gamma) + beta


def positional(shape: Shape, g: torch.Generator) -> Made:
    layer = ReflectionSPADE("spadesyncbatch3x3", shape[1], 154, PONO=True)
    n, _, h, w = shape
    maps = {"x": torch.randn(shape, generator=g), "segmap": torch.randn((n, 154, h, w), generator=g)}
    return Made({"ours": layer, "plain": PlainReflectionSPADE(layer)}, maps)


def plain_dynamic(x: Tensor, weight: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return (F.unfold(x, 3, padding=1).view(n, c, 9, h, w) * weight.view(n, c, 9, h, w)).sum(2)


def dynamic(shape: Shape, g: torch.Generator) -> Made:
    n, c, h, w = shape
    maps = {"x": torch.randn(shape, generator=g), "weight": torch.randn((n, 9 * c, h, w), generator=g)}
    return Made({"ours": DepthsepCC(c).forward, "plain": plain_dynamic}, maps)


class PlainBlock(nn.Module):
    """The published formulation of a conditional block around the parameters of ours."""

    def __init__(self, block: DepthsepCCBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, seg: Tensor, features: Tensor) -> Tensor:
        def normalised(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
            return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)

        def convolve(x: Tensor, first: nn.Conv2d, second: nn.Conv2d) -> Tensor:
            hidden = F.relu(F.conv2d(x, first.weight, first.bias, padding=1))
            return F.conv2d(hidden, second.weight, second.bias, padding=1)

        block, segmap = self.block, torch.cat([seg, features], 1)
        weights, gates = (
            [convolve(segmap, p[0], p[2]) for p in predictors]
            for predictors in (
                (block.gen_weights1, block.gen_weights2),
                (block.gen_se_weights1, block.gen_se_weights2),
            )
        )
        h = block.conv_1(plain_dynamic(normalised(x, block.norm_1), weights[0]))
        h = F.leaky_relu(h * gates[0].sigmoid(), 0.2)
        h = block.conv_3(plain_dynamic(normalised(h, block.norm_2), weights[1]))
        return x + F.leaky_relu(h * gates[1].sigmoid(), 0.2)


def block(shape: Shape, g: torch.Generator) -> Made:
    n, c, h, w = shape
    ours = DepthsepCCBlock(c, c, "spectralsync_batch", CLASSES + 64)
    for unused in (ours.norm_0, ours.conv_0, ours.conv_2):
        unused.requires_grad_(False)
    seg = F.one_hot(blocky(g, n, h, w, CLASSES, 8).long(), CLASSES).permute(0, 3, 1, 2).float().contiguous()
    maps = {"x": torch.randn(shape, generator=g), "seg": seg, "features": torch.randn((n, 64, h, w), generator=g)}
    return Made({"ours": ours, "plain": PlainBlock(ours)}, maps)


LAYERS = [
    Layer("FADE", ((1, 64, 256, 256), (1, 256, 64, 64)), fade),
    Layer("FAdaIN", ((1, 64, 256, 256), (1, 512, 32, 32)), fadain(1.0)),
    Layer("FAdaIN-interpolated", ((1, 64, 256, 256),), fadain(0.75)),
    Layer("ReflectionSPADE", ((1, 64, 128, 128),), positional),
    Layer("DepthsepCC", ((1, 64, 128, 128), (1, 512, 16, 16)), dynamic),
    Layer("DepthsepCCBlock", ((1, 64, 64, 64),), block),
]
