"""What a row about a layer consists of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


class Made(NamedTuple):
    """Modules or functions by name ("ours", "plain", and "original" where that computes in another way), and inputs.

    All get the same inputs by name, and all have the same parameters.
    """

    functions: dict[str, nn.Module | Callable[..., Tensor]]
    inputs: dict[str, Tensor]


class Plain(nn.Module):
    """A layer of ours, around the parameters of which a formula of `plain` computes."""

    def __init__(self, layer: nn.Module, formula: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer, self.formula = layer, formula

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.formula(self.layer, **inputs)


@dataclass(frozen=True)
class Layer:
    name: str
    shapes: tuple[Shape, ...]  # [N, C, H, W] of x
    make: Callable[[Shape, torch.Generator], Made]
