"""What the cases of all ops are made of: see `testing`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops

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


def statistics_of(x: Tensor, kind: str) -> ops.Statistics:
    if kind == "instance":
        return ops.instance_statistics(x)
    if kind == "batch":
        return ops.batch_statistics(x)[0]
    if kind == "fixed":
        channel = torch.arange(x.size(1), dtype=torch.float32, device=x.device).to(ops.no_statistics(x).mean.dtype)
        return ops.fixed_statistics(channel.sin(), 1 + channel.cos() ** 2)
    return ops.no_statistics(x)


def plain_norm(x: Tensor, kind: str) -> Tensor:
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


def plain_act(z: Tensor, act: str | float) -> Tensor:
    return z if act == "none" else F.relu(z) if act == "relu" else F.leaky_relu(z, act)
