"""Triton kernels of `positional_norm`: every pixel over its channels, modulated by maps gamma, beta.

A program takes BLOCK_P pixels and walks through their channels BLOCK_C at a time, once for the mean, once for the
variance and once to write: what it reads again lies in the cache. `gamma_beta [N, 2C, H, W]` has the layout of x, so
gamma of pixel p, channel c lies at `n * 2C * HW + p * map_p + c * stride_c`, and its beta `to_beta` behind it.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._common import activate, activation_gradient, load, on_device, store


def _grid(x: Tensor) -> tuple[tuple[int], tuple[int, ...], dict[str, int]]:
    """Grid; HW, C, stride_p, stride_c, map_p, to_beta; block sizes."""
    n, c, h, w = x.shape
    hw, power = h * w, triton.next_power_of_2
    if x.is_contiguous():
        block_p = min(power(hw), 64)
        strides, block_c = (1, hw, 1, c * hw), min(power(c), 32)
    else:
        block_c = min(power(c), 128)
        block_p, strides = min(power(hw), 2048 // block_c), (c, 1, 2 * c, c)
    return (n * triton.cdiv(hw, block_p),), (hw, c, *strides), {"BLOCK_P": block_p, "BLOCK_C": block_c}


@triton.jit
def _statistics(x, image, ok_p, channels, stride_c, eps, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean, as two numbers to subtract one after the other, and rstd of pixels at `image` [BLOCK_P, 1]."""
    lanes = tl.arange(0, BLOCK_C)[None, :]
    sums = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for first in range(0, channels, BLOCK_C):
        ok = ok_p & (first + lanes < channels)
        sums += load(x, image + (first + lanes) * stride_c, ok)
    centre = tl.sum(sums, 1)[:, None] / channels
    sums = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for first in range(0, channels, BLOCK_C):
        ok = ok_p & (first + lanes < channels)
        d = tl.where(ok, load(x, image + (first + lanes) * stride_c, ok) - centre, 0.0)
        sums += d
        squares += d * d
    offset = tl.sum(sums, 1)[:, None] / channels
    var = (tl.sum(squares, 1)[:, None] - offset * offset * channels) / tl.maximum(channels - 1, 1)
    return centre, offset, 1 / tl.sqrt_rn(tl.where(var < 0, 0.0, var) + eps)  # a maximum would lose NaN


@triton.jit
def _place(hw, channels, BLOCK_P: tl.constexpr):
    """This program's sample, pixels [BLOCK_P, 1], and which of these there are."""
    blocks = tl.cdiv(hw, BLOCK_P)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    return n, p, p < hw


@triton.jit
def _maps(gamma_beta, at, to_beta, ok):
    """1 + gamma and beta."""
    scale = tl.full(ok.shape, 1.0, tl.float32)
    shift = tl.zeros(ok.shape, tl.float32)
    if gamma_beta is not None:
        scale += load(gamma_beta, at, ok)
        shift += load(gamma_beta, at + to_beta, ok)
    return scale, shift


@triton.jit
def _apply(
    x, gamma_beta, y, eps, slope, hw, channels, stride_p, stride_c, map_p, to_beta,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, ok_p = _place(hw, channels, BLOCK_P)
    image = n * hw * channels + p * stride_p
    map_image = n * 2 * hw * channels + p * map_p
    centre, offset, rstd = _statistics(x, image, ok_p, channels, stride_c, eps, BLOCK_P, BLOCK_C)
    lanes = tl.arange(0, BLOCK_C)[None, :]
    for first in range(0, channels, BLOCK_C):
        ok = ok_p & (first + lanes < channels)
        at = (first + lanes) * stride_c
        xhat = (load(x, image + at, ok) - centre - offset) * rstd
        scale, shift = _maps(gamma_beta, map_image + at, to_beta, ok)
        store(y, image + at, activate(xhat * scale + shift, slope), ok)


@triton.jit
def _gradients(
    dy, x, gamma_beta, dx, d_gamma_beta, eps, slope, hw, channels, stride_p, stride_c, map_p, to_beta,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, p, ok_p = _place(hw, channels, BLOCK_P)
    image = n * hw * channels + p * stride_p
    map_image = n * 2 * hw * channels + p * map_p
    centre, offset, rstd = _statistics(x, image, ok_p, channels, stride_c, eps, BLOCK_P, BLOCK_C)
    lanes = tl.arange(0, BLOCK_C)[None, :]
    sum_g = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    sum_gx = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for first in range(0, channels, BLOCK_C):
        ok = ok_p & (first + lanes < channels)
        at = (first + lanes) * stride_c
        xhat = (load(x, image + at, ok) - centre - offset) * rstd
        scale, shift = _maps(gamma_beta, map_image + at, to_beta, ok)
        dz = activation_gradient(load(dy, image + at, ok), xhat * scale + shift, slope)
        if gamma_beta is not None:
            store(d_gamma_beta, map_image + at, dz * xhat, ok)
            store(d_gamma_beta, map_image + at + to_beta, dz, ok)
        sum_g += dz * scale
        sum_gx += dz * scale * xhat
    mean = tl.sum(sum_g, 1)[:, None] / channels
    along = tl.sum(sum_gx, 1)[:, None] / tl.maximum(channels - 1, 1)
    for first in range(0, channels, BLOCK_C):
        ok = ok_p & (first + lanes < channels)
        at = (first + lanes) * stride_c
        xhat = (load(x, image + at, ok) - centre - offset) * rstd
        scale, shift = _maps(gamma_beta, map_image + at, to_beta, ok)
        g = activation_gradient(load(dy, image + at, ok), xhat * scale + shift, slope) * scale
        store(dx, image + at, rstd * (g - mean - xhat * along), ok)


@on_device
def positional_norm(x: Tensor, gamma_beta: Tensor | None, eps: float, slope: float, y: Tensor) -> None:
    grid, sizes, blocks = _grid(x)
    _apply[grid](x, gamma_beta, y, eps, slope, *sizes, **blocks)


@on_device
def positional_norm_backward(
    dy: Tensor, x: Tensor, gamma_beta: Tensor | None, eps: float, slope: float, dx: Tensor, d_gamma_beta: Tensor
) -> None:
    grid, sizes, blocks = _grid(x)
    _gradients[grid](dy, x, gamma_beta, dx, d_gamma_beta, eps, slope, *sizes, **blocks)
