"""Label maps to images, from the command line.

python -m i2ifast.translate --weights RUN --labels DIR --out DIR [--instances DIR]
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from PIL import Image
from torch import Tensor

from . import _checkpoint, models
from ._checkpoint import CheckpointError, Header
from ._runlog import to_uint8
from ._state import with_prefix
from .data.images import images_in, read_map
from .data.labels import Files, Options, match, read_label
from .models import Batch, System
from .nn import bake


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Translate every label map in a folder, of any size, to a PNG of the same name."""

    weights: Path
    """run folder, .safetensors checkpoint, or, with --system, files of the system's original repository"""
    labels: Path
    """folder of label maps"""
    instances: Path | None = None
    """folder of instance maps of the same names, for a system that takes them"""
    out: Path
    system: str | None = None
    """for weights of the original repository"""
    preset: str | None = None
    """for weights of the original repository"""
    batch_size: int = 1
    """label maps of equal size at a time"""


def load(weights: Path, system: str | None = None, preset: str | None = None) -> System:
    """The system that a run trained, with its averaged weights, or `system` with the original repository's weights.

    Raises CheckpointError for a checkpoint that is not whole or does not fit, ValueError for other weights.
    """
    if system is not None:
        built = models.build(system, preset)
        built.load_original(weights)
        return built.eval()
    loaded: list[System] = []

    def build(tensors: dict[str, Tensor], header: Header) -> None:
        built = models.build(header["system"], **header["config"])
        built.nets.load_state_dict(with_prefix("nets.", tensors) | with_prefix("ema.", tensors))
        loaded.append(built.eval())

    def wanted(name: str) -> bool:
        return name.startswith(("nets.", "ema."))

    if weights.is_dir():
        _checkpoint.load_newest(weights, build, lambda text: print(text, file=sys.stderr), wanted)
    elif weights.suffix == ".safetensors":
        build(*_checkpoint.read(weights, wanted))
    else:
        raise ValueError(f"{weights}: neither a run folder nor a .safetensors file; the original's files need --system")
    return loaded[0]


def batches(files: Sequence[Files], options: Options, size: int) -> Iterator[Batch]:
    """All label maps, as they are, in batches of at most `size` maps of the same height and width."""
    waiting: dict[torch.Size, list[dict[str, Any]]] = {}
    for file in files:
        item = {"label": torch.from_numpy(read_label(file.label, options)).long()[None, None], "path": file.label}
        if file.instance is not None:
            item["instance"] = torch.from_numpy(read_map(file.instance)).long()[None, None]
            if item["instance"].shape != item["label"].shape:
                raise ValueError(f"{file.instance}: not of the size of {file.label}")
        group = waiting.setdefault(item["label"].shape, [])
        group.append(item)
        if len(group) == size:
            yield stack(waiting.pop(item["label"].shape))
    yield from map(stack, waiting.values())


def stack(items: list[dict[str, Any]]) -> Batch:
    """Items of one size to a batch."""
    batch: Batch = {name: torch.cat([item[name] for item in items]) for name in items[0] if name != "path"}
    return batch | {"path": [item["path"] for item in items]}


def translate(arguments: Arguments, device: torch.device) -> int:
    """Translate as the command line says; returns how many label maps there were."""
    if arguments.batch_size < 1:
        raise ValueError(f"batch_size is {arguments.batch_size}: must be at least 1")
    system = load(arguments.weights, arguments.system, arguments.preset)
    system.to(device, memory_format=torch.channels_last)
    for name in system.ema:
        system.nets[name] = bake(system.nets[name])
    options = Options.of(system.config)
    labels = images_in(arguments.labels)
    if not labels:
        raise ValueError(f"{arguments.labels}: no label maps")
    instances = images_in(arguments.instances) if arguments.instances else []
    if options.instance and not instances:
        raise ValueError(f"this system takes instance maps, and --instances {arguments.instances} has none")
    files = match(labels, instances if options.instance else ())
    arguments.out.mkdir(parents=True, exist_ok=True)
    for batch in batches(files, options, arguments.batch_size):
        on_device = {name: value.to(device) for name, value in batch.items() if name != "path"}
        for path, pixels in zip(batch["path"], to_uint8(system.translate(on_device)["fake"]), strict=True):
            Image.fromarray(pixels).save(arguments.out / f"{path.stem}.png")
    return len(files)


def main(args: Sequence[str] | None = None) -> None:
    arguments = tyro.cli(Arguments, args=args, prog="python -m i2ifast.translate")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        count = translate(arguments, device)
    except (CheckpointError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(f"{count} images in {arguments.out}")


if __name__ == "__main__":
    main()
