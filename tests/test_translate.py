"""Translating files from the command line: tiles, and messages for what does not fit."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from i2ifast import models, translate
from i2ifast._pipeline import Pipeline, load
from i2ifast._runlog import to_images
from i2ifast._tiles import GRID, check, pieces, tiled
from i2ifast.data import procedural
from i2ifast.data.kinds.labels import Inputs


@pytest.mark.parametrize(("tile", "overlap"), [(128, 64), (256, 128), (192, 0)])
@pytest.mark.parametrize("size", [1, 63, 128, 129, 256, 300, 321, 512, 1000])
def test_pieces_cover_a_side_on_the_grid(size: int, tile: int, overlap: int) -> None:
    found = pieces(size, tile, overlap)
    total = torch.zeros(size)
    for place, weight in found:
        assert place.start % GRID == 0 and place.stop - place.start <= tile and (weight > 0).all()
        total[place] += weight
    torch.testing.assert_close(total, torch.ones(size))
    assert found[0][0].start == 0 and found[-1][0].stop == size
    for (first, _), (second, _) in zip(found, found[1:], strict=False):
        assert first.stop - second.start >= min(overlap, size - second.start) and first.start < second.start


def test_weights_fall_linearly() -> None:
    (_, first), (_, second) = pieces(192, 128, 64)
    torch.testing.assert_close(first[64:], torch.arange(64, 0, -1) / 65)
    torch.testing.assert_close(second[:64], torch.arange(1, 65) / 65)
    assert (first[:64] == 1).all() and (second[64:] == 1).all()


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [(100, 0, "tile is 100"), (128, 50, "overlap is 50"), (128, 128, "overlap is 128: must be less"), (64, -64, "-64")],
)
def test_tiles_off_the_grid_are_refused(tile: int, overlap: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(tile, overlap)


def test_tiles_of_a_local_network_are_the_whole() -> None:
    """Where an output pixel sees less than half of the overlap; the style, smaller or of the same size, stays whole."""
    torch.manual_seed(0)
    weight, x = torch.randn(3, 3, 9, 9) / 16, torch.randn(2, 3, 200, 330)

    def network(batch: dict[str, Tensor]) -> Tensor:
        assert batch["b"].shape == x.shape
        return F.conv2d(F.pad(batch["a"], (4,) * 4, "reflect"), weight) + torch.randn(2, 3, 1, 1)

    batch, state = {"a": x, "b": x.flip(0)}, torch.get_rng_state()
    whole = network(batch)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    found = tiled(network, batch, ["a"], 128, 64)
    assert torch.equal(after, torch.get_rng_state())
    # At the border of a tile its padding takes part, with what little weight it has there.
    difference = (found - whole).abs()
    assert difference.amax() < 0.5
    inner = difference[..., 8:56, 8:56]
    assert inner.amax() < 1e-5


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    procedural.write(folder, count=2, size=(136, 200))
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A checkpoint folder of tiny SPADE."""
    folder = tmp_path_factory.mktemp("original")
    torch.manual_seed(0)
    system = models.build("spade", "tiny")
    for name, net in system.nets.items():
        torch.save(net.state_dict(), folder / f"latest_net_{name}.pth")
    return folder


def command(original: Path, scenes: Path, out: Path, *more: str) -> list[str]:
    maps = ["--labels", str(scenes / "train_label"), "--instances", str(scenes / "train_inst")]
    return ["--system", "spade", "--preset", "tiny", "--weights", str(original), "--out", str(out), *maps, *more]


def test_tiles_from_the_command_line(tmp_path: Path, scenes: Path, original: Path) -> None:
    translate.main(command(original, scenes, tmp_path, "--tile", "128", "--overlap", "64"))
    pipe = Pipeline(load(original, "spade", "tiny"), torch.device("cpu"))
    names = ("label", "instance")
    for batch in Inputs(labels=scenes / "train_label", instances=scenes / "train_inst").batches(pipe.system, 1):
        (expected,) = to_images(tiled(pipe.translate, {name: batch[name] for name in names}, names, 128, 64))
        with Image.open(tmp_path / f"{batch['path'][0].stem}.png") as image:
            assert image.size == (200, 136) and image.tobytes() == expected.tobytes()
            assert image.tobytes() != to_images(pipe.translate(batch))[0].tobytes()


def test_what_is_missing_is_named(tmp_path: Path, scenes: Path, original: Path) -> None:
    labels = ["--labels", str(scenes / "train_label"), "--out", str(tmp_path / "out")]
    spade = ["--system", "spade", "--preset", "tiny", "--weights", str(original)]
    save_file({}, tmp_path / "empty.safetensors")
    cases = {
        "takes instance maps": [*spade, *labels],
        "no checkpoint": ["--weights", str(scenes), *labels],
        "empty.safetensors": ["--weights", str(tmp_path / "empty.safetensors"), *labels],
        "neither a run folder": ["--weights", str(tmp_path / "x.pth"), *labels],
        "no label maps": [*spade, *labels, "--labels", str(tmp_path)],
        "batch_size is 0": command(original, scenes, tmp_path, "--batch-size", "0"),
        "overlap is 128: must be less than tile, 64": command(original, scenes, tmp_path, "--tile", "64"),
    }
    for message, arguments in cases.items():
        with pytest.raises(SystemExit, match=message):
            translate.main(arguments)
