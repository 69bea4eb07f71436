"""Convolutions over label maps, computed on the distinct label windows only."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..labels import Bags, LabelPlan, Level, plan_dense
from ..ops import Segments, gather_sum


def plan_of(seg: Tensor | LabelPlan) -> LabelPlan | None:
    """The plan of a conditioning map; None where a plan does not apply (it requires grad) or does not pay (soft maps).

    The plan of a tensor is remembered with it, so that all layers of a forward share one.
    """
    if isinstance(seg, LabelPlan):
        return seg
    if seg.requires_grad:
        return None
    version = None if seg.is_inference() else seg._version
    remembered = getattr(seg, "_i2ifast_plan", None)
    if remembered is None or remembered[0] != version:
        remembered = seg._i2ifast_plan = (version, plan_dense(seg))
    return remembered[1]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M, K] @ weight [L, K]^T + bias, through the faster route of the device.

    On the CPU oneDNN runs a 1x1 convolution at twice the rate of the GEMM behind F.linear (and PyTorch takes oneDNN for one only
    past 20480 inputs and with several threads).
    """
    if x.device.type != "cpu" or x.dtype is torch.float64 or x.numel() <= 20480 or torch.get_num_threads() == 1:
        return F.linear(x, weight, bias)
    y = F.conv2d(x.t()[None, :, None], weight[:, :, None, None], bias)
    return y[0, :, 0].t()


def sum_bags(rows: Tensor, bags: Bags, transposed: Bags) -> Tensor:
    return gather_sum(rows, bags.offsets, bags.index, transposed.offsets, transposed.index)


def expand(rows: Tensor, patches: Tensor, segments: Segments) -> Tensor:
    """rows [D, K] and patches [N, H, W] to the map [N, K, H, W], channels_last; its gradient is a sum over segments."""
    ends = torch.arange(patches.numel() + 1, dtype=torch.int32, device=patches.device)
    out = gather_sum(rows, ends, patches.flatten(), segments.offsets, segments.order)
    return out.view(*patches.shape, rows.size(1)).permute(0, 3, 1, 2)


def tap_rows(values: Tensor, weight: Tensor) -> Tensor:
    """What each tap of a convolution adds for each channel vector: values [S, nc], weight [L, nc, k, k] -> [S * k * k, L]."""
    out, channels, k, _ = weight.shape
    taps = weight.permute(2, 3, 0, 1).reshape(k * k * out, channels)
    return (values.to(weight.dtype) @ taps.t()).view(-1, out)


def resized(seg: Tensor, size: tuple[int, int]) -> Tensor:
    return seg if tuple(seg.shape[2:]) == tuple(size) else F.interpolate(seg, size=tuple(size), mode="nearest")


def label_conv2d(
    seg: Tensor | LabelPlan,
    weight: Tensor,
    bias: Tensor | None,
    size: tuple[int, int] | None = None,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """conv2d(seg, weight, bias, stride, padding) of a conditioning map, first resized by nearest to `size` (h, w).

    seg: a map [N, nc, H, W], or its plan: then only the distinct windows are computed, weight [L, nc, k, k] -> [N, L, Ho, Wo].
    Differentiable in weight and bias, and in a dense seg.
    """
    plan = plan_of(seg)
    if plan is None:
        return F.conv2d(resized(seg, size or seg.shape[2:]), weight, bias, stride, padding)
    windows = plan.windows(size or plan.size, weight.size(-1), stride, padding)
    rows = sum_bags(tap_rows(plan.values, weight), windows.bags, windows.bags_t)
    rows = rows if bias is None else rows + bias
    return expand(rows, windows.patches, windows.segments)


def hidden_rows(plan: LabelPlan, level: Level, weight: Tensor, bias: Tensor) -> Tensor:
    """relu(conv(map)) on the distinct windows of a level: [D_hidden, L]."""
    rows = tap_rows(plan.values, weight)
    return F.relu(sum_bags(rows, level.hidden.bags, level.hidden.bags_t) + bias)


def table_rows(level: Level, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """conv(hidden map) on the distinct windows of windows of a level: [D_table, L]. The bias rides on the centre tap."""
    out, channels, k, _ = weight.shape
    centre = k * k // 2 * out
    taps = linear(
        hidden,
        weight.permute(2, 3, 0, 1).reshape(k * k * out, channels),
        F.pad(bias, (centre, k * k * out - centre - out)),
    )
    return sum_bags(taps.reshape(-1, out), level.table.bags, level.table.bags_t)


def table_pays(level: Level) -> bool:
    """Whether tables cost less than convolutions at every pixel.

    A distinct window costs a GEMM row (which runs at 0.9 of the convolution's rate), a table row costs k * k gathers, measured
    at a tenth of a pixel's convolution with 128 hidden channels.
    """
    return 1.1 * level.hidden.count + 0.1 * level.table.count < level.table.patches.numel()
