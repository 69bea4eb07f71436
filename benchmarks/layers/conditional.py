"""Layers conditioned on features: FADE, FAdaIN, positional norm, predicted convolutions."""

from functools import partial

import torch
import torch.nn.functional as F
from plain import convs, maps, norms

from i2ifast.nn import FADE, DepthsepCC, DepthsepCCBlock, FAdaIN, ReflectionSPADE
from i2ifast.testing import blocky

from . import Layer, Made, Plain, Shape

CLASSES = 35


def fade(shape: Shape, g: torch.Generator) -> Made:
    layer = FADE("fadebatch3x3", shape[1], shape[1])
    given = {name: torch.randn(shape, generator=g) for name in ("x", "features")}
    return Made({"ours": layer, "plain": Plain(layer, maps.fade)}, given)


def fadain(alpha: float):
    def make(shape: Shape, g: torch.Generator) -> Made:
        given = {name: torch.randn(shape, generator=g) for name in ("x", "style")}
        return Made({"ours": FAdaIN(alpha), "plain": partial(norms.adain, alpha=alpha)}, given)

    return make


def positional(shape: Shape, g: torch.Generator) -> Made:
    layer = ReflectionSPADE("spadesyncbatch3x3", shape[1], 154, PONO=True)
    n, _, h, w = shape
    given = {"x": torch.randn(shape, generator=g), "segmap": torch.randn((n, 154, h, w), generator=g)}
    return Made({"ours": layer, "plain": Plain(layer, maps.reflection_spade)}, given)


def dynamic(shape: Shape, g: torch.Generator) -> Made:
    n, c, h, w = shape
    given = {"x": torch.randn(shape, generator=g), "weight": torch.randn((n, 9 * c, h, w), generator=g)}
    return Made({"ours": DepthsepCC(c).forward, "plain": convs.dynamic_conv}, given)


def block(shape: Shape, g: torch.Generator) -> Made:
    n, c, h, w = shape
    ours = DepthsepCCBlock(c, c, "spectralsync_batch", CLASSES + 64)
    for unused in (ours.norm_0, ours.conv_0, ours.conv_2):
        unused.requires_grad_(False)
    seg = F.one_hot(blocky(g, n, h, w, CLASSES, 8).long(), CLASSES).permute(0, 3, 1, 2).float().contiguous()
    given = {"x": torch.randn(shape, generator=g), "seg": seg, "features": torch.randn((n, 64, h, w), generator=g)}
    return Made({"ours": ours, "plain": Plain(ours, maps.depthsep_block)}, given)


LAYERS = [
    Layer("FADE", ((1, 64, 256, 256), (1, 256, 64, 64)), fade),
    Layer("FAdaIN", ((1, 64, 256, 256), (1, 512, 32, 32)), fadain(1.0)),
    Layer("FAdaIN-interpolated", ((1, 64, 256, 256),), fadain(0.75)),
    Layer("ReflectionSPADE", ((1, 64, 128, 128),), positional),
    Layer("DepthsepCC", ((1, 64, 128, 128), (1, 512, 16, 16)), dynamic),
    Layer("DepthsepCCBlock", ((1, 64, 64, 64),), block),
]
