"""What the drivers of CycleGAN, pix2pix and BicycleGAN share: phases without steps, and training."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from golden_recipe import Case
from torch import Tensor, nn

from i2ifast.models import Batch, System

Found = dict[str, Tensor]
Terms = Callable[[System, Mapping[str, Tensor]], Found]  # a phase's terms under the original's names


@contextmanager
def feeding(system: System, case: Case, prefix: str) -> Iterator[None]:
    """Let the system draw the case's noise of all kinds in the block, and no more or less of it."""
    noise = case.noise(prefix)

    def draw(shape: torch.Size, like: Tensor) -> Tensor:
        value = next(noise)
        assert list(value.shape) == list(shape)
        return value.to(like) if value.is_floating_point() else value

    system.randn = system.rand = draw
    system.randint = lambda high, shape, like: draw(shape, like)
    yield
    assert next(noise, None) is None, "noise was left over"


@contextmanager
def recording(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """What modules return in the block, call by call."""
    calls: dict[str, list[Tensor]] = {name: [] for name in modules}

    def hook(name: str) -> Callable:
        return lambda module, args, output: calls[name].append(output.detach().clone())

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    yield calls
    for handle in handles:
        handle.remove()


def layers(system: System, case: Case, prefix: str) -> dict[str, nn.Module]:
    """Modules of which outputs are recorded as `prefix`<net>.<path>.

    An activation's number is not in use where it is one with the norm in front of it.
    """
    found, modules = {}, dict(system.nets.named_modules())
    for name in case.names:
        path, _, number = name.removeprefix(prefix).rpartition(".")
        if name.startswith(prefix) and number.isdigit() and path.partition(".")[0] in system.nets:
            other = f"{path}.{int(number) - 1}"
            if (module := modules.get(f"{path}.{number}", modules.get(other))) is not None:
                found[name] = module
    return found


def gradients(system: System, prefix: str) -> Found:
    named = ((name, key, p) for name, net in system.nets.items() for key, p in net.named_parameters())
    return {f"{prefix}.{name}.{key}": p.grad for name, key, p in named if p.grad is not None}


def backward(system: System, phase: str, batch: Batch) -> Found:
    """A phase's terms, with their gradients left in its networks."""
    (phase,) = (each for each in system.phases if each.name == phase)
    system.freeze_all_but(phase)
    terms = phase.loss(batch)
    sum(terms.values()).backward()
    return {name: value.detach() for name, value in terms.items()}


def run_training(system: System, case: Case, batches: list[Batch], named: Terms, prefix: str) -> Found:
    """A step of every phase on each batch: series of terms, and the networks afterwards."""
    system.train()
    adams = {}
    for phase in system.phases:
        parameters = [p for net in phase.nets for p in system.nets[net].parameters()]
        adams[phase.name] = phase.optimizer.kind(parameters, **vars(phase.optimizer))
    series: dict[str, list[Tensor]] = {}
    with feeding(system, case, prefix):
        for batch in batches:
            terms: Found = {}
            for phase in system.phases:
                adams[phase.name].zero_grad()
                terms |= backward(system, phase.name, batch)
                adams[phase.name].step()
            for name, value in named(system, terms).items():
                series.setdefault(f"traj.{name}", []).append(value)
    found = {name: torch.stack(values) for name, values in series.items()}
    for name, net in system.nets.items():
        found |= {f"traj.after.{name}.{key}": value for key, value in net.state_dict().items()}
    return found


def buffers(system: System) -> Found:
    return {f"post.train.{key}": value.clone() for key, value in system.nets.named_buffers()}


def restore(system: System, case: Case, state: Found) -> None:
    """The case's weights; buffers as they were after training where evaluation goes on from that."""
    for name, net in system.nets.items():
        net.load_state_dict(case.state(name))
    if case.options.get("eval_state") == "after_train":
        for key, buffer in system.nets.named_buffers():
            buffer.copy_(state[f"post.train.{key}"])
