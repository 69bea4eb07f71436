"""Translating files from the command line.

python -m i2ifast.translate --weights RUN --out DIR --labels DIR [--instances DIR]
python -m i2ifast.translate --weights RUN --help
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from types import ModuleType

import torch
import tyro
from PIL import Image
from torch import Tensor

from . import _checkpoint, models
from ._checkpoint import CheckpointError, Header
from ._runlog import to_uint8
from ._state import with_prefix
from .data import kind
from .models import System
from .nn import bake


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Translate files, of any size, to PNG files of the same names."""

    weights: Path
    """run folder, .safetensors checkpoint, or, with --system, files of the system's original repository"""
    out: Path
    system: str | None = None
    """for weights of the original repository"""
    preset: str | None = None
    """for weights of the original repository"""
    batch_size: int = 1
    """inputs of equal size at a time"""


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

    read(weights, build, lambda text: print(text, file=sys.stderr), wanted)
    return loaded[0]


def read(
    weights: Path,
    use: Callable[[dict[str, Tensor], Header], None],
    say: Callable[[str], None],
    wanted: Callable[[str], bool],
) -> None:
    """Give the tensors that are `wanted`, and the header, of a run folder or a checkpoint to `use`."""
    if weights.is_dir():
        _checkpoint.load_newest(weights, use, say, wanted)
    elif weights.suffix == ".safetensors":
        use(*_checkpoint.read(weights, wanted))
    else:
        raise ValueError(f"{weights}: neither a run folder nor a .safetensors file; the original's files need --system")


def translate(arguments: Arguments, device: torch.device) -> int:
    """Translate as the command line says; returns how many inputs there were."""
    if arguments.batch_size < 1:
        raise ValueError(f"batch_size is {arguments.batch_size}: must be at least 1")
    system = load(arguments.weights, arguments.system, arguments.preset)
    system.to(device, memory_format=torch.channels_last)
    for name in system.ema:
        system.nets[name] = bake(system.nets[name])
    count = 0
    for batch in arguments.inputs.batches(system, arguments.batch_size):
        arguments.out.mkdir(parents=True, exist_ok=True)
        on_device = {name: value.to(device) for name, value in batch.items() if name != "path"}
        for path, pixels in zip(batch["path"], to_uint8(system.translate(on_device)["fake"]), strict=True):
            Image.fromarray(pixels).save(arguments.out / f"{path.stem}.png")
            count += 1
    return count


def kind_of(weights: Path, system: str | None, preset: str | None = None) -> ModuleType:
    """The kind of data of a system: the one named, or the one that a run folder or a checkpoint is of."""
    found = []

    def note(tensors: dict[str, Tensor], header: Header) -> None:
        found.append((models.system(header["system"]), header["config"]))

    if system is None:
        read(weights, note, lambda text: None, lambda name: False)
    else:
        named = models.system(system)
        found.append((named, named.PRESETS.get(preset, {})))
    cls, options = found[-1]
    return kind(cls.data_of(cls.Config(**options)))


def parse(args: Sequence[str]) -> Arguments:
    """The command line; --weights or --system, read first, give the options of what is translated."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--weights", type=Path)
    first.add_argument("--system")
    first.add_argument("--preset")
    known, _ = first.parse_known_args(args)
    arguments = Arguments
    if known.weights is not None or known.system is not None:
        inputs = kind_of(known.weights, known.system, known.preset).Inputs
        fields = [("inputs", tyro.conf.OmitArgPrefixes[inputs])]
        arguments = make_dataclass("Arguments", fields, bases=(Arguments,), frozen=True, kw_only=True)
    return tyro.cli(arguments, args=args, prog="python -m i2ifast.translate", description=Arguments.__doc__)


def main(args: Sequence[str] | None = None) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        arguments = parse(sys.argv[1:] if args is None else args)
        count = translate(arguments, device)
    except (CheckpointError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(f"{count} images in {arguments.out}")


if __name__ == "__main__":
    main()
