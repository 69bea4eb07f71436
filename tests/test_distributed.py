"""Two gloo processes equal one with the whole batch: statistics, outputs, gradients, buffers, training. None waits."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from test_models import BATCHES, NAMES, tiny
from torch import Tensor, nn
from toy import HEADER, SAMPLES, Remembering, Toy, assert_same, batches, newest, run

from i2ifast import labels
from i2ifast import train as loop_module
from i2ifast._runlog import NonFiniteLoss
from i2ifast._state import State
from i2ifast.models import Batch, System
from i2ifast.nn import SPADE, SPADEResnetBlock
from i2ifast.ops import batch_statistics
from i2ifast.train import Loop, train


def label_maps() -> Tensor:
    """Blocks in the first two maps, which tables pay for, and noise in the others, which they do not."""
    g = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 4, (2, 1, 4, 4), generator=g).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return torch.cat([blocks, torch.randint(0, 4, (2, 1, 16, 16), generator=g)])


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return SPADE("spadesyncbatch3x3", 6, 4, 8) if kind == "layer" else SPADEResnetBlock(6, 5, "spadesyncbatch3x3", 4, 8)


def step(net: nn.Module, x: Tensor, maps: Tensor, twice: bool) -> dict[str, Tensor]:
    """Forward and backward of a sum over samples; with `twice`, two forwards before the backward."""
    x = x.clone().requires_grad_()
    plan = labels.plan(maps, 4)
    y = net(x, plan)
    loss = (y**2).sum()
    if twice:
        loss = loss + net(x * 0.5 + 1, plan).sum()
    loss.backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **grads, **dict(net.named_buffers())}


def layer_step(
    rank: int, world: int, device: torch.device, folder: Path, kind: str, split: int, twice: bool, x: Tensor
) -> None:
    part = slice(0, split) if rank == 0 else slice(split, None)
    found = step(network(kind), x[part], label_maps()[part], twice)
    found["mean"] = batch_statistics(x[part], group=dist.group.WORLD.group_name)[0].mean
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.parametrize("split", [2, 3, 4], ids=["even", "uneven", "empty"])
@pytest.mark.parametrize("kind, twice", [("layer", False), ("layer", True), ("block", False)])
def test_two_ranks_equal_one(kind, twice, split, tmp_path):
    x = 3 + 2 * torch.randn(4, 6, 16, 16, generator=torch.Generator().manual_seed(1))
    whole = step(network(kind), x, label_maps(), twice)
    run_ranks(layer_step, tmp_path, kind, split, twice, x)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    largest = max(value.abs().max().item() for value in whole.values())  # what round-off gradients are round-off of

    def close(ours: Tensor, theirs: Tensor, name: str, tolerance: float, scale: float = 1.0) -> None:
        assert (ours - theirs).abs().max() <= tolerance * (scale + theirs.abs().max()), name

    close(ranks[0]["mean"], batch_statistics(x)[0].mean, "mean", 1e-6)
    for name, theirs in whole.items():
        if name in ("y", "dx"):
            close(torch.cat([ranks[0][name], ranks[1][name]]), theirs, name, 1e-5)
        elif "running" in name or "tracked" in name:
            for rank in ranks:
                close(rank[name], theirs, name, 1e-6)
        else:
            close(ranks[0][name] + ranks[1][name], theirs, name, 1e-5, 0.1 * largest)


def train_toy(rank: int, world: int, device: torch.device, out: Path, make: Callable[..., System], *steps: int) -> None:
    """Train, and resume, and keep what every process has in the end."""
    for number in steps:
        loop = Loop(number, out, batch_size=2, save_every=4, resume=True)
        with kept_states() as states:
            train(make(), batches(2, rank, world), loop, device, HEADER, SAMPLES)
    nets, averages = states[-1].system.nets.state_dict(), states[-1].averages["G"].state_dict()
    torch.save({"nets": nets, "ema": averages}, out / f"{rank}.pt")


@contextmanager
def kept_states() -> Iterator[list[State]]:
    """The states of the runs within the block."""
    states: list[State] = []

    class Kept(State):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            states.append(self)

    with patch.object(loop_module, "State", Kept):
        yield states


def test_training_on_two_processes_equals_one_with_the_double_batch(tmp_path: Path) -> None:
    """Also resumed; and networks, averages, spectral vectors and statistics are the same in both, bit for bit."""
    make = partial(Toy, noise=0.0)
    run_ranks(train_toy, tmp_path / "two", make, 4, 6)
    train(make(), batches(4), Loop(6, tmp_path / "one", batch_size=4), torch.device("cpu"), HEADER)
    one, two = newest(tmp_path / "one"), newest(tmp_path / "two")
    assert one[1] | {"processes": 2} == two[1] and one[0].keys() == two[0].keys()
    for name, value in one[0].items():
        torch.testing.assert_close(two[0][name], value, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    ranks = [torch.load(tmp_path / f"two/{rank}.pt", weights_only=True) for rank in range(2)]
    for part in ("nets", "ema"):
        assert_same(ranks[0][part], ranks[1][part])


def test_every_process_resumes_with_its_own_memory(tmp_path: Path) -> None:
    run_ranks(train_toy, tmp_path / "whole", Remembering, 9)
    run_ranks(train_toy, tmp_path / "parts", Remembering, 5, 9)
    whole = newest(tmp_path / "whole")[0]
    assert_same(whole, newest(tmp_path / "parts")[0])
    pools = [whole[f"system.{rank}.pool.images"] for rank in range(2)]
    assert len(pools[0]) == 5 and not pools[0].equal(pools[1])


def test_another_number_of_processes_goes_on_and_says_so(tmp_path: Path, capsys) -> None:
    run_ranks(train_toy, tmp_path / "run", Remembering, 3)
    pool = newest(tmp_path / "run")[0]["system.0.pool.images"]
    with kept_states() as states:
        run(tmp_path / "run", 3, Remembering(), resume=True)
    assert "of 2 processes, and goes on with 1" in " ".join(capsys.readouterr().out.split())
    assert states[0].system.pool.images.equal(pool)
    run(tmp_path / "run", 4, Remembering(), resume=True)
    pool = newest(tmp_path / "run")[0]["system.0.pool.images"]
    run_ranks(train_toy, tmp_path / "run", Remembering, 5)
    after = newest(tmp_path / "run")[0]
    in_both = [(after[f"system.{rank}.pool.images"][:, None] == pool).flatten(2).all(2).any() for rank in range(2)]
    assert all(in_both)  # both went on with it


def early(rank: int, world: int, device: torch.device, out: Path, counts: tuple[int, int]) -> None:
    """Epochs of another number of batches in every process, the last of another size."""

    def epoch(number: int, start: int) -> Iterator[Batch]:
        sizes = [2] * (counts[rank] - 1) + [1 + rank] if counts[rank] else []
        for i, size in enumerate(sizes[start:]):
            yield next(batches(size, rank, world)(number, start + i))

    try:
        train(Toy(), epoch, Loop(6, out, batch_size=2), device, HEADER)
    except ValueError as error:
        (out / f"error{rank}").write_text(str(error))


def test_an_epoch_ends_for_all_with_the_first(tmp_path: Path) -> None:
    run_ranks(early, tmp_path, (5, 2))
    header = newest(tmp_path)[1]
    assert (header["step"], header["epoch"]) == (6, 3)


def test_no_process_waits_for_one_without_a_batch(tmp_path: Path) -> None:
    run_ranks(early, tmp_path, (3, 0))
    for rank in range(2):
        assert "epoch 1 has no batch of 2 for 2 processes" in (tmp_path / f"error{rank}").read_text()


def fail(rank: int, world: int, device: torch.device, out: Path) -> None:
    toy = Toy(norm=False, noise=0.0, nan_at=2 if rank == 1 else None)
    try:
        train(toy, batches(2, rank, world), Loop(5, out, batch_size=2), device, HEADER)
    except NonFiniteLoss as error:
        (out / f"error{rank}").write_text(str(error))


SYSTEMS = [name for name in ("cyclegan", "pix2pixhd", "spade") if name in NAMES]


def train_systems(rank: int, world: int, device: torch.device, out: Path, names: list[str], steps: int) -> None:
    """Steps of tiny systems on every world-th of 4 images, with weights before and after in a file.

    One step is of float32, and with optimizers that are smooth in the gradient: Adam as it is makes whole steps of
    round-off. More are of float64, as published.
    """
    for name in names:
        system = tiny(name)
        system.init_weights = lambda: None  # they are by now
        whole = BATCHES[system.data](system.config, system.config.size, 4)
        if steps > 1:
            system.double()
            whole = {key: value.double() if value.is_floating_point() else value for key, value in whole.items()}
        for phase in system.phases if steps == 1 else ():
            phase.optimizer = replace(phase.optimizer, eps=1.0, lr=1e-4)
        batch = {key: value[rank::world] for key, value in whole.items()}
        before, loop = copy.deepcopy(system.nets.state_dict()), Loop(steps, out / name, batch_size=4 // world)
        train(system, lambda *_, same=batch: [same], loop, device, {})
        torch.save((before, system.nets.state_dict()), out / f"{name}-{rank}.pt")


@pytest.fixture(scope="module", params=[1, 5], ids=["a float32 step", "five float64 steps"])
def trained(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("systems")
    for out in ("one", "two"):
        (folder / out).mkdir()
    run_ranks(train_systems, folder / "two", SYSTEMS, request.param)
    train_systems(0, 1, torch.device("cpu"), folder / "one", SYSTEMS, request.param)
    return folder


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_train_on_two_processes_as_on_one(name: str, trained: Path) -> None:
    """Buffers to 1e-6, the way that weights go to 1e-5 of its length.

    Five steps are of float64: from SPADE's initial weights, they make a percent of the round-off that another order of
    the images in the batch makes.
    """
    files = (f"one/{name}-0.pt", f"two/{name}-0.pt", f"two/{name}-1.pt")
    (before, one), (_, two), (_, other) = (torch.load(trained / file, weights_only=True) for file in files)
    assert_same(two, other)
    parameters = [key for key, _ in tiny(name).nets.named_parameters()]
    way, difference = (torch.cat([(one[k] - t[k]).flatten() for k in parameters]).norm() for t in (before, two))
    assert way > 0 and difference <= 1e-5 * way
    for key in one.keys() - set(parameters):
        torch.testing.assert_close(two[key], one[key], rtol=1e-6, atol=1e-6)


def test_nan_in_one_process_stops_all_with_its_name(tmp_path: Path) -> None:
    run_ranks(fail, tmp_path)
    for rank in range(2):
        assert "'fake' of phase D is nan at step 2" in (tmp_path / f"error{rank}").read_text()
