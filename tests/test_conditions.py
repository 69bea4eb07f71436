"""Kinds of data with conditions: exemplars and their lists, poses, parts of faces, boxes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from i2ifast import models
from i2ifast._runlog import grid
from i2ifast.data import _pose, kind, procedural
from i2ifast.data.kinds import boxes, exemplars, labels
from i2ifast.data.pixels import Geometry


def plain(path: Path, value: int, size: tuple[int, int] = (32, 32), mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(path)
    return path


def shade(image: torch.Tensor) -> int:
    """The grey of a picture of one colour."""
    (value,) = ((image + 1) * 127.5).round().unique().tolist()
    return int(value)


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    """Four training images and two held-out ones, with lists; an image's grey and its label is its number."""
    for phase, count in (("train", 4), ("val", 2)):
        for n in range(count):
            plain(tmp_path / f"{phase}ing/ADE_{phase}_{n:08d}.png", n)
            plain(tmp_path / f"{phase}ing/ADE_{phase}_{n:08d}.jpg", 10 * n + 100 * (phase == "val"), mode="RGB")
    (tmp_path / "ade20k_ref.txt").write_text("ADE_train_00000000.jpg,ADE_train_00000002.jpg,ADE_train_00000003.jpg\n")
    (tmp_path / "ade20k_ref_test.txt").write_text("ADE_val_00000001.jpg,ADE_train_00000003.jpg\n")
    return tmp_path


OPTIONS = {"label_nc": 5, "crop_size": 16, "load_size": 20}


def drawn(data: exemplars.Exemplars, index: int, count: int = 200) -> list[tuple[int, float]]:
    """Greys of exemplars, and whether they are the image itself."""
    items = [data[epoch, index] for epoch in range(count)]
    assert all(item["label_ref"].unique().tolist() == [shade(item["ref"]) / 10] for item in items)
    return [(shade(item["ref"]), item["self_ref"].item()) for item in items]


def test_exemplars_are_drawn_as_the_original_draws_them(ade: Path) -> None:
    data = exemplars.folder(ade, "train", exemplars.Settings(**OPTIONS), train=True)
    of_first = drawn(data, 0)
    assert {grey for grey, own in of_first if own} == {0} and {grey for grey, own in of_first if not own} == {20, 30}
    assert 0.2 < np.mean([own for _, own in of_first]) < 0.4
    hard = [grey == 30 for grey, own in of_first if not own]
    assert 0.1 < np.mean(hard) < 0.3
    assert {grey for grey, own in drawn(data, 1) if not own} == {0, 10, 20, 30}  # not in the list
    never = exemplars.Settings(**OPTIONS, real_reference_probability=0.0)
    assert all(own for _, own in drawn(exemplars.folder(ade, "train", never, train=True), 0, 20))
    with pytest.raises(ValueError, match="real_reference_probability 2: expected 0 to 1"):
        exemplars.Settings(**OPTIONS, real_reference_probability=2)


def test_exemplars_outside_training_are_those_of_the_test_list(ade: Path) -> None:
    data = exemplars.folder(ade, "val", exemplars.Settings(**OPTIONS))
    assert [shade(data[i]["ref"]) for i in range(2)] == [110, 30]  # the next image; the list's
    assert [shade(data[i]["image"]) for i in range(2)] == [100, 110] and data[1]["self_ref"] == 0


def face(root: Path) -> None:
    folder = root / "CelebAMask-HQ-mask-anno/1"
    for part, box in {"skin": (4, 4, 28, 28), "l_eye": (18, 8, 24, 12), "hair": (0, 0, 32, 6)}.items():
        folder.mkdir(parents=True, exist_ok=True)
        mask = Image.new("RGB", (32, 32))
        mask.paste((255, 255, 255), box)
        mask.save(folder / f"02345_{part}.png")
    plain(folder / "02345_eye_g.png", 255)
    plain(root / "CelebA-HQ-img/2345.jpg", 99, (64, 64), mode="RGB")
    (root / "val.txt").write_text("7\n")


def test_parts_of_faces_are_merged(tmp_path: Path) -> None:
    face(tmp_path)
    (files,) = labels.find(tmp_path, "train")
    label = labels.read_label(files.label, labels.Settings(label_nc=19))
    assert (
        label.shape == (32, 32) and label[27, 5] == 1 and label[9, 20] == 5 and label[5, 20] == 2 and label[31, 0] == 0
    )
    assert np.unique(label).tolist() == [0, 1, 2, 5]  # glasses left out
    plain(tmp_path / "CelebAMask-HQ-mask-anno/1/02345_hat.png", 255, (5, 5))
    with pytest.raises(ValueError, match=r"02345_hat\.png: 5x5 pixels"):
        labels.read_label(files.label, labels.Settings(label_nc=19))


def test_glasses_are_a_channel(tmp_path: Path) -> None:
    face(tmp_path)
    settings = exemplars.Settings(label_nc=19, crop_size=16, load_size=16, glasses=True)
    item = exemplars.folder(tmp_path, "train", settings)[0]
    assert item["label"].shape == (2, 16, 16) and item["label"].dtype == torch.int64 and item["label"][1].all()
    plain(tmp_path / "CelebAMask-HQ-mask-anno/all_parts_except_glasses/02345.png", 3)  # is preferred
    item = exemplars.folder(tmp_path, "train", settings)[0]
    assert item["label"][0].unique().tolist() == [3] and item["label"][1].all()


def pose(root: Path, name: str, grey: int) -> None:
    points = [(10 + i, 2 * i) for i in range(17)]  # the last joint was not found
    (root / "pose" / name).parent.mkdir(parents=True, exist_ok=True)
    rows = "\n".join(f"{x} {y} 0.9 {i}" for i, (x, y) in enumerate(points))
    (root / "pose" / f"{name}_candidate.txt").write_text(rows)
    (root / "pose" / f"{name}_subset.txt").write_text(" ".join(map(str, [*range(17), -1, 20.5, 17])))
    plain(root / f"img/{name}.jpg", grey, (48, 48), mode="RGB")


def test_poses_and_their_lists(tmp_path: Path) -> None:
    for number, name in enumerate(("MEN/id_1/01_front", "MEN/id_1/02_side", "WOMEN/id_2/01_front")):
        pose(tmp_path, name, 20 * number)
    (tmp_path / "val.txt").write_text("img\\WOMEN\\id_2\\01_front.jpg\n")
    (tmp_path / "x_ref_test.txt").write_text("img\\WOMEN\\id_2\\01_front.jpg,img\\MEN\\id_1\\02_side.jpg\n")
    (tmp_path / "x_self_pair.txt").write_text("img\\MEN\\id_1\\01_front.jpg,img\\MEN\\id_1\\02_side.jpg\n")
    options = dict(label_nc=20, crop_size=32, load_size=32, real_reference_probability=0.0)
    val = exemplars.folder(tmp_path, "val", exemplars.Settings(**options))
    assert len(val) == 1 and val[0]["label"].shape == (20, 32, 32) and shade(val[0]["ref"]) == 20
    train = exemplars.folder(tmp_path, "train", exemplars.Settings(**options), train=True)
    item = train[0]
    assert len(train) == 2 and shade(item["ref"]) == 20 and item["self_ref"] == 1  # of the same person
    assert shade(train[1]["ref"]) == 20  # itself
    (tmp_path / "pose/MEN/id_1/01_front_subset.txt").write_text("0 1 99" + " -1" * 17)
    with pytest.raises(ValueError, match=r"01_front_subset\.txt: point 99"):
        train[0]


def test_poses_are_placed_as_their_photographs_are() -> None:
    joints = np.full((18, 2), np.nan)
    joints[1], joints[2] = (10, 20), (30, 20)
    size, box = (80, 60), (0, 0, 80, 60)
    upright, mirrored = (_pose.maps(joints, size, Geometry(size, box, flip)) for flip in (False, True))
    assert upright.shape == (20, 60, 80)
    torch.testing.assert_close(mirrored[3:], upright[3:].flip(-1))  # colours are drawn a pixel apart
    limb = upright[3] * 255
    assert limb[20, 10] == limb[20, 30] == 0 and limb[25, 20] == pytest.approx(5) and limb[25, 35] == pytest.approx(10)
    assert (upright[4:] == 1).all() and upright[:3, 20, 20].max() > -1 and (upright[:3, 50] == -1).all()
    small = _pose.maps(joints, size, Geometry((40, 30), (10, 5, 40, 25), False))
    assert small[3, 5, 0] * 255 == pytest.approx(0, abs=1) and small.shape == (20, 20, 30)


def test_boxes_in_every_layout_are_the_same(tmp_path: Path) -> None:
    procedural.write(tmp_path, 5, (32, 64), kind="boxes")
    settings = boxes.Settings(label_nc=12, crop_size=64, aspect_ratio=2.0, load_size=64)
    data = boxes.folder(tmp_path, "train", settings)
    item = data[0]
    assert item["boxes"].shape == (12, 32, 64) and item["retrieved"].shape == (3, 32, 64)
    rows = [[int(v) for v in line.split()] for line in (tmp_path / "train_boxes/00000.txt").read_text().splitlines()]
    for number, left, top, right, bottom in rows:
        assert item["boxes"][number, top:bottom, left:right].all()
        assert item["label"][0, top:bottom, left:right].eq(number).any()
    assert {n for n in range(12) if item["boxes"][n].any()} == {row[0] for row in rows}
    files = sorted((tmp_path / "train_boxes").iterdir())
    table = {f"{f.stem}.png": [[int(v) for v in line.split()] for line in f.read_text().splitlines()] for f in files}
    (tmp_path / "train_boxes.json").write_text(json.dumps(table))
    again = boxes.folder(tmp_path, "train", settings)[0]
    assert all(item[name].equal(again[name]) for name in ("boxes", "retrieved"))
    table["00001.png"] = [[3, 5, 5, 4, 9]]
    (tmp_path / "train_boxes.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"train_boxes\.json: box \[3.0, 5.0, 5.0, 4.0, 9.0\]"):
        boxes.folder(tmp_path, "train", settings)


def test_what_is_retrieved_has_similar_boxes_and_is_not_the_image_itself(tmp_path: Path) -> None:
    instance = np.full((32, 32), 1, np.int32)
    for n, left in enumerate((2, 4, 20, 22)):
        ids = instance.copy()
        ids[4:12, left : left + 8] = 2000
        for name, values in (("label", np.where(ids >= 1000, 2, n % 2)), ("inst", ids)):
            (tmp_path / f"train_{name}").mkdir(exist_ok=True)
            Image.fromarray(values.astype(np.uint16)).save(tmp_path / f"train_{name}/{n}.png")
        plain(tmp_path / f"train_img/{n}.png", n, mode="RGB")
    settings = boxes.Settings(label_nc=3, crop_size=32, aspect_ratio=1.0, preprocess_mode="none")
    data = boxes.folder(tmp_path, "train", settings, train=True)
    assert data.bank.nearest(data.boxes[0], data.files[0].label)[0] == 1
    assert data.bank.nearest(data.boxes[3], data.files[3].label)[0] == 2
    item = data[3]
    assert (item["retrieved"] == -1).sum() == 3 * 64 and item["boxes"][2].sum() == 64
    assert ((item["label"][0] == 2) == item["boxes"][2].bool()).all()  # mirrored alike


def test_poses_are_shown_in_colours(tmp_path: Path) -> None:
    pose(tmp_path, "MEN/id_1/01_front", 20)
    data = exemplars.folder(tmp_path, "train", exemplars.Settings(label_nc=20, crop_size=32, load_size=32))
    batch = data.collate([data[0], data[0]])
    assert grid([batch[name] for name in exemplars.SHOWN if name in batch]).size == (3 * 32, 2 * 32)


def test_poses_to_translate(tmp_path: Path) -> None:
    pose(tmp_path, "MEN/b", 20)
    system = SimpleNamespace(config=SimpleNamespace(crop_size=32, label_nc=20), data_settings={})
    given = {"labels": tmp_path / "pose", "exemplars": tmp_path / "img", "exemplar_labels": tmp_path / "pose"}
    (batch,) = exemplars.Inputs(**given).batches(system, 2)
    assert batch["label"].shape == batch["label_ref"].shape == (1, 20, 32, 32) and batch["path"] == [Path("MEN_b.txt")]
    assert shade(batch["ref"]) == 20


def test_label_maps_to_translate_may_lie_beside_their_photographs(tmp_path: Path) -> None:
    for name, grey in (("a", 20), ("b", 40)):
        plain(tmp_path / f"{name}.jpg", grey, (48, 32), mode="RGB")
        plain(tmp_path / f"{name}.png", 3, (48, 32))
    config = SimpleNamespace(crop_size=32, label_nc=5, instance=False)
    system = SimpleNamespace(config=config, data_settings={})
    given = {"labels": tmp_path, "exemplars": tmp_path, "exemplar_labels": tmp_path}
    (batch,) = exemplars.Inputs(**given).batches(system, 2)
    assert batch["label_ref"].unique() == 3 and [shade(ref) for ref in batch["ref"]] == [20, 40]
    plain(tmp_path / "c.jpg", 60, (48, 32), mode="RGB")  # which has no label map
    (batch,) = labels.Inputs(labels=tmp_path, images=tmp_path).batches(system, 2)
    assert batch["label"].unique() == 3 and shade(batch["image"][1]) == 40
    with pytest.raises(FileNotFoundError, match="no photographs with the names of label maps"):
        labels.Inputs(labels=tmp_path, images=plain(tmp_path / "others/c.jpg", 60).parent).batches(system, 2)


def test_label_maps_are_resized_for_networks_of_one_size(tmp_path: Path) -> None:
    plain(tmp_path / "a.png", 3, (48, 32))
    config = SimpleNamespace(crop_size=64, aspect_ratio=2.0, label_nc=5, instance=False, one_size=True)
    (batch,) = labels.Inputs(labels=tmp_path).batches(SimpleNamespace(config=config, data_settings={}), 1)
    assert batch["label"].shape == (1, 1, 32, 64)


@pytest.mark.parametrize("name", ["cogan", "cvaegan", "nicegan", "ugatit"])
def test_photographs_are_resized_for_networks_of_one_size(tmp_path: Path, name: str) -> None:
    plain(tmp_path / "a.png", 3, (48, 32), mode="RGB")
    system = models.build(name, "tiny", **({"light": False} if name in ("nicegan", "ugatit") else {}))
    more = {"domain": "1"} if system.data == "domains" else {}
    (batch,) = kind(system.data).Inputs(images=tmp_path, **more).batches(system, 1)
    assert batch["a" if system.data == "unpaired" else "image"].shape[-2:] == system.config.size
