"""Batch normalisation and its activation."""

import torch
from torch import Tensor, nn

from ..ops import modulate_style
from ._norm import statistics_of


class BatchNormAct(nn.BatchNorm2d):
    """act(batch_norm(x)): in one pass over x for the statistics and one to write y.

    Stands for a BatchNorm2d, affine or not, whose state_dict keys it has, and the activation behind it. `act`: 'none',
    'relu', or the slope of a leaky relu. With `synchronise` the statistics are those of all ranks, where
    torch.distributed is initialised.
    """

    def __init__(
        self,
        num_features: int,
        act: str | float = "relu",
        eps: float = 1e-5,
        synchronise: bool = True,
        affine: bool = True,
    ) -> None:
        super().__init__(num_features, eps, affine=affine)
        self.act, self.synchronise = act, synchronise

    def forward(self, x: Tensor) -> Tensor:
        (statistics,) = statistics_of(x, [self], synchronise=self.synchronise)
        style = torch.cat([self.weight, self.bias]).expand(x.size(0), -1) if self.affine else None
        return modulate_style(x, style, statistics, self.act)
