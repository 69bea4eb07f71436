"""`python -m i2ifast.data check`: everything that is wrong with a data set is reported by the name of the file."""

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from i2ifast.data import procedural
from i2ifast.data.__main__ import main


def checked(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, list[str], str]:
    """Exit code, errors and warnings, and everything."""
    code = 0
    try:
        main(["check", *map(str, args), "--workers", "0"])
    except SystemExit as stop:
        code = stop.code
    text = capsys.readouterr().out
    return code, [line for line in text.splitlines() if line.startswith(("error", "warning"))], text


def deep(path: Path) -> None:
    """A PNG of 16 bits per channel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, body = struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0), zlib.compress(b"".join([b"\0" + bytes(18)] * 2))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


@pytest.mark.parametrize("kind", procedural.KINDS)
def test_procedural_data_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    procedural.write(tmp_path, 2, (32, 64), kind=kind)
    code, lines, text = checked(capsys, kind, tmp_path, "--label-nc", 12)
    assert code == 0 and not lines and "0 errors, 0 warnings" in text
    assert ("128x32" if kind == "sketches" else "64x32") in text


def test_strange_photographs_are_reported_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    for name in ("fine.png", "damaged.png", "damaged.jpg"):
        image.save(folder / name)
    for name in ("damaged.png", "damaged.jpg"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-400])
    (folder / "empty.jpg").touch()
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "palette.png")
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(folder / "grey16.png")
    deep(folder / "colour16.png")
    exif = Image.Exif()
    exif[274] = 6
    image.save(folder / "rotated.jpg", exif=exif)
    code, lines, _ = checked(capsys, "images", tmp_path)
    assert code == 1
    reported = {Path(line.split(": ")[1]).name: line for line in lines}
    assert len(lines) == len(reported) == 8 and "fine.png" not in reported
    for name, what in {
        "cmyk.jpg": "warning.*CMYK",
        "colour16.png": "warning.*16 bits per channel",
        "damaged.jpg": "error.*not a readable image",
        "damaged.png": "error.*not a readable image",
        "empty.jpg": "error.*not a readable image",
        "grey16.png": "error.*more than 8 bits",
        "palette.png": "warning.*palette",
        "rotated.jpg": "warning.*EXIF orientation 6",
    }.items():
        assert re.match(what, reported[name]), reported[name]


def test_label_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    procedural.write(tmp_path, 3, (32, 64))
    code, lines, text = checked(capsys, "labels", tmp_path, "--label-nc", 4)
    assert code == 1 and len(lines) == 7 and all("allowed are 0 to 3" in line for line in lines)
    assert "classes of train" in text and "│ 11 " in text
    Image.new("L", (5, 5)).save(tmp_path / "train_inst/00001.png")
    Image.new("RGB", (90, 32)).save(tmp_path / "train_img/00002.png")
    code, lines, _ = checked(capsys, "labels", tmp_path)
    assert code == 1 and len(lines) == 2
    assert "train_inst/00001.png: 5x5 pixels" in lines[0] and "train_img/00002.png: 90x32 pixels" in lines[1]


def test_missing_partners_and_duplicates_between_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    procedural.write(tmp_path, 4, 32, kind="paired")
    for name in ("00001.png", "00002.png"):
        (tmp_path / "trainB" / name).unlink()
    (tmp_path / "valB/00003.png").write_bytes((tmp_path / "trainB/00000.png").read_bytes())
    code, lines, _ = checked(capsys, "paired", tmp_path)
    assert code == 1 and len(lines) == 1 and "trainA/00001.png" in lines[0] and "trainA/00002.png" in lines[0]
    for name in ("00001.png", "00002.png"):
        (tmp_path / "trainA" / name).unlink()
    code, lines, _ = checked(capsys, "paired", tmp_path)
    assert code == 0 and len(lines) == 1
    assert lines[0].startswith("warning") and "valB/00003.png: of val, but the same as" in lines[0]


def test_bad_command_lines(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such folder"):
        main(["check", "images", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match="no kind of data 'sounds'"):
        main(["check", "sounds", str(tmp_path)])


def test_workers_find_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    procedural.write(tmp_path, 3, 32, kind="images")
    (tmp_path / "train/00001.png").write_bytes(b"")
    with pytest.raises(SystemExit):
        main(["check", "images", str(tmp_path), "--workers", "2"])
    assert "error: " + str(tmp_path / "train/00001.png") in capsys.readouterr().out
