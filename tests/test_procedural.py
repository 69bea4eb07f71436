"""Procedural data: scenes and their statistics, the folders of every kind, and that systems learn from them."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from toy import newest

from i2ifast import models, train, translate
from i2ifast.data import kinds, procedural
from i2ifast.data.kinds import inpainting, videos
from i2ifast.data.kinds.labels import Settings, folder, match
from i2ifast.data.pixels import images_in


def test_scenes_are_deterministic_and_different():
    first, again, other = (procedural.scene((48, 80), seed) for seed in (1, 1, 2))
    assert all((a == b).all() and a.dtype == np.uint8 for a, b in zip(first, again, strict=True))
    assert first.label.shape == (48, 80) and first.image.shape == (48, 80, 3)
    assert (first.label != other.label).mean() > 0.1
    for size in (15, (16, 257)):
        with pytest.raises(ValueError, match=r"expected at least 16x16"):
            procedural.scene(size, 0)


def test_scenes_show_every_class_and_objects_have_one_class():
    seen = set()
    for seed in range(12):
        scene = procedural.scene((64, 128), seed)
        seen |= set(np.unique(scene.label).tolist())
        pairs = np.unique(np.stack([scene.instance.ravel(), scene.label.ravel()]), axis=1)
        assert len(set(pairs[0])) == pairs.shape[1] and pairs[0].max() > len(procedural.CLASSES)
        stuff = pairs[:, pairs[0] < len(procedural.CLASSES)]
        assert (stuff[0] == stuff[1]).all()
    assert seen == set(range(len(procedural.CLASSES)))


def test_images_follow_labels():
    """The class colours explain most of the variance of the photographs, texture and light the rest."""
    scenes = [procedural.scene(64, seed) for seed in range(8)]
    pixels = np.concatenate([scene.image.reshape(-1, 3) for scene in scenes]).astype(float)
    labels = np.concatenate([scene.label.ravel() for scene in scenes])
    means = np.array([pixels[labels == kind].mean(0) for kind in range(len(procedural.CLASSES))])
    explained = 1 - (pixels - means[labels]).var() / pixels.var()
    assert 0.7 < explained < 0.97


def distinct(ids: np.ndarray) -> np.ndarray:
    """Number of the distinct 3x3 window at each pixel."""
    padded = np.pad(ids.astype(np.int64), 1, constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(-1, 9)
    return np.unique(windows, axis=0, return_inverse=True)[1].reshape(ids.shape)


def test_label_statistics_are_those_of_photographs():
    """Distinct neighbourhoods per pixel at 256x256: annotated photographs (COCO-Stuff) have 3 % (3x3), 9.5 % (5x5)."""
    shares = []
    for seed in range(4):
        scene = procedural.scene(256, seed)
        padded = np.pad(scene.instance, 1, mode="edge")
        centre = padded[1:-1, 1:-1]
        edge = np.any(
            [centre != near for near in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])], 0
        )
        three = distinct(scene.label * 2 + edge)
        shares.append(((three.max() + 1) / three.size, (distinct(three).max() + 1) / three.size))
    three, five = np.mean(shares, 0)
    assert 0.02 < three < 0.04 and 0.065 < five < 0.125


def test_written_scenes_read_back(tmp_path):
    procedural.write(tmp_path, 6, (32, 64), seed=3)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{p}_{k}" for p in ("train", "val") for k in ("label", "inst", "img")
    }
    train, val = (
        folder(tmp_path, "train", Settings(label_nc=12)),
        folder(tmp_path, "val", Settings(label_nc=12, preprocess_mode="none")),
    )
    assert len(train) == 6 and len(val) == 4
    expected = procedural.scene((32, 64), [3, 1, 2])
    item = val[2]
    assert (item["label"][0].numpy() == expected.label).all() and (
        item["instance"][0].numpy() == expected.instance
    ).all()
    assert (((item["image"] + 1) * 127.5).round().permute(1, 2, 0).numpy() == expected.image).all()
    files = [images_in(tmp_path / f"train_{kind}") for kind in ("label", "inst", "img")]
    assert match(*files) == train.files
    with pytest.raises(ValueError, match="count 0"):
        procedural.write(tmp_path, 0)


def test_domains_differ_in_light(tmp_path: Path) -> None:
    procedural.write(tmp_path / "unpaired", 3, 32, kind="unpaired")
    procedural.write(tmp_path / "domains", 3, 32, kind="domains")

    def mean(folder: str) -> float:
        return float(np.mean([np.asarray(Image.open(file)) for file in images_in(tmp_path / folder)]))

    assert mean("unpaired/trainB") < 0.5 * mean("unpaired/trainA")
    assert mean("domains/train/winter") > 1.1 * mean("domains/train/summer")


def test_flows_of_videos_explain_them(tmp_path: Path) -> None:
    procedural.write(tmp_path, 2, (32, 64), kind="videos")
    data = videos.folder(tmp_path, "train", videos.Settings(label_nc=12, preprocess_mode="none"))
    assert all(data[i]["confidence"].mean() > 0.9 and data[i]["flow"].abs().max() >= 1 for i in range(2))


# A system of each kind, its options, and what it translates. Others are in test_train.py and test_kinds.py.
SYSTEMS = {
    "boxes": ("bachgan", "", "--boxes val_boxes --data ."),
    "domains": ("starganv2", "", "--images val/summer --domain winter --data ."),
    "exemplars": (
        "cocosnet",
        "--config.crop-size 64 --config.aspect-ratio 1",
        "--labels val_label --exemplars val_img --exemplar-labels val_label",
    ),
    "inpainting": ("region_norm", "", "--images val --masks masks"),
    "paired": ("pix2pix", "", "--images valA"),
    "sketches": ("edgegan", "", "--sketches val/car --domain car --data ."),
    "videos": (
        "vid2vid",
        "--n-frames-total 2 --config.n-blocks 1",
        "--labels val_label --instances val_inst --images val_img",
    ),
}


@pytest.mark.parametrize("kind", SYSTEMS)
def test_systems_train_on_it_and_translate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    name, options, inputs = SYSTEMS[kind]
    if name not in models.names():
        pytest.skip(f"there is no {name}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(procedural, "FRAMES", 5)
    procedural.write(".", 2, 64, kind=kind)
    for file in images_in("val") if kind == "inpainting" else ():
        Path("masks").mkdir(exist_ok=True)
        mask = inpainting.strokes(64, 64, np.random.default_rng(0))
        Image.fromarray((255 * mask[0]).byte().numpy()).save(f"masks/{file.name}")
    where = ["--data", ".", "--out", "run", "--steps", "2", "--workers", "0"]
    train.main([name, "--preset", "tiny", *where, *options.split()])
    assert newest(Path("run"))[1]["step"] == 2 and Path("run/samples/00000002.png").exists()
    translate.main(["--weights", "run", "--out", "translated", *inputs.split()])
    assert len(images_in("translated")) >= 4


def test_kinds_that_there_are() -> None:
    assert set(procedural.KINDS) == set(get_args(procedural.Kind)) == set(kinds())
    with pytest.raises(ValueError, match="kind 'sounds': expected one of boxes"):
        procedural.write("nowhere", 1, kind="sounds")
