"""Cases of loss functions. Reals are integers: constants, whose gradient nobody asks for. Losses are [N, 1]."""

import torch
from torch import Tensor

from .. import ops
from ._case import Case, Tensors, normal

WEIGHTS = (0.25, 1.0)


def _inputs(shape: tuple[int, int, int, int], g: torch.Generator) -> Tensors:
    n, c, h, w = shape
    small = (n, c + 3, -(-h // 2), -(-w // 2))
    reals = {"real": 64 * normal(g, *shape), "real2": 64 * normal(g, *small)}
    return {"x": normal(g, *shape), "x2": normal(g, *small)} | {name: t.round().int() for name, t in reals.items()}


def _layers(x: Tensor, x2: Tensor, real: Tensor, real2: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    return [x, x2], [real.to(x.dtype) / 64, real2.to(x.dtype) / 64]


def _plain(**tensors: Tensor) -> Tensor:
    pairs = zip(WEIGHTS, *_layers(**tensors), strict=True)
    return torch.stack([w * (f - r).abs().mean((1, 2, 3)) for w, f, r in pairs]).sum(0)[:, None]


def _pairs(**tensors: Tensor) -> Tensor:
    return ops.feature_matching(*_layers(**tensors), WEIGHTS)[:, None]


def _halves(**tensors: Tensor) -> Tensor:
    batches = [torch.cat(pair) for pair in zip(*_layers(**tensors), strict=True)]
    return ops.feature_matching(batches, None, WEIGHTS)[:, None]


CASES = [
    Case("feature_matching-pairs", _inputs, _pairs, _plain),
    Case("feature_matching-halves", _inputs, _halves, _plain),
]
