"""Looking at every file of a data set, as training would read it, without stopping at the first that is wrong."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ._items import Items, Role, Settings
from ._parts import SUFFIX
from .kinds.labels import checked, read_classes
from .loader import start_method
from .pixels import MissingPartner, open_image, read_map, read_photo

UPRIGHT = 1  # the EXIF orientation of most


@dataclass
class Seen:
    """What is known about a file."""

    role: Role
    file: Path
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    digest: str = ""  # of the file
    pixels: dict[int, int] = field(default_factory=dict)  # how many of a label map have which class
    error: str = ""
    warnings: list[str] = field(default_factory=list)


def look(role: Role, file: Path, settings: Settings) -> Seen:
    """Read a file as what it is."""
    seen = Seen(role, file)
    try:
        if file.suffix == SUFFIX:  # stands for several files
            seen.mode = "masks of parts"
        else:
            data = file.read_bytes()
            seen.digest = sha256(data).hexdigest()
            with Image.open(io.BytesIO(data)) as image:
                seen.mode, rotation = image.mode, image.getexif().get(0x0112, UPRIGHT)
            image = open_image(file)
            seen.size = image.size
            if rotation != UPRIGHT:
                seen.warnings.append(f"rotated (EXIF orientation {rotation}); it is read upright")
        if role == "label map":
            label = read_classes(file)
            seen.size = label.shape[::-1]
            seen.pixels = dict(zip(*(found.tolist() for found in np.unique(label, return_counts=True)), strict=True))
            checked(label, file, settings)
        elif role == "instance map":
            read_map(file)
        else:
            read_photo(file)
            seen.warnings += photo_warnings(image)
    except (ValueError, OSError, Image.DecompressionBombError) as error:
        seen.error = str(error) if str(error).startswith(str(file)) else f"{file}: not a readable image ({error})"
    return seen


def photo_warnings(image: Image.Image) -> Iterator[str]:
    """What of a photograph is read, but may look other than expected."""
    if image.mode == "CMYK":
        yield "CMYK; its colours are converted without a profile"
    if image.mode in ("P", "PA"):
        yield "palette picture; it has 256 colours at most"
    if ";16" in image.info["stored"]:
        yield "16 bits per channel, of which the upper 8 are read"


class Looks(Dataset):
    """For every item what is seen of its files, and why it cannot be read, if so."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[list[Seen], str]:
        found = [look(role, file, self.items.settings) for role, file in self.items.sources(index)]
        try:
            self.items[index]
        except (ValueError, OSError) as error:
            return found, str(error)
        return found, ""


def items_of(kind: ModuleType, root: Path, phase: str, options: Any, **chosen: Any) -> Items:
    """The data set as training has it, in its own sizes; without instance maps where there are none."""
    names = {f.name for f in fields(kind.Settings)}
    values = {name: value for name, value in (vars(options) | chosen).items() if name in names}
    settings = kind.Settings(**values | {"preprocess_mode": "none"})
    try:
        return kind.folder(root, phase, settings)
    except ValueError as error:
        if "has no instance map" not in str(error):
            raise
        return kind.folder(root, phase, replace(settings, instance=False))


@dataclass
class Report:
    """What `check` found."""

    seen: dict[str, list[Seen]]  # by phase
    errors: list[str]
    warnings: list[str]

    def pixels(self, phase: str) -> dict[int, tuple[int, int]]:
        """Of the classes of the label maps of a phase: pixels, and maps that show them."""
        total: Counter[int] = Counter()
        maps: Counter[int] = Counter()
        for seen in self.seen[phase]:
            total.update(seen.pixels)
            maps.update(seen.pixels.keys())
        return {number: (total[number], maps[number]) for number in sorted(total)}


def check(kind: ModuleType, root: Path, phases: Iterable[str], options: Any, workers: int = 0, **chosen: Any) -> Report:
    """Look at all items of the phases that there are; FileNotFoundError if there is none."""
    report, missing = Report({}, [], []), []
    for phase in phases:
        try:
            dataset = items_of(kind, root, phase, options, **chosen)
        except (MissingPartner, ValueError) as error:
            report.errors.append(str(error))
        except FileNotFoundError as error:
            missing.append(str(error))
        else:
            report.seen[phase] = _look_at_all(dataset, report, workers)
    if not report.seen and not report.errors:
        raise FileNotFoundError("; ".join(missing))
    report.warnings += duplicates(report.seen)
    return report


def _look_at_all(dataset: Items, report: Report, workers: int) -> list[Seen]:
    found: dict[Path, Seen] = {}
    context = start_method(workers)
    for seen, error in DataLoader(Looks(dataset), None, num_workers=workers, multiprocessing_context=context):
        found |= {each.file: each for each in seen}
        if error and not any(each.error and error.startswith(str(each.file)) for each in seen):
            report.errors.append(error)
    report.errors += [seen.error for seen in found.values() if seen.error]
    report.warnings += [f"{seen.file}: {text}" for seen in found.values() for text in seen.warnings]
    return list(found.values())


def duplicates(seen: dict[str, list[Seen]]) -> list[str]:
    """Photographs that are in several phases, byte for byte."""
    first: dict[str, tuple[str, Path]] = {}
    found = []
    for phase, files in seen.items():
        for each in files:
            if each.role == "photograph" and each.digest:
                where, file = first.setdefault(each.digest, (phase, each.file))
                if where != phase:
                    found.append(f"{each.file}: of {phase}, but the same as {file} of {where}")
    return found
