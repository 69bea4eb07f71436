"""Photographs of two domains without partners: {phase}A and {phase}B, or A and B, or content and style."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from numpy.random import Generator

from i2ifast.data import _items

SHOWN = ("a", "fake", "b")
TAKES = ("a", "b")


@dataclass(frozen=True, kw_only=True)
class Options(_items.Options):
    direction: Literal["AtoB", "BtoA"] = "AtoB"
    """which of the two is domain a"""


@dataclass(frozen=True, kw_only=True)
class Settings(_items.Settings, Options):
    input_nc: int = 3  # channels of a
    output_nc: int = 3  # and of b; 1 is grey


class Unpaired(_items.Items):
    """Items {a, b [C,H,W] float32 in [-1, 1], path of a} of the photographs in two lists.

    There are as many as photographs in the longer list. The partner in the other one is drawn in training, else it is
    the one of the same number; each is cropped and mirrored by itself.
    """

    def __init__(
        self, a: Sequence[Path], b: Sequence[Path], settings: Settings, train: bool = False, seed: int = 0
    ) -> None:
        super().__init__(zip_longest(a, b), settings, train, seed)
        self.a, self.b = list(a), list(b)

    def sources(self, index: int) -> list[tuple[_items.Role, Path]]:
        return [("photograph", file) for file in self.files[index] if file is not None]

    def item(self, index: int, rng: Generator) -> _items.Item:
        partner = int(rng.integers(len(self.b))) if self.train else index
        a, b = self.a[index % len(self.a)], self.b[partner % len(self.b)]
        images = {
            "a": self.photo(a, rng, self.settings.input_nc),
            "b": self.photo(b, rng, self.settings.output_nc),
        }
        return {**images, "path": str(a)}


def folder(root: str | Path, phase: str, settings: Settings, seed: int = 0, train: bool = False) -> Unpaired:
    """The photographs of `phase` below `root`, in the first of these that there is:

    {phase}A, {phase}B
    A, B                 for phase "train" alone
    content, style       the same, as AdaIN names them

    FileNotFoundError where there is none of them, or one of the two has no images.
    """
    root = Path(root)
    forms = [(f"{phase}A", f"{phase}B"), *((("A", "B"), ("content", "style")) if phase == "train" else ())]
    form = next((form for form in forms if any((root / name).is_dir() for name in form)), forms[0])
    found = [_items.images_of(root / name) for name in (form if settings.direction == "AtoB" else form[::-1])]
    return Unpaired(*found, settings, train, seed)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    images: Path
    """folder of photographs of domain a"""
    styles: Path | None = None
    """folder of photographs of domain b, in turn the style of the translations, for a system that takes one"""

    def batches(self, system: Any, size: int) -> Iterator[dict[str, Any]]:
        """All photographs, see `Settings.input`, in batches of at most `size` of the same height and width."""
        settings = Settings.of(system)
        images = _items.images_of(self.images)
        styles = _items.images_of(self.styles) if self.styles else []

        def item(number: int, file: Path) -> _items.Item:
            item = {"a": settings.input(file, settings.input_nc), "path": file}
            if styles:
                item["b"] = settings.photo(styles[number % len(styles)], channels=settings.output_nc)
            return item

        items = (item(number, file) for number, file in enumerate(images))
        return _items.batches_by_size(items, size, lambda item: item["a"].shape)
