"""What a training run is at one moment: networks, their moving averages, optimizers, position in the data."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ._processes import rank_and_world
from ._sharding import Sharded, gathered, local, part, split_as, whole
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

    def __init__(
        self, system: System, ema_decay: float | None = None, scaled: bool = False, shard: bool = False
    ) -> None:
        """`scaled`: losses are scaled before backward, since gradients are of float16.

        `shard`: processes split all of it but buffers; those of the system's networks are in the first of `sharded`.
        """
        self.system, self.ema_decay, self.scaled = system, ema_decay, scaled
        self.step, self.epoch, self.seen = 0, 1, 0
        self.averages = {name: copy.deepcopy(system.nets[name]).requires_grad_(False) for name in system.ema}
        split = [system.nets, *([nn.ModuleDict(self.averages)] if self.averages else [])] if shard else []
        self.sharded = [Sharded(nets) for nets in split]
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for phase in system.phases:
            if phase.shares:
                self.optimizers[phase.name] = self.optimizers[phase.shares]
            else:
                groups = [{"params": list(system.nets[net].parameters())} for net in phase.nets]
                self.optimizers[phase.name] = phase.optimizer.over(groups)
        device = next(system.parameters()).device.type
        self.scalers = {phase.name: torch.GradScaler(device, enabled=scaled) for phase in system.phases}

    def parameters(self, phase: Phase) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that `phase` updates."""
        for net in phase.nets:
            for name, parameter in self.system.nets[net].named_parameters():
                yield f"{net}.{name}", parameter

    def memory(self) -> dict[str, Tensor]:
        """What the system itself remembers, by name: every process has its own."""
        buffers = self.system.named_buffers()
        return {name: buffer for name, buffer in buffers if not name.startswith(("nets.", "fixed."))}

    def sizes(self) -> dict[str, int]:
        """Bytes of all that lasts from step to step, by kind, once there were all gradients."""
        optimizers = 0
        for phase in self.system.phases:
            copies = len(phase.optimizer.state) - 1  # of a parameter; the number of its steps is none
            optimizers += (
                0 if phase.shares else copies * sum(local(parameter).nbytes for _, parameter in self.parameters(phase))
            )
        return {
            "weights": sum(local(tensor).nbytes for tensor in self.system.state_dict().values()),
            "gradients": sum(local(parameter).nbytes for parameter in self.system.nets.parameters()),
            "optimizers": optimizers,
            "averages": sum(
                local(tensor).nbytes for net in self.averages.values() for tensor in net.state_dict().values()
            ),
        }

    def set_learning_rates(self) -> None:
        """Learning rates of the current epoch and step."""
        factor = self.system.decay(self.epoch) * self.system.rate(self.step)
        for phase in self.system.phases:
            if phase.shares:
                continue  # the optimizer's groups are the networks of the phase that it belongs to
            for net, group in zip(phase.nets, self.optimizers[phase.name].param_groups, strict=True):
                group["lr"] = phase.rates.get(net, phase.optimizer.lr) * factor

    @torch.no_grad()
    def average(self, moved: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """average <- decay * average + (1 - decay) * network; buffers (statistics, spectral vectors) are copied.

        A decay that was given rises to it from 0.1, so that the first steps do not remember the initial weights.
        Where `moved` has a 0 for a network, its optimizer step was skipped, and its average stays.
        """
        done = self.step - 1
        given = self.ema_decay is not None
        decay = min(self.ema_decay, (2 + done) / (11 + done)) if given else self.system.ema_decay(done)
        for name, average in self.averages.items():
            net = self.system.nets[name]
            averages, parameters = ([local(p) for p in each.parameters()] for each in (average, net))
            if name in moved:
                torch._foreach_lerp_(averages, parameters, [(1 - decay) * moved[name]] * len(averages))
            else:
                torch._foreach_lerp_(averages, parameters, 1 - decay)
            for mine, theirs in zip(average.buffers(), net.buffers(), strict=True):
                mine.copy_(theirs)

    @contextmanager
    def averaged(self) -> Iterator[System]:
        """The system in eval mode with averaged networks in place of the trained ones, for the length of the block.

        All processes enter and leave it together."""
        trained = {name: self.system.nets[name] for name in self.averages}
        self.system.nets.update(self.averages)
        self.system.eval()
        try:
            with whole(self.sharded):
                yield self.system
        finally:
            self.system.nets.update(trained)
            self.system.train()

    def tensors(self, memories: Sequence[Mapping[str, Tensor]] | None = None) -> dict[str, Tensor]:
        """nets.<net>.<key>, ema.<net>.<key>, optimizer.<phase>.<state>.<net>.<parameter>, and, from the `memories` of
        all processes, system.<rank>.<buffer>. Where they split it, they call this together, and the first has all."""
        tensors = {f"nets.{key}": gathered(value) for key, value in self.system.nets.state_dict().items()}
        for rank, memory in enumerate(memories or [self.memory()]):
            tensors |= {f"system.{rank}.{name}": buffer for name, buffer in memory.items()}
        for name, average in self.averages.items():
            tensors |= {f"ema.{name}.{key}": gathered(value) for key, value in average.state_dict().items()}
        for phase in self.system.phases:
            for name, parameter in () if phase.shares else self.parameters(phase):
                for key, value in self.optimizers[phase.name].state[parameter].items():
                    tensors[f"optimizer.{phase.name}.{key}.{name}"] = gathered(value)
        return tensors

    @property
    def position(self) -> dict[str, Any]:
        """step, epoch and seen, of how many processes, and the scales of losses, for the header of a checkpoint."""
        scales = {name: scaler.state_dict() for name, scaler in self.scalers.items()} if self.scaled else {}
        place = {"step": self.step, "epoch": self.epoch, "seen": self.seen, "processes": rank_and_world()[1]}
        return place | ({"scales": scales} if scales else {})

    def load(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """The inverse of `tensors` and `position`, bit for bit; a rank that had no process takes another's memory.

        Raises KeyError, RuntimeError or ValueError for what does not fit.
        """
        nets = self.system.nets
        nets.load_state_dict(split_as(nets.state_dict(), with_prefix("nets.", tensors)))
        prefix = f"system.{rank_and_world()[0] % position.get('processes', 1)}."
        for name, buffer in self.memory().items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.system.get_submodule(owner), leaf, tensors[prefix + name].to(buffer.device, copy=True))
        for name, average in self.averages.items():
            average.load_state_dict(split_as(average.state_dict(), with_prefix(f"ema.{name}.", tensors)))
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
                    state[parameter][key] = torch.empty_like(like, requires_grad=False).copy_(part(value, like))
        for name, scale in position.get("scales", {}).items():
            self.scalers[name].load_state_dict(scale)  # nothing to a scaler that is not in use
        self.step, self.epoch, self.seen = (position[name] for name in ("step", "epoch", "seen"))
