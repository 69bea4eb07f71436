"""The parts of `act((x - mean) * rstd * (1 + gamma) + beta)` that the three modulation ops share."""

import torch
import torch.distributed as dist
from torch import Tensor

from ._op import accumulation_dtype
from .moments import process_group, reference_forward


def spread(t: Tensor) -> Tensor:
    """[G, C] to [G, C, 1, 1]."""
    return t[..., None, None]


def repeat2(x: Tensor) -> Tensor:
    """Nearest x2 upsampling."""
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def add2(g: Tensor) -> Tensor:
    """Adjoint of `repeat2`: sums over 2x2 cells."""
    n, c, h, w = g.shape
    return g.reshape(n, c, h // 2, 2, w // 2, 2).sum((3, 5))


def normalise(x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    return (x.to(accumulation_dtype(x)) - spread(mean)) * spread(rstd)


def attach(x: Tensor, mean: Tensor, rstd: Tensor, of_x: bool) -> tuple[Tensor, Tensor]:
    """The same values, as differentiable functions of x where they are its statistics (whatever eps is in rstd)."""
    if not of_x:
        return mean, rstd
    m, v = reference_forward(x, mean.size(0) != 1 or x.size(0) == 1)
    return mean + (m - m.detach()), (rstd**-2 + (v - v.detach())) ** -0.5


def activation_gradient(dy: Tensor, z: Tensor, slope: float) -> Tensor:
    return dy if slope == 1.0 else torch.where(z > 0, dy, dy * slope)


def statistics_sums(g: Tensor, xhat: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Sum of g and of g * xhat over the elements that share a statistic: [G, C] each. g = dL/dxhat."""
    dims = (0, 2, 3) if groups == 1 else (2, 3)
    return g.sum(dims).view(groups, g.size(1)), (g * xhat).sum(dims).view(groups, g.size(1))


def mean_of_sums(sums: Tensor, x: Tensor, of_x: bool, group: str) -> Tensor:
    """sums [2, G, C] divided by the number of elements of x behind each, over all ranks; zeros for constants."""
    if not of_x:
        return torch.zeros_like(sums)
    count = torch.full_like(sums[:1, :, :1], x.numel() // max(1, sums[0].numel()))
    if group:
        everything = torch.cat([sums.flatten(), count.flatten()])
        dist.all_reduce(everything, group=process_group(group))
        sums, count = everything[: sums.numel()].view_as(sums), everything[sums.numel() :].view_as(count)
    return sums / count.clamp(min=1)


def normalise_gradient(g: Tensor, xhat: Tensor, rstd: Tensor, means: Tensor) -> Tensor:
    """dx = rstd * (g - mean(g) - xhat * mean(g * xhat)); means [2, G, C]."""
    return spread(rstd) * (g - spread(means[0]) - xhat * spread(means[1]))


def refuse_group(group: str) -> None:
    if group:
        raise NotImplementedError("second derivatives through statistics synchronised over ranks are not implemented")
