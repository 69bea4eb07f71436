"""Instance normalisation with its activation, and adaptive instance normalisation (AdaIN)."""

import torch
from torch import Tensor, nn

from ..ops import Statistics, fixed_statistics, instance_statistics, modulate_style, moments


class InstanceNormAct(nn.Module):
    """act(instance_norm(x)): in one pass over x for the statistics and one to write y.

    Stands for an InstanceNorm2d (affine or not, without running statistics) and the activation behind it. `act`:
    'none', 'relu', or the slope of a leaky relu. With `affine`, weight and bias [C] as in torch.nn.InstanceNorm2d.
    Ulyanov et al., Instance Normalization, 2016.
    """

    def __init__(self, num_features: int, act: str | float = "relu", affine: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(num_features, eps=eps, affine=affine)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm_act(x, self.norm.weight, self.norm.bias, self.act, self.norm.eps)


def instance_norm_act(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, act: str | float = "none", eps: float = 1e-5
) -> Tensor:
    """act((x - mean) / sqrt(var + eps) * weight + bias) with statistics of every (sample, channel) plane; weight, bias
    [C]."""
    return modulate_style(x, _style(x, weight, bias), instance_statistics(x, eps), act)


def _style(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """weight and bias [C] as the vector of every sample."""
    return None if weight is None else torch.cat([weight, bias]).expand(x.size(0), -1)


class TrackedInstanceNormAct(nn.InstanceNorm2d):
    """act(instance_norm(x)) as torch.nn.InstanceNorm2d with track_running_stats, whose averages evaluation takes.

    Without `running`, averages are kept but never taken: evaluation has the statistics of every image too.
    """

    def __init__(
        self, num_features: int, act: str | float = "relu", affine: bool = False, running: bool = True
    ) -> None:
        super().__init__(num_features, affine=affine, track_running_stats=True)
        self.act, self.running = act, running

    def forward(self, x: Tensor) -> Tensor:
        if self.running and not self.training:
            statistics = fixed_statistics(self.running_mean, self.running_var, self.eps)
        else:
            with torch.no_grad():
                mean, var = moments(x)
                statistics = Statistics(mean, (var + self.eps).rsqrt(), True)
        if self.training:
            self.track(mean, var, x.size(2) * x.size(3))
        return modulate_style(x, _style(x, self.weight, self.bias), statistics, self.act)

    @torch.no_grad()
    def track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the averages towards the mean over the batch of statistics [N, C] of `count` pixels each."""
        self.running_mean.lerp_(mean.mean(0).to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(var.mean(0).to(self.running_var.dtype) * (count / max(1, count - 1)), self.momentum)


class AdaIN(nn.Module):
    """y = act((1 + gamma) * (x - mean) * rstd + beta): Huang and Belongie, Arbitrary Style Transfer, ICCV 2017.

    `forward(x, style)`: style is a vector [N, 2C] of (gamma, beta) that a network predicts, or a feature map [N, C, H',
    W'] whose mean and standard deviation per channel x takes: std(style) * (x - mean(x)) / std(x) + mean(style), std =
    sqrt(unbiased variance + eps) as in the style transfer network.
    """

    def __init__(self, act: str | float = "none", eps: float = 1e-5) -> None:
        super().__init__()
        self.act, self.eps = act, eps

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        if style.dim() != 4:
            gamma, beta = style.chunk(2, 1)
            style = torch.cat([1 + gamma, beta], 1)
            return modulate_style(x, style, instance_statistics(x, self.eps), self.act)
        return adain(x, style, self.act, self.eps)


def adain(
    x: Tensor, style: Tensor, act: str | float = "none", eps: float = 1e-5, alpha: float = 1.0, repeats: int = 1
) -> Tensor:
    """act(alpha * (std(style) * (x - mean(x)) / std(x) + mean(style)) + (1 - alpha) * x).

    std = sqrt(unbiased var + eps); x [N, C, H, W], style [N, C, H', W']. `repeats`: how often every element of x occurs
    in the map that is said to be normalised (4 for one upsampled x2 by nearest): the unbiased variance depends on it.
    """
    # sqrt(k var + eps) = sqrt(k) sqrt(var + eps / k): the unbiased variance of x as a biased one with another eps.
    k = _unbiased(x, repeats)
    mean, deviation = mean_and_deviation(style, eps)
    style = alpha * torch.cat([deviation / k**0.5, mean], 1)
    return modulate_style(x, style, instance_statistics(x, eps / k), act, 1 - alpha)


def mean_and_deviation(x: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(unbiased variance + eps) of every plane of x [N, C, H, W]: [N, C] each."""
    mean, var = moments(x)
    return mean, (var * _unbiased(x) + eps).sqrt()


def _unbiased(x: Tensor, repeats: int = 1) -> float:
    count = repeats * x.size(2) * x.size(3)
    return count / max(1, count - 1)
