"""Modulation by a soft mix of table rows, and the weighted sums that such tables are made of: attentive normalisation.

Three multilinear ops, each the derivative of the others with respect to one argument, so that all orders of derivative
run on the same kernels. weights, weights2 [N, K, H, W]; table [N, K, 2C], rows A then B; u, v, x [N, C, H, W]:

    modulate_mix(x, weights, weights2, table) = x * (sum_k weights_k A_k) + sum_k weights2_k B_k
    mix_sums(u, v, weights, weights2)         = (sum_p weights u v, sum_p weights2 u)               [N, K, 2C]
    mix_dots(u, v, table)                     = (sum_c u v A, sum_c u B)                            [N, 2K, H, W]

v is None where it is u.
"""

import torch
from torch import Tensor

from .. import _backend
from ._op import accumulation_dtype, autograd, check_4d, check_device, check_shape, define, dense_like, memory_format

LAST = torch.channels_last


def _wide(*tensors: Tensor) -> list[Tensor]:
    return [t.to(accumulation_dtype(t)) for t in tensors]


def reference_mix(x: Tensor, weights: Tensor, weights2: Tensor, table: Tensor) -> Tensor:
    wide, weights, weights2, table = _wide(x, weights, weights2, table)
    scale, shift = table.chunk(2, 2)
    mixed = wide * torch.einsum("nkhw,nkc->nchw", weights, scale) + torch.einsum("nkhw,nkc->nchw", weights2, shift)
    return mixed.to(x.dtype)


def reference_sums(u: Tensor, v: Tensor | None, weights: Tensor, weights2: Tensor) -> Tensor:
    u, v, weights, weights2 = _wide(u, u if v is None else v, weights, weights2)
    return torch.cat([torch.einsum("nkhw,nchw->nkc", weights, u * v), torch.einsum("nkhw,nchw->nkc", weights2, u)], 2)


def reference_dots(u: Tensor, v: Tensor | None, table: Tensor) -> Tensor:
    u, v, table = _wide(u, u if v is None else v, table)
    scale, shift = table.chunk(2, 2)
    return torch.cat([torch.einsum("nchw,nkc->nkhw", u * v, scale), torch.einsum("nchw,nkc->nkhw", u, shift)], 1)


def _working_layout(backend: str, x: Tensor) -> torch.memory_format:
    """The CPU kernels read rows of channels: they know channels_last only."""
    return LAST if backend == "cpu" else memory_format(x)


def _mix(x, weights, weights2, table):
    backend, layout = _backend.choose("modulate_mix", "modulate_mix", x), memory_format(x)
    if backend == "reference" or x.numel() == 0:
        return reference_mix(x, weights, weights2, table).contiguous(memory_format=layout)
    working = _working_layout(backend, x)
    y = torch.empty_like(x, memory_format=working)
    given = (t.contiguous(memory_format=working) for t in (x, weights, weights2))
    _backend.kernel(backend, "modulate_mix", "modulate_mix")(*given, table.contiguous(), y)
    return y.contiguous(memory_format=layout)


def _sums(u, v, weights, weights2):
    backend = _backend.choose("modulate_mix", "mix_sums", u)
    if backend == "reference" or u.numel() == 0:
        return reference_sums(u, v, weights, weights2)
    sums = weights.new_empty((u.size(0), weights.size(1), 2 * u.size(1)))
    working = _working_layout(backend, u)
    given = (t.contiguous(memory_format=working) for t in (u, u if v is None else v, weights, weights2))
    _backend.kernel(backend, "modulate_mix", "mix_sums")(*given, sums)
    return sums


def _sums_fake(u, v, weights, weights2):
    return weights.new_empty((u.size(0), weights.size(1), 2 * u.size(1)))


def _dots(u, v, table):
    backend, layout = _backend.choose("modulate_mix", "mix_dots", u), memory_format(u)
    if backend == "reference" or u.numel() == 0:
        return reference_dots(u, v, table).contiguous(memory_format=layout)
    working = _working_layout(backend, u)
    dots = _dots_empty(u, table, working)
    given = (t.contiguous(memory_format=working) for t in (u, u if v is None else v))
    _backend.kernel(backend, "modulate_mix", "mix_dots")(*given, table.contiguous(), dots)
    return dots.contiguous(memory_format=layout)


def _dots_empty(u: Tensor, table: Tensor, layout: torch.memory_format) -> Tensor:
    n, _, h, w = u.shape
    return torch.empty((n, 2 * table.size(1), h, w), dtype=table.dtype, device=u.device, memory_format=layout)


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _of_scale(table: Tensor) -> Tensor:
    """The table without its shifts."""
    scale = table[..., : table.size(2) // 2]
    return torch.cat([scale, torch.zeros_like(scale)], 2)


def _of_both(u: Tensor, v: Tensor | None, weights: Tensor, weights2: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    """Gradients of u and v of what is (u v, u) times the mixes of the table; of u alone where v is u."""
    op = torch.ops.i2ifast.modulate_mix
    if v is not None:
        return op(v, weights, weights2, table), op(u, weights, weights2, _of_scale(table))
    scale, shift = table.chunk(2, 2)
    return op(u, weights, weights2, torch.cat([2 * scale, shift], 2)), None


def _mix_backward(ctx, dy):
    x, weights, weights2, table = ctx.saved_tensors
    need_x, need_w, need_w2, need_table = ctx.needs_input_grad
    op = torch.ops.i2ifast
    dx = op.modulate_mix(dy, weights, weights2, _of_scale(table)) if need_x else None
    dweights, dweights2 = op.mix_dots(dy, x, table).chunk(2, 1) if need_w or need_w2 else (None, None)
    return dx, dweights, dweights2, op.mix_sums(dy, x, weights, weights2) if need_table else None


def _sums_backward(ctx, dsums):
    u, v, weights, weights2 = ctx.saved_tensors
    du, dv = _of_both(u, v, weights, weights2, dsums) if any(ctx.needs_input_grad[:2]) else (None, None)
    dots = torch.ops.i2ifast.mix_dots(u, v, dsums).chunk(2, 1) if any(ctx.needs_input_grad[2:]) else (None, None)
    return du, dv, *dots


def _dots_backward(ctx, ddots):
    u, v, table = ctx.saved_tensors
    parts = ddots.chunk(2, 1)
    du, dv = _of_both(u, v, *parts, table) if any(ctx.needs_input_grad[:2]) else (None, None)
    return du, dv, torch.ops.i2ifast.mix_sums(u, v, *parts) if ctx.needs_input_grad[2] else None


define(
    "modulate_mix",
    "(Tensor x, Tensor weights, Tensor weights2, Tensor table) -> Tensor",
    _mix,
    lambda x, *rest: dense_like(x),
)
define("mix_sums", "(Tensor u, Tensor? v, Tensor weights, Tensor weights2) -> Tensor", _sums, _sums_fake)
define(
    "mix_dots",
    "(Tensor u, Tensor? v, Tensor table) -> Tensor",
    _dots,
    lambda u, v, table: _dots_empty(u, table, memory_format(u)),
)
autograd("modulate_mix", _setup, _mix_backward)
autograd("mix_sums", _setup, _sums_backward)
autograd("mix_dots", _setup, _dots_backward)


def modulate_mix(x: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    """y[n,c,p] = x * (sum_k weights[n,k,p] table[n,k,c]) + sum_k weights[n,k,p] table[n,k,C+c]

    x [N, C, H, W]; weights [N, K, H, W]; table [N, K, 2C], scales, then shifts. y like x. A mix of rows exists
    for the pixels at hand only. Differentiable to any order. Raises ValueError for shapes or devices that do not fit.
    """
    check_4d("x", x)
    _check_weights(x, weights)
    check_shape("table", table, (x.size(0), weights.size(1), 2 * x.size(1)))
    check_device(x, table=table)
    wide = accumulation_dtype(x)
    weights = weights.to(wide)
    return torch.ops.i2ifast.modulate_mix(x, weights, weights, table.to(wide))


def mix_sums(x: Tensor, weights: Tensor, weights2: Tensor) -> tuple[Tensor, Tensor]:
    """(sum_p weights[n,k,p] x[n,c,p]^2, sum_p weights2[n,k,p] x[n,c,p]), [N, K, C] each, in one pass over x.

    x [N, C, H, W]; weights, weights2 [N, K, H, W]. Differentiable to any order.
    """
    check_4d("x", x)
    _check_weights(x, weights)
    _check_weights(x, weights2)
    wide = accumulation_dtype(x)
    return torch.ops.i2ifast.mix_sums(x, None, weights.to(wide), weights2.to(wide)).chunk(2, 2)


def _check_weights(x: Tensor, weights: Tensor) -> None:
    check_4d("weights", weights)
    check_shape("weights", weights, (x.size(0), weights.size(1), *x.shape[2:]))
    check_device(x, weights=weights)
