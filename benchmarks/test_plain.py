"""The plain formulation of every system computes what ours does: images, terms of the losses, gradients."""

import pytest
import torch
from plain import formulas
from systems import ROWS, Row
from torch import Tensor

from i2ifast.models import Batch, System

# In float64 up to rounding; label maps that systems themselves make dense are float32.
FLOAT32 = ("cocosnet", "crn", "panoptic", "sims")


def outputs(system: System, batch: Batch) -> dict[str, Tensor]:
    """Terms and gradients of every phase, all with the weights of the beginning, then a translation."""
    torch.manual_seed(1)
    found, prepared = {}, system.train().prepare(dict(batch))
    for phase in system.phases:
        system.freeze_all_but(phase)
        system.zero_grad()
        terms = phase.loss(prepared)
        sum(terms.values()).backward()
        gradients = [p.grad.flatten() for p in system.nets.parameters() if p.grad is not None]
        found |= {f"{phase.name}: {name}": term.detach() for name, term in terms.items()}
        found[f"gradients of {phase.name}"] = torch.cat(gradients)
    return found | {"fake": system.eval().translate(dict(batch))["fake"]}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.system)
def test_plain_systems_compute_the_same(row: Row) -> None:
    dtype = torch.float32 if row.system in FLOAT32 else torch.float64
    ours, plain = (row.build(small=True).to(dtype) for _ in range(2))
    (batch,) = row.batches(1, small=True)
    batch = {name: t.to(dtype) if t.is_floating_point() else t for name, t in batch.items()}
    expected = outputs(ours, batch)
    with formulas(dtype=dtype):
        found = outputs(plain, batch)
    assert found.keys() == expected.keys()
    bound = 1e-6 if dtype is torch.float64 else 1e-2
    for name, value in expected.items():
        difference = (found[name] - value).norm()
        assert difference <= bound * value.norm().clamp(min=1e-6), f"{name}: {difference:.1e} of {value.norm():.1e}"


def test_the_library_is_itself_again() -> None:
    (row,) = [row for row in ROWS if row.system == "spade"]
    system = row.build(small=True).eval()
    (batch,) = row.batches(1, small=True)
    before = system.translate(batch)["fake"]
    with pytest.raises(KeyError), formulas():
        raise KeyError
    assert system.translate(batch)["fake"].equal(before)
