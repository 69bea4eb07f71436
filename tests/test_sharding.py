"""Two processes that split weights, gradients, averages and optimizer states learn what two with all of them do."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from test_distributed import kept_states
from test_models import BATCHES, NAMES, tiny
from torch import Tensor, nn
from toy import HEADER, SAMPLES, Toy, assert_same, batches, newest, run

from i2ifast._nonfinite import Place, Watch
from i2ifast._runlog import NonFiniteLoss
from i2ifast._sharding import local
from i2ifast._state import State
from i2ifast._update import Updater
from i2ifast.train import Loop, train

HALVES = ("split/sizes0.pt", "split/sizes1.pt")
SYSTEMS = [name for name in ("spade", "stargan", "ugatit") if name in NAMES]
MANNERS = {
    "plain": {},
    "clipped": {"clip_grad": 0.1},
    "accumulated": {"accumulate": 2, "ema_decay": 0.5},
    "float16": {"precision": "fp16"},
    "recomputed": {"checkpoint_activations": True},
}


class Contiguous:
    """Mixin: weights never lie in channels_last, as those do that are not split, so that rounding is the same."""

    def to(self, device: torch.device, memory_format: torch.memory_format) -> nn.Module:
        return super().to(device, memory_format=torch.contiguous_format)


class Plain(Contiguous, Toy):
    """A toy without noise, which is every process's own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"noise": 0.0} | options)


def train_all(rank: int, world: int, device: torch.device, loops: Sequence[Loop]) -> None:
    """Train toys, and keep what lasts from step to step in every process, in bytes."""
    for loop in loops:
        with kept_states() as states:
            train(Plain(), batches(2, rank, world), loop, device, HEADER, SAMPLES)
        torch.save(states[0].sizes(), loop.out / f"sizes{rank}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """MANNER/split and MANNER/whole: runs of 6 steps."""
    out = tmp_path_factory.mktemp("trained")
    loops = [
        Loop(6, out / manner / ("split" if shard else "whole"), 2, shard=shard, **options)
        for manner, options in MANNERS.items()
        for shard in (True, False)
    ]
    run_ranks(train_all, loops)
    return out


def assert_close(split: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
    """But for the last bits, in which vectors of another length are rounded otherwise."""
    assert split.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-5, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("manner", MANNERS)
def test_split_training_equals_whole(manner: str, trained: Path) -> None:
    (split, header), (whole, expected) = (newest(trained / manner / kind) for kind in ("split", "whole"))
    assert header == expected
    assert_close(split, whole)
    assert (trained / manner / "split/samples/00000006.png").exists()


def test_every_process_has_its_part(trained: Path) -> None:
    whole, one, other = (torch.load(trained / "plain" / file) for file in ("whole/sizes0.pt", *HALVES))
    for kind in ("gradients", "optimizers"):
        assert one[kind] + other[kind] == whole[kind] and 0.3 < one[kind] / whole[kind] < 0.7
    for kind in ("weights", "averages"):  # and buffers
        assert whole[kind] <= one[kind] + other[kind] < 1.4 * whole[kind]


def train_systems(rank: int, world: int, device: torch.device, out: Path) -> None:
    """Two steps of tiny systems with weights in one layout, by an Adam that makes no whole steps of round-off."""
    for name, shard in itertools.product(SYSTEMS, (True, False)):
        system = tiny(name)
        system.__class__ = type(name, (Contiguous, type(system)), {})
        for phase in system.phases:
            phase.optimizer = replace(phase.optimizer, eps=1.0, lr=1e-2)
        whole = BATCHES[system.data](system.config, system.config.size, 4)
        batch = {key: value[rank::world] for key, value in whole.items()}
        loop = Loop(2, out / f"{name}{shard}", batch_size=2, shard=shard)
        train(system, lambda *_, same=batch: [same], loop, device, {})


def test_systems_learn_the_same(tmp_path: Path) -> None:
    """With spectral norms, synchronised statistics, gradients of gradients, and weights clamped after a step."""
    run_ranks(train_systems, tmp_path)
    for name in SYSTEMS:
        assert_close(newest(tmp_path / f"{name}True")[0], newest(tmp_path / f"{name}False")[0])


def test_any_number_of_processes_resumes(trained: Path, tmp_path: Path) -> None:
    """Split or not, what the others wrote."""
    loops = [
        Loop(steps, tmp_path / name, 2, shard=shard, resume=True)
        for name, order in (("a", (True, False)), ("b", (False, True)))
        for steps, shard in zip((3, 6), order, strict=True)
    ]
    run_ranks(train_all, loops)
    whole = newest(trained / "plain/whole")[0]
    for name in "ab":
        assert_close(newest(tmp_path / name)[0], whole)
    split = newest(tmp_path / "b")[0]
    with kept_states() as states:  # of one process
        run(tmp_path / "b", 6, Plain(), resume=True)
    assert_same(states[0].tensors([]), split)
    run_ranks(train_all, [Loop(steps, tmp_path / "b", 2, shard=True, resume=True) for steps in (6, 7)], world=3)
    assert newest(tmp_path / "b")[1]["processes"] == 3


def overflow(rank: int, world: int, device: torch.device) -> None:
    """A float16 step with an infinite gradient in the last process's part."""
    toy = Plain()
    toy.init_weights()
    state, phase, place = State(toy, scaled=True, shard=True), toy.phases[0], Place(1, 1, 0)
    toy.freeze_all_but(phase)
    before = [local(parameter).clone() for parameter in toy.parameters()]
    factors = torch.ones(6, 1, 3, 3)
    factors[-1] = torch.inf
    updater = Updater(state, None, Watch(device))
    loss = state.sharded[0](lambda: (toy.nets["G"][0].weight * factors).sum())
    updater.backward(place, phase, loss.nan_to_num())
    assert local(toy.nets["G"][0].weight.grad).isfinite().all() == (rank == 0)
    assert updater.step(place, phase) == {"G": 0} and state.scalers["G"].get_scale() == 2**15
    assert all(local(parameter).equal(old) for parameter, old in zip(toy.parameters(), before, strict=True))


def test_an_overflow_in_one_part_skips_all() -> None:
    run_ranks(overflow)


def fail(rank: int, world: int, device: torch.device, out: Path) -> None:
    scalar = Plain()
    scalar.nets["G"].register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(ValueError, match=r"shard: G\.scale have no dimension to split"):
        train(scalar, batches(2, rank, world), Loop(1, out, shard=True), device, HEADER)
    toy = Plain(nan_at=2 if rank == 1 else None)
    with pytest.raises(NonFiniteLoss, match="'fake' of phase D is nan at step 2.*; run again, it comes from"):
        train(toy, batches(2, rank, world), Loop(5, out, 2, shard=True), device, HEADER)


def test_failures_are_named(tmp_path: Path) -> None:
    run_ranks(fail, tmp_path)
    with pytest.raises(ValueError, match="shard is True, but there are no processes"):
        run(tmp_path, 1, shard=True)
