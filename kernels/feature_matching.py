"""Triton kernels of `feature_matching`: all layers of one dtype in one launch, as tuples of pointers.

Programs are numbered layer after layer. The layer of a program is found by comparing its number with the ends of the
layers: everything that depends on it is a scalar, and the code that follows is there once.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, ITERATIONS = 2048, 4


class Layers(NamedTuple):
    """What a launch over layers takes."""

    sizes: tuple[int, ...]  # elements of a sample
    ends: tuple[int, ...]  # programs up to and with a layer
    starts: tuple[int, ...]  # where the layer's signs are
    weights: tuple[float, ...]


def _layers(sizes: Sequence[int], starts: Sequence[int], weights: Sequence[float]) -> Layers:
    ends = accumulate(triton.cdiv(size, BLOCK * ITERATIONS) for size in sizes)
    return Layers(tuple(sizes), tuple(ends), tuple(starts), tuple(weights))


def _by_dtype(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Layers that one launch can take: their pointers are of one type."""
    found = defaultdict(list)
    for layer, x in enumerate(tensors):
        found[x.dtype].append(layer)
    return list(found.values())


@triton.jit
def _sums(
    fakes, reals, signs, partials, column, columns, sizes, ends, starts, weights,
    SIGNED: tl.constexpr, BLOCK: tl.constexpr, ITERATIONS: tl.constexpr,
):  # fmt: skip
    part, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    fake, real, first, weight = fakes[0], reals[0], 0, weights[0]
    size, start = tl.cast(sizes[0], tl.int64), tl.cast(starts[0], tl.int64)
    for layer in tl.static_range(1, len(fakes)):
        if part >= ends[layer - 1]:
            fake, real, first, weight = fakes[layer], reals[layer], ends[layer - 1], weights[layer]
            size, start = tl.cast(sizes[layer], tl.int64), tl.cast(starts[layer], tl.int64)
    k = (part - first).to(tl.int64) * (BLOCK * ITERATIONS) + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in tl.static_range(ITERATIONS):
        x = tl.load(fake + n * size + k, mask=k < size, other=0.0).to(tl.float32)
        d = x - tl.load(real + n * size + k, mask=k < size, other=0.0).to(tl.float32)
        total += tl.abs(d)
        if SIGNED:
            tl.store(signs + start + n * size + k, (d > 0).to(tl.int8) - (d < 0).to(tl.int8), mask=k < size)
        k += BLOCK
    tl.store(partials + n * columns + column + part, tl.sum(total, 0) * weight / size)


@triton.jit
def _gradients(
    dy, signs, dxs, samples, sizes, ends, starts, weights, BLOCK: tl.constexpr, ITERATIONS: tl.constexpr
):  # fmt: skip
    part, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    dx, first, weight = dxs[0], 0, weights[0]
    size, start = tl.cast(sizes[0], tl.int64), tl.cast(starts[0], tl.int64)
    for layer in tl.static_range(1, len(dxs)):
        if part >= ends[layer - 1]:
            dx, first, weight = dxs[layer], ends[layer - 1], weights[layer]
            size, start = tl.cast(sizes[layer], tl.int64), tl.cast(starts[layer], tl.int64)
    scale = tl.load(dy + n, mask=n < samples, other=0.0) * weight / size
    k = (part - first).to(tl.int64) * (BLOCK * ITERATIONS) + tl.arange(0, BLOCK)
    for _ in tl.static_range(ITERATIONS):
        sign = tl.load(signs + start + n * size + k, mask=(k < size) & (n < samples), other=0)
        tl.store(dx + n * size + k, (sign.to(tl.float32) * scale).to(dx.dtype.element_ty), mask=k < size)
        k += BLOCK


def feature_matching(
    fake: Sequence[Tensor], real: Sequence[Tensor], weights: Sequence[float], distances: Tensor, signs: Tensor
) -> None:
    """distances [N]; signs of fake - real, one layer after the other, where it has elements."""
    sizes = [x[0].numel() for x in fake]
    starts = [0, *accumulate(x.numel() for x in fake)]
    launches = [
        (layers, _layers(*([t[i] for i in layers] for t in (sizes, starts, weights)))) for layers in _by_dtype(fake)
    ]
    columns = sum(launch.ends[-1] for _, launch in launches)
    partials = distances.new_empty((distances.numel(), columns))
    column = 0
    with torch.cuda.device_of(distances):
        for layers, launch in launches:
            _sums[(launch.ends[-1], distances.numel())](
                tuple(fake[i] for i in layers), tuple(real[i] for i in layers), signs, partials, column, columns,
                *launch, SIGNED=signs.numel() > 0, BLOCK=BLOCK, ITERATIONS=ITERATIONS,
            )  # fmt: skip
            column += launch.ends[-1]
        torch.sum(partials, 1, out=distances)


def feature_matching_backward(dy: Tensor, signs: Tensor, weights: Sequence[float], dx: Sequence[Tensor]) -> None:
    """dx has at least as many samples as dy [N]; those behind N get zeros."""
    sizes = [x[0].numel() for x in dx]
    starts = [0, *accumulate(dy.numel() * size for size in sizes)]
    with torch.cuda.device_of(dy):
        for layers in _by_dtype(dx):
            launch = _layers(*([t[i] for i in layers] for t in (sizes, starts, weights)))
            _gradients[(launch.ends[-1], dx[0].size(0))](
                dy, signs, tuple(dx[i] for i in layers), dy.numel(), *launch, BLOCK=BLOCK, ITERATIONS=ITERATIONS
            )
