"""Checkpoints that survive: safetensors plus a JSON header, written whole or not at all, verified when read.

A checkpoint is two files. `checkpoint-00000500.safetensors` holds the tensors and, in its metadata, the header.
`checkpoint-00000500.json` holds its size and SHA-256 and is written last: without it there is no checkpoint.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Header = dict[str, Any]
KEEP = 2  # the newest may be damaged after it was written; the one before is the spare
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


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], header: Header) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest two; returns the path of the tensors.

    Raises CheckpointError, with earlier checkpoints untouched, if the disk refuses or a tensor is not finite.
    """
    path = folder / f"checkpoint-{step:08d}.safetensors"
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in host.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: not saved, {name} has values that are not finite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)  # never new tensors under an old manifest of the same step
        with _atomic(path) as temporary:
            save_file(host, temporary, metadata={"i2ifast": json.dumps(header)})
            manifest = {"bytes": temporary.stat().st_size, "sha256": _digest(temporary)}
        with _atomic(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(manifest))
        _prune(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); earlier checkpoints are untouched") from error
    return path


def _prune(folder: Path) -> None:
    """Delete all but the newest two checkpoints, and whatever a killed save left."""
    kept = {manifest.stem for manifest in manifests(folder)[:KEEP]}
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
