"""Photographs in pairs: A | B side by side in one file of {phase}, or in {phase}A and {phase}B by equal names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.random import Generator
from PIL import Image

from i2ifast.data import _items
from i2ifast.data.kinds import unpaired
from i2ifast.data.kinds.unpaired import Options, Settings
from i2ifast.data.pixels import images_in, pair, read_photo

__all__ = ["SHOWN", "Inputs", "Options", "Settings", "folder"]

SHOWN = ("a", "fake", "b")


class Paired(_items.Items):
    """Items {a, b [C,H,W] float32 in [-1, 1], path} of `files`: of pairs of files, or of single ones with both images.

    Both are cropped and mirrored alike.
    """

    def __init__(
        self,
        files: Sequence[tuple[Path, Path]] | Sequence[tuple[Path]],
        settings: Settings,
        train: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(settings, train, seed)
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def sources(self, index: int) -> list[tuple[_items.Role, Path]]:
        return [("photograph", file) for file in self.files[index]]

    def item(self, index: int, rng: Generator) -> _items.Item:
        files = self.files[index]
        a, b = halves(files[0], self.settings) if len(files) == 1 else map(read_photo, files)
        if a.size != b.size:
            raise ValueError(f"{files[1]}: {b.width}x{b.height} pixels, but its partner has {a.width}x{a.height}")
        where = self.place(a.size, rng, files[0])
        modes = {1: "L", 3: "RGB"}
        images = {
            "a": where.photo(a.convert(modes[self.settings.input_nc])),
            "b": where.photo(b.convert(modes[self.settings.output_nc])),
        }
        return {**images, "path": str(files[0])}


def halves(file: Path, settings: Settings) -> tuple[Image.Image, Image.Image]:
    """The left and the right half of a file, in the direction chosen."""
    image = read_photo(file)
    half = image.width // 2
    left, right = (image.crop((x, 0, x + half, image.height)) for x in (0, half))
    return (left, right) if settings.direction == "AtoB" else (right, left)


def folder(root: str | Path, phase: str, settings: Settings, seed: int = 0, train: bool = False) -> Paired:
    """The pairs of `phase` below `root`, in the first of these that there is:

    {phase}A, {phase}B     pix2pix before they are combined
    {phase}_A, {phase}_B   pix2pixHD
    A/{phase}, B/{phase}   pix2pix before they are combined, in folders by domain
    {phase}                both side by side in one file

    FileNotFoundError where there is none of them, or a file without partner.
    """
    root, sides = Path(root), settings.direction.split("to")
    for form in (f"{phase}{{}}", f"{phase}_{{}}", f"{{}}/{phase}"):
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
