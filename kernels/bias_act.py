"""Triton kernels of `bias_act`: y = clamp(act(x + b) * gain), and its gradient with the sums that are the bias's."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import Tiling, activate, load, on_device, place, row, store, tiling


def _tiling(x: Tensor, chunked: bool = False) -> Tiling:
    return tiling(x, not x.is_contiguous(), join=True, elements=2048 if chunked else 4096, chunked=chunked)


@triton.jit
def _value(z, alpha, ACT: tl.constexpr):
    """Activations by the codes of the op: piecewise linear, tanh, sigmoid, elu, selu, softplus, swish."""
    if ACT == 0:
        y = activate(z, alpha)
    elif ACT == 1:
        y = 2 * tl.sigmoid(2 * z) - 1
    elif ACT == 2:
        y = tl.sigmoid(z)
    elif ACT == 3:
        y = tl.where(z > 0, z, tl.exp(z) - 1)
    elif ACT == 4:
        y = 1.0507009873554805 * tl.where(z > 0, z, 1.6732632423543772 * (tl.exp(z) - 1))
    elif ACT == 5:
        y = tl.maximum(z, 0.0) + tl.log(1 + tl.exp(-tl.abs(z)))
    else:
        y = z * tl.sigmoid(z)
    return y


@triton.jit
def _derivative(z, alpha, ACT: tl.constexpr):
    if ACT == 0:
        d = tl.where(z > 0, 1.0, alpha)
    elif ACT == 1:
        d = 4 * tl.sigmoid(2 * z) * tl.sigmoid(-2 * z)
    elif ACT == 2:
        d = tl.sigmoid(z) * tl.sigmoid(-z)
    elif ACT == 3:
        d = tl.where(z > 0, 1.0, tl.exp(z))
    elif ACT == 4:
        d = 1.0507009873554805 * tl.where(z > 0, 1.0, 1.6732632423543772 * tl.exp(z))
    elif ACT == 5:
        d = tl.sigmoid(z)
    else:
        d = tl.sigmoid(z) * (1 + z * tl.sigmoid(-z))
    return d


@triton.jit
def _apply(
    x, b, y, alpha, gain, clamp, hw, channels, stride_p, stride_c,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    n, p, c, _ = place(hw, channels, BLOCK_P, BLOCK_P, BLOCK_C)
    ok = (p < hw)[:, None] & (c < channels)[None, :]
    at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
    value = _value(load(x, at, ok) + row(b, 0, c, channels), alpha, ACT) * gain
    value = tl.where(value > clamp, clamp, tl.where(value < -clamp, -clamp, value))
    store(y, at, value, ok)


@triton.jit
def _gradient(
    dy, x, b, dx, partials, alpha, gain, clamp, iterations, hw, channels, stride_p, stride_c,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    n, p, c, part = place(hw, channels, BLOCK_P * iterations, BLOCK_P, BLOCK_C)
    bias = row(b, 0, c, channels)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for _ in range(iterations):
        ok = (p < hw)[:, None] & (c < channels)[None, :]
        at = n * hw * channels + p[:, None] * stride_p + c[None, :] * stride_c
        z = load(x, at, ok) + bias
        inside = tl.abs(_value(z, alpha, ACT) * gain) <= clamp
        dz = tl.where(inside, load(dy, at, ok) * (gain * _derivative(z, alpha, ACT)), 0.0)
        store(dx, at, dz, ok)
        total += dz
        p += BLOCK_P
    tl.store(partials + part * channels + c, tl.sum(total, 0), mask=c < channels)


@on_device
def bias_act(x: Tensor, b: Tensor, act: int, alpha: float, gain: float, clamp: float, y: Tensor) -> None:
    t = _tiling(x)
    _apply[t.grid](x, b, y, alpha, gain, clamp, *t.sizes, **t.blocks, ACT=act)


@on_device
def bias_act_backward(
    dy: Tensor, x: Tensor, b: Tensor, act: int, alpha: float, gain: float, clamp: float, dx: Tensor, db: Tensor
) -> None:
    t = _tiling(x, chunked=True)
    partials = db.new_empty((t.samples * t.chunks, db.numel()))
    _gradient[t.grid](dy, x, b, dx, partials, alpha, gain, clamp, t.iterations, *t.sizes, **t.blocks, ACT=act)
    torch.sum(partials, 0, out=db)
