"""Instance norms and the activations behind them, in a Sequential."""

import itertools
from typing import Any

from torch import Tensor, nn

from ..nn.instance import instance_norm_act
from ._change import Changed, hooked


class InstanceNormActs(Changed):
    """A Sequential that runs instance norms and the activations behind them as one. The pairs are found as it runs."""

    def forward(self, x: Any) -> Any:
        modules = list(self._modules.values())
        while modules:
            module = modules.pop(0)
            act = modules[0] if modules else None
            if _is_pair(module, act) and _is_map(x) and not hooked(module, act):
                x = instance_norm_act(x, module.weight, module.bias, _slope(modules.pop(0)), module.eps)
            else:
                x = module(x)
        return x


def _is_map(x: Any) -> bool:
    """[N, C, H, W] of more than one pixel: torch has an error for one pixel, which has no variance."""
    return isinstance(x, Tensor) and x.dim() == 4 and x.size(2) * x.size(3) > 1


def _is_pair(norm: nn.Module, act: nn.Module | None) -> bool:
    known = type(norm) is nn.InstanceNorm2d and not norm.track_running_stats
    return known and type(act) in (nn.ReLU, nn.LeakyReLU)


def count_pairs(modules: nn.Sequential) -> int:
    return sum(_is_pair(a, b) for a, b in itertools.pairwise(modules))


def _slope(act: nn.ReLU | nn.LeakyReLU) -> float:
    return act.negative_slope if isinstance(act, nn.LeakyReLU) else 0.0
