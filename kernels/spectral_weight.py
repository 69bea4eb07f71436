"""Triton kernels of `spectral_weight`: power iteration on W [O, I] and division by sigma; all is dense float32.

With t = W v of the last iteration, u = t / |t| and sigma = u . t, so that sigma takes no pass over W of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import on_device

BLOCK = 64  # rows and columns of a tile


@triton.jit
def _tile(rows, columns, BLOCK: tl.constexpr):
    """Rows and columns [BLOCK], offsets and mask [BLOCK, BLOCK] of this program, and the numbers of its blocks."""
    across = tl.cdiv(columns, BLOCK)
    down = tl.program_id(0) // across
    i = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    o = down * BLOCK + tl.arange(0, BLOCK)
    at = o.to(tl.int64)[:, None] * columns + i[None, :]
    return o, i, at, (o < rows)[:, None] & (i < columns)[None, :], down, tl.program_id(0) % across


@triton.jit
def _product(weight, vector, partials, rows, columns, TRANSPOSED: tl.constexpr, BLOCK: tl.constexpr):
    """Part of W v [O], or of W^T u [I] if TRANSPOSED, that one block of columns, or rows, contributes."""
    o, i, at, ok, down, right = _tile(rows, columns, BLOCK)
    tile = tl.load(weight + at, mask=ok, other=0.0)
    if TRANSPOSED:
        part = tl.sum(tile * tl.load(vector + o, mask=o < rows, other=0.0)[:, None], 0)
        tl.store(partials + down * columns + i, part, mask=i < columns)
    else:
        part = tl.sum(tile * tl.load(vector + i, mask=i < columns, other=0.0)[None, :], 1)
        tl.store(partials + right * rows + o, part, mask=o < rows)


@triton.jit
def _normalise(partials, out, dot, parts, length, eps, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr):
    """out = t / max(|t|, eps) and dot = out . t, with t the sum of partials [parts, length]. One program."""
    square = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        k = start + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK_P, BLOCK), tl.float32)
        for first in range(0, parts, BLOCK_P):
            part = first + tl.arange(0, BLOCK_P)
            ok = (part < parts)[:, None] & (k < length)[None, :]
            total += tl.load(partials + part[:, None] * length + k[None, :], mask=ok, other=0.0)
        t = tl.sum(total, 0)
        square += t * t
        tl.store(out + k, t, mask=k < length)
    norm2 = tl.sum(square, 0)
    norm = tl.sqrt_rn(norm2)
    norm = tl.where(norm < eps, eps, norm)
    tl.store(dot, norm2 / norm)
    tl.debug_barrier()  # t is read back by other threads than wrote it
    for start in range(0, length, BLOCK):
        k = start + tl.arange(0, BLOCK)
        tl.store(out + k, tl.load(out + k, mask=k < length) / norm, mask=k < length)


@triton.jit
def _divide(weight, sigma, y, size, BLOCK: tl.constexpr):
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + k, tl.load(weight + k, mask=k < size) / tl.load(sigma), mask=k < size)


@triton.jit
def _dot(dy, weight, partials, size, BLOCK: tl.constexpr):
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    product = tl.load(dy + k, mask=k < size, other=0.0) * tl.load(weight + k, mask=k < size, other=0.0)
    tl.store(partials + tl.program_id(0), tl.sum(product, 0))


@triton.jit
def _dweight(dy, u, v, dot, sigma, dweight, rows, columns, BLOCK: tl.constexpr):
    o, i, at, ok, _, _ = _tile(rows, columns, BLOCK)
    scale = tl.load(sigma)
    along = tl.load(dot) / scale
    outer = tl.load(u + o, mask=o < rows, other=0.0)[:, None] * tl.load(v + i, mask=i < columns, other=0.0)[None, :]
    tl.store(dweight + at, (tl.load(dy + at, mask=ok, other=0.0) - along * outer) / scale, mask=ok)


def _parts(weight: Tensor, vector: Tensor, transposed: bool) -> Tensor:
    """[parts, length] whose sum is W v [O], or W^T u [I] if transposed."""
    rows, columns = weight.size(0), weight[0].numel()
    down, across = triton.cdiv(rows, BLOCK), triton.cdiv(columns, BLOCK)
    parts, length = (down, columns) if transposed else (across, rows)
    partials = weight.new_empty((parts, length))
    _product[(down * across,)](weight, vector, partials, rows, columns, TRANSPOSED=transposed, BLOCK=BLOCK)
    return partials


def _sum_normalised(partials: Tensor, eps: float, out: Tensor, dot: Tensor) -> None:
    """out = t / max(|t|, eps) and dot = out . t, with t the sum of partials."""
    _normalise[(1,)](partials, out, dot, *partials.shape, eps, BLOCK_P=16, BLOCK=512, num_warps=8)


@on_device
def spectral_weight(
    weight: Tensor, u: Tensor, v: Tensor, iterations: int, eps: float,
    y: Tensor, new_u: Tensor, new_v: Tensor, sigma: Tensor,
) -> None:  # fmt: skip
    """y = W / sigma. v and new_v are in the order of the elements of a row of W."""
    new_u.copy_(u)
    new_v.copy_(v)
    for _ in range(iterations):
        _sum_normalised(_parts(weight, new_u, True), eps, new_v, sigma)
        _sum_normalised(_parts(weight, new_v, False), eps, new_u, sigma)
    if iterations == 0:
        torch.sum(u * _parts(weight, v, False).sum(0), 0, out=sigma)
    _divide[(triton.cdiv(weight.numel(), 1024),)](weight, sigma, y, weight.numel(), BLOCK=1024)


@on_device
def spectral_weight_backward(dy: Tensor, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor, dweight: Tensor) -> None:
    """dweight = (dy - (<dy, W> / sigma) u v^T) / sigma"""
    size, rows, columns = weight.numel(), weight.size(0), weight[0].numel()
    partials = weight.new_empty(triton.cdiv(size, 4096))
    _dot[(partials.numel(),)](dy, weight, partials, size, BLOCK=4096)
    grid = (triton.cdiv(rows, BLOCK) * triton.cdiv(columns, BLOCK),)
    _dweight[grid](dy, u, v, partials.sum(), sigma, dweight, rows, columns, BLOCK=BLOCK)
