"""From losses to weights: gradients of several batches, clipped ones, float16, and what is not finite."""

import json
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from toy import HEADER, Remembering, Toy, assert_same, batches, newest, run

from i2ifast._nonfinite import Place, Watch
from i2ifast._runlog import NonFiniteLoss
from i2ifast._state import State
from i2ifast._update import Updater
from i2ifast.models import Batch
from i2ifast.train import Loop, train


def test_accumulated_steps_are_those_of_the_big_batch(tmp_path: Path) -> None:
    """Phase by phase, and a pool sees the images in the same order. A rest of an epoch is left out."""

    def plain() -> Remembering:
        return Remembering(size=50, norm=False, noise=0.0)

    def parts(epoch: int, start: int) -> Iterator[Batch]:
        """The batches of 4 in halves, and one more."""
        halves = [{k: v[i : i + 2] for k, v in batch.items()} for batch in batches(4)(epoch, 0) for i in (0, 2)]
        yield from (*halves, halves[0])[start:]

    train(plain(), batches(4), Loop(10, tmp_path / "one", batch_size=4), torch.device("cpu"), HEADER)
    for steps in (4, 10):
        loop = Loop(steps, tmp_path / "two", batch_size=2, accumulate=2, resume=True)
        train(plain(), parts, loop, torch.device("cpu"), HEADER)
    one, two = newest(tmp_path / "one"), newest(tmp_path / "two")
    assert one[1] == two[1] and one[1]["epoch"] == 2
    for name, value in one[0].items():
        torch.testing.assert_close(two[0][name], value, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_epoch_without_enough_batches_to_accumulate_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="epoch 1 has no 9 batches of 2 for 1 processes"):
        run(tmp_path, 1, accumulate=9)


def updated(clip_grad: float | None, scaled: bool, gradient: float) -> tuple[Toy, dict[str, Tensor], Updater]:
    """A toy, what its first phase's step says, and the updater, after a step by constant gradients."""
    toy = Toy()
    updater = Updater(State(toy, scaled=scaled), clip_grad, Watch(torch.device("cpu")))
    phase, place = toy.phases[0], Place(1, 1, 0)
    toy.freeze_all_but(phase)
    updater.backward(place, phase, sum(gradient * p.sum() for p in toy.nets["G"].parameters()))
    return toy, updater.step(place, phase), updater


@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_are_clipped_to_the_norm(scaled: bool) -> None:
    gradients = [p.grad for p in updated(0.5, scaled, 3.0)[0].nets["G"].parameters()]
    assert sum(g.square().sum() for g in gradients).sqrt() == pytest.approx(0.5)
    assert len({round(float(value), 6) for g in gradients for value in g.flatten()}) == 1  # all in proportion
    assert (next(updated(100.0, scaled, 3.0)[0].nets["G"].parameters()).grad == 3).all()  # small enough as they are


def test_float16_skips_a_step_and_lowers_its_scale() -> None:
    for gradient, moved in ((1.0, 1), (float("inf"), 0)):
        toy, found, updater = updated(None, True, gradient)
        assert found == {"G": moved}
        assert updater.state.scalers["G"].get_scale() == (65536 if moved else 32768)
        assert updater.state.scalers["D"].get_scale() == 65536  # each phase has its own
        state = updater.state
        before = {name: p.clone() for name, p in state.averages["G"].named_parameters()}
        nn.init.ones_(toy.nets["G"][0].weight.detach())
        state.step = 1
        state.average(found)
        assert state.averages["G"][0].weight.equal(before["0.weight"]) == (not moved)


def test_float16_resumes_with_its_scales(tmp_path: Path) -> None:
    """Which shrink until there is a step: the first ones are skipped."""
    with patch.object(torch.GradScaler.__init__, "__defaults__", ("cuda", 2.0**40, 2.0, 0.5, 3, True)):
        whole = run(tmp_path / "a", 9, precision="fp16")
        for steps in (4, 9):
            parts = run(tmp_path / "b", steps, precision="fp16", resume=True)
    assert_same(whole, parts)
    scales = newest(tmp_path / "a")[1]["scales"]
    assert scales == newest(tmp_path / "b")[1]["scales"] and scales.keys() == {"G", "D", "D_reg"}
    assert all(scale["scale"] < 2.0**40 for scale in scales.values())
    assert whole["optimizer.G.step.G.0.weight"] < 9


def test_float16_has_the_losses_of_float32(tmp_path: Path) -> None:
    half, full = (run(tmp_path / p, 1, precision=p) and losses(tmp_path / p) for p in ("fp16", "fp32"))
    assert half == pytest.approx(full, rel=1e-2) and half != full


def losses(folder: Path) -> dict[str, float]:
    terms = json.loads((folder / "log.jsonl").read_text())["losses"]
    return {name: value for name, value in terms.items() if name != "D_reg/small"}  # after a step that may be skipped


class Layer(nn.Module):
    """Passes on what it gets; in step `at` it makes a NaN of the output, or of its gradient."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.armed = what, False

    def forward(self, x: Tensor) -> Tensor:
        if self.armed and self.what == "output":
            return x / 0 * 0
        if self.armed and self.what == "gradient":
            return x + (x * 0).sqrt()
        return x


class Failing(Toy):
    """Not finite in the second batch of the second epoch."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.layer = Layer(what)
        self.nets["G"].insert(2, self.layer)

    def prepare(self, batch: Batch) -> Batch:
        self.layer.armed = batch["bad"]
        image = batch["image"].clone()
        if batch["bad"] and self.layer.what == "input":
            image[0, 0, 0, 0] = float("nan")
        return super().prepare(batch | {"image": image})


def failing_batches(epoch: int, start: int) -> Iterator[Batch]:
    for i, batch in enumerate(batches(2)(epoch, start), start):
        yield batch | {"bad": (epoch, i) == (2, 1)}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("what", "where"),
    [
        ("output", r"the output of nets.G.2 \(Layer\)"),
        ("gradient", r"the gradient at the output of nets.G.1 \(BatchNormAct\)"),
        ("input", "the input image of x.png, x.png"),
    ],
)
def test_what_is_not_finite_is_named_with_the_module(tmp_path: Path, what: str, where: str, accumulate: int) -> None:
    """Though it is found steps later; the weights are those of the last good step, and are not saved."""
    step = {1: 9, 2: 4}[accumulate]  # the first is of epoch 2, in batches 0 and 1
    failing = Failing(what)
    loop = Loop(30, tmp_path, batch_size=2, accumulate=accumulate, log_every=15, save_every=15)
    with pytest.raises(NonFiniteLoss, match=f"phase G is (nan|not finite) at step {step}; .*run again, .*{where}"):
        train(failing, failing_batches, loop, torch.device("cpu"), HEADER)
    assert all(p.isfinite().all() for p in failing.nets.parameters())
    assert not list(tmp_path.glob("*.safetensors"))
