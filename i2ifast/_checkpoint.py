"""Checkpoints that survive: safetensors plus a JSON header, written whole or not at all, verified when read.

A checkpoint is two files. `checkpoint-00000500.safetensors` holds the tensors and, in its metadata, the header.
`checkpoint-00000500.json` holds its size and SHA-256 and is written last: without it there is no checkpoint.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Header = dict[str, Any]
BEST = "best"  # name of the best checkpoint
MANIFEST_LIMIT = 4096  # bytes


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read or trusted; the message names the file and the reason."""


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that becomes `path`, whole and on disk, if the block succeeds."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # else a power cut may undo the rename, or reorder two of them
        finally:
            os.close(folder)
    finally:
        with suppress(OSError):  # a read-only folder refuses this too, and that is not the error to report
            temporary.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Best:
    """The lowest mean, between two checkpoints, of a loss `term` as the log names it; without one there is no best."""

    def __init__(self, term: str | None, header: Header) -> None:
        """`header`: that of the checkpoint which is resumed, if there is one."""
        self.term, self.values = term, []
        self.lowest = header.get("best", {}).get(term, math.inf)

    def add(self, means: Mapping[str, float]) -> None:
        """Note the means of some steps. ValueError for a term that there is not."""
        if self.term is not None and means:
            if self.term not in means:
                raise ValueError(f"best {self.term!r}: there is no such loss term; there are {', '.join(means)}")
            self.values.append(means[self.term])

    def is_now(self) -> bool:
        """Whether the mean since the last call is the lowest so far."""
        values, self.values = self.values, []
        if not values or (mean := sum(values) / len(values)) >= self.lowest:
            return False
        self.lowest = mean
        return True

    @property
    def header(self) -> Header:
        """What a run that is resumed has to know."""
        return {"best": {self.term: self.lowest}} if self.lowest < math.inf else {}


def save(
    folder: Path, step: int, tensors: Mapping[str, Tensor], header: Header, keep: int = 2, best: bool = False
) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest `keep`; returns the path of the tensors.

    One that is the `best` so far is kept under that name too.
    Raises CheckpointError, with earlier checkpoints untouched, if the disk refuses or a tensor is not finite.
    """
    path = folder / f"checkpoint-{step:08d}.safetensors"
    host: dict[str, Tensor] = {}
    written: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        # A module that a network has twice is written twice.
        host[name] = value.clone() if value.data_ptr() in written else value
        written.add(value.data_ptr())
    for name, tensor in host.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: not saved, {name} has values that are not finite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)  # never new tensors under an old manifest of the same step
        with _atomic(path) as temporary:
            save_file(host, temporary, metadata={"i2ifast": json.dumps(header)})
            manifest = {"bytes": temporary.stat().st_size, "sha256": _digest(temporary)}
        if best:  # before there is a checkpoint: if killed in between, the run comes here again
            _link(path, folder / f"{BEST}.safetensors")
        for name in (BEST, path.stem) if best else (path.stem,):
            with _atomic(folder / f"{name}.json") as temporary:
                temporary.write_text(json.dumps(manifest))
        _prune(folder, keep)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); earlier checkpoints are untouched") from error
    return path


def _link(path: Path, name: Path) -> None:
    """Give a file a second name, in place of what had it."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        os.link(path, temporary)
    except OSError:  # a file system without links
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)


def _prune(folder: Path, keep: int) -> None:
    """Delete all but the newest checkpoints, and whatever a killed save left."""
    kept = {manifest.stem for manifest in manifests(folder)[:keep]}
    for file in sorted(folder.glob("checkpoint-*")):  # .json sorts before .safetensors: the manifest goes first
        if file.stem not in kept:
            file.unlink()
    for file in folder.glob(".checkpoint-*.tmp"):
        file.unlink()


def manifests(folder: Path) -> list[Path]:
    """Manifests in `folder`, newest first."""
    return sorted(folder.glob("checkpoint-*.json"), reverse=True)


def forget_newer(path: Path) -> None:
    """Drop checkpoints after `path`: refused, or of a future that a run resumed from `path` leaves."""
    for manifest in manifests(path.parent):
        if manifest.stem > path.stem:
            manifest.unlink()


def read(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> tuple[dict[str, Tensor], Header]:
    """The tensors whose name is `wanted`, and the header, of one safetensors file, on the CPU.

    With a manifest beside it the file must match it, byte for byte. Raises CheckpointError if it is not whole.
    """
    path, manifest = path.with_suffix(".safetensors"), path.with_suffix(".json")
    try:
        if manifest.exists():
            expected = json.loads(manifest.read_bytes()[:MANIFEST_LIMIT])
            if path.stat().st_size != expected["bytes"]:
                raise CheckpointError(f"{path}: has {path.stat().st_size} bytes, not {expected['bytes']}: truncated")
            if _digest(path) != expected["sha256"]:
                raise CheckpointError(f"{path}: does not have the SHA-256 of its manifest: damaged")
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["i2ifast"])
            # copies: the file is mapped, and must not change or end under a tensor in use
            tensors = {name: file.get_tensor(name).clone() for name in file.keys() if wanted(name)}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a whole checkpoint ({type(error).__name__}: {error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is not a JSON object")
    return tensors, header


def load_newest(
    folder: Path,
    load: Callable[[dict[str, Tensor], Header], None],
    say: Callable[[str], None],
    wanted: Callable[[str], bool] = lambda name: True,
) -> Path:
    """Give the newest whole checkpoint of `folder` to `load`; `say` hears of one that is refused, then the one before.

    `load` raises KeyError, TypeError, ValueError or RuntimeError for contents that do not fit, loaded in part or not.
    Raises CheckpointError if none is left.
    """
    reason = "no checkpoint"
    for manifest in manifests(folder):
        path = manifest.with_suffix(".safetensors")
        try:
            load(*read(path, wanted))
        except CheckpointError as error:
            reason = str(error)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = f"{path}: does not fit: {error}"
        else:
            return path
        say(f"refused {reason}")
    raise CheckpointError(f"{folder}: no checkpoint can be used; the oldest: {reason}")
