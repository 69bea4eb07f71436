"""Translating files from the command line.

python -m i2ifast.translate --weights RUN --out DIR --labels DIR [--instances DIR]
python -m i2ifast.translate --weights RUN --help
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import tyro

from . import models
from ._checkpoint import CheckpointError, Header
from ._pipeline import Pipeline, load, read
from ._processes import rank_and_world
from ._runlog import to_images
from ._tiles import check
from .data import kind


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
    tile: int = 0
    """longest side that is translated at once: larger images in overlapping tiles of it; 0 translates them whole"""
    overlap: int = 128
    """pixels over which neighbouring tiles are blended"""


def translate(arguments: Arguments, inputs: Any, device: torch.device) -> int:
    """Translate `inputs`, those of a kind of data, as the command line says; returns how many there were.

    Processes share the batches.
    """
    if arguments.batch_size < 1:
        raise ValueError(f"batch_size is {arguments.batch_size}: must be at least 1")
    if arguments.tile:
        check(arguments.tile, arguments.overlap)
    rank, world = rank_and_world()
    pipe = Pipeline(load(arguments.weights, arguments.system, arguments.preset), device)
    count = 0
    for batch in islice(inputs.batches(pipe.system, arguments.batch_size), rank, None, world):
        arguments.out.mkdir(parents=True, exist_ok=True)
        if hasattr(pipe.system, "stream"):
            fakes = pipe.stream(batch)
        else:
            fakes = pipe.translate(batch, arguments.tile, arguments.overlap).split(1)
        for path, fake in zip(batch["path"], fakes, strict=True):
            to_images(fake)[0].save(arguments.out / f"{path.stem}.png")
            count += 1
    return count


def kind_of(weights: Path, system: str | None, preset: str | None = None) -> ModuleType:
    """The kind of data of a system: the one named, or the one that a run folder or a checkpoint is of."""
    if system is None:
        headers: list[Header] = []
        read(weights, lambda tensors, header: headers.append(header), lambda text: None, lambda name: False)
        cls, options = models.system(headers[-1]["system"]), headers[-1]["config"]
    else:
        cls = models.system(system)
        options = cls.PRESETS.get(preset, {})
    return kind(cls.data_of(cls.Config(**options)))


def inputs_of(args: Sequence[str]) -> type | None:
    """The options of what is translated, by --weights or --system of a command line; None with neither."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--weights", type=Path)
    first.add_argument("--system")
    first.add_argument("--preset")
    known, _ = first.parse_known_args(args)
    if known.weights is None and known.system is None:
        return None
    return kind_of(known.weights, known.system, known.preset).Inputs


def parse(args: Sequence[str]) -> Arguments:
    """The command line; what is translated decides about the options."""
    arguments = Arguments
    if inputs := inputs_of(args):
        fields = [("inputs", tyro.conf.OmitArgPrefixes[inputs])]
        arguments = make_dataclass("Arguments", fields, bases=(Arguments,), frozen=True, kw_only=True)
    return tyro.cli(arguments, args=args, prog="python -m i2ifast.translate", description=Arguments.__doc__)


def main(args: Sequence[str] | None = None) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        arguments = parse(sys.argv[1:] if args is None else args)
        count = translate(arguments, arguments.inputs, device)
    except (CheckpointError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(f"{count} images in {arguments.out}")


if __name__ == "__main__":
    main()
