"""Procedural scenes: determinism, classes and objects, statistics, the written folder."""

import numpy as np
import pytest

from i2ifast.data import procedural
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
