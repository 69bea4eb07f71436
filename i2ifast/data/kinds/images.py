"""Photographs: those in {phase}, or below the root; folders in it included."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.random import Generator

from i2ifast.data import _items
from i2ifast.data._items import Options, Settings
from i2ifast.data.pixels import read_photo, to_tensor

__all__ = ["SHOWN", "Inputs", "Options", "Settings", "folder"]

SHOWN = ("image", "fake")
TAKES = ("latent",)


class Images(_items.Items):
    """Items {image [3,H,W] float32 in [-1, 1], path} of `files`."""

    def sources(self, index: int) -> list[tuple[_items.Role, Path]]:
        return [("photograph", self.files[index])]

    def item(self, index: int, rng: Generator) -> _items.Item:
        return {"image": self.photo(self.files[index], rng), "path": str(self.files[index])}


def folder(root: str | Path, phase: str, settings: Settings, seed: int = 0, train: bool = False) -> Images:
    """The photographs of `phase`, see `_items.photographs`."""
    return Images(_items.photographs(root, phase), settings, train, seed)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    images: Path | None = None
    """folder of photographs, for a system that makes images of their features"""
    count: int = 16
    """images to make without them"""

    def batches(self, system: Any, size: int) -> Iterator[dict[str, Any]]:
        """All photographs, as they are, in batches of at most `size` of the same height and width.

        Without them names of images; the number of `image`, which is empty, is theirs.
        """
        if self.images:
            files = _items.images_of(self.images)
            items = ({"image": to_tensor(read_photo(file)), "path": file} for file in files)
            return _items.batches_by_size(items, size, lambda item: item["image"].shape)
        names = [Path(f"{number:05d}") for number in range(self.count)]
        groups = (names[start : start + size] for start in range(0, self.count, size))
        return ({"image": torch.empty(len(paths), 0), "path": paths} for paths in groups)
