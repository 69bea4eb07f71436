"""Mean and maximum over the channels of every pixel: what a spatial attention is predicted from."""

import torch
from torch import Tensor

from .. import _backend
from ._op import accumulation_dtype, autograd, check_4d, define, memory_format

LAST = torch.channels_last


def reference_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.to(accumulation_dtype(x))
    maximum, index = wide.max(1)
    return torch.stack([wide.mean(1), maximum], 1).to(x.dtype), index.int()


def reference_backward(dpooled: Tensor, index: Tensor, channels: int) -> Tensor:
    dmean, dmax = dpooled.to(accumulation_dtype(dpooled)).chunk(2, 1)
    chosen = torch.arange(channels, device=index.device)[:, None, None] == index[:, None]
    return (dmean / channels + torch.where(chosen, dmax, torch.zeros_like(dmax))).to(dpooled.dtype)


def _empty(x: Tensor) -> tuple[Tensor, Tensor]:
    n, _, h, w = x.shape
    return x.new_empty((n, 2, h, w)), x.new_empty((n, h, w), dtype=torch.int32)


def _forward(x):
    backend = _backend.choose("channel_pool", "channel_pool", x)
    if backend == "reference" or x.numel() == 0:
        pooled, index = reference_forward(x)
        return pooled.contiguous(), index
    pooled, index = _empty(x)
    x = x.contiguous(memory_format=LAST if backend == "cpu" else memory_format(x))
    _backend.kernel(backend, "channel_pool", "channel_pool")(x, pooled, index)
    return pooled, index


def _backward(dpooled, index, channels, channels_last):
    backend = _backend.choose("channel_pool", "channel_pool_backward", dpooled)
    layout = LAST if channels_last else torch.contiguous_format
    if backend == "reference" or dpooled.numel() == 0:
        return reference_backward(dpooled, index, channels).contiguous(memory_format=layout)
    n, _, h, w = dpooled.shape
    working = LAST if backend == "cpu" else layout
    dx = torch.empty((n, channels, h, w), dtype=dpooled.dtype, device=dpooled.device, memory_format=working)
    _backend.kernel(backend, "channel_pool", "channel_pool_backward")(dpooled.contiguous(), index, dx)
    return dx.contiguous(memory_format=layout)


def _backward_fake(dpooled, index, channels, channels_last):
    n, _, h, w = dpooled.shape
    layout = LAST if channels_last else torch.contiguous_format
    return torch.empty((n, channels, h, w), dtype=dpooled.dtype, device=dpooled.device, memory_format=layout)


def _setup(ctx, inputs, output) -> None:
    ctx.channels, ctx.channels_last = inputs[0].size(1), memory_format(inputs[0]) is LAST
    ctx.save_for_backward(output[1])


def _autograd(ctx, dpooled, dindex):
    (index,) = ctx.saved_tensors
    return torch.ops.i2ifast.channel_pool_backward(dpooled, index, ctx.channels, ctx.channels_last)


def _setup_backward(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1])


def _adjoint(ctx, ddx):
    (index,) = ctx.saved_tensors
    wide = ddx.to(accumulation_dtype(ddx))
    pooled = torch.cat([wide.mean(1, keepdim=True), wide.gather(1, index[:, None].long())], 1)
    return pooled.to(ddx.dtype), None, None, None


define("channel_pool", "(Tensor x) -> (Tensor, Tensor)", _forward, _empty)
define(
    "channel_pool_backward",
    "(Tensor dpooled, Tensor index, int channels, bool channels_last) -> Tensor",
    _backward,
    _backward_fake,
)
autograd("channel_pool", _setup, _autograd)
autograd("channel_pool_backward", _setup_backward, _adjoint)


def channel_pool(x: Tensor) -> Tensor:
    """pooled[n,0,p] = mean over c of x[n,c,p], pooled[n,1,p] = their maximum; x [N, C, H, W] gives [N, 2, H, W].

    In one pass over x. The maximum's gradient goes to the first channel that has it, as torch.max's. Differentiable to
    any order.
    """
    check_4d("x", x)
    if x.size(1) == 0:
        raise ValueError("x: expected at least one channel, got none")
    return torch.ops.i2ifast.channel_pool(x)[0]
