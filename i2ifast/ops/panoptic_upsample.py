"""Enlarging by copies within segments: each pixel takes the nearest small one that shows its id."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _backend
from ._op import accumulation_dtype, autograd, check_4d, check_device, check_shape, define, memory_format
from ._panoptic import PanopticSources


def reference_forward(x: Tensor, source: Tensor) -> Tensor:
    n, c, h, w = x.shape
    index = source.flatten(1).clamp(min=0).long()[:, None].expand(n, c, -1)
    return x.flatten(2).gather(2, index).view(n, c, *source.shape[1:]).masked_fill((source < 0)[:, None], 0)


def reference_dx(dy: Tensor, source: Tensor, size: list[int]) -> Tensor:
    n, c = dy.shape[:2]
    index = source.flatten(1).clamp(min=0).long()[:, None].expand(n, c, -1)
    wide = dy.to(accumulation_dtype(dy)).masked_fill((source < 0)[:, None], 0)
    dx = wide.new_zeros((n, c, size[0] * size[1])).scatter_add(2, index, wide.flatten(2))
    return dx.view(n, c, *size).to(dy.dtype)


def _forward(x, source, offsets, copies):
    layout = memory_format(x)
    backend = _backend.choose("panoptic_upsample", "panoptic_upsample", x)
    if backend == "reference" or x.numel() == 0:
        return reference_forward(x, source).contiguous(memory_format=layout)
    y = _forward_fake(x, source, offsets, copies)
    kernel = _backend.kernel(backend, "panoptic_upsample", "panoptic_upsample")
    kernel(x.contiguous(memory_format=layout), source, y)
    return y


def _dx(dy, source, offsets, copies, size):
    layout = memory_format(dy)
    backend = _backend.choose("panoptic_upsample", "panoptic_upsample_dx", dy)
    if backend == "reference" or dy.numel() == 0:
        return reference_dx(dy, source, size).contiguous(memory_format=layout)
    dx = _dx_fake(dy, source, offsets, copies, size)
    kernel = _backend.kernel(backend, "panoptic_upsample", "panoptic_upsample_dx")
    kernel(dy.contiguous(memory_format=layout), offsets, copies, dx)
    return dx


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def _forward_fake(x, source, offsets, copies):
    return _resized(x, source.shape[1:])


def _dx_fake(dy, source, offsets, copies, size):
    return _resized(dy, size)


# Linear, and each other's derivatives.
def _setup(ctx, inputs, output) -> None:
    x, *lists = inputs
    ctx.size = x.shape[2:]
    ctx.save_for_backward(*lists)


def _backward(ctx, dy: Tensor):
    return torch.ops.i2ifast.panoptic_upsample_dx(dy, *ctx.saved_tensors, ctx.size), None, None, None


def _setup_dx(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:4])


def _backward_of_dx(ctx, g: Tensor):
    return torch.ops.i2ifast.panoptic_upsample(g, *ctx.saved_tensors), None, None, None, None


_LISTS = "Tensor source, Tensor offsets, Tensor copies"
define("panoptic_upsample", f"(Tensor x, {_LISTS}) -> Tensor", _forward, _forward_fake)
define("panoptic_upsample_dx", f"(Tensor dy, {_LISTS}, SymInt[] size) -> Tensor", _dx, _dx_fake)
autograd("panoptic_upsample", _setup, _backward)
autograd("panoptic_upsample_dx", _setup_dx, _backward_of_dx)


def panoptic_upsample(x: Tensor, sources: PanopticSources) -> Tensor:
    """y[n,c,p] = x[n,c,source[n,p]], 0 where source is -1

    x [N, C, H, W], source [N, 2H, 2W] -> y [N, C, 2H, 2W] in the layout of x; `sources` from
    panoptic_sources(ids, ids_up, mode). Each gradient is a sum over the copies of a pixel, in their order:
    deterministic. Differentiable to any order. Raises ValueError for shapes or devices that do not fit. Indices are not
    checked here: panoptic_sources makes them.
    """
    check_4d("x", x)
    n, _, h, w = x.shape
    check_shape("source", sources.source, (n, 2 * h, 2 * w))
    check_device(x, source=sources.source)
    return torch.ops.i2ifast.panoptic_upsample(x, sources.source, sources.offsets, sources.copies)
