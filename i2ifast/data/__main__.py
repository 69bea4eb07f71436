"""Looking at a data set before training on it.

python -m i2ifast.data check KIND DIR [--label-nc N]
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from . import _check, kind, kinds
from ._check import Report, Seen


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Read all files of a data set, and say what is wrong with which; the exit code is 1 if anything is.

    Errors are what training would stop at: files that are damaged, of the wrong depth or size, without partner, with
    classes that there are not. Warnings are what it reads, but perhaps not as expected.
    """

    command: tyro.conf.Positional[Literal["check"]]
    kind: tyro.conf.Positional[str]
    data: tyro.conf.Positional[Path]
    phases: tuple[str, ...] = ("train", "val", "test")
    """parts of the data, as far as there are"""
    label_nc: int = 256
    """classes of label maps"""
    contain_dontcare_label: bool = False
    """255 is unknown"""
    workers: int = 2
    """processes that read"""


def sizes(files: Sequence[Seen]) -> str:
    found = sorted({seen.size for seen in files if seen.size[0]})
    if len(found) <= 3:
        return ", ".join(f"{width}x{height}" for width, height in found)
    widths, heights = ([size[i] for size in found] for i in (0, 1))
    return f"{min(widths)}-{max(widths)} x {min(heights)}-{max(heights)}, {len(found)} sizes"


def show(report: Report, console: Console) -> None:
    """Tables of files and classes, then errors and warnings, one per line."""
    table = Table("phase", "what", "files", "sizes", "modes")
    for phase, files in report.seen.items():
        for role in dict.fromkeys(seen.role for seen in files):
            of_role = [seen for seen in files if seen.role == role]
            modes = ", ".join(sorted({seen.mode for seen in of_role if seen.mode}))
            table.add_row(phase, role, str(len(of_role)), sizes(of_role), modes)
    console.print(table)
    for phase in report.seen:
        if pixels := report.pixels(phase):
            total = sum(count for count, _ in pixels.values())
            table = Table("class", "pixels", "maps", title=f"classes of {phase}")
            for number, (count, maps) in pixels.items():
                table.add_row(str(number), f"{count / total:.2%}", str(maps))
            console.print(table)
    for what, lines in (("warning", report.warnings), ("error", report.errors)):
        for line in lines:
            console.print(f"{what}: {line}", soft_wrap=True, markup=False, highlight=False)
    console.print(f"{len(report.errors)} errors, {len(report.warnings)} warnings")


def parse(args: Sequence[str]) -> Arguments:
    """The command line; the kind, read first, gives its options."""
    given = [word for word in args if not word.startswith("-")]
    options = kind(given[1]).Options if given[1:] and given[1] in kinds() else None
    arguments = Arguments
    if options is not None:
        fields = [("options", tyro.conf.OmitArgPrefixes[options], field(default_factory=options))]
        arguments = make_dataclass("Arguments", fields, bases=(Arguments,), frozen=True, kw_only=True)
    description = f"{Arguments.__doc__}\n\nKinds of data: {', '.join(kinds())}"
    return tyro.cli(arguments, args=args, prog="python -m i2ifast.data", description=description)


def main(args: Sequence[str] | None = None) -> None:
    try:
        arguments = parse(sys.argv[1:] if args is None else args)
        chosen = {name: getattr(arguments, name) for name in ("label_nc", "contain_dontcare_label")}
        options = (kind(arguments.kind), arguments.data, arguments.phases, arguments.options, arguments.workers)
        report = _check.check(*options, **chosen)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    show(report, Console())
    if report.errors:
        sys.exit(1)


if __name__ == "__main__":
    main()
