"""What data of every kind have in common: how files become items, and items batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.utils.data import Dataset

from ._cache import Cache
from .pixels import Geometry, Photo, Preprocess, geometry, images_below, images_in, read_photo, to_tensor

Item = dict[str, Any]
Role = Literal["photograph", "label map", "instance map", "mask"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How files become items, as far as users choose it; by default it is as for the published models."""

    load_size: int | None = None
    """side that images are resized to before the crop"""
    preprocess_mode: Preprocess | None = None
    """how images are resized and cropped"""
    flip: bool = True
    """mirror half of the training images"""


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """Options, and what the system that takes the items decides."""

    crop_size: int = 256  # width of the items, see `pixels.geometry`
    aspect_ratio: float = 1.0  # width / height, for `fixed`
    one_size: bool = False  # networks take no other images than those of training

    def __post_init__(self) -> None:
        if self.mode not in get_args(Preprocess):
            raise ValueError(f"preprocess_mode {self.mode!r}: expected one of {', '.join(get_args(Preprocess))}")
        if self.crop_size < 1 or self.aspect_ratio <= 0:
            raise ValueError(f"crop_size {self.crop_size}, aspect_ratio {self.aspect_ratio}: both must be positive")
        if self.mode.endswith("_and_crop") and self.loaded(train=True) < self.crop_size:
            raise ValueError(f"load_size {self.load_size} is smaller than crop_size {self.crop_size}")

    @classmethod
    def of(cls, system: Any, options: Options | None = None) -> Self:
        """The settings of that name in `system`, its `config` and its `data_settings`, then the options chosen."""
        names = [field.name for field in fields(cls)]
        found = {name: getattr(at, name) for at in (system, system.config) for name in names if hasattr(at, name)}
        chosen = {f.name: getattr(options, f.name) for f in (fields(options) if options else ())}
        defaults = {f.name: f.default for f in fields(cls)}
        return cls(**(found | system.data_settings | {k: v for k, v in chosen.items() if v != defaults[k]}))

    @property
    def mode(self) -> Preprocess:
        return self.preprocess_mode or ("resize_and_crop" if self.aspect_ratio == 1 else "fixed")

    def loaded(self, train: bool) -> int:
        """The load_size in use: outside training nothing is loaded larger than the crop."""
        if not train and self.mode.endswith("_and_crop"):
            return self.crop_size
        return self.load_size or round(self.crop_size * 286 / 256)

    def place(self, size: tuple[int, int], rng: Generator | None, file: Path) -> Geometry:
        """Where the pixels of an item come from, in images of `size` (width, height): in training drawn from `rng`."""
        loaded = self.loaded(train=rng is not None)
        try:
            return geometry(*size, self.mode, loaded, self.crop_size, self.aspect_ratio, rng, self.flip)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def photo(self, file: Path, channels: int = 3) -> Tensor:
        """A photograph placed by itself as outside training, [channels,H,W] float32 in [-1, 1]."""
        image = read_photo(file, channels)
        return self.place(image.size, None, file).photo(image)

    def input(self, file: Path, channels: int = 3) -> Tensor:
        """A photograph to translate, as it is; for networks of `one_size` see `photo`."""
        return self.photo(file, channels) if self.one_size else to_tensor(read_photo(file, channels))


class Items(Dataset):
    """Items, dicts of tensors and of "path", the file that names them, by index or by (epoch, index).

    What is drawn for an item follows from (seed, epoch, index) alone: it is the same in any process, in any order.
    Place and mirroring are drawn in training only; else the middle is cut. ValueError, with the file's name, for files
    that are missing, unreadable or do not fit each other.

    `files` has an entry for each item, in their order: a path, or whatever the kind makes an item of.
    """

    def __init__(self, files: Iterable[Any], settings: Settings, train: bool = False, seed: int = 0) -> None:
        self.files = list(files)
        self.settings, self.train, self.seed = settings, train, seed
        self.cache: Cache | None = None

    def cached(self, folder: str | Path) -> Self:
        """These items, with files decoded, and photographs resized, once, and then read from `folder`; see `Cache`."""
        items = copy(self)
        items.cache = Cache(folder)
        return items

    def __len__(self) -> int:
        return len(self.files)

    def item(self, index: int, rng: Generator) -> Item:
        raise NotImplementedError

    def sources(self, index: int) -> list[tuple[Role, Path]]:
        """The files that are this item's own, and what each is read as."""
        raise NotImplementedError

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self.item(index, np.random.default_rng((self.seed, epoch, index)))

    def place(self, size: tuple[int, int], rng: Generator, file: Path) -> Geometry:
        """Where the pixels of an item come from, in images of `size` (width, height)."""
        return self.settings.place(size, rng if self.train else None, file)

    def open(self, file: Path, channels: int = 3, half: int | None = None) -> Photo:
        """A photograph, or a half of one."""
        return Photo(file, channels, self.cache, half)

    def photo(self, file: Path, rng: Generator, channels: int = 3) -> Tensor:
        """A photograph placed by itself, [channels,H,W] float32 in [-1, 1]."""
        image = self.open(file, channels)
        return self.place(image.size, rng, file).photo(image)

    def collate(self, items: Sequence[Item]) -> dict[str, Any]:
        """The batch of some items: tensors stacked, all else in lists."""
        return stack(items)


def images_of(folder: Path) -> list[Path]:
    """Image files directly in `folder`, in natural order; FileNotFoundError if there are none."""
    found = images_in(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: no such folder, or no images in it")
    return found


def photographs(root: str | Path, phase: str) -> list[Path]:
    """Image files below `root`/`phase`; for phase "train", where that is missing, those below `root`, or `root` itself.

    FileNotFoundError where there are none.
    """
    folder = Path(root) / phase
    if phase == "train" and not folder.is_dir():
        folder = Path(root)
    found = [folder] if folder.is_file() else images_below(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: no such folder, or no images below it")
    return found


def stack(items: Sequence[Item]) -> dict[str, Any]:
    """Tensors stacked, all else in lists; ValueError names the files of tensors that differ in size."""
    batch: dict[str, Any] = {}
    for name, value in items[0].items():
        values = [item[name] for item in items]
        if isinstance(value, Tensor):
            shapes = {tuple(value.shape) for value in values}
            if len(shapes) > 1:
                raise ValueError(
                    f"{name} of different sizes in one batch ({sorted(shapes)}: "
                    f"{', '.join(str(item['path']) for item in items)}); "
                    "use batch size 1 or a preprocess_mode that gives one size"
                )
            values = torch.stack(values)
        batch[name] = values
    return batch


def batches_by_size(items: Iterator[Item], size: int, same: Callable[[Item], Any]) -> Iterator[dict[str, Any]]:
    """Batches of at most `size` items for which `same` gives the same value, none left out."""
    waiting: dict[Any, list[Item]] = {}
    for item in items:
        group = waiting.setdefault(same(item), [])
        group.append(item)
        if len(group) == size:
            yield stack(waiting.pop(same(item)))
    yield from map(stack, waiting.values())
