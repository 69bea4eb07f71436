"""Scores of folders of images, from the command line.

    python -m i2ifast.evaluate --fake DIR --real DIR --scores fid ssim --inception FILE --out scores.json
    python -m i2ifast.evaluate --weights RUN --inputs.labels DIR --fake DIR --real DIR ...
    torchrun --nproc-per-node 8 -m i2ifast.evaluate ...

Networks are read from local files. What every score is and takes: docs/metrics.md.
"""

import hashlib
import json
import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from . import __version__
from ._checkpoint import CheckpointError
from ._evaluation import NETWORKS, SCORES, Evaluation
from ._processes import in_any, processes, rank_and_world
from .data.pixels import images_below
from .translate import Arguments as Translation
from .translate import inputs_of, translate

FOLDERS = ("fake", "real", "labels", "classes")
CHOICES = ("size", "resize", "splits", "kid_subsets", "kid_subset_size", "nearest_k")  # that change numbers


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Score translated images: against real ones, by label maps, by themselves."""

    fake: Path | None = None
    """folder of translated images; with --weights a new one, that they are written to first"""
    weights: Path | None = None
    """what translates --inputs.*: run folder, .safetensors checkpoint, or, with --system, files of the original"""
    system: str | None = None
    """for weights of the original repository"""
    preset: str | None = None
    """for weights of the original repository"""
    real: Path | None = None
    """folder of real images, of the same names for scores of pairs; for dipd of what the translated were made from"""
    labels: Path | None = None
    """folder of label maps of the same names, with the segmentation network's classes; 255 is unknown"""
    classes: Path | None = None
    """folder CLASS/DRAW/NAME.png of images that differ between draws in the style of class number CLASS alone"""
    scores: tuple[Literal[tuple(SCORES)], ...] = ()
    """by default all that the given files allow"""
    out: Path | None = None
    """JSON file for scores and protocol"""
    inception: Path | None = None
    """weights of the FID Inception"""
    lpips: Path | None = None
    """weights of torchvision's AlexNet or VGG16"""
    vgg: Path | None = None
    """weights of torchvision's VGG16"""
    segmentation: Path | None = None
    """segmentation network, TorchScript"""
    size: tuple[int, int] | None = None
    """width and height that all images are resized to first, in 8 bits; by default they stay as they are"""
    resize: Literal["bicubic", "lanczos", "bilinear", "box"] = "bicubic"
    """the filter of that, antialiased"""
    splits: int = 10
    """of the images, for is"""
    kid_subsets: int = 100
    """draws of images, for kid"""
    kid_subset_size: int = 1000
    """images in a draw, for kid; all where there are less"""
    nearest_k: int = 5
    """neighbour at whose distance the ball of an image ends, for precision, recall, density and coverage"""
    batch_size: int = 16
    """images of one size at a time, to translate and to score"""
    workers: int = 2
    """processes that read images"""

    def __post_init__(self) -> None:
        for name in ("splits", "kid_subsets", "nearest_k", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: must be at least 1")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size is {self.size}: must be at least 1x1")
        if self.weights is not None and self.fake is None:
            raise ValueError("weights need --fake, the folder that translations are written to")


def lacking(arguments: Arguments, name: str) -> str:
    """What is missing for the score of that name; empty if nothing is."""
    needs = [need for need in SCORES[name].needs if getattr(arguments, need) is None]
    return ", ".join(f"--{need}" + (f", {NETWORKS[need]}" if need in NETWORKS else "") for need in needs)


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def translated(arguments: Arguments, device: torch.device) -> dict[str, Any]:
    """Translate first; returns what the protocol says about it. All processes call it together."""
    if in_any(bool(images_below(arguments.fake))):  # which would be scored too
        raise ValueError(f"{arguments.fake}: has images already; --weights takes a new folder as --fake")
    options = {name: getattr(arguments, name) for name in ("weights", "system", "preset", "batch_size")}
    count = translate(Translation(out=arguments.fake, **options), arguments.inputs, device)
    if not in_any(count > 0):  # all have written theirs then
        raise ValueError(f"{arguments.inputs}: nothing to translate")
    given = {name: str(value) for name, value in vars(arguments.inputs).items()}
    return {**{name: str(value) for name, value in options.items()}, "inputs": given}


def evaluate(arguments: Arguments, device: torch.device) -> dict[str, Any]:
    """What `--out` holds: scores, those left out and why, and the protocol that the numbers depend on."""
    without = {name: f"needs {what}" for name in arguments.scores or SCORES if (what := lacking(arguments, name))}
    names = [name for name in arguments.scores or SCORES if name not in without]
    if not names:
        raise ValueError("no score to compute: " + "; ".join(f"{name} {why}" for name, why in without.items()))
    translation = {} if arguments.weights is None else {"translation": translated(arguments, device)}
    torch.backends.cudnn.allow_tf32 = False  # features in whole float32
    evaluation = Evaluation(arguments, device)
    scores = evaluation.scores(names)
    files = {name: getattr(arguments, name) for name in evaluation.networks}
    protocol = {
        "folders": {name: str(getattr(arguments, name)) for name in FOLDERS if name in evaluation.images},
        "images": evaluation.images,
        **translation,
        "pixels": "8 bits per colour",
        **{name: getattr(arguments, name) for name in CHOICES},
        "networks": {name: {"file": file.name, "sha256": sha256(file)} for name, file in files.items()},
        "device": device.type,
        "versions": {
            "i2ifast": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchmetrics", "numpy", "pillow")},
        },
    }
    left_out = without | evaluation.left_out
    written = {name: value if math.isfinite(value) else str(value) for name, value in scores.items()}  # JSON has no inf
    return {"scores": written, "notes": evaluation.notes, "left_out": left_out, "protocol": protocol}


def show(report: dict[str, Any]) -> None:
    """Print a report as a table."""
    table = Table(
        "score", "value", "better", caption=", ".join(f"{n} {k}" for k, n in report["protocol"]["images"].items())
    )
    for name, value in report["scores"].items():
        score = SCORES.get(name.partition("_")[0])
        better = "" if name.endswith("_std") else score.better
        table.add_row(name, value if isinstance(value, str) else f"{value:.6g}", better)
    console = Console()
    console.print(table)
    for line in [*report["notes"], *(f"{name} is left out: {why}" for name, why in report["left_out"].items())]:
        console.print(line, markup=False, highlight=False)


def parse(args: Sequence[str]) -> Arguments:
    """The command line; with --weights, what they translate gives the options --inputs.*."""
    arguments = Arguments
    if inputs := inputs_of(args):
        fields = [("inputs", inputs)]
        arguments = make_dataclass("Arguments", fields, bases=(Arguments,), frozen=True, kw_only=True)
    return tyro.cli(arguments, args=args, prog="python -m i2ifast.evaluate", description=Arguments.__doc__)


def main(args: Sequence[str] | None = None) -> None:
    try:
        arguments = parse(sys.argv[1:] if args is None else args)
        with processes() as device:
            report = evaluate(arguments, device)
            if rank_and_world()[0] == 0:
                show(report)
                if arguments.out is not None:
                    arguments.out.parent.mkdir(parents=True, exist_ok=True)
                    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    except (CheckpointError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    if arguments.scores and report["left_out"]:  # what was asked for by name
        sys.exit(f"error: without {', '.join(report['left_out'])}")


if __name__ == "__main__":
    main()
