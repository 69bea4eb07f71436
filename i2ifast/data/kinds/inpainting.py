"""Photographs with holes: those in {phase}, or below the root, and masks of {phase}_mask, of any folder, or drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageDraw
from torch import Tensor

from i2ifast.data import _items
from i2ifast.data.pixels import images_below, pair, read_photo, to_tensor

SHOWN = ("masked", "fake", "image")
TAKES = ("image", "mask")


@dataclass(frozen=True, kw_only=True)
class Options(_items.Options):
    masks: Path | None = None
    """folder of masks, white in holes; by default {phase}_mask, and where there is none they are drawn"""
    holes: Literal["strokes", "rectangle"] = "strokes"
    """what is drawn: free-form strokes, or a rectangle"""


@dataclass(frozen=True, kw_only=True)
class Settings(_items.Settings, Options):
    """Nothing that other kinds have not."""


class Inpainting(_items.Items):
    """Items {image [3,H,W] float32 in [-1, 1], mask [1,H,W] float32, 1 in holes, masked, path} of `files`.

    `masked` is the image with grey holes. A mask file is resized to the item; in training which one is drawn, and half
    of them are mirrored, else it is the one of the same number.
    """

    def __init__(
        self,
        files: Sequence[Path],
        masks: Sequence[Path],
        settings: Settings,
        train: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(files, settings, train, seed)
        self.masks = list(masks)

    def sources(self, index: int) -> list[tuple[_items.Role, Path]]:
        mask = [("mask", self.masks[index])] if index < len(self.masks) else []
        return [("photograph", self.files[index]), *mask]

    def item(self, index: int, rng: Generator) -> _items.Item:
        image = self.photo(self.files[index], rng)
        height, width = image.shape[1:]
        if self.masks:
            number = int(rng.integers(len(self.masks))) if self.train else index % len(self.masks)
            mask = read_mask(self.masks[number], (width, height), self.train and rng.random() > 0.5)
        else:
            mask = DRAWN[self.settings.holes](width, height, rng)
        return {"image": image, "mask": mask, "masked": image * (1 - mask), "path": str(self.files[index])}


def read_mask(file: Path, size: tuple[int, int] | None = None, mirrored: bool = False) -> Tensor:
    """[1,H,W] float32, 1 where the file is lighter than half, resized to `size` (width, height)."""
    mask = read_photo(file, channels=1)
    mask = mask.resize(size, Image.Resampling.NEAREST) if size else mask
    values = torch.from_numpy(np.array(mask) > 127).float()[None]
    return values.flip(-1) if mirrored else values


def rectangle(width: int, height: int, rng: Generator) -> Tensor:
    """A mask [1,H,W] of one rectangle, a quarter to a half as wide and as high as the image, anywhere."""
    mask = torch.zeros(1, height, width)
    w, h = (max(1, round(side * rng.uniform(0.25, 0.5))) for side in (width, height))
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    mask[:, top : top + h, left : left + w] = 1
    return mask


def strokes(width: int, height: int, rng: Generator) -> Tensor:
    """A mask [1,H,W] of one to four strokes of a brush, each of a few joints (Yu et al., ICCV 2019)."""
    mask = Image.new("L", (width, height))
    draw, side = ImageDraw.Draw(mask), max(width, height)
    for _ in range(int(rng.integers(1, 5))):
        x, y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * np.pi)
        brush = max(1, round(side * rng.uniform(0.05, 0.15)))
        path = [(x, y)]
        for joint in range(int(rng.integers(4, 13))):
            turn = rng.uniform(np.pi * 4 / 15, np.pi * 8 / 15)
            angle = angle + np.pi - turn if joint % 2 else angle + turn
            length = max(1.0, rng.normal(side / 8, side / 16))
            x, y = (np.clip(c + length * d, 0, s) for c, d, s in zip(path[-1], (np.cos(angle), np.sin(angle)),
                                                                     (width, height), strict=True))  # fmt: skip
            path.append((x, y))
        draw.line(path, fill=1, width=brush, joint="curve")
        for x, y in path:
            draw.ellipse((x - brush / 2, y - brush / 2, x + brush / 2, y + brush / 2), fill=1)
    return torch.from_numpy(np.array(mask)).float()[None]


DRAWN = {"strokes": strokes, "rectangle": rectangle}


def folder(root: str | Path, phase: str, settings: Settings, seed: int = 0, train: bool = False) -> Inpainting:
    """The photographs of `phase`, see `_items.photographs`; FileNotFoundError for no masks in the folder named."""
    files = _items.photographs(root, phase)
    masks = images_below(settings.masks or Path(root) / f"{phase}_mask")
    if settings.masks and not masks:
        raise FileNotFoundError(f"{settings.masks}: no such folder, or no masks below it")
    return Inpainting(files, masks, settings, train, seed)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    images: Path
    """folder of photographs"""
    masks: Path
    """folder of masks of the same names and sizes, white in holes"""

    def batches(self, system: Any, size: int) -> Iterator[dict[str, Any]]:
        """All photographs, as they are, in batches of at most `size` of the same height and width."""
        images = _items.images_of(self.images)
        masks = pair(images, _items.images_of(self.masks))

        def item(file: Path, mask_file: Path) -> _items.Item:
            image, mask = to_tensor(read_photo(file)), read_mask(mask_file)
            if mask.shape[1:] != image.shape[1:]:
                (h, w), (height, width) = mask.shape[1:], image.shape[1:]
                raise ValueError(f"{mask_file}: {w}x{h} pixels, but its photograph {file} has {width}x{height}")
            return {"image": image, "mask": mask, "path": file}

        items = (item(*files) for files in zip(images, masks, strict=True))
        return _items.batches_by_size(items, size, lambda item: item["image"].shape)
