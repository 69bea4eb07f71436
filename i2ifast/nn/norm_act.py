"""Batch norm, and instance norm with running statistics, each with the activation behind it."""

import torch
from torch import Tensor, nn

from ..ops import fixed_statistics, instance_statistics, modulate_style, moments
from ._norm import statistics_of


class BatchNormAct(nn.BatchNorm2d):
    """act(batch_norm(x)), parameters and buffers as torch.nn.BatchNorm2d: a pass for statistics and one to write y."""

    def __init__(self, num_features: int, act: str | float = "relu") -> None:
        super().__init__(num_features)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        (statistics,) = statistics_of(x, [self], synchronise=False)
        return modulate_style(x, torch.cat([self.weight, self.bias]).expand(len(x), -1), statistics, self.act)


class TrackedInstanceNormAct(nn.InstanceNorm2d):
    """act(instance_norm(x)) as torch.nn.InstanceNorm2d with track_running_stats, whose averages evaluation takes."""

    def __init__(self, num_features: int, act: str | float = "relu") -> None:
        super().__init__(num_features, track_running_stats=True)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return modulate_style(x, None, fixed_statistics(self.running_mean, self.running_var, self.eps), self.act)
        with torch.no_grad():
            mean, var = moments(x)
            count = x.size(2) * x.size(3)
            self.running_mean.lerp_(mean.mean(0).to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(var.mean(0).to(self.running_var.dtype) * (count / max(1, count - 1)), self.momentum)
        return modulate_style(x, None, instance_statistics(x, self.eps), self.act)
