"""Photographs with embeddings of texts about them: {phase}, and {phase}_embedding with a .npy file of the same name."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from i2ifast.data import _items
from i2ifast.data._items import Options
from i2ifast.data.pixels import natural

__all__ = ["SHOWN", "Inputs", "Options", "Settings", "folder"]

SHOWN = ("image", "fake")


@dataclass(frozen=True, kw_only=True)
class Settings(_items.Settings):
    text_dim: int | None = None  # entries of an embedding; None takes any number


class Embeddings(_items.Items):
    """Items {image, wrong [3,H,W] float32 in [-1, 1], embedding [D] float32, path of the image} of pairs of files.

    `wrong` is another photograph. Of several embeddings, [K,D] in the file, one is drawn in training, else the first is
    taken.
    """

    def sources(self, index: int) -> list[tuple[_items.Role, Path]]:
        return [("photograph", self.files[index][0])]

    def item(self, index: int, rng: Generator) -> _items.Item:
        image, file = self.files[index]
        embeddings = read(file, self.settings.text_dim)
        embedding = embeddings[int(rng.integers(len(embeddings))) if self.train else 0]
        other = int(rng.integers(max(1, len(self.files) - 1)))
        wrong, _ = self.files[(index + 1 + other) % len(self.files)]
        images = {"image": self.photo(image, rng), "wrong": self.photo(wrong, rng)}
        return {**images, "embedding": embedding, "path": str(image)}


def read(file: Path, text_dim: int | None) -> Tensor:
    """[K,D] float32 of a NumPy file with [D] or [K,D]; ValueError names one that has something else."""
    try:
        array = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file}: not a readable NumPy file ({error})") from error
    if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.number) or not np.isfinite(array).all():
        raise ValueError(f"{file}: {array.dtype} of shape {array.shape}; expected finite numbers [D] or [K,D]")
    if text_dim not in (None, array.shape[-1]) or not array.size:
        raise ValueError(f"{file}: embeddings of shape {array.shape}; the system takes {text_dim} numbers")
    return torch.from_numpy(np.atleast_2d(array).astype(np.float32))


def folder(root: str | Path, phase: str, settings: Settings, seed: int = 0, train: bool = False) -> Embeddings:
    """The photographs in `root`/`phase`; FileNotFoundError where there are none, or where one has no embedding."""
    files = []
    for image in _items.images_of(Path(root) / phase):
        file = Path(root) / f"{phase}_embedding" / f"{image.stem}.npy"
        if not file.exists():
            raise FileNotFoundError(f"{image}: has no embedding {file}")
        files.append((image, file))
    return Embeddings(files, settings, train, seed)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    embeddings: Path
    """folder of .npy files, of each of which the first embedding is used"""

    def batches(self, system: Any, size: int) -> Iterator[dict[str, Any]]:
        """All of them, in batches of at most `size`."""
        settings = Settings.of(system)
        files = sorted(self.embeddings.glob("*.npy"), key=natural)
        if not files:
            raise ValueError(f"{self.embeddings}: no .npy files")
        items = ({"embedding": read(file, settings.text_dim)[0], "path": file} for file in files)
        return _items.batches_by_size(items, size, lambda item: item["embedding"].shape)
