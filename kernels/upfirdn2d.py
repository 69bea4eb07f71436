"""Triton kernel of `upfirdn2d`: of every output pixel, the taps that meet a pixel of x and not an inserted zero."""

import triton
import triton.language as tl
from torch import Tensor

from ._common import load, on_device, place, store, tiling


@triton.jit
def _meet(out, up, down, pad):
    """The first tap of outputs `out` that meets a pixel, and that pixel, along one axis."""
    origin = out * down - pad
    tap = (up - origin % up) % up
    return tap, (origin + tap) // up


@triton.jit
def _filter(
    x, f, y, gain, up_x, up_y, down_x, down_y, left, top, fw, fh, width, height, out_width, x_stride_c, hw, channels,
    stride_p, stride_c, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, TAPS_X: tl.constexpr, TAPS_Y: tl.constexpr,
    FLIP: tl.constexpr,
):  # fmt: skip
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    pixel = p.to(tl.int32)
    tap_y, first_y = _meet(pixel // out_width, up_y, down_y, top)
    tap_x, first_x = _meet(pixel % out_width, up_x, down_x, left)
    known = (c < channels)[None, :]
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for i in tl.static_range(TAPS_Y):
        ky, iy = tap_y + i * up_y, first_y + i
        inside_y = (p < hw) & (ky < fh) & (iy >= 0) & (iy < height)
        for j in tl.static_range(TAPS_X):
            kx, ix = tap_x + j * up_x, first_x + j
            inside = inside_y & (kx < fw) & (ix >= 0) & (ix < width)
            tap = ky * fw + kx
            if not FLIP:
                tap = fh * fw - 1 - tap
            weight = tl.load(f + tap, mask=inside, other=0.0)
            at = n * channels * height * width + (iy * width + ix).to(tl.int64)[:, None] * stride_p
            total += weight[:, None] * load(x, at + c[None, :] * x_stride_c, inside[:, None] & known)
    at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
    store(y, at, total * gain, (p < hw)[:, None] & known)


@on_device
def upfirdn2d(
    x: Tensor, f: Tensor, up: list[int], down: list[int], padding: list[int], flip: bool, gain: float, y: Tensor
) -> None:
    channels_last = not (x.is_contiguous() and y.is_contiguous())  # one of the two may be of both layouts
    t = tiling(y, channels_last, join=False, elements=2048 if channels_last else 512)
    (height, width), (fh, fw) = x.shape[2:], f.shape
    _filter[t.grid](
        x, f, y, gain, *up, *down, padding[0], padding[2], fw, fh, width, height, y.size(3),
        1 if channels_last else height * width, *t.sizes, **t.blocks,
        TAPS_X=triton.cdiv(fw, up[0]), TAPS_Y=triton.cdiv(fh, up[1]), FLIP=flip,
    )  # fmt: skip
