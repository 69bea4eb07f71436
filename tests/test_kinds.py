"""Kinds of data: what their folders hold becomes items, and systems of each kind train and translate from files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy import newest

from i2ifast import translate
from i2ifast.data import kind, kinds, procedural
from i2ifast.data.kinds import images, paired, unpaired
from i2ifast.train import main


def save(
    path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 30), right: tuple | None = None
) -> Path:
    """A picture of one colour, with another on its right half if given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour)
    if right:
        image.paste(right, (size[0] // 2, 0, *size))
    image.save(path)
    return path


def red(image: torch.Tensor) -> int:
    """The red of a picture of one colour."""
    (value,) = ((image[0] + 1) * 127.5).round().unique().tolist()
    return int(value)


def test_every_kind_has_what_a_kind_has() -> None:
    assert {"images", "labels", "paired", "unpaired"} <= set(kinds())
    for name in kinds():
        module = kind(name)
        assert "fake" in module.SHOWN and module.__doc__
        assert (
            issubclass(module.Settings, module.Options) and callable(module.folder) and callable(module.Inputs.batches)
        )
    with pytest.raises(ValueError, match="no kind of data 'sounds'; there are .*labels"):
        kind("sounds")


SMALL = {"crop_size": 16, "load_size": 20}


def test_unpaired_partners_are_drawn_in_training_only(tmp_path: Path) -> None:
    for n in range(3):
        save(tmp_path / f"trainA/{n}.png", (n, 0, 0))
    for n in range(5):
        save(tmp_path / f"trainB/{n}.png", (100 + n, 0, 0))
    data = unpaired.folder(tmp_path, "train", unpaired.Settings(**SMALL), seed=1, train=True)
    assert len(data) == 5 and data[4]["path"].endswith("trainA/1.png")
    drawn = [(red(item["a"]), red(item["b"])) for item in (data[epoch, 1] for epoch in range(40))]
    assert {a for a, _ in drawn} == {1} and {b for _, b in drawn} == set(range(100, 105))
    again = unpaired.folder(tmp_path, "train", unpaired.Settings(**SMALL), seed=1, train=True)
    assert [red(again[epoch, 1]["b"]) for epoch in range(40)] == [b for _, b in drawn]
    fixed = unpaired.folder(tmp_path, "train", unpaired.Settings(**SMALL, direction="BtoA", input_nc=1))
    assert [(red(item["a"]), red(item["b"])) for item in (fixed[4], fixed[0])] == [(31, 1), (30, 0)]  # 0.299 * red
    assert fixed[0]["a"].shape == (1, 16, 16) and fixed[0]["b"].shape == (3, 16, 16)
    with pytest.raises(FileNotFoundError, match="valA: no such folder"):
        unpaired.folder(tmp_path, "val", unpaired.Settings())


@pytest.mark.parametrize("form", ["trainA", "train_A", "A/train", "train"])
def test_pairs_in_every_layout(tmp_path: Path, form: str) -> None:
    if form == "train":
        save(tmp_path / "train/x.png", (7, 0, 0), (80, 30), right=(9, 0, 0))
    else:
        save(tmp_path / form / "x.png", (7, 0, 0))
        save(tmp_path / form.replace("A", "B") / "x.jpg", (9, 9, 9))
    for direction, colours in {"AtoB": (7, 9), "BtoA": (9, 7)}.items():
        data = paired.folder(tmp_path, "train", paired.Settings(**SMALL, direction=direction), train=True)
        assert len(data) == 1 and (red(data[0]["a"]), red(data[0]["b"])) == colours
    if form != "train":
        save(tmp_path / form / "y.png", (0, 0, 0))
        with pytest.raises(FileNotFoundError, match=r"y\.png: no file of that name"):
            paired.folder(tmp_path, "train", paired.Settings())


def test_pairs_share_place_and_mirroring(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    for side in "AB":
        (tmp_path / f"train{side}").mkdir()
        Image.fromarray(noise).save(tmp_path / f"train{side}/0.png")
    settings = paired.Settings(crop_size=16, preprocess_mode="crop")
    data = paired.folder(tmp_path, "train", settings, train=True)
    crops = [data[epoch, 0] for epoch in range(6)]
    assert all(item["a"].equal(item["b"]) for item in crops)
    assert len({item["a"].sum().item() for item in crops}) > 1
    alone = unpaired.folder(tmp_path, "train", unpaired.Settings(crop_size=16, preprocess_mode="crop"), train=True)
    assert not all(item["a"].equal(item["b"]) for item in (alone[epoch, 0] for epoch in range(6)))
    save(tmp_path / "trainB/0.png", (0, 0, 0), (39, 30))
    with pytest.raises(ValueError, match=r"trainB/0\.png: 39x30 pixels, but its partner has 40x30"):
        data[0]


def test_images_are_found_in_folders_below(tmp_path: Path) -> None:
    for name in ("10.png", "9.png", "more/1.png"):
        save(tmp_path / "train" / name, (3, 4, 5))
    data = images.folder(tmp_path, "train", images.Settings(**SMALL))
    assert [data[i]["path"].removeprefix(f"{tmp_path}/train/") for i in range(3)] == ["9.png", "10.png", "more/1.png"]
    with pytest.raises(FileNotFoundError, match="val: no such folder"):
        images.folder(tmp_path, "val", images.Settings())


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """A folder that has scenes for every kind."""
    root = tmp_path_factory.mktemp("photographs")
    for number in range(6):
        scene = procedural.scene(48, number)
        phase = "train" if number < 4 else "val"
        for folder in (f"{phase}{'AB'[number % 2]}", phase):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(scene.image).save(root / folder / f"{number}.png")
    return root


def test_unpaired_systems_train_and_translate_from_files(tmp_path: Path, photographs: Path) -> None:
    where = ["--data", str(photographs), "--out", str(tmp_path / "run"), "--steps", "2", "--workers", "0"]
    main(["munit", "--preset", "tiny", *where, "--load-size", "70", "--direction", "BtoA"])
    assert newest(tmp_path / "run")[1]["step"] == 2
    with Image.open(tmp_path / "run/samples/00000002.png") as grid:
        assert grid.width == 3 * 64
    inputs = ["--images", str(photographs / "trainB"), "--styles", str(photographs / "trainA")]
    translate.main(["--weights", str(tmp_path / "run"), "--out", str(tmp_path / "out"), *inputs])
    for name in ("1.png", "3.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.size == (48, 48)
    with pytest.raises(SystemExit, match="nothing: no such folder, or no images in it"):
        inputs[1] = str(photographs / "nothing")
        translate.main(["--weights", str(tmp_path / "run"), "--out", str(tmp_path / "out"), *inputs])


def test_systems_of_images_train_and_make_some(tmp_path: Path, photographs: Path) -> None:
    where = ["--data", str(photographs), "--out", str(tmp_path / "run"), "--steps", "1", "--workers", "0"]
    main(["stylegan2", "--preset", "tiny", *where, "--batch-size", "2"])
    translate.main(
        ["--weights", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--count", "3", "--batch-size=2"]
    )
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["00000.png", "00001.png", "00002.png"]
