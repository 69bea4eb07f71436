"""Image files to pixels, and the geometry that the images of an item share.

Reading is strict: a file that would be read wrongly is refused by name.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageOps
from torch import Tensor

from ._cache import Cache

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"))
DEEP = frozenset(("I", "I;16", "I;16L", "I;16B", "F"))  # Pillow modes of more than 8 bits per channel

Preprocess = Literal[
    "resize_and_crop",
    "crop",
    "scale_width",
    "scale_width_and_crop",
    "scale_shortside",
    "scale_shortside_and_crop",
    "crop_and_resize",
    "random_resized_crop",
    "fixed",
    "none",
]


def natural(path: Path) -> list[int | str]:
    """Sort key that orders 2.png before 10.png."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def images_in(folder: str | Path) -> list[Path]:
    """Image files directly in `folder`, in natural order; none where there is no such folder."""
    folder = Path(folder)
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted((f for f in files if f.suffix.lower() in SUFFIXES and not f.name.startswith(".")), key=natural)


def images_below(folder: Path) -> list[Path]:
    """Image files in `folder` and the folders in it, in natural order."""
    return [
        file
        for each in (folder, *sorted(filter(Path.is_dir, folder.rglob("*")), key=natural))
        for file in images_in(each)
    ]


class MissingPartner(FileNotFoundError):
    """There are files of one side without partner on the other."""


def pair(files: Iterable[Path], others: Iterable[Path], endings: tuple[str, ...] = ()) -> list[Path]:
    """For each of `files` its partner in `others`: the same name without extension, leading zeros and one of `endings`.

    MissingPartner names the files of a side without partner, ValueError two files of one side with the same name.
    """
    left, right = _by_name(files, endings), _by_name(others, endings)
    for names, partners in ((left, right), (right, left)):
        if alone := [str(file) for name, file in names.items() if name not in partners]:
            folder = next(iter(partners.values())).parent if partners else "an empty list of files"
            more = f", nor of {', '.join(alone[1:])}" if alone[1:] else ""
            raise MissingPartner(f"{alone[0]}: no file of that name (extension apart) in {folder}{more}")
    return [right[name] for name in left]


def unpaired(files: Iterable[Path], others: Iterable[Path], endings: tuple[str, ...] = ()) -> list[Path]:
    """Those of `files` that `pair` finds no partner for."""
    partners = _by_name(others, endings)
    return [file for name, file in _by_name(files, endings).items() if name not in partners]


def _by_name(files: Iterable[Path], endings: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        stem = file.stem
        for ending in endings:
            stem = stem.removesuffix(ending)
        name = re.sub(r"(?<!\d)0+(?=\d)", "", stem)
        if name in found:
            raise ValueError(f"{file}: pairs with the same file as {found[name]}")
        found[name] = file
    return found


def open_image(path: Path) -> Image.Image:
    """Decoded, upright (the EXIF orientation is applied); ValueError naming a file that does not decode."""
    try:
        with Image.open(path) as image:
            # What the pixels are in the file, known before loading alone. See `read_map`.
            args = image.tile[0].args if image.tile else ""
            image.info["stored"] = str(args[0] if isinstance(args, tuple) else args)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error


def read_photo(path: str | Path, channels: int = 3) -> Image.Image:
    """An RGB image, or with `channels` 1 a grey one, from any 8 bit picture; transparency is dropped.

    ValueError names a damaged or deeper file.
    """
    image = open_image(Path(path))
    if image.mode in DEEP:
        raise ValueError(f"{path}: mode {image.mode}, more than 8 bits per channel; expected an 8 bit picture")
    return image.convert({1: "L", 3: "RGB"}[channels])


class Photo:
    """A picture, or the left (0) or right (1) half of one; see `read_photo`. With a cache it is decoded when need be.

    `size` is its (width, height).
    """

    def __init__(self, file: Path, channels: int = 3, cache: Cache | None = None, half: int | None = None) -> None:
        self.file, self.channels, self.cache, self.half = file, channels, cache, half
        self.image = None if cache else self._read()
        self.size = self.image.size if self.image else self._remembered_size()

    def _remembered_size(self) -> tuple[int, int]:
        sides = self.cache.get(self.file, "size", (8, 1), lambda: np.array([size_of(self.file)], "<i4").view(np.uint8))
        width, height = (int(side) for side in sides.view("<i4")[0])
        return (width if self.half is None else width // 2), height

    def _read(self) -> Image.Image:
        image = read_photo(self.file, self.channels)
        if self.half is None:
            return image
        width = image.width // 2
        return image.crop((self.half * width, 0, (self.half + 1) * width, image.height))

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image:
        return (self.image or self._read()).crop(box)

    def resize(self, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
        if not self.cache:
            return self.image.resize(size, resample)

        def make() -> np.ndarray:
            return np.array(self._read().resize(size, resample))

        key = (self.channels, self.half, int(resample))
        return Image.fromarray(self.cache.get(self.file, key, size, make))


def size_of(path: Path) -> tuple[int, int]:
    """(width, height), upright, without decoding; ValueError naming a file that is no image."""
    try:
        with Image.open(path) as image:
            sideways = image.getexif().get(0x0112, 1) >= 5
            return image.size[::-1] if sideways else image.size
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error


def to_tensor(image: Image.Image) -> Tensor:
    """[3,H,W], of a grey image [1,H,W], float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image)).view(image.height, image.width, -1)
    return (pixels.permute(2, 0, 1).contiguous() / 255 - 0.5) / 0.5


def read_map(path: str | Path, cache: Cache | None = None) -> np.ndarray:
    """Integers [H,W] int32 as stored: palette indices, grey levels of 1 to 32 bits, or a colour picture of grey pixels.

    With a cache a file is decoded once. ValueError names one that is damaged, JPEG (its values are not the ones that
    were saved) or coloured.
    """
    if cache is None:
        return decode_map(path)
    return cache.get(Path(path), "map", None, lambda: narrow(decode_map(path))).astype(np.int32)


def narrow(values: np.ndarray) -> np.ndarray:
    """Integers in one byte each, in two or in four, as they need."""
    low, high = values.min(initial=0), values.max(initial=0)
    kinds = map(np.iinfo, (np.uint8, np.uint16, np.int32))
    return values.astype(next(kind.dtype for kind in kinds if kind.min <= low and high <= kind.max))


def decode_map(path: str | Path) -> np.ndarray:
    """See `read_map`."""
    image = open_image(Path(path))
    stored, what = image.info["stored"], f"mode {image.mode}"
    if image.format == "JPEG":
        what = "JPEG, which does not keep values"
    elif image.mode in ("1", "P", "L", "I", "I;16", "I;16L", "I;16B"):
        stretch = {"L;2": 85, "L;4": 17}.get(stored[:3], 1)  # Pillow stretches grey of 2 and 4 bits to 0..255
        return np.asarray(image).astype(np.int32) // stretch
    elif ";16" in stored:  # Pillow keeps the upper 8 bits of each channel
        what = "16 bit colour"
    elif image.mode in ("LA", "PA", "RGB", "RGBA"):
        values = np.asarray(image).astype(np.int32)
        channels = values[..., :3] if image.mode.startswith("RGB") else values[..., :1]
        if (channels == channels[..., :1]).all():
            return channels[..., 0]
        what = "a colour picture"
    raise ValueError(f"{path}: {what}; expected one class or instance number per pixel (grey or palette PNG)")


class Geometry(NamedTuple):
    """Cut `part` if given, resize to `size` (width, height), then cut `box`, then mirror if `flip`.

    Parts and boxes are (left, top, right, bottom).
    """

    size: tuple[int, int]
    box: tuple[int, int, int, int]
    flip: bool
    part: tuple[int, int, int, int] | None = None

    def __call__(self, image: Image.Image | Photo, resample: Image.Resampling) -> Image.Image:
        image = (image.crop(self.part) if self.part else image).resize(self.size, resample).crop(self.box)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else image

    def photo(self, image: Image.Image | Photo) -> Tensor:
        """Bicubic; see `to_tensor`."""
        return to_tensor(self(image, Image.Resampling.BICUBIC))

    def map(self, values: np.ndarray) -> Tensor:
        """Nearest; [1,H,W] int64 from [H,W] int32."""
        return torch.from_numpy(np.array(self(Image.fromarray(values), Image.Resampling.NEAREST))).long()[None]

    def offsets(self, values: Tensor) -> Tensor:
        """Nearest; [2,H,W] from offsets of pixels, rows then columns, float32. Mirroring turns columns' round."""
        planes = [self(Image.fromarray(plane), Image.Resampling.NEAREST) for plane in values.numpy()]
        rows, columns = (torch.from_numpy(np.array(plane)) for plane in planes)
        return torch.stack([rows, -columns if self.flip else columns])

    def points(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Where points [...,2] of an image of `size` come to lie; (x, y), those of the first pixel being (0.5, 0.5)."""
        left, top, right, bottom = self.part or (0, 0, *size)
        points = (points - (left, top)) * (np.array(self.size) / (right - left, bottom - top)) - self.box[:2]
        return points * (-1, 1) + (self.box[2] - self.box[0], 0) if self.flip else points

    def flow(self, values: np.ndarray) -> Tensor:
        """Bilinear; [2,H,W] in pixels of the result from [H,W,2] in pixels of the image, right then down."""
        height, width = values.shape[:2]
        planes = [
            np.array(self(Image.fromarray(plane), Image.Resampling.BILINEAR)) for plane in values.transpose(2, 0, 1)
        ]
        left, top, right, bottom = self.part or (0, 0, width, height)
        scale = self.size[0] / (right - left) * (-1 if self.flip else 1), self.size[1] / (bottom - top)
        return torch.from_numpy(np.stack([planes[0] * scale[0], planes[1] * scale[1]]).astype(np.float32))


def geometry(
    width: int,
    height: int,
    mode: Preprocess,
    load_size: int,
    crop_size: int,
    aspect_ratio: float,
    rng: Generator | None,
    flip: bool,
) -> Geometry:
    """Where the pixels of one item come from: the same for its image, labels and instances.

    resize: both sides to load_size; scale_width, scale_shortside: that side to load_size; fixed: crop_size wide and
    crop_size / aspect_ratio high; none: both sides to the nearest multiple of 32. Modes that end in `crop` then cut a
    square of crop_size at a place drawn from `rng`, and `flip` mirrors half of the draws; without rng the middle, never
    mirrored. crop_and_resize: the middle square of load_size, resized to crop_size. random_resized_crop: all of it
    resized to a square of crop_size, or, in half of the draws, a part of it, see `random_part`. ValueError if a square
    does not fit.
    """
    part, middle = None, load_size if mode == "crop_and_resize" else 0
    if middle > min(width, height):
        raise ValueError(f"{width}x{height} pixels: smaller than the {middle}x{middle} that {mode} cuts out")
    if mode in ("crop_and_resize", "random_resized_crop"):
        size = crop_size, crop_size
        if middle:
            left, top = round((width - middle) / 2), round((height - middle) / 2)
            part = left, top, left + middle, top + middle
        elif rng is not None:
            part = random_part(width, height, rng)
    elif mode == "resize_and_crop":
        size = load_size, load_size
    elif mode.startswith("scale_width"):
        size = load_size, max(1, load_size * height // width)
    elif mode.startswith("scale_shortside"):
        short = min(width, height)
        size = load_size * width // short, load_size * height // short
    elif mode == "fixed":
        size = crop_size, round(crop_size / aspect_ratio)
    elif mode == "none":
        size = max(32, round(width / 32) * 32), max(32, round(height / 32) * 32)
    else:
        size = width, height
    cut = (crop_size, crop_size) if mode.endswith("crop") else size
    room = size[0] - cut[0], size[1] - cut[1]
    if min(room) < 0:
        raise ValueError(f"{size[0]}x{size[1]} pixels after {mode}: smaller than the crop of {crop_size}x{crop_size}")
    if rng is None:
        left, top, mirrored = room[0] // 2, room[1] // 2, False
    else:  # always three draws, so that a drawn place does not depend on whether images are mirrored
        left, top, mirrored = int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1)), bool(rng.random() > 0.5)
    return Geometry(size, (left, top, left + cut[0], top + cut[1]), mirrored and flip, part)


def random_part(width: int, height: int, rng: Generator) -> tuple[int, int, int, int] | None:
    """Of half of the draws none, else 0.8 to 1 of the area, 0.9 to 1.1 times as wide as high, somewhere.

    As StarGAN v2 cuts images; where it finds no such part in ten draws it is the middle, of the nearest shape.
    """
    if rng.random() >= 0.5:
        return None
    for _ in range(10):
        area, ratio = width * height * rng.uniform(0.8, 1), np.exp(rng.uniform(np.log(0.9), np.log(1.1)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if w <= width and h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 1.1)), min(height, round(width / 0.9))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
