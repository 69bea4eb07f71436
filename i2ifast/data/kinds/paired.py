"""Photographs in pairs: A | B side by side in one file of {phase}, or in {phase}A and {phase}B by equal names."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.random import Generator

from i2ifast.data import _items
from i2ifast.data.kinds import unpaired
from i2ifast.data.kinds.unpaired import Options, Settings
from i2ifast.data.pixels import images_in, pair

__all__ = ["SHOWN", "Inputs", "Options", "Settings", "folder"]

SHOWN = ("a", "fake", "b")
TAKES = ("a", "b")


class Paired(_items.Items):
    """Items {a, b [C,H,W] float32 in [-1, 1], path} of `files`: of pairs of files, or of single ones with both images.

    Both are cropped and mirrored alike.
    """

    def sources(self, index: int) -> list[tuple[_items.Role, Path]]:
        return [("photograph", file) for file in self.files[index]]

    def item(self, index: int, rng: Generator) -> _items.Item:
        files, channels = self.files[index], (self.settings.input_nc, self.settings.output_nc)
        halves = (0, 1) if self.settings.direction == "AtoB" else (1, 0)
        sources = (
            zip(files * 2, channels, halves, strict=True) if len(files) == 1 else zip(files, channels, strict=True)
        )
        a, b = (self.open(*source) for source in sources)
        if a.size != b.size:
            sizes = f"{b.size[0]}x{b.size[1]} pixels, but its partner has {a.size[0]}x{a.size[1]}"
            raise ValueError(f"{files[1]}: {sizes}")
        where = self.place(a.size, rng, files[0])
        return {"a": where.photo(a), "b": where.photo(b), "path": str(files[0])}


def folder(root: str | Path, phase: str, settings: Settings, seed: int = 0, train: bool = False) -> Paired:
    """The pairs of `phase` below `root`, in the first of these that there is:

    {phase}A, {phase}B     pix2pix before they are combined
    {phase}_A, {phase}_B   pix2pixHD
    A/{phase}, B/{phase}   pix2pix before they are combined, in folders by domain
    A, B                   the same without phases, for phase "train" alone
    {phase}                both side by side in one file

    FileNotFoundError where there is none of them, or a file without partner.
    """
    root, sides = Path(root), settings.direction.split("to")
    for form in (f"{phase}{{}}", f"{phase}_{{}}", f"{{}}/{phase}", *(["{}"] if phase == "train" else ())):
        first, second = (images_in(root / form.format(side)) for side in sides)
        if first or second:
            return Paired(list(zip(first, pair(first, second), strict=True)), settings, train, seed)
    return Paired([(file,) for file in _items.images_of(root / phase)], settings, train, seed)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    images: Path
    """folder of images a"""

    def batches(self, system: Any, size: int) -> Iterator[dict[str, Any]]:
        """All images, as they are, in batches of at most `size` of the same height and width."""
        return unpaired.Inputs(images=self.images).batches(system, size)
