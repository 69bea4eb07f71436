"""Decoded and resized pixels on disk, mapped into memory."""

import os
from collections.abc import Callable, Hashable
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy import ndarray


class Cache:
    """A folder with a .npy file for each picture and size, and for each map, written when it is first asked for.

    A file that has changed since (its path, length or time of change) is another picture. Any number of processes may
    read and write: files appear whole or not at all, and one that is damaged is written again. Nothing is deleted.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def get(self, file: Path, key: Hashable, size: tuple[int, int] | None, make: Callable[[], ndarray]) -> ndarray:
        """Pixels [H,W] or [H,W,C] of `file` in `size` (width, height), None for its own; those of `make`, which `key`
        describes. They are uint8 but for those of maps."""
        facts = file.stat()
        name = sha256(repr((str(file.absolute()), facts.st_size, facts.st_mtime_ns, key, size)).encode()).hexdigest()
        stored = self.folder / name[:2] / f"{name[2:]}.npy"
        try:
            pixels = np.load(stored, mmap_mode="r")
            if size is None or (pixels.dtype == np.uint8 and pixels.shape[1::-1] == size):
                return pixels
        except (OSError, ValueError, EOFError):  # not there, or damaged
            pass
        pixels = make()
        stored.parent.mkdir(parents=True, exist_ok=True)
        written = stored.with_suffix(f".{os.getpid()}")
        with written.open("wb") as out:
            np.save(out, pixels)
        written.replace(stored)
        return pixels
