"""Triton kernels of `dynamic_conv`: y[p] = sum over taps t of x[p + t] * weight[t, p], zero padding.

Tap t of pixel p, channel c of sample n lies at `n * w_n + c * w_c + t * w_t + p * w_p` of the weight [N, C, 9, H, W].
The adjoint, dx[p] = sum of dy[p + t] * weight[8 - t, p + t], reads the weights of where it reads dy.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._common import Tiling, load, on_device, place, store, tiling


def _tiling(x: Tensor) -> Tiling:
    return tiling(x, not x.is_contiguous(), join=False, elements=1024)


def _strides(weight: Tensor) -> tuple[int, int, int, int]:
    """w_n, w_c, w_t, w_p."""
    return (*weight.stride()[:3], weight.stride(4))


@triton.jit
def _seen(i, j, t, height, width):
    """Where the pixels (i, j) see tap t, relative to them, and whether that is inside."""
    di = t // 3 - 1
    dj = t % 3 - 1
    inside = (i + di >= 0) & (i + di < height) & (j + dj >= 0) & (j + dj < width)
    return di * width + dj, inside


@triton.jit
def _sum(
    x, weight, out, w_n, w_c, w_t, w_p, height, width, hw, channels, stride_p, stride_c,
    ADJOINT: tl.constexpr, PLANAR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    i = p.to(tl.int32) // width  # a division of 64 bits is a call
    j = p.to(tl.int32) % width
    ok_p = p < hw
    ok_c = (c < channels)[None, :]
    image = n * hw * channels + c[None, :] * stride_c
    weights = n * w_n + c[None, :] * w_c
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for t in tl.static_range(9):
        offset, inside = _seen(i, j, t, height, width)
        ok = (inside & ok_p)[:, None] & ok_c
        there = (p + offset)[:, None]
        if ADJOINT:
            w = load(weight, weights + there * w_p + (8 - t) * w_t, ok)
        elif PLANAR:  # weights of taps outside too: pixels side by side with one mask are read at once
            w = load(weight, weights + p[:, None] * w_p + t * w_t, ok_p[:, None] & ok_c)
        else:
            w = load(weight, weights + p[:, None] * w_p + t * w_t, ok)
        total += load(x, image + there * stride_p, ok) * w
    store(out, image + p[:, None] * stride_p, total, ok_p[:, None] & ok_c)


@triton.jit
def _dweight(
    x, dy, dweight, w_n, w_c, w_t, w_p, height, width, hw, channels, stride_p, stride_c,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    i = p.to(tl.int32) // width
    j = p.to(tl.int32) % width
    ok = (p < hw)[:, None] & (c < channels)[None, :]
    image = n * hw * channels + c[None, :] * stride_c
    weights = n * w_n + c[None, :] * w_c + p[:, None] * w_p
    gradient = load(dy, image + p[:, None] * stride_p, ok)
    for t in tl.static_range(9):
        offset, inside = _seen(i, j, t, height, width)
        value = load(x, image + (p + offset)[:, None] * stride_p, ok & inside[:, None])
        store(dweight, weights + t * w_t, gradient * value, ok)


@on_device
def dynamic_conv(x: Tensor, weight: Tensor, y: Tensor) -> None:
    t = _tiling(x)
    layout = {"PLANAR": x.is_contiguous(), **t.blocks}
    _sum[t.grid](x, weight, y, *_strides(weight), *x.shape[2:], *t.sizes, ADJOINT=False, **layout)


@on_device
def dynamic_conv_dx(dy: Tensor, weight: Tensor, dx: Tensor) -> None:
    t = _tiling(dy)
    layout = {"PLANAR": dy.is_contiguous(), **t.blocks}
    _sum[t.grid](dy, weight, dx, *_strides(weight), *dy.shape[2:], *t.sizes, ADJOINT=True, **layout)


@on_device
def dynamic_conv_dweight(x: Tensor, dy: Tensor, dweight: Tensor) -> None:
    t = _tiling(x)
    _dweight[t.grid](x, dy, dweight, *_strides(dweight), *x.shape[2:], *t.sizes, **t.blocks)
