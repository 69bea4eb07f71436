"""Convolutions over label maps, computed on the distinct label windows only."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..labels import LabelPlan, Level, Windows, plan_dense
from ..ops import gather_sum, linear
from ..ops.gather_sum import gather_sum_into

COLUMNS = 128  # of a table that are made at a time: their taps stay in memory that malloc keeps
_plans = WeakTensorKeyDictionary()  # tensor -> (its state, its plan)


def plan_of(seg: Tensor | LabelPlan) -> LabelPlan | None:
    """The plan of a conditioning map; None where it does not apply (seg requires grad, torch.export traces) or does not
    pay (soft maps).

    The plan of a tensor is remembered as long as that lives unchanged, so that all layers of a forward share one. Not
    so for inference tensors, which do not tell of changes: give those networks a plan.
    """
    if isinstance(seg, LabelPlan):
        return seg
    if seg.requires_grad or torch.compiler.is_exporting():
        return None
    if seg.is_inference():
        return plan_dense(seg)
    state = seg._version, seg.data_ptr()
    remembered = _plans.get(seg)
    if remembered is None or remembered[0] != state:
        remembered = _plans[seg] = (state, plan_dense(seg))
    return remembered[1]


def resized(seg: Tensor, size: tuple[int, int]) -> Tensor:
    return seg if tuple(seg.shape[2:]) == tuple(size) else F.interpolate(seg, size=tuple(size), mode="nearest")


def sum_windows(rows: Tensor, windows: Windows) -> Tensor:
    """What the taps of each distinct window add up to: rows [ids * k * k, K] -> [D, K]."""
    bags, transposed = windows.bags, windows.bags_t
    return gather_sum(rows, bags.offsets, bags.index, transposed.offsets, transposed.index)


def tap_table(
    hidden: Tensor,
    products: Iterable[Callable[[Tensor], Tensor]],
    width: int,
    windows: Windows,
    more: Tensor | None = None,
) -> Tensor:
    """The table [D, width] of a convolution over rows `hidden` [ids, K]: sums of what each tap makes of its row.

    `products` give the taps [ids, k * k * COLUMNS] for COLUMNS outputs after another. Of all outputs at once they would
    be the largest tensor of a network, and the system's zeroing of fresh memory half the time of making it. A window
    also gets the row of `more` [ids, width] that is at its centre.
    """
    table = hidden.new_empty((windows.count, width))
    made = []
    for i, (product, columns) in enumerate(zip(products, table.split(COLUMNS, 1), strict=True)):
        rows = product(hidden).view(-1, columns.size(1))
        if more is not None:
            taps = rows.view(len(hidden), -1, columns.size(1))
            taps[:, taps.size(1) // 2] += more[:, i * COLUMNS : (i + 1) * COLUMNS]
        if torch.is_grad_enabled():
            made.append(sum_windows(rows, windows))
        else:
            gather_sum_into(columns, rows, windows.bags.offsets, windows.bags.index)
    return torch.cat(made, 1) if made else table


def expand(rows: Tensor, windows: Windows) -> Tensor:
    """rows [D, K] to the map [N, K, H, W], channels_last; its gradient is a sum over segments."""
    patches, segments = windows.patches, windows.segments
    ends = torch.arange(patches.numel() + 1, dtype=torch.int32, device=patches.device)
    out = gather_sum(rows, ends, patches.flatten(), segments.offsets, segments.order)
    return out.view(*patches.shape, rows.size(1)).permute(0, 3, 1, 2)


def tap_matrix(weight: Tensor) -> Tensor:
    """A convolution's weight [L, K, k, k] as [k * k * L, K], taps first. Whole rows if it is channels_last."""
    return weight.permute(2, 3, 0, 1).reshape(-1, weight.size(1))


def centred(bias: Tensor, taps: int) -> Tensor:
    """bias [L] as [taps * L]: of every window exactly one member is its centre tap, so the bias may ride on that."""
    before = taps // 2 * bias.numel()
    return F.pad(bias, (before, taps * bias.numel() - before - bias.numel()))


def label_conv2d(
    seg: Tensor | LabelPlan,
    weight: Tensor,
    bias: Tensor | None,
    size: tuple[int, int] | None = None,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """conv2d(seg, weight, bias, stride, padding) of a conditioning map, first resized by nearest to `size` (h, w).

    seg: a map [N, nc, H, W], or its plan: then only the distinct windows are computed. weight [L, nc, k, k] gives
    [N, L, Ho, Wo]. Differentiable in weight and bias, and in a dense seg.
    """
    plan = plan_of(seg)
    if plan is None:
        return F.conv2d(resized(seg, size or seg.shape[2:]), weight, bias, stride, padding)
    windows = plan.windows(size or plan.size, weight.size(-1), stride, padding)
    rows = linear(plan.values.to(weight.dtype), tap_matrix(weight)).view(-1, weight.size(0))
    rows = sum_windows(rows, windows)
    return expand(rows if bias is None else rows + bias, windows)


def table_pays(level: Level) -> bool:
    """Whether tables cost less than convolutions at every pixel.

    Estimated with 128 hidden channels: a distinct window costs a GEMM row, at 0.9 of the convolution's rate; a table
    row costs k * k gathers from cache, a tenth of a pixel's convolution.
    """
    return 1.1 * level.hidden.count + 0.1 * level.table.count < level.table.patches.numel()
