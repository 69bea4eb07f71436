"""Kinds of data: what their folders hold becomes items, and systems of each kind train and translate from files."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from toy import newest

from i2ifast import translate
from i2ifast.data import kind, kinds, procedural
from i2ifast.data.kinds import domains, embeddings, images, inpainting, paired, sketches, unpaired
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


@pytest.mark.parametrize("names", [("A", "B"), ("content", "style")])
def test_unpaired_folders_without_phase_are_to_learn_from(tmp_path: Path, names: tuple[str, str]) -> None:
    for value, name in enumerate(names):
        save(tmp_path / name / "x.png", (value, 0, 0))
    for direction, colours in {"AtoB": (0, 1), "BtoA": (1, 0)}.items():
        (item,) = unpaired.folder(tmp_path, "train", unpaired.Settings(**SMALL, direction=direction))
        assert (red(item["a"]), red(item["b"])) == colours
    with pytest.raises(FileNotFoundError, match="valA: no such folder"):
        unpaired.folder(tmp_path, "val", unpaired.Settings())


@pytest.mark.parametrize("form", ["trainA", "train_A", "A/train", "A", "train"])
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
    assert len(images.folder(tmp_path / "train", "train", images.Settings(**SMALL))) == 3
    assert len(images.folder(tmp_path / "train/9.png", "train", images.Settings(**SMALL))) == 1


def test_embeddings_of_a_photograph_and_of_none(tmp_path: Path) -> None:
    for n in range(3):
        save(tmp_path / f"train/{n}.png", (n, 0, 0))
        (tmp_path / "train_embedding").mkdir(exist_ok=True)
        np.save(tmp_path / f"train_embedding/{n}.npy", np.array([[n, 1.0], [n, 2.0]]))
    settings = embeddings.Settings(**SMALL, text_dim=2)
    data = embeddings.folder(tmp_path, "train", settings, train=True)
    drawn = [data[epoch, 1] for epoch in range(30)]
    assert {tuple(item["embedding"].tolist()) for item in drawn} == {(1, 1), (1, 2)}
    assert {red(item["image"]) for item in drawn} == {1} and {red(item["wrong"]) for item in drawn} == {0, 2}
    assert embeddings.folder(tmp_path, "train", settings)[2]["embedding"].tolist() == [2, 1]
    cases = {
        "expected finite": np.array([np.nan, 0]),
        "the system takes 2 numbers": np.zeros(3),
        "not a readable NumPy": np.array([None, {}], dtype=object),
    }
    for message, array in cases.items():
        np.save(tmp_path / "train_embedding/0.npy", array)
        with pytest.raises(ValueError, match=rf"train_embedding/0\.npy: .*{message}"):
            data[0]
    (tmp_path / "train_embedding/0.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.png: has no embedding"):
        embeddings.folder(tmp_path, "train", settings)


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


def test_photographs_to_make_images_of(photographs: Path) -> None:
    batches = list(images.Inputs(images=photographs / "trainA").batches(None, 2))
    names = [path.name for path in sorted((photographs / "trainA").iterdir())]
    assert sorted(path.name for batch in batches for path in batch["path"]) == names
    assert all(batch["image"].shape[1:] == (3, 48, 48) for batch in batches)


def seasons(root: Path) -> None:
    """Domains a, b, c of 2, 3 and 4 pictures, whose reds are 10, 11, 20, 21, 22, 30, ..."""
    for number, name in enumerate("abc", 1):
        for n in range(number + 1):
            save(root / name / f"{n}.png", (10 * number + n, 0, 0))


@pytest.mark.parametrize("form", ["train/a", "a", "list"])
def test_domains_in_every_layout(tmp_path: Path, form: str) -> None:
    seasons(tmp_path / "train" if form == "train/a" else tmp_path)
    if form == "list":
        (tmp_path / "animals_list_train.txt").write_text("c/1.png\na/0.png\nc\\0.png\n")
    settings = domains.Settings(**SMALL, num_references=0)
    data = domains.folder(tmp_path, "train", settings, train=True)
    found = [(item["domain"].item(), red(item["image"])) for item in (data[i] for i in range(len(data)))]
    every = [(0, 10), (0, 11), (1, 20), (1, 21), (1, 22), (2, 30), (2, 31), (2, 32), (2, 33)]
    assert found == ([(0, 10), (1, 30), (1, 31)] if form == "list" else every)
    assert set(data[0]) == {"image", "domain", "path"} and data[0]["domain"].dtype == torch.int64
    with pytest.raises(FileNotFoundError, match=r"no val\.txt, and no folders with images in .*val"):
        domains.folder(tmp_path, "val", settings)
    with pytest.raises(ValueError, match="domains .*, but the system has 7"):
        domains.folder(tmp_path, "train", domains.Settings(**SMALL, num_domains=7), train=True)


def test_references_are_of_one_domain_drawn_evenly(tmp_path: Path) -> None:
    seasons(tmp_path)
    plain = domains.folder(tmp_path, "train", domains.Settings(**SMALL), train=True)
    items = [plain[epoch, 8] for epoch in range(300)]
    assert {item["domain"].item() for item in items} == {2}
    references = [(item["reference_domain"].item(), red(item["reference"]), red(item["reference2"])) for item in items]
    assert all(first // 10 == second // 10 == domain + 1 for domain, first, second in references)
    assert len(set(references)) == 4 + 9 + 16
    assert max(abs(sum(r[0] == n for r in references) - 100) for n in range(3)) < 40
    even = domains.folder(tmp_path, "train", domains.Settings(**SMALL, balanced=True), train=True)
    counts = np.bincount([even[epoch, 8]["domain"].item() for epoch in range(300)])
    assert abs(counts - 100).max() < 40
    held_out = domains.folder(tmp_path, "train", domains.Settings(**SMALL, balanced=True))
    assert [held_out[i]["domain"].item() for i in range(9)] == [0, 0, 1, 1, 1, 2, 2, 2, 2]


def test_domains_to_translate_to(tmp_path: Path) -> None:
    seasons(tmp_path / "data")
    save(tmp_path / "images/x.png", (1, 0, 0), (24, 20))
    system = SimpleNamespace(config=SimpleNamespace(crop_size=16, num_domains=3), data_settings={})
    named = domains.Inputs(images=tmp_path / "images", domain="b", data=tmp_path / "data")
    (batch,) = named.batches(system, 4)
    assert batch["image"].shape == (1, 3, 20, 24) and batch["domain"].tolist() == batch[
        "reference_domain"
    ].tolist() == [1]
    shots = domains.Inputs(images=tmp_path / "images", references=tmp_path / "data/c")
    (batch,) = shots.batches(system, 4)
    assert batch["references"].shape == (1, 4, 3, 16, 16) and red(batch["reference"][0]) == 30
    for message, options in {
        "name a --domain": {},
        r"domain 'b': expected a number below 3 \(names need --data\)": {"domain": "b"},
        "domain 'd': expected a number below 3, or one of a, b, c": {"domain": "d", "data": tmp_path / "data"},
        "domain '3': expected a number below 3": {"domain": "3"},
    }.items():
        with pytest.raises(ValueError, match=message):
            list(domains.Inputs(images=tmp_path / "images", **options).batches(system, 4))


def test_middles_and_random_parts_are_resized(tmp_path: Path) -> None:
    columns = np.arange(100, dtype=np.uint8)[None, :, None].repeat(80, 0).repeat(3, 2)
    (tmp_path / "train").mkdir()
    Image.fromarray(columns).save(tmp_path / "train/0.png")

    def reds(settings: images.Settings, train: bool, epoch: int = 0) -> np.ndarray:
        item = images.folder(tmp_path, "train", settings, train=train)[epoch, 0]["image"]
        assert item.shape == (3, 40, 40)
        return ((item[0, 20] + 1) * 127.5).numpy()

    middle = images.Settings(crop_size=40, load_size=60, preprocess_mode="crop_and_resize")
    for train in (False, True):
        found = np.sort(reds(middle, train))
        assert abs(found[0] - 20.25) < 1 and abs(found[-1] - 78.75) < 1
    with pytest.raises(ValueError, match="100x80 pixels: smaller than the 90x90"):
        reds(images.Settings(crop_size=40, load_size=90, preprocess_mode="crop_and_resize"), True)
    parts = images.Settings(crop_size=40, preprocess_mode="random_resized_crop")
    assert reds(parts, False)[0] < 3 and reds(parts, False)[-1] > 96
    ends = np.array([np.sort(reds(parts, True, epoch))[[0, -1]] for epoch in range(100)])
    wide = ends[:, 1] - ends[:, 0]
    assert 0.35 < (wide > 94).mean() < 0.7 and wide.min() > 70  # 0.8 of the area, at most 1.1 times as wide as high


def test_holes_are_drawn_or_read(tmp_path: Path) -> None:
    for n in range(3):
        save(tmp_path / f"train/{n}.png", (200, 200, 200))
    for holes in ("strokes", "rectangle"):
        data = inpainting.folder(tmp_path, "train", inpainting.Settings(**SMALL, holes=holes), train=True)
        masks = [data[epoch, 0]["mask"] for epoch in range(20)]
        assert all(mask.shape == (1, 16, 16) and mask.unique().tolist() == [0, 1] for mask in masks)
        assert len({mask.sum().item() for mask in masks}) > 5 and data[3, 0]["mask"].equal(masks[3])
        assert data[0]["masked"].equal(data[0]["image"] * (1 - data[0]["mask"]))
    for n in range(2):
        save(tmp_path / f"masks/{n}.png", (0, 0, 0), right=(255, 255, 255))
    settings = inpainting.Settings(**SMALL, masks=tmp_path / "masks")
    left = [inpainting.folder(tmp_path, "train", settings, train=train)[e, 0]["mask"][0, 0, 0].item()
            for train in (False, True) for e in range(10)]  # fmt: skip
    assert set(left[:10]) == {0} and set(left[10:]) == {0, 1}  # half are mirrored in training
    with pytest.raises(FileNotFoundError, match="nothing: no such folder, or no masks"):
        inpainting.folder(tmp_path, "train", inpainting.Settings(**SMALL, masks=tmp_path / "nothing"))
    save(tmp_path / "small/0.png", (0, 0, 0), (10, 10))
    save(tmp_path / "one/0.png", (0, 0, 0))
    with pytest.raises(ValueError, match="10x10 pixels, but its photograph .*40x30"):
        list(inpainting.Inputs(images=tmp_path / "one", masks=tmp_path / "small").batches(None, 1))


def test_sketches_are_halves(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        save(tmp_path / f"train/{name}/0.png", (number, 0, 0), (80, 30), right=(10 + number, 0, 0))
    data = sketches.folder(tmp_path, "train", sketches.Settings(**SMALL), train=True)
    found = [(red(item["sketch"]), red(item["image"]), item["domain"].item()) for item in (data[0], data[1])]
    assert found == [(0, 10, 0), (1, 11, 1)]
    with pytest.raises(ValueError, match=r"2 classes \(cat, dog\), but the system has 14"):
        sketches.folder(tmp_path, "train", sketches.Settings(num_classes=14))


def test_attributes_of_celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains, "HELD_OUT", 2)
    rows = [f"{n:06d}.jpg {1 if n % 2 else -1} {1 if n > 2 else -1} -1" for n in range(1, 7)]
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(["6", "Odd Late Never", *rows]) + "\n")
    for n in range(1, 7):
        save(tmp_path / f"images/{n:06d}.jpg", (100, 100, 100))
    settings = domains.Settings(**SMALL, selected_attrs=("Late", "Odd"))
    train, val = (domains.folder(tmp_path, phase, settings) for phase in ("train", "val"))
    found = {int(Path(item["path"]).stem): item["attributes"].tolist() for data in (train, val) for item in
             (data[i] for i in range(len(data)))}  # fmt: skip
    assert (len(train), len(val)) == (4, 2) and found == {n: [n > 2, n % 2] for n in range(1, 7)}
    with pytest.raises(ValueError, match="no attributes Big; there are Odd, Late, Never"):
        domains.folder(tmp_path, "train", domains.Settings(selected_attrs=("Big",)))
    config = SimpleNamespace(crop_size=16, selected_attrs=("Late", "Odd"))
    system = SimpleNamespace(config=config, data_settings={})
    (batch,) = domains.Inputs(images=tmp_path / "images", attributes=("Odd",)).batches(system, 6)
    assert batch["reference_attributes"].tolist() == [[0, 1]] * 6
    with pytest.raises(ValueError, match="attributes Big: the system has"):
        next(domains.Inputs(images=tmp_path / "images", attributes=("Big",)).batches(system, 6))
