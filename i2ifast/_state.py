"""What a training run is at one moment: networks, their moving averages, optimizers, position in the data."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .models import Phase, System


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries below `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class State:
    """Everything a checkpoint holds. Random numbers are not in it: they are a function of (seed, step, rank).

    step    optimised iterations so far
    epoch   counted from 1
    seen    images of this epoch already used, over all processes
    """

    def __init__(self, system: System, ema_decay: float | None = None) -> None:
        self.system, self.ema_decay = system, ema_decay
        self.step, self.epoch, self.seen = 0, 1, 0
        self.averages = {name: copy.deepcopy(system.nets[name]).requires_grad_(False) for name in system.ema}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for phase in system.phases:
            if phase.shares:
                self.optimizers[phase.name] = self.optimizers[phase.shares]
            else:
                groups = [{"params": list(system.nets[net].parameters())} for net in phase.nets]
                self.optimizers[phase.name] = phase.optimizer.over(groups)

    def parameters(self, phase: Phase) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that `phase` updates."""
        for net in phase.nets:
            for name, parameter in self.system.nets[net].named_parameters():
                yield f"{net}.{name}", parameter

    def memory(self) -> Iterator[tuple[str, Tensor]]:
        """Names and values of what the system itself remembers."""
        for name, buffer in self.system.named_buffers():
            if not name.startswith(("nets.", "fixed.")):
                yield name, buffer

    def set_learning_rates(self) -> None:
        """Learning rates of the current epoch and step."""
        factor = self.system.decay(self.epoch) * self.system.rate(self.step)
        for phase in self.system.phases:
            if phase.shares:
                continue  # the optimizer's groups are the networks of the phase that it belongs to
            for net, group in zip(phase.nets, self.optimizers[phase.name].param_groups, strict=True):
                group["lr"] = phase.rates.get(net, phase.optimizer.lr) * factor

    @torch.no_grad()
    def average(self) -> None:
        """average <- decay * average + (1 - decay) * network; buffers (statistics, spectral vectors) are copied.

        A decay that was given rises to it from 0.1, so that the first steps do not remember the initial weights.
        """
        done = self.step - 1
        given = self.ema_decay is not None
        decay = min(self.ema_decay, (2 + done) / (11 + done)) if given else self.system.ema_decay(done)
        update = get_ema_multi_avg_fn(decay)
        for name, average in self.averages.items():
            net = self.system.nets[name]
            update(list(average.parameters()), list(net.parameters()), None)
            for mine, theirs in zip(average.buffers(), net.buffers(), strict=True):
                mine.copy_(theirs)

    @contextmanager
    def averaged(self) -> Iterator[System]:
        """The system in eval mode with averaged networks in place of the trained ones, for the length of the block."""
        trained = {name: self.system.nets[name] for name in self.averages}
        self.system.nets.update(self.averages)
        self.system.eval()
        try:
            yield self.system
        finally:
            self.system.nets.update(trained)
            self.system.train()

    def tensors(self) -> dict[str, Tensor]:
        """nets.<net>.<key>, ema.<net>.<key>, optimizer.<phase>.<state>.<net>.<parameter>, and system.<buffer>, what the
        system itself remembers."""
        tensors = {f"nets.{key}": value for key, value in self.system.nets.state_dict().items()}
        tensors |= {f"system.{name}": buffer for name, buffer in self.memory()}
        for name, average in self.averages.items():
            tensors |= {f"ema.{name}.{key}": value for key, value in average.state_dict().items()}
        for phase in self.system.phases:
            for name, parameter in () if phase.shares else self.parameters(phase):
                for key, value in self.optimizers[phase.name].state[parameter].items():
                    tensors[f"optimizer.{phase.name}.{key}.{name}"] = value
        return tensors

    @property
    def position(self) -> dict[str, int]:
        """step, epoch and seen, for the header of a checkpoint."""
        return {"step": self.step, "epoch": self.epoch, "seen": self.seen}

    def load(self, tensors: Mapping[str, Tensor], position: Mapping[str, int]) -> None:
        """The inverse of `tensors` and `position`, bit for bit.

        Raises KeyError, RuntimeError or ValueError for what does not fit.
        """
        self.system.nets.load_state_dict(with_prefix("nets.", tensors))
        for name, buffer in list(self.memory()):
            owner, _, leaf = name.rpartition(".")
            setattr(self.system.get_submodule(owner), leaf, tensors[f"system.{name}"].to(buffer.device, copy=True))
        for name, average in self.averages.items():
            average.load_state_dict(with_prefix(f"ema.{name}.", tensors))
        for phase in self.system.phases:
            if phase.shares:
                continue
            state = self.optimizers[phase.name].state
            state.clear()
            for name, parameter in self.parameters(phase):
                found = {key: tensors.get(f"optimizer.{phase.name}.{key}.{name}") for key in phase.optimizer.state}
                if all(value is None for value in found.values()):
                    continue  # a parameter that never had a gradient
                for key, value in found.items():
                    like = torch.zeros((), device=parameter.device) if key == "step" else parameter
                    if value is None or value.shape != like.shape:
                        shape = None if value is None else tuple(value.shape)
                        raise ValueError(f"optimizer state {key} of {name} is {shape}, not {tuple(like.shape)}")
                    # in the layout of the parameter: fused Adam walks both in memory order
                    state[parameter][key] = torch.empty_like(like, requires_grad=False).copy_(value)
        self.step, self.epoch, self.seen = (position[name] for name in self.position)
