"""Bytes that forwards keep are those of the tensors in the graph, and none is left when it is gone."""

from pathlib import Path

import pytest
import torch
from test_models import BATCHES, tiny
from torch import Tensor, nn
from toy import Toy, run

from i2ifast._activations import Activations
from i2ifast.models import System


def in_graph(terms: dict[str, Tensor], system: System) -> int:
    """Bytes of all tensors that nodes behind `terms` say they have saved, but those of the system."""
    found: dict[int, int] = {}
    nodes, todo = set(), [term.grad_fn for term in terms.values()]
    while todo:
        if (node := todo.pop()) is None or node in nodes:
            continue
        nodes.add(node)
        todo += [other for other, _ in node.next_functions]
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        for value in (*saved, getattr(node, "saved_tensors", ())):
            for tensor in value if isinstance(value, tuple | list) else (value,):
                if isinstance(tensor, Tensor):
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(found[address] for address in found.keys() - addresses(system))


def addresses(system: System) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in (*system.parameters(), *system.buffers())}


@pytest.mark.parametrize("name", ["cyclegan", "spade"])
def test_bytes_are_those_of_the_graph(name: str) -> None:
    system = tiny(name).train()
    batch = system.prepare(BATCHES[system.data](system.config, system.config.size, 2))
    activations, peaks = Activations(system), {}
    for phase in system.phases:
        system.freeze_all_but(phase)
        with activations.during(phase.name):
            terms = phase.loss(batch)
        peaks[phase.name] = activations.now
        assert activations.now == pytest.approx(in_graph(terms, system), rel=1e-3)
        sum(terms.values()).backward()
        del terms
        assert activations.now == 0
    assert activations.peak == max(peaks.values()) == peaks[activations.phase]


def test_shared_memory_counts_once_and_weights_do_not() -> None:
    system, x = Toy(), torch.randn(1000)
    system.nets["G"] = nn.Linear(1, 1)
    activations = Activations(system)
    with activations.during("G"):
        y = (system.nets["G"].weight.flatten() * x).view(10, 100).square() * x[:500].repeat(2).view(10, 100)
    assert activations.now == activations.peak == 3 * x.nbytes
    del y
    assert activations.now == 0


def test_the_first_step_tells(tmp_path: Path, capsys) -> None:
    run(tmp_path, 2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("memory in MiB")]
    assert len(lines) == 2 and "of activations, in phase D" in lines[1] and lines[1].endswith("in all")
