"""Normalisation, with the activation behind it, as torch or the originals compute it.

Functions named as the library's take its arguments; `self` is a module of the library's with its parameters.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[..., Tensor]  # of x, and perhaps of a scale and a shift, [C] or [N, C]


def activated(y: Tensor, act: str | float) -> Tensor:
    """In place, as published networks have it behind a norm."""
    if act == "none" or act == 1.0:
        return y
    return F.relu(y, inplace=True) if act == "relu" else F.leaky_relu(y, float(act), inplace=True)


def instance_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """weight, bias [N, C] are those of samples: batch norm of one sample of N * C channels, as MUNIT has it."""
    if weight is None or weight.dim() == 1:
        return F.instance_norm(x, weight=weight, bias=bias, eps=eps)
    planes = x.reshape(1, -1, *x.shape[2:])
    y = F.batch_norm(planes, None, None, weight.reshape(-1), bias.reshape(-1), training=True, eps=eps)
    return y.view(x.shape) if y.is_contiguous() else y.reshape(x.shape)


def scaled(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return x if weight is None else x * weight[..., None, None] + bias[..., None, None]


# The library takes statistics and normalises later; here the norm itself stands for its statistics.


def instance_statistics(x: Tensor, eps: float = 1e-5) -> Norm:
    return partial(instance_norm, eps=eps)


def statistics_of(x: Tensor, norms: Sequence[nn.Module], *args: Any, **options: Any) -> tuple[Norm, ...]:
    return tuple(lambda x, weight=None, bias=None, norm=norm: scaled(norm(x), weight, bias) for norm in norms)


def modulate_style(
    x: Tensor, style: Tensor | None = None, statistics: Norm = scaled, act: str | float = "none"
) -> Tensor:
    return activated(statistics(x, *(() if style is None else style.chunk(2, 1))), act)


def batch_norm_act(self: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return activated(nn.BatchNorm2d.forward(self, x), self.act)


def vector_norm_act(self: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Of vectors [N, C]: torch.nn.BatchNorm1d."""
    return batch_norm_act(self, x[..., None, None])[..., 0, 0]


def instance_norm_module(self: nn.Module, x: Tensor) -> Tensor:
    return activated(self.norm(x), self.act)


def instance_norm_act(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, act: str | float = "none", eps: float = 1e-5
) -> Tensor:
    return activated(instance_norm(x, weight, bias, eps), act)


def tracked_instance_norm_act(self: nn.InstanceNorm2d, x: Tensor) -> Tensor:
    if self.training or self.running:
        return activated(nn.InstanceNorm2d.forward(self, x), self.act)
    return activated(F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps), self.act)


def mean_and_deviation(x: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    rows = x.reshape(*x.shape[:2], -1)
    return rows.mean(2), (rows.var(2) + eps).sqrt()


def adain(
    x: Tensor, style: Tensor, act: str | float = "none", eps: float = 1e-5, alpha: float = 1.0, repeats: int = 1
) -> Tensor:
    (mean, std), (style_mean, style_std) = mean_and_deviation(x, eps), mean_and_deviation(style, eps)
    if repeats > 1:  # the unbiased variance of a map that has every element of x so many times
        count = x.size(2) * x.size(3)
        var = (std.square() - eps) * ((count - 1) / count * repeats * count / (repeats * count - 1))
        std = (var + eps).sqrt()
    mean, std, style_mean, style_std = (t[..., None, None] for t in (mean, std, style_mean, style_std))
    y = (x - mean) / std * style_std + style_mean
    return activated(y if alpha == 1 else alpha * y + (1 - alpha) * x, act)


def layer_norm(self: nn.Module, x: Tensor) -> Tensor:
    """MUNIT's: eps is added to the deviation."""
    rows = x.reshape(x.size(0), -1)
    mean, std = rows.mean(1).view(-1, 1, 1, 1), rows.std(1).view(-1, 1, 1, 1)
    y = (x - mean) / (std + self.eps)
    return activated(
        y if self.gamma is None else y * self.gamma.view(1, -1, 1, 1) + self.beta.view(1, -1, 1, 1), self.act
    )


def group_layer_norm(self: nn.Module, x: Tensor) -> Tensor:
    """Layer norm with a scale and a shift of every channel."""
    return activated(F.group_norm(x, 1, self.gamma, self.beta, self.eps), self.act)


def group_layer_norm_act(self: nn.Module, x: Tensor) -> Tensor:
    return F.relu(F.group_norm(x, 1, self.weight.flatten(), self.bias.flatten(), self.eps), inplace=True)


def adaptive_instance_layer_norm(self: nn.Module, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """U-GAT-IT's and NICE-GAN's: every step is a pass over the image."""
    of_instance, of_layer = (
        (x - x.mean(dims, keepdim=True)) / torch.sqrt(x.var(dims, keepdim=True) + self.eps)
        for dims in ((2, 3), (1, 2, 3))
    )
    if self.softmax:
        rho = self.rho.softmax(2).unbind(2)
        y = sum(r[..., None, None] * part for r, part in zip(rho, (of_instance, of_layer), strict=True))
    else:
        y = self.rho * of_instance + (1 - self.rho) * of_layer
    return activated(y * gamma[..., None, None] + beta[..., None, None], self.act)


def instance_layer_norm(self: nn.Module, x: Tensor) -> Tensor:
    return adaptive_instance_layer_norm(self, x, self.gamma.flatten(), self.beta.flatten())


def positional_norm(
    x: Tensor, gamma_beta: Tensor | None = None, act: str | float = "none", eps: float = 1e-5
) -> Tensor:
    y = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + eps).sqrt()
    if gamma_beta is not None:
        gamma, beta = gamma_beta.chunk(2, 1)
        y = y * (1 + gamma) + beta
    return activated(y, act)


def region_norm(x: Tensor, mask: Tensor) -> Tensor:
    """Both sides of the mask, each by its own mean and variance."""
    result = 0
    for m in (mask, 1 - mask):
        count = m.sum().clamp(min=1)
        mean = (x * m).sum((0, 2, 3), keepdim=True) / count
        var = ((x - mean).square() * m).sum((0, 2, 3), keepdim=True) / count
        result = result + (x - mean) * torch.rsqrt(var + 1e-5 * mask.numel() / count) * m
    return result


def basic_region_norm(self: nn.Module, x: Tensor, mask: Tensor, rn: Callable = region_norm) -> Tensor:
    mask = mask.to(x.dtype)
    if mask.shape[2:] != x.shape[2:]:
        mask = F.interpolate(mask, size=x.shape[2:])
    fore, back = (1 + g[None, :, None, None] for g in (self.foreground_gamma, self.background_gamma))
    shift = (self.foreground_beta + self.background_beta)[None, :, None, None]
    return activated(rn(x, mask) * (mask * fore + (1 - mask) * back) + shift, self.act)


def learned_region_norm(self: nn.Module, x: Tensor, rn: Callable = region_norm) -> Tensor:
    sa = self.sa
    importance = torch.sigmoid(sa.conv1(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)))
    gamma, beta = sa.gamma_conv(importance), sa.beta_conv(importance)
    mask = (importance.detach() >= self.threshold).to(x.dtype)
    return activated(rn(x, mask) * (1 + gamma) + beta, self.act)


def mix_sums(x: Tensor, weights: Tensor, weights2: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.flatten(2).transpose(1, 2)
    return weights.flatten(2) @ rows.square(), weights2.flatten(2) @ rows


def modulate_mix(x: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    scale, shift = (rows.transpose(1, 2) @ weights.flatten(2) for rows in table.chunk(2, 2))
    return x * scale.view(x.shape) + shift.view(x.shape)


def region_average_pool(x: Tensor, maps: Tensor, per_sample: bool = True) -> Tensor:
    n, c, h, w = x.shape
    ids = F.interpolate(maps.reshape(n, 1, *maps.shape[-2:]).double(), size=(h, w)).long().flatten()
    if per_sample:
        ids = ids * n + torch.arange(n, device=x.device).repeat_interleave(h * w)
    found, ids = ids.unique(return_inverse=True)
    rows = x.permute(0, 2, 3, 1).reshape(-1, c)
    sums = rows.new_zeros(len(found), c).index_add(0, ids, rows)
    means = sums / ids.bincount(minlength=len(found))[:, None]
    return means[ids].view(n, h, w, c).permute(0, 3, 1, 2)


def spectral_weight(
    weight: Tensor, u: Tensor, v: Tensor, iterations: int = 1, eps: float = 1e-12
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    matrix = weight.flatten(1)
    with torch.no_grad():
        for _ in range(iterations):
            v = F.normalize(torch.mv(matrix.t(), u), dim=0, eps=eps)
            u = F.normalize(torch.mv(matrix, v), dim=0, eps=eps)
    sigma = torch.dot(u, torch.mv(matrix, v))
    return weight / sigma, u, v, sigma
