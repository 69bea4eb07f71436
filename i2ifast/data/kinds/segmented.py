"""Photographs with label maps to learn from, in the layouts of `labels`; translated without, in others' styles."""

from dataclasses import dataclass
from pathlib import Path

from numpy.random import Generator

from i2ifast.data import _items
from i2ifast.data.kinds import labels
from i2ifast.data.kinds.labels import Classes, Options, read_label
from i2ifast.data.kinds.unpaired import SHOWN, TAKES, Inputs

__all__ = ["SHOWN", "TAKES", "Inputs", "Options", "Settings", "folder"]


@dataclass(frozen=True, kw_only=True)
class Settings(Classes, Options):
    """Nothing that kinds with label maps have not."""


class Segmented(labels.Photographed):
    """Items {a, b [3,H,W] float32 in [-1, 1], label of a [1,H,W] int64, path of the label map} of `files`.

    b is another photograph, cropped and mirrored by itself: one drawn in training, else the next.
    """

    def item(self, index: int, rng: Generator) -> _items.Item:
        file = self.files[index]
        other = int(rng.integers(len(self))) if self.train else (index + 1) % len(self)
        image = self.open(file.image)
        where = self.place(image.size, rng, file.image)
        label = where.map(read_label(file.label, self.settings, self.cache))
        b = self.photo(self.files[other].image, rng)
        return {"a": where.photo(image), "b": b, "label": label, "path": str(file.label)}


def folder(root: str | Path, phase: str, settings: Settings, seed: int = 0, train: bool = False) -> Segmented:
    """The photographs with label maps of `phase` below `root`, see `labels.find`."""
    return Segmented(labels.find(root, phase, settings.dataset_mode), settings, train, seed)
