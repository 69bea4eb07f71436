"""Sums of table rows by index lists: the linear step between tables of patches."""

import torch
from torch import Tensor

from .. import _backend
from ._op import accumulation_dtype, autograd, define, refuse_forward_mode


def reference_forward(rows: Tensor, offsets: Tensor, index: Tensor) -> Tensor:
    wide = rows.to(accumulation_dtype(rows))
    counts = (offsets[1:] - offsets[:-1]).long()
    bag = torch.repeat_interleave(torch.arange(counts.numel(), device=rows.device), counts)
    out = torch.zeros((counts.numel(), rows.size(1)), dtype=wide.dtype, device=rows.device)
    return out.index_add(0, bag, wide[index.long()]).to(rows.dtype)


def _forward(rows, offsets, index, t_offsets, t_index):
    backend = _backend.choose("gather_sum", "gather_sum", rows)
    if backend == "reference" or index.numel() == 0:
        return reference_forward(rows, offsets, index)
    out = rows.new_empty((offsets.numel() - 1, rows.size(1)))
    _backend.kernel(backend, "gather_sum", "gather_sum")(rows.contiguous(), offsets, index, out)
    return out


def _fake(rows, offsets, index, t_offsets, t_index):
    return rows.new_empty((offsets.numel() - 1, rows.size(1)))


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx, dout):
    offsets, index, t_offsets, t_index = ctx.saved_tensors
    return torch.ops.i2ifast.gather_sum(dout, t_offsets, t_index, offsets, index), None, None, None, None


define(
    "gather_sum",
    "(Tensor rows, Tensor offsets, Tensor index, Tensor t_offsets, Tensor t_index) -> Tensor",
    _forward,
    _fake,
)
autograd("gather_sum", _setup, _backward)


def gather_sum_into(out: Tensor, rows: Tensor, offsets: Tensor, index: Tensor) -> None:
    """`gather_sum` without derivatives into out [D, K], which may be columns of a wider table."""
    if _backend.choose("gather_sum", "gather_sum", rows) != "cpu" or index.numel() == 0:
        out.copy_(torch.ops.i2ifast.gather_sum(rows, offsets, index, offsets, index))
    else:
        _backend.kernel("cpu", "gather_sum", "gather_sum")(rows.contiguous(), offsets, index, out)


def gather_sum(rows: Tensor, offsets: Tensor, index: Tensor, t_offsets: Tensor, t_index: Tensor) -> Tensor:
    """out[d] = sum of rows[index[i]] for i in offsets[d] .. offsets[d+1] - 1

    rows [R, K]; offsets int32 [D+1]; index int32 [M]; out [D, K]. (t_offsets [R+1], t_index [M]) is the transposed
    list: row r is used by the outputs t_index[t_offsets[r]:t_offsets[r+1]]. The op is linear and its adjoint is itself
    with the two lists exchanged, so derivatives of every order are deterministic. Accumulates in float32 (float64 for
    float64).
    """
    for name, t in (("offsets", offsets), ("index", index), ("t_offsets", t_offsets), ("t_index", t_index)):
        if t.dtype is not torch.int32:
            raise TypeError(f"{name} is {t.dtype}, expected torch.int32")
    refuse_forward_mode(rows)
    if t_offsets.numel() != rows.size(0) + 1:
        raise ValueError(f"rows has {rows.size(0)} rows, the transposed list {t_offsets.numel() - 1}")
    return torch.ops.i2ifast.gather_sum(rows, offsets, index, t_offsets, t_index)
