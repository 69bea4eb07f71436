"""The cache of decoded files: items are the same, files that changed or are damaged are made again."""

import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from i2ifast.data import kind, pixels, procedural
from i2ifast.data._cache import Cache
from i2ifast.data._items import Items, stack
from i2ifast.data.kinds import images, sketches
from i2ifast.data.loader import loader

SETTINGS = dict.fromkeys(("boxes", "exemplars", "labels", "segmented", "videos"), {"label_nc": 12})


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[k].equal(b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


def folder(root: Path, name: str, **options: object) -> Items:
    of_kind = kind(name)
    settings = of_kind.Settings(crop_size=32, load_size=40, **SETTINGS.get(name, {}), **options)
    return of_kind.folder(root, "train", settings, seed=1, train=True)


@pytest.mark.parametrize("name", [name for name in procedural.KINDS if name != "videos"])
def test_items_are_the_same(tmp_path: Path, name: str) -> None:
    procedural.write(tmp_path / "data", 3, (48, 64), kind=name)
    for mode in ("resize_and_crop", "scale_shortside_and_crop", "random_resized_crop"):
        plain = folder(tmp_path / "data", name, preprocess_mode=mode)
        for epoch in range(3):  # written, then read
            assert all(same(plain[epoch, i], plain.cached(tmp_path / "cache")[epoch, i]) for i in range(3))
    assert any((tmp_path / "cache").rglob("*.npy"))


@pytest.mark.parametrize("kinds", [np.uint8, np.uint16, np.int32])
def test_maps_are_decoded_once(tmp_path: Path, kinds: type) -> None:
    values = np.random.default_rng(0).integers(0, min(np.iinfo(kinds).max, 10**6), (30, 40)).astype(np.int32)
    Image.fromarray(values).save(tmp_path / "map.tiff")
    cache = Cache(tmp_path / "cache")
    for decode in (pixels.decode_map, None):  # None cannot be called
        with patch.object(pixels, "decode_map", decode):
            found = pixels.read_map(tmp_path / "map.tiff", cache)
            assert found.dtype == np.int32 and np.array_equal(found, values)
            found[:] = 0  # the reader's own
    (stored,) = (tmp_path / "cache").rglob("*.npy")
    assert np.load(stored).dtype == kinds


def test_maps_of_items_are_decoded_once(tmp_path: Path) -> None:
    for name in ("boxes", "exemplars", "labels", "segmented", "videos"):
        procedural.write(tmp_path / name, 3, (48, 64), kind=name)
        plain = folder(tmp_path / name, name)
        cached = plain.cached(tmp_path / "cache")
        for decode in (pixels.decode_map, None):
            with patch.object(pixels, "decode_map", decode):
                found = [cached[0, i] for i in range(len(plain))]
            assert all(same(plain[0, i], item) for i, item in enumerate(found))


def test_files_that_change_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "train/0.png"
    file.parent.mkdir()
    Image.new("RGB", (50, 40), (10, 0, 0)).save(file)
    data = images.folder(tmp_path, "train", images.Settings(crop_size=16)).cached(tmp_path / "cache")
    before = data[0]["image"]
    Image.new("RGB", (50, 40), (20, 0, 0)).save(file)
    os.utime(file, ns=(1, 1))
    assert not data[0]["image"].equal(before)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.png"):
        data[0]
    file.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"0\.png: not a readable image"):
        data[0]


def test_damaged_files_of_the_cache_are_written_again(tmp_path: Path) -> None:
    procedural.write(tmp_path, 1, 48, kind="images")
    plain = folder(tmp_path, "images")
    expected = plain[0]
    cached = plain.cached(tmp_path / "cache")
    assert same(cached[0], expected)
    for damage in (lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * len(data)):
        for stored in (tmp_path / "cache").rglob("*.npy"):
            stored.write_bytes(damage(stored.read_bytes()))
        assert same(cached[0], expected) and same(cached[0], expected)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file() and file.suffix != ".npy"]


def test_sizes_are_upright_and_of_halves(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (30, 60, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "train/a").mkdir(parents=True)
    Image.fromarray(colours).save(tmp_path / "train/a/0.jpg", exif=exif)
    for settings in (sketches.Settings(crop_size=16), sketches.Settings(preprocess_mode="none")):
        plain = sketches.folder(tmp_path, "train", settings)
        assert all(same(plain[0], plain.cached(tmp_path / "cache")[0]) for _ in range(2))
    assert plain[0]["image"].shape == (3, 64, 32)  # 15x60 upright, to multiples of 32


def test_processes_share_a_cache(tmp_path: Path) -> None:
    procedural.write(tmp_path / "data", 6, 48, kind="images")
    plain = folder(tmp_path / "data", "images")
    batches = loader(plain.cached(tmp_path / "cache"), 2, workers=2, shuffle=False)
    expected = [stack([plain[0, i], plain[0, i + 1]]) for i in (0, 2, 4)]
    assert all(same(found, batch) for found, batch in zip(batches, expected, strict=True))
