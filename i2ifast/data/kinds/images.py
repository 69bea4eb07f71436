"""Photographs: those in {phase}, or below the root; folders in it included."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.random import Generator

from i2ifast.data import _items
from i2ifast.data._items import Options, Settings

__all__ = ["SHOWN", "Inputs", "Options", "Settings", "folder"]

SHOWN = ("image", "fake")
TAKES = ("latent",)


class Images(_items.Items):
    """Items {image [3,H,W] float32 in [-1, 1], path} of `files`."""

    def __init__(self, files: Sequence[Path], settings: Settings, train: bool = False, seed: int = 0) -> None:
        super().__init__(settings, train, seed)
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def sources(self, index: int) -> list[tuple[_items.Role, Path]]:
        return [("photograph", self.files[index])]

    def item(self, index: int, rng: Generator) -> _items.Item:
        return {"image": self.photo(self.files[index], rng), "path": str(self.files[index])}


def folder(root: str | Path, phase: str, settings: Settings, seed: int = 0, train: bool = False) -> Images:
    """The photographs of `phase`, see `_items.photographs`."""
    return Images(_items.photographs(root, phase), settings, train, seed)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    count: int = 16
    """images to make"""

    def batches(self, system: Any, size: int) -> Iterator[dict[str, Any]]:
        """Names of images, in batches of at most `size`; their number is that of `image`, which is empty."""
        names = [Path(f"{number:05d}") for number in range(self.count)]
        for start in range(0, self.count, size):
            paths = names[start : start + size]
            yield {"image": torch.empty(len(paths), 0), "path": paths}
