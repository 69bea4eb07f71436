"""Sketches and photographs of objects of several classes: both side by side in the files of {phase}/<class>."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.random import Generator

from i2ifast.data import _items
from i2ifast.data._items import Options
from i2ifast.data.kinds import domains

__all__ = ["SHOWN", "Inputs", "Options", "Settings", "folder"]

SHOWN = ("sketch", "fake", "image")
TAKES = ("sketch", "domain")


@dataclass(frozen=True, kw_only=True)
class Settings(_items.Settings):
    num_classes: int | None = None  # how many the system has; None takes as many as there are


class Sketches(_items.Items):
    """Items {sketch, image [3,H,W] float32 in [-1, 1], domain (the number of the class, int64), path} of each class.

    Sketch and image are the left and the right half of a file, cropped and mirrored alike.
    """

    def __init__(self, classes: dict[str, list[Path]], settings: Settings, train: bool = False, seed: int = 0) -> None:
        if settings.num_classes not in (None, len(classes)):
            raise ValueError(
                f"{len(classes)} classes ({', '.join(classes)}), but the system has {settings.num_classes}"
            )
        files = [(number, file) for number, files in enumerate(classes.values()) for file in files]
        super().__init__(files, settings, train, seed)

    def sources(self, index: int) -> list[tuple[_items.Role, Path]]:
        return [("photograph", self.files[index][1])]

    def item(self, index: int, rng: Generator) -> _items.Item:
        number, file = self.files[index]
        sketch, image = (self.open(file, half=half) for half in (0, 1))
        where = self.place(sketch.size, rng, file)
        item = {"sketch": where.photo(sketch), "image": where.photo(image)}
        return {**item, "domain": torch.tensor(number), "path": str(file)}


def folder(root: str | Path, phase: str, settings: Settings, seed: int = 0, train: bool = False) -> Sketches:
    """The files of each class below `root`, in the layouts of `domains.folder`."""
    return Sketches(domains.find(Path(root), phase), settings, train, seed)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    sketches: Path
    """folder of sketches"""
    domain: str
    """number of their class, or its name in --data"""
    data: Path | None = None
    """folder that the system was trained on, for names of classes"""

    def batches(self, system: Any, size: int) -> Iterator[dict[str, Any]]:
        """All sketches, resized as in training, in batches of at most `size`."""
        settings, files = Settings.of(system), _items.images_of(self.sketches)
        number = torch.tensor(domains.number(self.domain, self.data, settings.num_classes))
        items = ({"sketch": settings.photo(file), "domain": number, "path": file} for file in files)
        return _items.batches_by_size(items, size, lambda item: item["sketch"].shape)
