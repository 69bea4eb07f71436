"""Mean and variance per channel in one pass, and the statistics that the modulation ops normalise with."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .. import _backend
from ._op import accumulation_dtype, autograd, check_4d, define, memory_format


class Statistics(NamedTuple):
    """What `x` is normalised with. `G = N` for instance, `G = 1` for batch statistics."""

    mean: Tensor  # [G, C]
    rstd: Tensor  # [G, C]
    of_x: bool  # they are statistics of x, and gradients flow through them; else constants
    group: str = ""  # name of the process group they were synchronised over


def reference_forward(x: Tensor, per_sample: bool) -> tuple[Tensor, Tensor]:
    dims = (2, 3) if per_sample else (0, 2, 3)
    var, mean = torch.var_mean(x.to(accumulation_dtype(x)), dims, correction=0, keepdim=True)
    return mean.flatten(1), var.flatten(1)


def _empty(x: Tensor, per_sample: bool) -> tuple[Tensor, Tensor]:
    shape = (x.size(0) if per_sample else 1, x.size(1))
    return x.new_empty(shape, dtype=accumulation_dtype(x)), x.new_empty(shape, dtype=accumulation_dtype(x))


def _moments(x: Tensor, per_sample: bool) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        mean, var = _empty(x, per_sample)
        return mean.zero_(), var.zero_()
    backend = _backend.choose("moments", "moments", x)
    if backend == "reference":
        return reference_forward(x, per_sample)
    mean, var = _empty(x, per_sample)
    _backend.kernel(backend, "moments", "moments")(x.contiguous(memory_format=memory_format(x)), per_sample, mean, var)
    return mean, var


def _setup(ctx, inputs, output) -> None:
    x, ctx.per_sample = inputs
    ctx.save_for_backward(x, output[0])


def _backward(ctx, dmean: Tensor, dvar: Tensor) -> tuple[Tensor, None]:
    x, mean = ctx.saved_tensors
    count = max(1, x.numel() // max(1, mean.numel()))
    if not torch.is_grad_enabled():  # (x - mean) * scale + shift, in one pass
        style = torch.cat([2 * dvar, dmean], 1).div_(count).expand(x.size(0), -1)
        return torch.ops.i2ifast.modulate_style(x, style, mean, torch.ones_like(mean), False, 1.0, "", 0.0), None
    if x.requires_grad:  # the mean is a function of x too: a graph of this gradient has to go through it
        mean = reference_forward(x, ctx.per_sample)[0]
    centred = x.to(mean.dtype) - mean[..., None, None]
    dx = (dmean[..., None, None] + 2 * centred * dvar[..., None, None]) / count
    return dx.to(x.dtype).expand_as(x), None


define("moments", "(Tensor x, bool per_sample) -> (Tensor, Tensor)", _moments, _empty)
autograd("moments", _setup, _backward)


def moments(x: Tensor, per_sample: bool = True) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel: of each sample ([N, C]) or of the batch ([1, C]).

    x [N, C, H, W]. float32 results for halves and float32, float64 for float64; accumulated around the local mean, so a
    large mean costs no accuracy. Differentiable to any order. Empty x gives zeros.
    """
    check_4d("x", x)
    return torch.ops.i2ifast.moments(x, per_sample)


def instance_statistics(x: Tensor, eps: float = 1e-5) -> Statistics:
    """Statistics of every (sample, channel) plane; rstd = 1 / sqrt(var + eps)."""
    check_4d("x", x)
    with torch.no_grad():
        mean, var = torch.ops.i2ifast.moments(x, True)
        return Statistics(mean, (var + eps).rsqrt(), True)


def batch_statistics(
    x: Tensor, eps: float = 1e-5, group: str = "", noise: Tensor | None = None, strength: Tensor | None = None
) -> tuple[Statistics, Tensor, Tensor]:
    """Statistics of every channel over the batch, over all ranks of process group `group` if named.

    With `noise` and `strength`, as modulate_table takes them, those of x + strength * noise, in the same single pass.
    Returns (statistics, var [C], count []): the biased variance and the number of elements of x it was taken over.
    Ranks may hold different numbers of elements, none included.
    """
    check_4d("x", x)
    with torch.no_grad():
        mean, var, count = torch.ops.i2ifast.batch_moments(x, noise, strength, group)
        return Statistics(mean, (var + eps).rsqrt(), True, group), var[0], count


def fixed_statistics(mean: Tensor, var: Tensor, eps: float = 1e-5) -> Statistics:
    """Running statistics [C] as constants."""
    wide = accumulation_dtype(mean)
    return Statistics(mean.detach().to(wide)[None], (var.detach().to(wide) + eps).rsqrt()[None], False)


def no_statistics(x: Tensor) -> Statistics:
    """x is taken as it is."""
    shape = (1, x.size(1))
    kind = {"dtype": accumulation_dtype(x), "device": x.device}
    return Statistics(torch.zeros(shape, **kind), torch.ones(shape, **kind), False)


def process_group(name: str) -> dist.ProcessGroup:
    return dist.distributed_c10d._resolve_process_group(name)


@torch.no_grad()
def _noisy_moments(x: Tensor, noise: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of x + strength * noise over the batch; where noise is twice as large, of x upsampled to that."""
    mean, var = _empty(x, False)
    if x.numel() == 0:
        return mean.zero_(), var.zero_()
    plane, strength = noise.to(mean.dtype), strength.to(mean.dtype)
    within = torch.zeros_like(strength)
    if noise.shape[1:] != x.shape[2:]:  # the variance of means of 2x2 cells, and that within cells
        plane = F.avg_pool2d(plane, 2)
        within = (noise - plane.repeat_interleave(2, 1).repeat_interleave(2, 2)).square().mean() * strength**2
    backend = _backend.choose("moments", "moments", x)
    if backend == "reference":
        centre, _ = reference_forward(x, False)
        mean, var = reference_forward(x - centre[..., None, None] + strength[:, None, None] * plane[:, None], False)
        mean = mean + centre
    else:
        x = x.contiguous(memory_format=memory_format(x))
        _backend.kernel(backend, "moments", "moments")(x, False, mean, var, plane.contiguous(), strength.contiguous())
    return mean, var + within


def _batch_moments(
    x: Tensor, noise: Tensor | None, strength: Tensor | None, group: str
) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = _moments(x, False) if noise is None else _noisy_moments(x, noise, strength)
    count = torch.full((), x.numel() // max(1, x.size(1)), dtype=mean.dtype, device=x.device)
    if not group:
        return mean, var, count
    ranks = process_group(group)
    local = torch.cat([mean, var, count.expand_as(mean)])
    every = [torch.empty_like(local) for _ in range(ranks.size())]
    dist.all_gather(every, local, group=ranks)
    means, variances, counts = torch.stack(every).double().unbind(1)  # [ranks, C] each
    total = counts.sum(0).clamp(min=1)
    mean = (counts * means).sum(0) / total
    var = (counts * (variances + (means - mean) ** 2)).sum(0) / total
    return mean[None].to(local.dtype), var[None].to(local.dtype), total[0].to(local.dtype)


def _batch_moments_fake(x: Tensor, noise: Tensor | None, strength: Tensor | None, group: str) -> tuple[Tensor, ...]:
    return *_empty(x, False), x.new_empty((), dtype=accumulation_dtype(x))


define(
    "batch_moments",
    "(Tensor x, Tensor? noise, Tensor? strength, str group) -> (Tensor, Tensor, Tensor)",
    _batch_moments,
    _batch_moments_fake,
)
_backend.lib.impl("batch_moments", torch.library.fallthrough_kernel, "Autograd")  # statistics are constants to autograd
