"""Statistics of a normalisation layer: which ones its mode asks for, synchronised or not, and its running buffers."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..ops import Statistics, batch_statistics, fixed_statistics, instance_statistics


def synchronised_group() -> str:
    """Name of the process group that batch statistics are taken over; '' for one process."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD.group_name
    return ""


def statistics_of(
    x: Tensor,
    norms: Sequence[nn.Module],
    repeats: int = 1,
    synchronise: bool = True,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
) -> tuple[Statistics, ...]:
    """What each of `norms`, batch or instance norms without affine parameters, normalises the same x with.

    One pass over x serves them all; running buffers are updated. `repeats`: how often every element of x occurs in the
    map that the layers are said to normalise (4 for one upsampled x2 by nearest): mean and variance are the same, the
    unbiased running variance is not. With `noise` and `strength` (see ops.batch_statistics) batch norms normalise
    x + strength * noise.
    """
    norm = norms[0]
    if isinstance(norm, nn.InstanceNorm2d):
        if norm.track_running_stats:
            raise NotImplementedError("instance norm with running statistics")
        return (instance_statistics(x, norm.eps),) * len(norms)
    if not norm.training and norm.running_mean is not None:
        return tuple(fixed_statistics(n.running_mean, n.running_var, n.eps) for n in norms)
    group = synchronised_group() if synchronise and norm.training else ""
    if norm.training and not group and repeats * x.numel() == x.size(1):
        raise ValueError(
            f"batch norm in training: one value per channel has no variance, got x of shape {list(x.shape)}"
        )
    statistics, var, count = batch_statistics(x, norm.eps, group, noise, strength)
    for each in norms:
        if each.training and each.running_mean is not None:
            update_running(each, statistics, var, count * repeats)
    return (statistics,) * len(norms)


@torch.no_grad()
def update_running(norm: nn.Module, statistics: Statistics, var: Tensor, count: Tensor) -> None:
    """Move running buffers as torch.nn.BatchNorm2d does: the variance is the unbiased one, an empty batch none."""
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
    momentum = (momentum * count.clamp(max=1)).to(norm.running_mean.dtype)
    unbiased = var * (count / (count - 1).clamp(min=1))
    norm.running_mean.lerp_(statistics.mean[0].to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)
