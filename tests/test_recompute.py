"""Activations computed again: the same numbers, fewer bytes kept, and buffers that take each forward once."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from test_models import BATCHES, NAMES, tiny
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from toy import Toy, assert_same, run

from i2ifast._recompute import blocks, recompute
from i2ifast.models import System
from i2ifast.nn import BatchNormAct, spectral_norm


@contextmanager
def bytes_kept() -> Iterator[list[int]]:
    """Of the tensors that the block's forwards keep for backward, each storage once."""
    sizes: dict[int, int] = {}
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        total[0] = sum(sizes.values())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def first_iteration(system: System) -> tuple[dict[str, Tensor], int]:
    """Gradients of all phases, the buffers afterwards, and the bytes kept."""
    torch.manual_seed(1)
    batch, found = system.prepare(BATCHES[system.data](system.config, system.config.size, 2)), {}
    with bytes_kept() as kept:
        for phase in system.phases:
            system.freeze_all_but(phase)
            system.zero_grad()
            sum(phase.loss(batch).values()).backward()
            gradients = {n: p.grad for n, p in system.nets.named_parameters() if p.grad is not None}
            found |= {f"{phase.name} {name}": gradient for name, gradient in gradients.items()}
    return found | dict(system.nets.named_buffers()), kept[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_system_has_the_same_gradients_and_buffers(name: str) -> None:
    kept, again = tiny(name).train(), tiny(name).train()
    some = any(blocks(again.nets))
    recompute(again.nets)
    expected, before = first_iteration(kept)
    found, after = first_iteration(again)
    assert expected.keys() == found.keys()
    largest = max(value.abs().max() for value in expected.values())
    for key, value in expected.items():  # gradients of several uses are added up in another order
        torch.testing.assert_close(
            found[key], value, rtol=1e-5, atol=1e-6 * largest.item(), msg=lambda m, k=key: f"{k}: {m}"
        )
    assert after < before or not some


def chain() -> nn.Sequential:
    """Three blocks, after a layer that is none."""
    torch.manual_seed(0)
    one = [nn.Sequential(spectral_norm(nn.Conv2d(8, 8, 3, padding=1)), BatchNormAct(8, 0.2)) for _ in range(3)]
    return nn.Sequential(nn.Conv2d(3, 8, 1), *one)


def test_blocks_are_the_outermost_that_repeat() -> None:
    net = chain()
    assert list(blocks(net)) == list(net)[1:]
    assert list(blocks(nn.Sequential(net, nn.ReLU()))) == list(net)[1:]
    assert not list(blocks(nn.Sequential(nn.ReLU(), nn.ReLU())))
    lists = nn.ModuleList([nn.ModuleList([chain()]), nn.ModuleList([chain(), chain()])])
    assert list(blocks(lists)) == [*list(lists[0][0])[1:], *lists[1]]


def test_second_derivatives_are_the_same() -> None:
    """And what is run again for each of them finds the buffers of the first forward."""
    found = []
    for again in (False, True):
        net = chain()
        if again:
            recompute(net)
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (gradient,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        found.append({name: p.grad for name, p in net.named_parameters()} | dict(net.named_buffers()) | {"x": x.grad})
    assert_same(*found)


def test_nothing_is_run_again_without_gradients() -> None:
    net, calls = chain().eval(), []
    recompute(net)
    net[1][0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        net(torch.ones(1, 3, 8, 8))
    assert len(calls) == 1


class Deep(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.nets["G"] = nn.Sequential(nn.Conv2d(1, 3, 1), *chain(), nn.Conv2d(8, 3, 1))


def test_the_loop_trains_and_resumes_the_same(tmp_path) -> None:
    whole = run(tmp_path / "a", 5, Deep())
    for steps in (3, 5):
        parts = run(tmp_path / "b", steps, Deep(), checkpoint_activations=True, resume=True)
    assert_same(whole, parts)
