"""How a recorded case of a System runs: through `models.build` and the System contract, with the label plan and dense.

Trajectories: Adam's first step is lr * sign(gradient), so an entry whose gradient is rounding error moves by 2 lr with
the rounding, and training goes on from there. The formulation that rounds as the originals did (dense, reference) is
held to the recorded trajectory; every other one is held, step by step from the same state, to the gradients and buffers
of that. Gradients without steps jump too where a value lies on a kink of a loss or an activation: there, other
formulations are held to how far that one jumps.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from golden_recipe import Case
from safetensors.torch import save_file
from torch import Tensor, nn

import i2ifast
from i2ifast import models
from i2ifast.models import Batch, Phase, System

FILES = {"VGG": "vgg_weights", "fan": "fan_weights"}  # fixed network -> option naming the file it comes from
OUTPUTS = {"fake": "G"}  # recorded output that is a whole network's
VARIANTS = ("plan", "dense")
NUDGES = (3, 24)  # of the weights; a kink that few of them meet takes the second number


def build(case: Case, folder: Path) -> System:
    """The system of a case, with the case's fixed networks in files of `folder`."""
    name, options = case.meta["system"], {}
    for net in FILES.keys() & case.meta["nets"].keys():
        options[FILES[net]] = str(folder / f"{net}.safetensors")
        save_file(case.state(net), options[FILES[net]])
    config = models.system(name).Config.from_original(case.options)
    return models.build(name, **vars(replace(config, **options)))


def nets_of(name: str, options: dict[str, Any]) -> dict[str, nn.Module]:
    """The networks of a file of keys."""
    return dict(models.build(name, **vars(models.system(name).Config.from_original(options))).nets)


def networks(system: System) -> dict[str, nn.Module]:
    return {**system.nets, **system.fixed}


def load(system: System, case: Case) -> None:
    for name, net in networks(system).items():
        net.load_state_dict(case.state(name))


def feed_noise(system: System, case: Case, prefix: str) -> Iterator[Tensor]:
    """Make the system draw the case's noise; returns what is left of it."""
    noise = case.noise(prefix)

    def randn(shape, like: Tensor) -> Tensor:
        drawn = next(noise)
        assert list(drawn.shape) == list(shape)
        return drawn.to(like)

    system.randn = randn
    return noise


def prepare(system: System, batch: Batch, dense: bool) -> Batch:
    """The prepared batch; if `dense`, with dense maps that require grad, in place of a label plan."""
    if system.data == "unpaired":  # TSIT's, which names both alike
        batch = {"a": batch["label"], "b": batch["image"]}
    batch = system.prepare(batch)
    if dense:
        semantics = batch["semantics"]
        batch["semantics"] = (
            (semantics if isinstance(semantics, Tensor) else semantics.dense()).clone().requires_grad_()
        )
        batch["image"] = batch["image"].clone().requires_grad_()
    return batch


@contextmanager
def recorded_outputs(system: System, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of the modules' first calls in the block. A name is <net>.<module path>.<indices into its output>."""
    outputs, handles = {}, []

    def record(name: str, indices: list[str]):
        def hook(module: nn.Module, args: tuple, output) -> None:
            for index in indices:
                output = output[int(index)]
            outputs.setdefault(name, output.detach().clone())

        return hook

    for name in names:
        module, path = networks(system), OUTPUTS.get(name, name).split(".")
        module = module[path.pop(0)]
        while path and path[0] in dict(module.named_children()):
            module = module.get_submodule(path.pop(0))
        handles.append(module.register_forward_hook(record(name, path)))
    yield outputs
    for handle in handles:
        handle.remove()


def nudge(nets: nn.Module, seed: int) -> None:
    """Move all weights by rounding, 6e-8; seed 0 leaves them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in nets.parameters() if seed else ():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.device)
            parameter.copy_(parameter.double() * (1 + 6e-8 * noise))


def run_phases(system: System, case: Case, dense: bool, seed: int = 0) -> dict[str, Tensor]:
    """Every phase from the case's weights, nudged, in every mode, without optimiser steps: name -> value."""
    found = {}
    for mode in case.meta["modes"]:
        wanted = [name.split(".", 2)[2] for name in case.names if name.startswith(f"out.{mode}.")]
        for phase in system.phases:
            first = phase is system.phases[0]
            load(system, case)
            if mode == "eval" and case.options.get("eval_state") == "after_train":
                for key, buffer in system.nets.named_buffers():
                    buffer.copy_(found[f"post.train.{key}"])
            nudge(system.nets, seed)
            system.train(mode == "train").zero_grad()
            noise = feed_noise(system, case, f"noise.{mode}.{phase.name.lower()}.")
            batch = prepare(system, case.inputs("in."), dense)
            if f"grad.{mode}.in.real" in case.names:
                batch["image"].requires_grad_()
            system.freeze_all_but(phase)
            with recorded_outputs(system, wanted if first else []) as outputs:
                terms = phase.loss(batch)
            total = sum(terms.values())
            total.backward()
            assert next(noise, None) is None, "noise was left over"

            found |= {f"loss.{mode}.{name}": value for name, value in terms.items()}
            found[f"loss.{mode}.{phase.name}_total"] = total
            found |= {f"out.{mode}.{name}": value for name, value in outputs.items()}
            for name in phase.nets:
                found |= {f"grad.{mode}.{name}.{key}": p.grad for key, p in system.nets[name].named_parameters()}
            if first:
                for name, net in system.nets.items():
                    found |= {f"post.{mode}.{name}.{key}": buffer.clone() for key, buffer in net.named_buffers()}
                semantics = batch["semantics"]
                found[f"grad.{mode}.in.semantics"] = semantics.grad if dense else None
                found[f"grad.{mode}.in.real"] = batch["image"].grad
                found["mid.input_semantics"] = semantics if isinstance(semantics, Tensor) else semantics.dense()
    return found


class Training:
    """A case's training: its networks, its noise, and one optimizer per phase."""

    def __init__(self, case: Case, dense: bool, folder: Path) -> None:
        self.case, self.dense = case, dense
        self.system = build(case, folder)
        load(self.system, case)
        self.system.train()
        self.noise, self.drawn = list(case.noise("noise.traj.")), 0
        self.system.randn = self.draw
        self.adams = {}
        for phase in self.system.phases:
            parameters = [p for name in phase.nets for p in self.system.nets[name].parameters()]
            self.adams[phase.name] = phase.optimizer.kind(parameters, **vars(phase.optimizer))

    def draw(self, shape: torch.Size, like: Tensor) -> Tensor:
        self.drawn += 1
        return self.noise[self.drawn - 1].view(shape).to(like)

    def batches(self) -> Iterator[Batch]:
        for it in range(len({name.split(".")[1] for name in self.case.meta["inputs"]})):
            yield prepare(self.system, self.case.inputs(f"in.{it}."), self.dense)

    def gradients(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        """Loss terms of a phase; leaves gradients in its networks."""
        self.system.freeze_all_but(phase)
        self.adams[phase.name].zero_grad()
        terms = phase.loss(batch)
        sum(terms.values()).backward()
        return {name: value.detach() for name, value in terms.items()}

    def gradients_now(self, phase: Phase) -> dict[str, Tensor]:
        named = ((name, key, p) for name in phase.nets for key, p in self.system.nets[name].named_parameters())
        return {f"{name}.{key}": p.grad.clone() for name, key, p in named if p.grad is not None}

    def sensitivity(self, phase: Phase, batch: Batch, nudges: int) -> dict[str, float]:
        """How far gradients move when all weights move by rounding, 6e-8: further where a value lies on a kink.

        Networks and noise are left as they were.
        """
        before, drawn = copy.deepcopy(self.system.nets.state_dict()), self.drawn
        seen = []
        for seed in range(nudges + 1):
            self.system.nets.load_state_dict(before)
            self.drawn = drawn
            nudge(self.system.nets, seed)
            self.gradients(phase, batch)
            seen.append(self.gradients_now(phase))
        self.system.nets.load_state_dict(before)
        self.drawn = drawn
        return {name: max((other[name] - g).abs().max().item() for other in seen[1:]) for name, g in seen[0].items()}


def run_training(case: Case, dense: bool, folder: Path) -> dict[str, Tensor]:
    """The case's training iterations: series of loss terms, and the state of the networks after them."""
    training = Training(case, dense, folder)
    series: dict[str, list[Tensor]] = {}
    for it, batch in enumerate(training.batches()):
        for phase in training.system.phases:
            if phase.when(it):
                for name, value in training.gradients(phase, batch).items():
                    series.setdefault(f"traj.{name}", []).append(value)
                training.adams[phase.name].step()
    assert training.drawn == len(training.noise), "noise was left over"

    found = {name: torch.stack(values) for name, values in series.items()}
    for name, net in training.system.nets.items():
        found |= {f"traj.after.{name}.{key}": value for key, value in net.state_dict().items()}
    return found


def follow_training(case: Case, dense: bool, backend: str, folder: Path) -> None:
    """Every step of the training that rounds as the originals did, repeated from its state by another formulation."""
    leader, follower = Training(case, True, folder), Training(case, dense, folder)
    for it, batches in enumerate(zip(leader.batches(), follower.batches(), strict=True)):
        for led, followed in zip(leader.system.phases, follower.system.phases, strict=True):
            if not led.when(it):
                continue
            before, drawn = copy.deepcopy(leader.system.nets.state_dict()), leader.drawn
            follower.system.nets.load_state_dict(before)
            with i2ifast.use_backend(backend):
                got, found = follower.gradients(followed, batches[1]), follower.gradients_now(followed)
            for nudges in NUDGES:
                leader.system.nets.load_state_dict(before)
                leader.drawn = drawn
                with i2ifast.use_backend("reference"):
                    moved = leader.sensitivity(led, batches[0], nudges)
                    want, gradients = leader.gradients(led, batches[0]), leader.gradients_now(led)
                # Gradients that are round-off, of what a norm subtracts again, are as large as rounding elsewhere.
                largest = 1e-5 * max(g.abs().max().item() for g in gradients.values())
                atol = {n: max(1e-3 * g.abs().max().item(), 10 * moved[n]) + largest for n, g in gradients.items()}
                wrong = [n for n, g in gradients.items() if (found[n] - g).abs().max().item() > atol[n]]
                if not wrong:
                    break
            assert not wrong, f"step {it} of {led.name}: {', '.join(wrong)}"
            for name, value in want.items():
                torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6)
            for (key, ours), (_, theirs) in zip(
                follower.system.nets.named_buffers(), leader.system.nets.named_buffers(), strict=True
            ):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
            leader.adams[led.name].step()


def settle_kinks(values: dict[str, Tensor], case: Case, folder: Path) -> dict[str, Tensor]:
    """Gradients beyond their tolerance, replaced by those of the formulation that rounds as the originals did.

    They must differ from these by no more than ten times what nudges move them.
    """
    recorded = [name for name in case.names if name.startswith("grad.") and values.get(name) is not None]
    wrong = [name for name in recorded if case.error(name, values[name]) > 1]
    if not wrong:
        return values
    leader, unexplained = None, wrong
    for seed in range(NUDGES[-1] + 1):
        with i2ifast.use_backend("reference"):
            nudged = run_phases(build(case, folder), case, True, seed)
        leader = leader or nudged
        unexplained = [
            name
            for name in unexplained
            if (values[name] - leader[name]).abs().max() > 10 * (nudged[name] - leader[name]).abs().max()
        ]
        if not unexplained:
            break
    assert not unexplained
    return values | {name: leader[name] for name in wrong}


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor]:
    """All that the case records, computed; nothing where another formulation was followed and agreed."""
    dense = variant == "dense"
    if case.trains and not (dense and backend == "reference"):
        follow_training(case, dense, backend, folder)
        return {}
    system = build(case, folder)
    for name, net in networks(system).items():
        assert {key: (list(v.shape), v.dtype) for key, v in net.state_dict().items()} == case.keys(name), name
    assert networks(system).keys() == case.meta["keys"].keys()
    values = run_training(case, dense, folder) if case.trains else run_phases(system, case, dense)
    of_inputs = {name for name in case.names if name.startswith("grad.") and name.endswith(".in.semantics")}
    values |= {} if dense else {name: None for name in of_inputs}  # labels have no gradient
    return values if dense and backend == "reference" else settle_kinks(values, case, folder)
