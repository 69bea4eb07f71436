"""Data: reading, pairing, geometry, order, batches. All files are made here."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from i2ifast.data import procedural
from i2ifast.data.kinds.labels import Files, LabelDataset, Options, Settings, find, folder, read_label
from i2ifast.data.loader import loader
from i2ifast.data.pixels import images_in, pair, read_map, read_photo

RNG = np.random.default_rng(0)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def touch(*paths: Path) -> None:
    for path in paths:
        save(path, np.zeros((2, 2), np.uint8))


def test_palette_labels_are_indices(tmp_path):
    indices = RNG.integers(0, 200, (5, 7), dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    assert (read_map(tmp_path / "a.png") == indices).all()


def write_png(path: Path, height: int, width: int, bits: int, colour: int, rows: list[bytes]) -> None:
    """Kinds of PNG that Pillow reads and does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_of_grey_are_not_stretched(tmp_path, bits):
    values = RNG.integers(0, 2**bits, (6, 16))
    digits = ["".join(f"{value:0{bits}b}" for value in row) for row in values]
    rows = [bytes(int(row[i : i + 8], 2) for i in range(0, len(row), 8)) for row in digits]
    write_png(tmp_path / "a.png", 6, 16, bits, 0, rows)
    assert (read_map(tmp_path / "a.png") == values).all()


def test_16_bit_colour_is_no_map(tmp_path):
    write_png(tmp_path / "a.png", 2, 3, 16, 2, [bytes(range(18))] * 2)
    with pytest.raises(ValueError, match=r"a\.png: 16 bit colour"):
        read_map(tmp_path / "a.png")
    assert np.asarray(read_photo(tmp_path / "a.png"))[0, 1].tolist() == [6, 8, 10]


@pytest.mark.parametrize(("dtype", "top", "name"), [(np.uint16, 2**16, "a.png"), (np.int32, 2**31, "a.tif")])
def test_wide_instances_are_exact(tmp_path, dtype, top, name):
    values = RNG.integers(0, top, (5, 7)).astype(dtype)
    assert (read_map(save(tmp_path / name, values)) == values).all()


def test_grey_pictures_are_maps_and_coloured_ones_are_not(tmp_path):
    grey = np.repeat(RNG.integers(0, 50, (5, 7, 1), dtype=np.uint8), 3, 2)
    assert (read_map(save(tmp_path / "grey.png", grey)) == grey[..., 0]).all()
    grey[2, 3, 1] += 1
    with pytest.raises(ValueError, match=r"colour\.png: a colour picture"):
        read_map(save(tmp_path / "colour.png", grey))
    with pytest.raises(ValueError, match=r"lossy\.jpg: JPEG"):
        read_map(save(tmp_path / "lossy.jpg", grey))
    Image.fromarray(grey).convert("CMYK").save(tmp_path / "cmyk.tif")
    with pytest.raises(ValueError, match=r"cmyk\.tif: mode CMYK"):
        read_map(tmp_path / "cmyk.tif")


def test_photographs_of_any_8_bit_mode_become_rgb(tmp_path):
    pixels = np.full((4, 6, 3), (204, 102, 51), np.uint8)  # in Pillow's default palette
    for mode in ("RGB", "RGBA", "P", "CMYK"):
        Image.fromarray(pixels).convert(mode).save(tmp_path / f"{mode}.tif")
        image = read_photo(tmp_path / f"{mode}.tif")
        assert image.mode == "RGB" and (np.asarray(image) == pixels).all(), mode
    for mode in ("1", "L", "LA"):
        Image.fromarray(pixels).convert(mode).save(tmp_path / f"{mode}.png")
        assert read_photo(tmp_path / f"{mode}.png").mode == "RGB"
    with pytest.raises(ValueError, match=r"deep\.png: mode I;16, more than 8 bits"):
        read_photo(save(tmp_path / "deep.png", np.zeros((4, 6), np.uint16)))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("read", [read_map, read_photo])
def test_damaged_files_are_named(tmp_path, name, read):
    whole = save(tmp_path / name, RNG.integers(0, 256, (40, 40), dtype=np.uint8)).read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 30):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"{name}: not a readable image"):
            read(tmp_path / name)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        read(tmp_path / name)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = RNG.integers(0, 256, (4, 6), dtype=np.uint8)
    stored = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
              6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1)}  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    path = save(tmp_path / "a.png", np.ascontiguousarray(stored[orientation](upright)), exif=exif)
    assert (np.asarray(read_photo(path))[..., 0] == upright).all()
    assert (read_map(path) == upright).all()


def test_pairs_by_name_in_natural_order(tmp_path):
    touch(*(tmp_path / "a" / f"{n}.png" for n in (10, 9, 100)), tmp_path / "a" / "._9.png")
    touch(*(tmp_path / "b" / f"{n:05d}.jpg" for n in (10, 9, 100)))
    (tmp_path / "a" / "notes.txt").write_text("")
    left, right = images_in(tmp_path / "a"), images_in(tmp_path / "b")
    assert [file.name for file in left] == ["9.png", "10.png", "100.png"]
    assert [file.name for file in pair(left, right[::-1])] == ["00009.jpg", "00010.jpg", "00100.jpg"]


def test_files_without_partner_or_with_two_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="b.png.*in x"):
        pair([Path("y/a.png"), Path("y/b.png")], [Path("x/a.jpg")])
    with pytest.raises(FileNotFoundError, match="c.jpg.*in y"):
        pair([Path("y/a.png")], [Path("x/a.jpg"), Path("x/c.jpg")])
    with pytest.raises(ValueError, match=r"x/01\.jpg.*x/1\.jpg"):
        pair([Path("y/1.png")], [Path("x/1.jpg"), Path("x/01.jpg")])


def test_label_maps_without_photograph_are_left_out_by_name(tmp_path, caplog):
    folders = {kind: tmp_path / f"train_{kind}" for kind in ("label", "inst", "img")}
    touch(*(folders[kind] / f"{n}.png" for kind in ("label", "inst") for n in (1, 2, 3)), folders["img"] / "2.jpg")
    assert [item.label.name for item in find(tmp_path, "train")] == ["2.png"]
    assert "1.png: no photograph" in caplog.text and "2 of 3 label maps" in caplog.text
    (folders["inst"] / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match="3.png"):
        find(tmp_path, "train")


def test_find_coco(tmp_path):
    for kind, name in (("label", "2.png"), ("inst", "2.png"), ("img", "2.jpg")):
        touch(tmp_path / f"train_{kind}" / name, tmp_path / f"train_{kind}_portrait" / name)
        touch(tmp_path / f"val_{kind}" / name)
    items = find(tmp_path, "train")
    assert [item.label.parent.name for item in items] == ["train_label", "train_label_portrait"]
    assert items[1] == Files(*(tmp_path / f"train_{kind}_portrait" / f"2.{end}"
                               for kind, end in (("label", "png"), ("inst", "png"), ("img", "jpg"))))  # fmt: skip
    assert len(find(tmp_path, "val")) == 1
    with pytest.raises(FileNotFoundError, match="phase 'test'"):
        find(tmp_path, "test")


def test_find_cityscapes(tmp_path):
    for city, n in (("ulm", 3), ("bonn", 1)):
        stem = f"{city}_00000{n}_000019"
        truth, photo = tmp_path / "gtFine" / "val" / city, tmp_path / "leftImg8bit" / "val" / city
        touch(truth / f"{stem}_gtFine_labelIds.png", truth / f"{stem}_gtFine_instanceIds.png")
        touch(truth / f"{stem}_gtFine_color.png", photo / f"{stem}_leftImg8bit.png")
    for item in find(tmp_path, "val"):
        names = [file.name.split("_")[0] for file in item]
        assert (
            len(set(names)) == 1 and item.instance.stem.endswith("instanceIds") and item.image.parent.name == names[0]
        )
    flat = tmp_path / "flat"
    touch(flat / "test_label" / "ulm_1_gtFine_labelIds.png", flat / "test_inst" / "ulm_1_gtFine_instanceIds.png")
    assert find(flat, "test")[0].instance.stem == "ulm_1_gtFine_instanceIds" and find(flat, "test")[0].image is None


def test_find_ade20k_celebamask_and_ambiguity(tmp_path):
    ade, faces = tmp_path / "ade", tmp_path / "faces"
    touch(ade / "annotations" / "validation" / "ADE_val_00000001.png", ade / "images" / "ADE_val_00000001.jpg")
    touch(ade / "images" / "ADE_train_00000001.jpg", ade / "annotations" / "ADE_train_00000001.png")
    assert [item.image.name for item in find(ade, "val")] == ["ADE_val_00000001.jpg"]
    for n in (7, 12, 13):
        touch(faces / "CelebA-HQ-img" / f"{n}.jpg")
        touch(faces / "CelebAMask-HQ-mask-anno" / "all_parts_except_glasses" / f"{n:05d}.png")
    (faces / "val.txt").write_text("12\n")
    assert [item.image.stem for item in find(faces, "train")] == ["7", "13"]
    assert [item.image.stem for item in find(faces, "val")] == ["12"]
    touch(ade / "val_label" / "1.png")
    with pytest.raises(ValueError, match=r"coco, ade20k.*dataset_mode"):
        find(ade, "val")
    assert len(find(ade, "val", "coco")) == 1
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find(tmp_path / "nowhere", "val")
    with pytest.raises(ValueError, match="'voc'"):
        find(ade, "val", "voc")


def item_files(path: Path, label: np.ndarray, instance: np.ndarray, image: np.ndarray) -> Files:
    return Files(
        save(path / "l" / "0.png", label), save(path / "i" / "0.png", instance), save(path / "p" / "0.png", image)
    )


def numbered(path: Path, height: int, width: int) -> Files:
    """Label, instance and photograph that all tell the number of each pixel."""
    number = np.arange(height * width).reshape(height, width)
    colours = np.stack([number % 256, number // 256, number * 0], -1).astype(np.uint8)
    return item_files(path, (number % 7).astype(np.uint8), number.astype(np.uint16), colours)


def test_label_instance_and_image_share_place_and_mirroring(tmp_path):
    data = LabelDataset(
        [numbered(tmp_path, 20, 30)], Settings(label_nc=7, crop_size=8, preprocess_mode="crop"), train=True, seed=5
    )
    places, mirrored = set(), set()
    for epoch in range(40):
        item = data[epoch, 0]
        number = item["instance"]
        assert number.shape == item["label"].shape == (1, 8, 8) and number.dtype == item["label"].dtype == torch.int64
        assert (item["label"] == number % 7).all()
        levels = ((item["image"] * 0.5 + 0.5) * 255).round().long()
        assert item["image"].dtype == torch.float32 and (levels[:1] + 256 * levels[1:2] == number).all()
        step = int(number[0, 0, 1] - number[0, 0, 0])
        assert abs(step) == 1 and (number.diff(dim=1) == 30).all() and (number.diff(dim=2) == step).all()
        places.add(int(number.min()))
        mirrored.add(step)
    assert len(places) > 20 and mirrored == {1, -1}
    same = LabelDataset(data.files * 10, data.settings, train=True, seed=5)
    assert len({int(same[0, index]["instance"].min()) for index in range(10)}) > 5
    again = LabelDataset(data.files, data.settings, train=True, seed=5)
    assert all(torch.equal(data[epoch, 0]["instance"], again[epoch, 0]["instance"]) for epoch in (17, 3))
    straight = LabelDataset(
        data.files, Settings(label_nc=7, crop_size=8, preprocess_mode="crop", flip=False), train=True, seed=5
    )
    for epoch in range(10):  # the same places, none mirrored
        assert torch.equal(straight[epoch, 0]["instance"], data[epoch, 0]["instance"].sort().values)


@pytest.mark.parametrize(
    ("mode", "resized", "box"),  # of 45 x 30 pixels; load_size 24, crop_size 16; outside training crops load at 16
    [
        ("resize_and_crop", (16, 16), None),
        ("scale_width", (24, 16), None),
        ("scale_shortside", (36, 24), None),
        ("scale_shortside_and_crop", (24, 16), (4, 0, 20, 16)),
        ("crop", (45, 30), (14, 7, 30, 23)),
        ("fixed", (16, 8), None),
        ("none", (32, 32), None),
    ],
)
def test_geometry_is_pillows(tmp_path, mode, resized, box):
    shape = (30, 45)
    label, instance = RNG.integers(0, 9, shape, dtype=np.uint8), RNG.integers(0, 2**16, shape, dtype=np.uint16)
    files = item_files(tmp_path, label, instance, RNG.integers(0, 256, (*shape, 3), dtype=np.uint8))
    item = LabelDataset(
        [files], Settings(label_nc=9, load_size=24, crop_size=16, aspect_ratio=2.0, preprocess_mode=mode)
    )[0]
    box = box or (0, 0, *resized)
    label = Image.open(files.label).resize(resized, Image.Resampling.NEAREST).crop(box)
    image = Image.open(files.image).resize(resized, Image.Resampling.BICUBIC).crop(box)
    assert (item["label"][0].numpy() == np.asarray(label)).all()
    assert (item["image"].numpy() == (np.asarray(image).transpose(2, 0, 1) / np.float32(255) - 0.5) / 0.5).all()
    assert item["instance"].shape == item["label"].shape and item["path"] == str(files.label)


def test_training_loads_larger_and_crops(tmp_path):
    data = LabelDataset(
        [numbered(tmp_path, 30, 30)], Settings(label_nc=7, load_size=40, crop_size=32, flip=False), train=True
    )
    full = np.asarray(Image.open(data.files[0].instance).resize((40, 40), Image.Resampling.NEAREST)).astype(np.int64)
    for epoch in range(5):
        windows = np.lib.stride_tricks.sliding_window_view(full, (32, 32))
        assert (windows == data[epoch, 0]["instance"][0].numpy()).all((2, 3)).any()
    assert (
        Settings(label_nc=1, crop_size=256).loaded(train=True) == 286
        and Settings(label_nc=1, crop_size=256).loaded(train=False) == 256
    )


def test_labels_out_of_range_are_named(tmp_path):
    def read(settings: Settings, *values: int) -> torch.Tensor:
        files = Files(save(tmp_path / "x.png", np.array([values], np.uint8).repeat(2, 0)))
        return LabelDataset([files], settings)[0]["label"].unique().tolist()

    options = dict(instance=False, preprocess_mode="none")
    assert read(Settings(label_nc=5, **options), 0, 4) == [0, 4]
    with pytest.raises(ValueError, match=r"x\.png: label 5, allowed are 0 to 4$"):
        read(Settings(label_nc=5, **options), 0, 5)
    with pytest.raises(
        ValueError, match=r"x\.png: label 255, allowed are 0 to 4; 255 is unknown with contain_dontcare"
    ):
        read(Settings(label_nc=5, **options), 0, 255)
    assert read(Settings(label_nc=5, contain_dontcare_label=True, **options), 4, 255) == [4, 5]
    with pytest.raises(ValueError, match=r"x\.png: label 6, allowed are 0 to 5$"):
        read(Settings(label_nc=5, contain_dontcare_label=True, **options), 6, 255)
    save(tmp_path / "x.tif", np.array([[-1, 0]], np.int32))
    with pytest.raises(ValueError, match=r"x\.tif: label -1"):
        LabelDataset([Files(tmp_path / "x.tif")], Settings(label_nc=5, **options))[0]


def test_ids_of_cityscapes_become_the_classes_that_are_evaluated(tmp_path):
    path = save(tmp_path / "a_gtFine_labelIds.png", np.array([[0, 7, 8, 26, 29, 31, 33, 34]], np.uint8))
    settings = Settings(label_nc=19, contain_dontcare_label=True)
    assert read_label(path, settings).tolist() == [[19, 0, 1, 13, 19, 16, 18, 19]]
    assert read_label(path, Settings(label_nc=35)).max() == 34


def test_files_that_do_not_fit_are_named(tmp_path):
    label, image = np.zeros((30, 40), np.uint8), np.zeros((30, 40, 3), np.uint8)
    cases = {
        r"i/0\.png: 30x40 pixels, but its label map .*l/0\.png has 40x30": (label, label.T, image),
        r"p/0\.png: 30x40 pixels upright": (label, label, image.transpose(1, 0, 2)),
        r"l/0\.png: 40x30 pixels after crop: smaller than the crop of 32x32": (label, label, image),
    }
    for message, arrays in cases.items():
        files = item_files(tmp_path, *(np.ascontiguousarray(a) for a in arrays))
        with pytest.raises(ValueError, match=message):
            LabelDataset(
                [files], Settings(label_nc=1, crop_size=32, preprocess_mode="crop" if "crop" in message else "fixed")
            )[0]
    files = item_files(tmp_path, label, label, image[::2, ::2])  # half the resolution, the same shape
    assert LabelDataset([files], Settings(label_nc=1, crop_size=20, preprocess_mode="crop"))[0]["image"].shape == (
        3,
        20,
        20,
    )
    with pytest.raises(ValueError, match=r"0\.png: has no instance map"):
        LabelDataset([Files(files.label)], Settings(label_nc=1))
    with pytest.raises(ValueError, match=r"0\.png: has no photograph"):
        LabelDataset([Files(files.label)], Settings(label_nc=1, instance=False), train=True)


def test_impossible_options_are_refused():
    for message, options in {"label_nc 0": dict(label_nc=0), "load_size 8": dict(label_nc=1, load_size=8, crop_size=16),
                             "crop_size 0": dict(label_nc=1, crop_size=0),
                             "'zoom'": dict(label_nc=1, preprocess_mode="zoom")}.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Settings(**options)


def test_settings_of_a_system():
    config = dict(label_nc=35, contain_dontcare_label=True, instance=False, crop_size=512, aspect_ratio=2.0, lr=1)
    system = SimpleNamespace(config=SimpleNamespace(**config), data_settings={"load_size": 600}, plan_sizes=[(4, 8)])
    given = {key: value for key, value in config.items() if key != "lr"} | {"plan_sizes": [(4, 8)]}
    settings = Settings.of(system, Options())
    assert settings == Settings(**given, load_size=600)
    assert settings.num_classes == 36 and settings.mode == "fixed"
    assert Settings.of(system, Options(flip=False, load_size=700)) == Settings(**given, load_size=700, flip=False)


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("street")
    procedural.write(root, 6, (32, 64), seed=3)
    return root


STREET = Settings(label_nc=len(procedural.CLASSES), crop_size=32, preprocess_mode="crop")


def test_workers_do_not_change_batches(street):
    data = folder(street, "train", replace(STREET, plan_sizes=[(16, 16), (32, 32)]), seed=1, train=True)
    state = torch.get_rng_state()
    runs = []
    for workers in (0, 2):
        batches = loader(data, 2, workers, seed=1)
        run = list(batches)
        batches.batch_sampler.seek(1, 1)
        runs.append(run + list(batches))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(runs[0]) == 5
    for ours, theirs in zip(*runs, strict=True):
        assert ours["path"] == theirs["path"] and ours["image"].shape == (2, 3, 32, 32)
        assert all(torch.equal(ours[name], theirs[name]) for name in ("label", "instance", "image"))
        assert torch.equal(ours["plan"].symbols, theirs["plan"].symbols)
        assert set(theirs["plan"].levels) == set(ours["plan"].levels) and theirs["plan"].levels
        assert torch.equal(ours["plan"].dense()[:, :12].argmax(1, keepdim=True), ours["label"])


def test_collate_refuses_items_of_different_sizes(tmp_path):
    files = [Files(save(tmp_path / f"{n}.png", np.zeros((64, 32 * n), np.uint8))) for n in (1, 2)]
    data = LabelDataset(files, Settings(label_nc=1, instance=False, preprocess_mode="none"))
    with pytest.raises(ValueError, match=r"label of different sizes.*1\.png, .*2\.png"):
        data.collate([data[0], data[1]])
