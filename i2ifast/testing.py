"""One table of cases for tests and benchmarks: every op, how to make its inputs, and its plain PyTorch formulation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """An op with fixed options on inputs of any [N, C, H, W]."""

    name: str
    make: Callable[[tuple[int, int, int, int], torch.Generator], Tensors]  # float64 and int32 CPU tensors
    ours: Callable[..., Tensor | tuple[Tensor, ...]]
    plain: Callable[..., Tensor | tuple[Tensor, ...]]  # what a user would run instead


SHAPES = {
    "plain": (2, 32, 12, 10),
    "odd": (1, 7, 5, 3),
    "wide": (2, 33, 3, 17),
    "batch of pixels": (3, 8, 1, 1),
    "one channel": (2, 1, 6, 5),
    "many channels": (1, 260, 4, 4),
    "empty": (0, 8, 4, 4),
}


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def blocky(generator: torch.Generator, n: int, h: int, w: int, count: int, cell: int = 3) -> Tensor:
    """An index map [n, h, w] int32 with values 0..count-1, piecewise constant in cells."""
    coarse = torch.randint(0, count, (n, -(-h // cell), -(-w // cell)), generator=generator, dtype=torch.int32)
    return coarse.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, :h, :w].contiguous()


def _statistics(x: Tensor, kind: str) -> ops.Statistics:
    if kind == "instance":
        return ops.instance_statistics(x)
    if kind == "batch":
        return ops.batch_statistics(x)[0]
    if kind == "fixed":
        channel = torch.arange(x.size(1), dtype=torch.float32, device=x.device).to(ops.no_statistics(x).mean.dtype)
        return ops.fixed_statistics(channel.sin(), 1 + channel.cos() ** 2)
    return ops.no_statistics(x)


def _plain_norm(x: Tensor, kind: str) -> Tensor:
    if kind == "instance":
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
        return (x - mean) / torch.sqrt(var + 1e-5)
    if kind == "batch":
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        return (x - mean) / torch.sqrt(var + 1e-5)
    if kind == "fixed":
        channel = torch.arange(x.size(1), dtype=torch.float64, device=x.device)
        return F.batch_norm(x, channel.sin().to(x.dtype), (1 + channel.cos() ** 2).to(x.dtype))
    return x


def _plain_act(z: Tensor, act: str | float) -> Tensor:
    return z if act == "none" else F.relu(z) if act == "relu" else F.leaky_relu(z, act)


def _table_inputs(scale: int, outputs: int):
    def make(shape, g):
        n, c, h, w = shape
        return {
            "x": normal(g, *shape),
            "table": 0.5 * normal(g, 9, 2 * c * outputs),
            "patches": blocky(g, n, h * scale, w * scale, 9),
        }

    return make


def _table(kind: str, act, act2=None, upsample=False) -> Case:
    def ours(x, table, patches):
        return ops.modulate_table(x, table, patches, _statistics(x, kind), act, act2, upsample)

    def plain(x, table, patches):
        xhat = _plain_norm(x, kind)
        xhat = xhat.repeat_interleave(2, 2).repeat_interleave(2, 3) if upsample else xhat
        maps = F.embedding(patches.long(), table).permute(0, 3, 1, 2).split(x.size(1), 1)
        ys = [_plain_act(xhat * (1 + g) + b, a) for g, b, a in zip(maps[::2], maps[1::2], (act, act2), strict=False)]
        return ys[0] if act2 is None else tuple(ys)

    name = f"modulate_table-{kind}-{act}" + (f"-{act2}" if act2 is not None else "") + ("-upsample" if upsample else "")
    return Case(name, _table_inputs(2 if upsample else 1, 1 if act2 is None else 2), ours, plain)


def _dense(kind: str, act) -> Case:
    def make(shape, g):
        n, c, h, w = shape
        return {"x": normal(g, *shape), "gamma_beta": 0.5 * normal(g, n, 2 * c, h, w)}

    def plain(x, gamma_beta):
        gamma, beta = gamma_beta.chunk(2, 1)
        return _plain_act(_plain_norm(x, kind) * (1 + gamma) + beta, act)

    def ours(x, gamma_beta):
        return ops.modulate(x, gamma_beta, None, _statistics(x, kind), act)

    return Case(f"modulate-{kind}-{act}", make, ours, plain)


def _dense_pair(kind: str) -> Case:
    def make(shape, g):
        n, c, h, w = shape
        maps = {name: 0.5 * normal(g, n, 2 * c, h, w) for name in ("gamma_beta", "gamma_beta2")}
        return {"x": normal(g, *shape), **maps}

    def plain(x, gamma_beta, gamma_beta2):
        xhat = _plain_norm(x, kind)
        (gamma, beta), (gamma2, beta2) = gamma_beta.chunk(2, 1), gamma_beta2.chunk(2, 1)
        return F.leaky_relu(xhat * (1 + gamma) + beta, 0.2), xhat * (1 + gamma2) + beta2

    def ours(x, gamma_beta, gamma_beta2):
        return ops.modulate(x, gamma_beta, None, _statistics(x, kind), 0.2, gamma_beta2, "none")

    return Case(f"modulate-{kind}-0.2-none", make, ours, plain)


def _style(kind: str, act) -> Case:
    def make(shape, g):
        style = 0.5 * normal(g, shape[0], 2 * shape[1])
        style[:, : shape[1]] += 1
        return {"x": normal(g, *shape), "style": style}

    def plain(x, style):
        scale, shift = style[..., None, None].chunk(2, 1)
        return _plain_act(_plain_norm(x, kind) * scale + shift, act)

    def ours(x, style):
        return ops.modulate_style(x, style, _statistics(x, kind), act)

    return Case(f"modulate_style-{kind}-{act}", make, ours, plain)


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
    *[_table(kind, act) for kind, act in (("batch", 0.2), ("instance", "relu"), ("fixed", "none"), ("none", 0.2))],
    _table("batch", 0.2, "none"),
    _table("instance", 0.2, upsample=True),
    _table("batch", 0.2, "none", upsample=True),
    *[_dense(kind, act) for kind, act in (("batch", 0.2), ("instance", "none"), ("fixed", "relu"), ("none", 0.2))],
    _dense_pair("batch"),
    *[_style(kind, act) for kind, act in (("instance", "relu"), ("batch", 0.2), ("none", "none"), ("fixed", 0.2))],
    _moments(True),
    _moments(False),
    Case("conv3x3", _conv_inputs, ops.conv3x3, lambda x, weight, bias: F.conv2d(x, weight, bias, padding=1)),
    Case("linear", _linear_inputs, ops.linear, F.linear),
    Case("gather_sum", _gather_inputs, ops.gather_sum, _gather_plain),
]


def inputs(
    case: Case, shape: tuple[int, int, int, int], dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> Tensors:
    """Inputs of a case: floating-point tensors in `dtype`, exactly representable in it."""
    made = case.make(shape, torch.Generator().manual_seed(seed))
    return {k: (v.to(dtype) if v.is_floating_point() else v).to(device) for k, v in made.items()}
