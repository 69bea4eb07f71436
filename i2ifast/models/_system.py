"""System and Phase: the contract between a published system and the training loop."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Batch = dict[str, Any]


class _Adam(torch.optim.Adam):
    """torch.optim.Adam up to rounding, with less memory and traffic.

    It reads and writes channels_last tensors as they lie in memory: on a CPU the fused one copies those twice, which
    takes five times as long as the step itself. Of tensors that are split between processes it takes the part that is
    here. Where betas[0] is 0 the average of gradients is the gradient, and is not kept.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        forgetting = [p for p in group["params"] if p.grad is not None] if group["betas"][0] == 0 else []
        for p in forgetting:
            if not self.state[p]:
                self.state[p] = {"step": torch.zeros((), device=p.device), "exp_avg_sq": torch.zeros_like(p)}
            self.state[p]["exp_avg"] = p.grad
        found = super()._init_group(group, *lists)
        for p in forgetting:
            del self.state[p]["exp_avg"]
        params, gradients, averages, squares = lists[:4]
        for i, p in enumerate(params):
            if hasattr(p, "to_local"):
                for tensors in (params, gradients, averages, squares):
                    tensors[i] = tensors[i].detach().to_local()
            elif p.dim() == 4 and not p.is_contiguous() and p.is_contiguous(memory_format=torch.channels_last):
                for tensors in (params, gradients, averages, squares):
                    tensors[i] = tensors[i].detach().permute(0, 2, 3, 1)
                gradients[i] = gradients[i].contiguous()  # which may lie in another order
        if forgetting:
            averages[:] = gradients
        return found


@dataclass(frozen=True)
class Adam:
    """Settings of torch.optim.Adam for one phase."""

    kind: ClassVar[type[torch.optim.Optimizer]] = torch.optim.Adam

    lr: float
    betas: tuple[float, float]
    eps: float = 1e-8
    weight_decay: float = 0.0

    @property
    def state(self) -> tuple[str, ...]:
        """What it remembers of a parameter."""
        return ("step", "exp_avg", "exp_avg_sq") if self.betas[0] else ("step", "exp_avg_sq")

    def over(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """The optimizer of `parameters`, or groups of them."""
        return _Adam(parameters, **vars(self), fused=True)


@dataclass(frozen=True)
class RMSprop:
    """Settings of torch.optim.RMSprop for one phase."""

    kind: ClassVar[type[torch.optim.Optimizer]] = torch.optim.RMSprop
    state: ClassVar[tuple[str, ...]] = ("step", "square_avg")

    lr: float
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0

    def over(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """The optimizer of `parameters`, or groups of them."""
        return self.kind(parameters, **vars(self))


def every(count: int, first: int = 0) -> Callable[[int], bool]:
    """For Phase.when: iterations first, first + count, first + 2 count, ..."""
    return lambda step: step >= first and (step - first) % count == 0


@dataclass
class Phase:
    """One optimiser step of an iteration."""

    name: str
    nets: tuple[str, ...]  # keys of System.nets that it updates; everything else is frozen during it
    loss: Callable[[Batch], dict[str, Tensor]]  # weighted terms; their sum is minimised
    optimizer: Adam | RMSprop
    when: Callable[[int], bool] = lambda step: True  # whether it runs in an iteration, counted from 0; see `every`
    epochs: Callable[[int], bool] = lambda epoch: True  # whether it runs in an epoch, counted from 1
    rates: dict[str, float] = field(default_factory=dict)  # learning rates of networks that have their own
    clip: float | None = None  # largest norm of its gradients; larger ones are scaled down to it
    after: Callable[[], None] | None = None  # called after each of its steps, to put parameters back into their range
    shares: str = ""  # name of the phase before it whose optimizer, with its rates and state, it steps with


class System(nn.Module):
    """One published system: its networks, its losses and the order in which they are optimised.

    A subclass sets `config`, `nets` and `phases` in its constructor. The loop, each iteration:

        batch = system.prepare(batch)
        for phase in system.phases, if phase.when(step) and phase.epochs(epoch):
            system.freeze_all_but(phase)
            sum(phase.loss(batch).values()).backward(), then a step of the phase's optimizer
            phase.after(), if there is one

    Networks are in the mode (train or eval) that the caller put the system in. What it remembers between steps, such as
    a pool of images, is in buffers of its own or of a submodule: they are saved too, and may change shape.
    """

    Config: ClassVar[type]
    PRESETS: ClassVar[dict[str, dict[str, Any]]]
    data: str = "labels"  # the kind of batches it takes
    plan_per_sample: ClassVar[bool] = False  # whether label plans of its batches are to keep samples apart

    config: Any
    phases: list[Phase]  # in update order
    ema: tuple[str, ...] = ("G",)  # keys of nets that get an averaged copy

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleDict()  # trained and saved, with the original's state_dict keys
        self.fixed = nn.ModuleDict()  # pretrained feature extractors: neither trained nor saved

    @classmethod
    def data_of(cls, config: Any) -> str:
        """The kind of batches that a system of this config takes; its `data`, where options do not decide."""
        return getattr(config, "data", cls.data)

    @property
    def data_settings(self) -> dict[str, Any]:
        """Settings of its kind of data (`i2ifast.data.kinds`) that its config has under another name, or not at all."""
        return {}

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

    def ema_decay(self, step: int) -> float:
        """Decay of the averaged copies in this iteration, counted from 0; rising, so that none remembers the start."""
        return min(0.999, (2 + step) / (11 + step))

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

    @property
    def plan_windows(self) -> list[tuple[int, tuple[int, int], int, int, int]]:
        """Windows of single convolutions that loader workers should precompute: see `labels.PooledWindows`."""
        return []

    # A system draws its random numbers here and nowhere else.

    def randn(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Standard normal noise, on the device and in the dtype of `like`."""
        return torch.randn(tuple(shape), device=like.device, dtype=like.dtype)

    def rand(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Uniform in [0, 1), on the device and in the dtype of `like`."""
        return torch.rand(tuple(shape), device=like.device, dtype=like.dtype)

    def later_rand(self) -> Callable[..., Tensor]:
        """`rand`, looked up whenever it is called: for networks, whose copies then draw from this system too."""
        return lambda shape, like: self.rand(shape, like)

    def randint(self, high: int, shape: Sequence[int], like: Tensor) -> Tensor:
        """Integers in [0, high), on the device of `like`."""
        return torch.randint(high, tuple(shape), device=like.device)

    def randperm(self, count: int, like: Tensor) -> Tensor:
        """A permutation [count], on the device of `like`."""
        return torch.randperm(count, device=like.device)

    def warn(self, message: str) -> None:
        """Log what is to be known about this system, under its name."""
        module = type(self).__module__
        logging.getLogger(module).warning("%s: %s", module.rpartition(".")[2], message)

    def freeze_all_but(self, phase: Phase) -> None:
        """Let only the parameters that `phase` updates require gradients."""
        for name, net in self.nets.items():
            net.requires_grad_(name in phase.nets)
