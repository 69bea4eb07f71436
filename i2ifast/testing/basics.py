"""Cases of statistics, convolutions, and sums of rows."""

import torch
import torch.nn.functional as F

from .. import ops
from ._case import Case, normal


def _moments(per_sample: bool) -> Case:
    dims = (2, 3) if per_sample else (0, 2, 3)

    def plain(x):
        var, mean = torch.var_mean(x, dims, correction=0)
        return mean.view(-1, x.size(1)), var.view(-1, x.size(1))

    return Case(
        f"moments-{'sample' if per_sample else 'batch'}",
        lambda shape, g: {"x": normal(g, *shape)},
        lambda x: ops.moments(x, per_sample),
        plain,
    )


def _conv_inputs(shape, g):
    n, c, h, w = shape
    return {"x": normal(g, *shape), "weight": 0.2 * normal(g, 64, c, 3, 3), "bias": normal(g, 64)}


def _conv(padding: str) -> Case:
    def possible(x):
        """A single line has no second one to reflect."""
        return "replicate" if padding == "reflect" and min(x.shape[2:]) == 1 else padding

    def plain(x, weight, bias):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), possible(x)), weight, bias)

    return Case(
        f"conv3x3-{padding}", _conv_inputs, lambda x, weight, bias: ops.conv3x3(x, weight, bias, possible(x)), plain
    )


def _conv2d(kernel: int, stride: int, padding: int) -> Case:
    """Of small maps the padding is as large as leaves a window."""

    def inputs(shape, g):
        return {**_conv_inputs(shape, g), "weight": 0.2 * normal(g, 64, shape[1], kernel, kernel)}

    def possible(x):
        return padding if min(x.shape[2:]) + 2 * padding >= kernel else 2

    return Case(
        f"conv2d-{kernel}-{stride}-{padding}",
        inputs,
        lambda x, weight, bias: ops.conv2d(x, weight, bias, stride, possible(x)),
        lambda x, weight, bias: F.conv2d(x, weight, bias, stride, possible(x)),
    )


def _transposed_inputs(shape, g):
    n, c, h, w = shape
    return {"x": normal(g, *shape), "weight": 0.2 * normal(g, c, 16, 4, 4), "bias": normal(g, 16)}


def _linear_inputs(shape, g):
    n, c, h, w = shape
    return {"x": normal(g, n * h * w, c), "weight": normal(g, 2 * c, c), "bias": normal(g, 2 * c)}


def _gather_inputs(shape, g):
    n, c, h, w = shape
    count, members = 11, 5
    index = torch.randint(0, count, (n * h * w, members), generator=g, dtype=torch.int32)
    keep = torch.rand(index.shape, generator=g) < 0.8
    offsets = F.pad(keep.sum(1).cumsum(0), (1, 0)).int()
    index = index[keep]
    bag = torch.arange(n * h * w).repeat_interleave(offsets.diff().long(), output_size=index.numel())
    order = torch.argsort(index.long(), stable=True)
    t_offsets = F.pad(torch.bincount(index.long(), minlength=count).cumsum(0), (1, 0)).int()
    lists = {"offsets": offsets, "index": index, "t_offsets": t_offsets, "t_index": bag[order].int()}
    return {"rows": normal(g, count, c), **lists}


def _gather_plain(rows, offsets, index, t_offsets, t_index):
    return F.embedding_bag(index.long(), rows, offsets.long(), mode="sum", include_last_offset=True)


CASES = [
    _moments(True),
    _moments(False),
    Case("conv3x3", _conv_inputs, ops.conv3x3, lambda x, weight, bias: F.conv2d(x, weight, bias, padding=1)),
    _conv("replicate"),
    _conv("reflect"),
    _conv2d(4, 1, 2),
    _conv2d(4, 2, 1),
    _conv2d(3, 2, 1),
    Case(
        "conv_transpose2d",
        _transposed_inputs,
        ops.conv_transpose2d,
        lambda x, weight, bias: F.conv_transpose2d(x, weight, bias, 2, 1),
    ),
    Case("linear", _linear_inputs, ops.linear, F.linear),
    Case("gather_sum", _gather_inputs, ops.gather_sum, _gather_plain),
]
