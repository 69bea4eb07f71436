"""The command line of training: of the loop, of the system that it names, and of that one's kind of data."""

import argparse
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Literal

import tyro

from . import models
from ._options import Loop
from .data import kind


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train a system on a folder of images."""

    system: tyro.conf.Positional[str]
    preset: str | None = None
    """named options of the system; --config.* changes single ones"""
    data: Path
    """folder of the system's kind of data"""
    phase: str = "train"
    """the part of the data to learn from"""
    held_out: str = "val"
    """the part of the data to show translations of; where there is none they are of what it learns from"""
    loop: tyro.conf.OmitArgPrefixes[Loop]
    workers: int = 2
    """processes that load data"""
    cache: Path | None = None
    """folder for decoded photographs and label maps, which later epochs and runs read instead of the files"""


def summary(name: str) -> str:
    """A line about a system."""
    system = models.system(name)
    first = inspect.getmodule(system).__doc__.partition("\n")[0]
    kinds = dict.fromkeys(system.data_of(system.Config(**options)) for options in system.PRESETS.values())
    return f"{first} [{', '.join(kinds)}; {', '.join(system.PRESETS)}]"


def parse(args: Sequence[str]) -> Arguments:
    """The command line; SYSTEM and --preset, read first, give the options of its kind of data and --config."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("system", nargs="?")
    first.add_argument("--preset")
    known, _ = first.parse_known_args(args)
    arguments = Arguments
    if known.system is not None:
        system = models.system(known.system)
        config = system.Config(**system.PRESETS.get(known.preset, {}))
        options = kind(system.data_of(config)).Options
        fields = [
            ("preset", Literal[tuple(system.PRESETS)] | None, None),
            ("options", tyro.conf.OmitArgPrefixes[options], field(default_factory=options)),
            ("config", system.Config, field(default_factory=lambda: config)),
        ]
        arguments = make_dataclass("Arguments", fields, bases=(Arguments,), frozen=True, kw_only=True)
    systems = "\n".join(f"  {name:16} {summary(name)}" for name in models.names())
    description = f"{Arguments.__doc__}\n\nSystems, their data and their presets:\n\n{systems}"
    return tyro.cli(arguments, args=args, prog="python -m i2ifast.train", description=description)
