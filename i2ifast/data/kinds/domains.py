"""Photographs of several domains: a folder each in {phase}, or below the root; sorted names are numbers 0, 1, ..."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from numpy.random import Generator

from i2ifast.data import _items
from i2ifast.data._items import Options
from i2ifast.data.pixels import images_below, natural

__all__ = ["SHOWN", "Inputs", "Options", "Settings", "folder"]

HELD_OUT = 1999  # photographs of CelebA

SHOWN = ("image", "reference", "fake")
TAKES = ("image", "reference_domain", "reference")


@dataclass(frozen=True, kw_only=True)
class Settings(_items.Settings):
    num_domains: int | None = None  # how many the system has; None takes as many as there are
    num_references: int = 2  # photographs of another domain that items have: none, reference, or reference2 too
    balanced: bool = False  # in training draw the domain of an item, then a photograph of it
    selected_attrs: Sequence[str] = ()  # of CelebA, instead of domains

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.num_references <= 2:
            raise ValueError(f"num_references {self.num_references}: expected 0, 1 or 2")


class Domains(_items.Items):
    """Items {image [3,H,W] float32 in [-1, 1], domain (a number, int64), path} of the files of each domain.

    With references: reference, reference2, two photographs of a domain drawn at random, and reference_domain. Each is
    cropped and mirrored by itself.
    """

    def __init__(
        self, domains: dict[str, Sequence[Path]], settings: Settings, train: bool = False, seed: int = 0
    ) -> None:
        super().__init__(settings, train, seed)
        self.names, self.domains = list(domains), [list(files) for files in domains.values()]
        if train and settings.num_domains not in (None, len(self.domains)):  # held out may be domains never seen
            raise ValueError(
                f"{len(self.domains)} domains ({', '.join(self.names)}), but the system has {settings.num_domains}"
            )
        self.files = [(number, file) for number, files in enumerate(self.domains) for file in files]

    def __len__(self) -> int:
        return len(self.files)

    def draw(self, rng: Generator, count: int = 1) -> tuple[int, list[Path]]:
        """A domain, and `count` of its files."""
        domain = int(rng.integers(len(self.domains)))
        files = self.domains[domain]
        return domain, [files[int(rng.integers(len(files)))] for _ in range(count)]

    def sources(self, index: int) -> list[tuple[_items.Role, Path]]:
        return [("photograph", self.files[index][1])]

    def item(self, index: int, rng: Generator) -> _items.Item:
        domain, file = self.files[index]
        if self.settings.balanced and self.train:
            domain, (file,) = self.draw(rng)
        item = {"image": self.photo(file, rng), "domain": torch.tensor(domain), "path": str(file)}
        if self.settings.num_references:
            other, files = self.draw(rng, self.settings.num_references)
            item["reference_domain"] = torch.tensor(other)
            item |= {
                name: self.photo(file, rng) for name, file in zip(("reference", "reference2"), files, strict=False)
            }
        return item


class Attributes(_items.Items):
    """Items {image [3,H,W] float32 in [-1, 1], attributes [C] float32, 1 or 0, path} of CelebA's photographs."""

    def __init__(
        self, files: Sequence[tuple[Path, Sequence[bool]]], settings: Settings, train: bool = False, seed: int = 0
    ) -> None:
        super().__init__(settings, train, seed)
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def sources(self, index: int) -> list[tuple[_items.Role, Path]]:
        return [("photograph", self.files[index][0])]

    def item(self, index: int, rng: Generator) -> _items.Item:
        file, has = self.files[index]
        attributes = torch.tensor(has, dtype=torch.float32)
        return {"image": self.photo(file, rng), "attributes": attributes, "path": str(file)}


def attributes_of(root: Path, phase: str, selected: Sequence[str]) -> list[tuple[Path, list[bool]]]:
    """The photographs in `root`/images and which of the attributes each has, from `root`/list_attr_celeba.txt.

    The first 1999 after StarGAN's shuffle are of phase "val", the others of "train". ValueError names attributes that
    there are not; FileNotFoundError where there is no such phase.
    """
    listing = root / "list_attr_celeba.txt"
    _, names, *rows = listing.read_text().splitlines()
    columns = {name: number for number, name in enumerate(names.split())}
    if missing := [name for name in selected if name not in columns]:
        raise ValueError(f"{listing}: no attributes {', '.join(missing)}; there are {', '.join(columns)}")
    random.Random(1234).shuffle(rows)
    parts = {"val": rows[:HELD_OUT], "train": rows[HELD_OUT:]}
    if not parts.get(phase):
        raise FileNotFoundError(f"{listing}: nothing of phase {phase!r}, {len(rows)} photographs in all")
    values = [line.split() for line in parts[phase]]
    return [(root / "images" / name, [has[columns[each]] == "1" for each in selected]) for name, *has in values]


def find(root: Path, phase: str) -> dict[str, list[Path]]:
    """The photographs of each domain of `phase`, domains in the order of their names, in the first of these there is:

    {phase}.txt, *list_{phase}.txt   lists with lines `domain/file`, from the root
    {phase}/<domain>/                photographs, folders below included
    <domain>/                        the same, for phase "train" alone

    FileNotFoundError where there is none of them.
    """
    listings = [*root.glob(f"{phase}.txt"), *root.glob(f"*list_{phase}.txt")]
    if listings:
        return listed(root, listings[0])
    top = root if phase == "train" and not (root / phase).is_dir() else root / phase
    folders = sorted(filter(Path.is_dir, top.iterdir()), key=lambda f: f.name) if top.is_dir() else []
    found = {each.name: files for each in folders if (files := images_below(each))}
    if not found:
        raise FileNotFoundError(f"{root}: no {phase}.txt, and no folders with images in {top}")
    return found


def listed(root: Path, listing: Path) -> dict[str, list[Path]]:
    """The photographs that the lines `domain/file` of a list name; ValueError for one without a folder."""
    found: dict[str, list[Path]] = {}
    for line in listing.read_text().splitlines():
        if name := line.strip().replace("\\", "/"):
            if len(PurePosixPath(name).parts) < 2:
                raise ValueError(f"{listing}: {name!r}, expected domain/file")
            found.setdefault(PurePosixPath(name).parts[0], []).append(root / name)
    return {name: sorted(found[name], key=natural) for name in sorted(found)}


def number(domain: str, data: Path | None, count: int | None) -> int:
    """The number of a domain of `count`, given as such or as its name below `data`; ValueError if there is none."""
    names = list(find(data, "train")) if data else []
    if domain in names:
        return names.index(domain)
    count = count or len(names)
    if not domain.isdecimal() or (count and int(domain) >= count):
        hint = f", or one of {', '.join(names)}" if names else " (names need --data)"
        raise ValueError(f"domain {domain!r}: expected a number" + (f" below {count}" if count else "") + hint)
    return int(domain)


def folder(
    root: str | Path, phase: str, settings: Settings, seed: int = 0, train: bool = False
) -> Domains | Attributes:
    """The domains of `phase` below `root`, see `find`; with selected_attrs CelebA, see `attributes_of`."""
    if settings.selected_attrs:
        return Attributes(attributes_of(Path(root), phase, settings.selected_attrs), settings, train, seed)
    return Domains(find(Path(root), phase), settings, train, seed)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    images: Path
    """folder of photographs"""
    domain: str | None = None
    """number of the domain to translate to, or its name in --data"""
    data: Path | None = None
    """folder that the system was trained on, for names of domains"""
    references: Path | None = None
    """folder of photographs in whose style to translate, all of one domain"""
    attributes: tuple[str, ...] = ()
    """attributes that the translation has, for a system of attributes; it has no others"""

    def batches(self, system: Any, size: int) -> Iterator[dict[str, Any]]:
        """All photographs, see `Settings.input`, in batches of at most `size` of the same height and width.

        With a domain: `domain` and `reference_domain`, its number. With references: `references` [N,K,3,H,W], all
        there are, and `reference`, the first of them. With attributes: `attributes` [N,C], 1 for those named.
        """
        settings, images, given = Settings.of(system), _items.images_of(self.images), {}
        if self.attributes or settings.selected_attrs:
            if unknown := set(self.attributes) - set(settings.selected_attrs):
                raise ValueError(f"attributes {', '.join(sorted(unknown))}: the system has {settings.selected_attrs}")
            given["attributes"] = torch.tensor([float(name in self.attributes) for name in settings.selected_attrs])
        elif self.domain is None and self.references is None:
            raise ValueError("what to translate to: name a --domain, or a folder of --references")
        if self.domain is not None:
            target = number(self.domain, self.data, settings.num_domains)
            given["domain"] = given["reference_domain"] = torch.tensor(target)
        if self.references is not None:
            given["references"] = torch.stack([settings.photo(file) for file in _items.images_of(self.references)])
            given["reference"] = given["references"][0]
        items = ({"image": settings.input(file), "path": file, **given} for file in images)
        return _items.batches_by_size(items, size, lambda item: item["image"].shape)
