"""System and Phase: the contract between a published system and the training loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Batch = dict[str, Any]


@dataclass(frozen=True)
class Adam:
    """Settings of torch.optim.Adam for one phase."""

    lr: float
    betas: tuple[float, float]
    eps: float = 1e-8
    weight_decay: float = 0.0


@dataclass
class Phase:
    """One optimiser step of an iteration."""

    name: str
    nets: tuple[str, ...]  # keys of System.nets that it updates; everything else is frozen during it
    loss: Callable[[Batch], dict[str, Tensor]]  # weighted terms; their sum is minimised
    optimizer: Adam
    every: int = 1  # runs in iterations 0, every, 2 * every, ...
    after: Callable[[], None] | None = None  # called after each of its steps, to put parameters back into their range
    shares: str = ""  # name of the phase before it whose optimizer, and its state, it steps with


class System(nn.Module):
    """One published system: its networks, its losses and the order in which they are optimised.

    A subclass sets `config`, `nets` and `phases` in its constructor. The loop, each iteration:

        batch = system.prepare(batch)
        for phase in system.phases:
            system.freeze_all_but(phase)
            sum(phase.loss(batch).values()).backward(), then a step of the phase's optimizer
            phase.after(), if there is one

    Networks are in the mode (train or eval) that the caller put the system in.
    """

    Config: ClassVar[type]
    PRESETS: ClassVar[dict[str, dict[str, Any]]]
    data: ClassVar[str] = "labels"  # the kind of batches it takes
    plan_per_sample: ClassVar[bool] = False  # whether label plans of its batches are to keep samples apart

    config: Any
    phases: list[Phase]  # in update order
    ema: tuple[str, ...] = ("G",)  # keys of nets that get an averaged copy

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleDict()  # trained and saved, with the original's state_dict keys
        self.fixed = nn.ModuleDict()  # pretrained feature extractors: neither trained nor saved

    def init_weights(self) -> None:
        """Initialise every network as the original does."""
        raise NotImplementedError

    def prepare(self, batch: Batch) -> Batch:
        """The batch with what all phases share; called once per step, after the move to the device."""
        return batch

    def decay(self, epoch: int) -> float:
        """Factor on every learning rate in this epoch, counted from 1."""
        return 1.0

    def rate(self, step: int) -> float:
        """Factor on every learning rate in this iteration, counted from 0 over all epochs; multiplies `decay`."""
        return 1.0

    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """Images in [-1, 1] to save and to score, {"fake": [N,3,H,W]}, from an unprepared batch, without gradients."""
        raise NotImplementedError

    def load_original(self, path: str | Path) -> None:
        """Load checkpoint files of the original repository."""
        raise NotImplementedError

    @property
    def plan_sizes(self) -> list[tuple[int, int]]:
        """Resolutions (h, w) whose label-plan levels loader workers should precompute."""
        return []

    def randn(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Standard normal noise, on the device and in the dtype of `like`: the one place where a system draws it."""
        return torch.randn(*shape, device=like.device, dtype=like.dtype)

    def freeze_all_but(self, phase: Phase) -> None:
        """Let only the parameters that `phase` updates require gradients."""
        for name, net in self.nets.items():
            net.requires_grad_(name in phase.nets)
