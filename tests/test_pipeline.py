"""Pipelines: whatever an image comes as, its translation is the system's; every system's networks can be baked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_models import NAMES, batch_of, settled
from torch import Tensor

import i2ifast
from i2ifast import _checkpoint, models
from i2ifast._checkpoint import CheckpointError
from i2ifast._graphs import KEPT, Graphs
from i2ifast._pipeline import Pipeline
from i2ifast._runlog import to_images
from i2ifast._state import State
from i2ifast.data import kinds

CPU = torch.device("cpu")
NAMES = [name for name in NAMES if models.system(name).data in kinds()]


@pytest.mark.parametrize("name", NAMES)
def test_every_system_translates_as_without_a_pipeline(name: str) -> None:
    system = settled(name)
    batch = batch_of(system)
    torch.manual_seed(0)
    expected = system.translate(batch)["fake"]
    torch.manual_seed(0)
    found = Pipeline(system, CPU).translate(batch)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def spade() -> Pipeline:
    return Pipeline(settled("spade", contain_dontcare_label=True), CPU)


LABEL = torch.randint(12, (8, 16), generator=torch.Generator().manual_seed(0)).repeat_interleave(8, 0)
LABEL = LABEL.repeat_interleave(8, 1).numpy().astype(np.uint8)  # [64,128]


def as_batch(label: np.ndarray) -> dict[str, Tensor]:
    return dict.fromkeys(("label", "instance"), torch.from_numpy(label).long()[None, None])


@pytest.mark.parametrize(
    "form",
    [
        lambda label: label,
        lambda label: label.astype(np.int64),
        lambda label: torch.from_numpy(label),
        lambda label: torch.from_numpy(label)[None],
        Image.fromarray,
        lambda label: Image.fromarray(label.astype(np.int32), "I"),
    ],
    ids=["uint8", "int64", "tensor", "tensor with a channel", "grey image", "integer image"],
)
def test_label_maps_in_every_form(form) -> None:
    pipe, label = spade(), form(LABEL)
    (expected,) = to_images(pipe.translate(as_batch(LABEL)))
    assert pipe(label, instance=label).tobytes() == expected.tobytes()


PICTURE = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("name", "given"),
    {
        "cocosnet": {"label": LABEL[:, :64], "ref": PICTURE, "label_ref": LABEL[:, 64:]},
        "edgegan": {"sketch": PICTURE[:, :32, :32], "domain": 1},
        "pix2pix": {"a": PICTURE},
        "region_norm": {"image": PICTURE, "mask": LABEL[:, :64] == 3},
        "starganv2": {"image": PICTURE, "reference_domain": 1, "reference": PICTURE.flip(2)},
    }.items(),
)
def test_single_inputs_of_other_kinds(name: str, given: dict) -> None:
    system = settled(name)
    pipe = Pipeline(system, CPU)
    first, *more = given.values()
    image = pipe(first, **dict(zip(list(given)[1:], more, strict=True)))
    assert image.mode == "RGB" and pipe.takes[0] == next(iter(given))
    again = pipe([first], **{key: [value] for key, value in list(given.items())[1:]})
    assert len(again) == 1 and again[0].size == image.size


def test_files_lists_and_sizes(tmp_path: Path) -> None:
    """Inputs of different sizes come back in their order; 255 is unknown."""
    pipe, unknown = spade(), LABEL.copy()
    unknown[:16] = 255
    labels = [LABEL, LABEL[:50, :70], unknown, LABEL[:, ::-1].copy()]
    files = [tmp_path / f"{i}.png" for i in range(len(labels))]
    for file, label in zip(files, labels, strict=True):
        Image.fromarray(label).save(file)
    found = pipe(files, instance=[str(file) for file in files], batch_size=2)
    assert [image.size for image in found] == [(128, 64), (70, 50), (128, 64), (128, 64)]
    one_by_one = [pipe(label, instance=label) for label in labels]
    for a, b in zip(found, one_by_one, strict=True):
        assert np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max() <= 1
    known = np.where(unknown == 255, 12, unknown)
    assert found[2].tobytes() == pipe(known, instance=unknown).tobytes()
    assert pipe([], instance=[]) == []


def test_photographs_in_every_form(tmp_path: Path) -> None:
    pipe = Pipeline(settled("munit"), CPU)
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in "ab")
    as_tensors = [torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1 for image in (a, b)]
    (expected,) = to_images(pipe.translate(dict(zip("ab", (t[None] for t in as_tensors), strict=True))))
    for array, name in ((a, "a.png"), (b, "b.png")):
        Image.fromarray(array).save(tmp_path / name)
    rgba = Image.fromarray(np.dstack([a, np.full((64, 64), 7, np.uint8)]))
    for first, style in [(a, b), (rgba, Image.fromarray(b)), (tmp_path / "a.png", str(tmp_path / "b.png")), as_tensors]:
        found = pipe(first, b=style)
        assert np.abs(np.asarray(found, np.int16) - np.asarray(expected, np.int16)).max() <= 1
    several = pipe([a, a[:, :50]], b=b)  # one style for all
    assert [image.size for image in several] == [(64, 64), (50, 64)] and several[0].tobytes() == found.tobytes()
    batch = pipe(torch.stack([as_tensors[0]] * 2), b=b)
    assert len(batch) == 2 and batch[0].tobytes() == batch[1].tobytes()
    grey = Image.fromarray(a[..., 0])
    assert pipe(grey, b=b).tobytes() == pipe(a[..., 0], b=b).tobytes() == pipe(a[..., :1], b=b).tobytes()


def test_grey_images_come_back_grey() -> None:
    assert [image.mode for image in to_images(torch.zeros(2, 1, 4, 6))] == ["L", "L"]


@pytest.mark.parametrize(
    ("first", "more", "message"),
    [
        (LABEL, {}, "'instance' is needed too"),
        (LABEL, {"instances": LABEL}, "instances: what is taken of this data is label, instance, image"),
        (LABEL, {"instance": [LABEL, LABEL]}, "2 of instance for 1 of label"),
        (LABEL / 2, {"instance": LABEL}, "label is torch.float64 of shape .64, 128.: expected integers"),
        (LABEL[None, None], {"instance": LABEL}, r"shape \(1, 1, 64, 128\): expected integers \[H,W\]"),
        (Image.new("RGB", (8, 8)), {"instance": LABEL}, "label is an image of mode RGB"),
        (np.full((64, 128), 77), {"instance": LABEL}, "labels hold 77 in image 0 .* the maximum is 12"),
        (LABEL, {"instance": LABEL[:32]}, r"\[1, 32, 128\]"),
        ("nowhere.png", {"instance": LABEL}, "nowhere.png"),
        (LABEL, {"instance": LABEL, "batch_size": 0}, "batch_size is 0"),
    ],
)
def test_label_maps_that_do_not_fit(first, more, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        spade()(first, **more)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "tensor of torch.uint8: expected floating point"),
        (torch.zeros(1, 8, 8), r"shape \(1, 8, 8\): expected \[3,H,W\]"),
        (torch.full((3, 8, 8), 255.0), "values up to 255: they must be in"),
        (np.zeros((8, 8, 3)), "array of float64 of shape .8, 8, 3.: expected uint8"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\)"),
        (Image.new("I;16", (8, 8)), "mode I;16: expected 8 bits"),
    ],
)
def test_photographs_that_do_not_fit(value, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pipeline(settled("munit"), CPU)(value)


def test_runs_and_systems_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    system = settled("munit")
    state = State(system)
    _checkpoint.save(tmp_path, 1, state.tensors(), {"system": "munit", "config": vars(system.config), **state.position})
    torch.save({side: system.nets[f"gen_{side}"].state_dict() for side in "ab"}, tmp_path / "gen_00000001.pt")
    photo, style = torch.rand(2, 3, 64, 64)
    expected = Pipeline(system, CPU)(photo, b=style)
    file = tmp_path / "checkpoint-00000001.safetensors"
    for pipe in (
        i2ifast.pipeline(tmp_path, device="cpu"),
        i2ifast.pipeline(str(file)),
        i2ifast.pipeline("munit", tmp_path, "tiny"),
    ):
        assert pipe(photo, b=style).tobytes() == expected.tobytes() and not pipe.system.training
    assert not caplog.messages
    assert i2ifast.pipeline("munit", preset="tiny")(photo, b=style).size == (64, 64)
    assert caplog.messages == ["munit: no weights are given, so they are random"]


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    for wrong in ({"name_or_run": "spad"}, {"name_or_run": tmp_path, "preset": "tiny"}):
        with pytest.raises(ValueError, match="no run, no checkpoint, and no system; there are .*spade"):
            i2ifast.pipeline(**wrong)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        i2ifast.pipeline(tmp_path)
    with pytest.raises(ValueError, match="no preset 'huge'"):
        i2ifast.pipeline("munit", preset="huge")


class Replayed:
    """A graph in Python: replaying reads the inputs that were captured and writes into the output that was."""

    def __init__(self, function, inputs: dict[str, Tensor], output: Tensor) -> None:
        self.function, self.inputs, self.output = function, inputs, output

    def replay(self) -> None:
        self.output.copy_(self.function(self.inputs))


def test_graphs_by_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = []

    def capture(self: Graphs, tensors: dict[str, Tensor]) -> tuple[Replayed, dict[str, Tensor], Tensor]:
        captured.append([tensor.shape for tensor in tensors.values()])
        inputs = {name: tensor.clone() for name, tensor in tensors.items()}
        output = self.function(inputs)
        return Replayed(self.function, inputs, output), inputs, output

    monkeypatch.setattr(Graphs, "capture", capture)
    graphs = Graphs(lambda tensors: tensors["a"] * 2 + tensors["b"])
    sizes = [2, 3, 2, 3, *range(4, 4 + KEPT), 2]
    made = []
    for i, size in enumerate(sizes):
        a, b = torch.full((size,), float(i)), torch.ones(size)
        made.append((graphs({"a": a, "b": b}), 2 * a + b))
    for found, expected in made:  # none is overwritten by the next
        assert torch.equal(found, expected)
    assert captured == [[(n,), (n,)] for n in (2, 3, *range(4, 4 + KEPT), 2)] and len(graphs.captured) == KEPT


def test_what_cannot_be_captured_runs_with_a_warning(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    def capture(self: Graphs, tensors: dict[str, Tensor]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Graphs, "capture", capture)
    graphs = Graphs(lambda tensors: tensors["a"] + 1)
    for _ in range(2):
        assert graphs({"a": torch.ones(1)}).item() == 2
    (message,) = caplog.messages
    assert "runs without CUDA graphs" in message and "not permitted" in message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [name for name in NAMES if models.system(name).data in ("unpaired", "paired")])
def test_graphs_on_a_device_replay_with_new_data(name: str) -> None:
    system = settled(name)
    batches = [{k: v * factor for k, v in batch_of(system).items()} for factor in (1, -1, 0.5)]
    expected = [system.translate(batch)["fake"] for batch in batches]
    pipe = Pipeline(system, torch.device("cuda"))
    for batch, truth in zip(batches, expected, strict=True):
        torch.testing.assert_close(pipe.translate(batch).cpu(), truth, rtol=1e-2, atol=1e-2)
    assert len(pipe.graphs.captured) == 1
