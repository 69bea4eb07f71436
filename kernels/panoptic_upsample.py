"""Triton kernels of `panoptic_upsample`: y[n,c,p] = x[n,c,source[n,p]], 0 where source is -1, and its adjoint."""

import triton
import triton.language as tl
from torch import Tensor

from ._common import Tiling, load, on_device, place, store, tiling


def _tiling(x: Tensor) -> Tiling:
    return tiling(x, not x.is_contiguous(), join=False)


@triton.jit
def _copy(
    x, source, y, pixels, x_stride_c, hw, channels, stride_p, stride_c, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    ok = (p < hw)[:, None] & (c < channels)[None, :]
    q = tl.load(source + n * hw + p, mask=p < hw, other=-1).to(tl.int64)
    at = n * pixels * channels + q[:, None] * stride_p + c[None, :] * x_stride_c
    to = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
    store(y, to, load(x, at, ok & (q >= 0)[:, None]), ok)


@triton.jit
def _sum(
    dy, offsets, copies, dx, copied, dy_stride_c, hw, channels, stride_p, stride_c,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    inside = p < hw
    first = tl.load(offsets + n * hw + p, mask=inside, other=0)
    last = tl.load(offsets + n * hw + p + 1, mask=inside, other=0)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for i in range(tl.max(last - first, 0)):
        there = first + i < last
        q = tl.load(copies + first + i, mask=there, other=0).to(tl.int64) - n * copied  # numbered through the batch
        at = n * copied * channels + q[:, None] * stride_p + c[None, :] * dy_stride_c
        total += load(dy, at, there[:, None] & (c < channels)[None, :])
    to = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
    store(dx, to, total, inside[:, None] & (c < channels)[None, :])


@on_device
def panoptic_upsample(x: Tensor, source: Tensor, y: Tensor) -> None:
    t, pixels = _tiling(y), x.size(2) * x.size(3)
    _copy[t.grid](x, source, y, pixels, pixels if y.is_contiguous() else 1, *t.sizes, **t.blocks)


@on_device
def panoptic_upsample_dx(dy: Tensor, offsets: Tensor, copies: Tensor, dx: Tensor) -> None:
    """`dy` and `dx` have one layout, that of `dy`."""
    t = tiling(dx, not dy.is_contiguous(), join=False)
    copied = dy.size(2) * dy.size(3)
    _sum[t.grid](dy, offsets, copies, dx, copied, copied if dy.is_contiguous() else 1, *t.sizes, **t.blocks)
