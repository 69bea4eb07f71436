"""Triton kernel of `gather_sum`: out[d] = sum of rows[index[i]] for i in offsets[d] .. offsets[d + 1] - 1."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import SEGMENT, add_partials, load, on_device, piece, pieces


@triton.jit
def _gather(
    rows, offsets, index, out, partials, out_rows, width,
    SEGMENT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(width, BLOCK)
    item = tl.program_id(0) // blocks
    k = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    _, first, last = piece(offsets, out_rows, item, SEGMENT)
    total = tl.zeros((BLOCK_M, BLOCK), tl.float32)
    for i in range(first, last, BLOCK_M):
        m = i + tl.arange(0, BLOCK_M)
        r = tl.load(index + m, mask=m < last, other=0).to(tl.int64)
        total += load(rows, r[:, None] * width + k[None, :], (m < last)[:, None] & (k < width)[None, :])
    to = out + item.to(tl.int64) * width
    if item >= out_rows:
        to = partials + (item - out_rows).to(tl.int64) * width
    tl.store(to + k, tl.sum(total, 0), mask=k < width)


@on_device
def gather_sum(rows: Tensor, offsets: Tensor, index: Tensor, out: Tensor) -> None:
    """rows [R, K], out [D, K] of one dtype; offsets int32 [D+1]; index int32 [M]. Accumulates in float32."""
    count, width = out.shape
    programs, boundaries = pieces(index.numel(), count)
    total = out if out.dtype is torch.float32 else torch.empty_like(out, dtype=torch.float32)
    partials = total.new_empty((boundaries, width))
    block = min(triton.next_power_of_2(width), 64)
    _gather[(programs * triton.cdiv(width, block),)](
        rows, offsets, index, total, partials, count, width, SEGMENT=SEGMENT, BLOCK_M=16, BLOCK=block, num_warps=2
    )
    add_partials(partials, offsets, total)
    if total is not out:
        out.copy_(total)
