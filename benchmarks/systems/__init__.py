"""What a row about a system consists of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from i2ifast.models import Batch

Networks = dict[str, nn.Module]


@dataclass(frozen=True)
class Row:
    """A system at its published widths, and its plain formulation: functions of networks, config and batch.

    `networks` have the names and state-dict keys of the system's; `loss` is that of its first phase; `step` is a whole
    iteration, with an optimizer for every phase by its name.
    """

    system: str
    preset: str
    size: tuple[int, int]  # height and width of images
    batch: int
    networks: Callable[[Any], Networks]
    translate: Callable[[Networks, Any, Batch], Tensor]
    loss: Callable[[Networks, Any, Batch], Tensor]
    step: Callable[[Networks, dict[str, torch.optim.Optimizer], Any, Batch], None]
    options: dict[str, Any] = field(default_factory=dict)  # over those of the preset
    small: dict[str, Any] = field(default_factory=dict)  # with --small, where sizes are a quarter
    maps: str = "cityscapes"  # real label maps, of systems that take some
