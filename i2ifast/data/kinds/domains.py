"""Photographs of several domains: a folder each in {phase}, or below the root; sorted names are numbers 0, 1, ..."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

import torch
from numpy.random import Generator

from i2ifast.data import _items
from i2ifast.data._items import Options
from i2ifast.data.pixels import images_below, natural

__all__ = ["SHOWN", "Inputs", "Options", "Settings", "folder"]

HELD_OUT = 1999  # photographs of CelebA

SHOWN = ("image", "reference", "fake")
TAKES = ("image", "reference_domain", "reference", "reference_attributes")


@dataclass(frozen=True, kw_only=True)
class Settings(_items.Settings):
    num_domains: int | None = None  # how many the system has; None takes as many as there are
    num_references: int = 2  # photographs of another domain that items have: none, reference, or reference2 too
    generated: bool = False  # the system makes images of domains, and translates none
    num_images: int = 0  # in training, if some have no domain: of all
    balanced: bool = False  # in training draw the domain of an item, then a photograph of it
    selected_attrs: Sequence[str] = ()  # of CelebA, instead of domains, or with num_domains besides them

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
        self.names, self.domains = list(domains), [list(files) for files in domains.values()]
        files = [(number, file) for number, files in enumerate(self.domains) for file in files]
        super().__init__(files, settings, train, seed)
        if train and settings.num_domains not in (None, len(self.domains)):  # held out may be domains never seen
            raise ValueError(
                f"{len(self.domains)} domains ({', '.join(self.names)}), but the system has {settings.num_domains}"
            )

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


class PartlyLabelled(Domains):
    """Items {image, domain, index, path, reference, reference_domain, reference_index} of photographs of which some
    have no domain, -1. References are drawn from all; an index is the number of a photograph."""

    def __init__(
        self, domains: dict[str, Sequence[Path]], unlabelled: Sequence[Path], settings: Settings, seed: int = 0
    ) -> None:
        super().__init__(domains, settings, True, seed)
        self.files += [(-1, file) for file in unlabelled]
        if len(self) != settings.num_images:
            raise ValueError(f"{len(self)} photographs, {len(unlabelled)} of them without a domain, but num_images is "
                             f"{settings.num_images}")  # fmt: skip

    def item(self, index: int, rng: Generator) -> _items.Item:
        item: _items.Item = {"path": str(self.files[index][1])}
        for name, end, number in (("image", "", index), ("reference", "reference_", int(rng.integers(len(self))))):
            domain, file = self.files[number]
            item |= {name: self.photo(file, rng), f"{end}domain": torch.tensor(domain)}
            item[f"{end}index"] = torch.tensor(number)
        return item


class Attributes(_items.Items):
    """Items {image [3,H,W] float32 in [-1, 1], attributes [C] float32, 1 or 0, path} of CelebA's photographs.

    `files`: photographs, each with whether it has which attribute.
    """

    def sources(self, index: int) -> list[tuple[_items.Role, Path]]:
        return [("photograph", self.files[index][0])]

    def item(self, index: int, rng: Generator) -> _items.Item:
        file, has = self.files[index]
        attributes = torch.tensor(has, dtype=torch.float32)
        return {"image": self.photo(file, rng), "attributes": attributes, "path": str(file)}


class AttributesAndDomains(Attributes):
    """Items of Attributes, with reference [3,H,W] and reference_domain: a photograph drawn from those of `domains`."""

    def __init__(self, files: Sequence[tuple[Path, Sequence[bool]]], domains: Domains, settings: Settings) -> None:
        super().__init__(files, settings, domains.train, domains.seed)
        self.others = domains

    def cached(self, folder: str | Path) -> Self:
        items = super().cached(folder)
        items.others = self.others.cached(folder)
        return items

    def item(self, index: int, rng: Generator) -> _items.Item:
        item = super().item(index, rng)
        domain, (file,) = self.others.draw(rng)
        return item | {"reference": self.others.photo(file, rng), "reference_domain": torch.tensor(domain)}


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

    Photographs without a domain, if the system takes them, are in {phase}_unlabelled/, folders below included.
    FileNotFoundError where there is none of them.
    """
    listings = [*root.glob(f"{phase}.txt"), *root.glob(f"*list_{phase}.txt")]
    if listings:
        return listed(root, listings[0])
    top = root if phase == "train" and not (root / phase).is_dir() else root / phase
    folders = sorted(filter(Path.is_dir, top.iterdir()), key=lambda f: f.name) if top.is_dir() else []
    named = (each for each in folders if each != unlabelled(root, phase))
    found = {each.name: files for each in named if (files := images_below(each))}
    if not found:
        raise FileNotFoundError(f"{root}: no {phase}.txt, and no folders with images in {top}")
    return found


def unlabelled(root: Path, phase: str) -> Path:
    """The folder of photographs without a domain."""
    return root / f"{phase}_unlabelled"


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
    """The domains of `phase` below `root`, see `find`; with selected_attrs CelebA, see `attributes_of`.

    Where the system has domains too, they are in {phase}/<domain>/ beside CelebA's images, and resized without a crop.
    """
    root = Path(root)
    if train and settings.num_images:
        without = images_below(unlabelled(root, phase))
        return PartlyLabelled(find(root, phase), without, settings, seed)
    if not settings.selected_attrs:
        return Domains(find(root, phase), settings, train, seed)
    files = attributes_of(root, phase, settings.selected_attrs)
    if settings.num_domains is None:
        return Attributes(files, settings, train, seed)
    if not (root / phase).is_dir():
        raise FileNotFoundError(f"{root / phase}: no such folder, which has a folder for each domain")
    domains = Domains(find(root, phase), replace(settings, preprocess_mode="fixed", load_size=None), train, seed)
    return AttributesAndDomains(files, domains, settings)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    images: Path | None = None
    """folder of photographs"""
    count: int = 16
    """images to make, with a system that makes them of domains alone"""
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

        Where images are generated, `count` empty ones, of random domains if none is given.
        With a domain: `domain` and `reference_domain`, its number. With references: `references` [N,K,3,H,W], all
        there are, and `reference`, the first of them. With attributes: `reference_attributes` [N,C], 1 for those named.
        """
        settings, given = Settings.of(system), {}
        if not settings.generated and self.images is None:
            raise ValueError("what to translate: name a folder of --images")
        of_domains = settings.num_domains is not None or not settings.selected_attrs
        if self.attributes or settings.selected_attrs and (self.domain is None or not of_domains):
            if self.domain is not None:
                either = "either it or attributes" if of_domains else "attributes"
                raise ValueError(f"domain {self.domain!r}: name {either}, of {', '.join(settings.selected_attrs)}")
            if unknown := set(self.attributes) - set(settings.selected_attrs):
                raise ValueError(f"attributes {', '.join(sorted(unknown))}: the system has {settings.selected_attrs}")
            has = [float(name in self.attributes) for name in settings.selected_attrs]
            given["reference_attributes"] = torch.tensor(has)
        elif self.domain is None and self.references is None and not settings.generated:
            raise ValueError("what to translate to: name a --domain, or a folder of --references")
        if self.domain is not None:
            target = number(self.domain, self.data, settings.num_domains)
            given["domain"] = given["reference_domain"] = torch.tensor(target)
        if self.references is not None:
            given["references"] = torch.stack([settings.photo(file) for file in _items.images_of(self.references)])
            given["reference"] = given["references"][0]
        if settings.generated:
            items = ({"image": torch.empty(0), "path": Path(f"{number:05d}"), **given} for number in range(self.count))
        else:
            images = _items.images_of(self.images)
            items = ({"image": settings.input(file), "path": file, **given} for file in images)
        return _items.batches_by_size(items, size, lambda item: item["image"].shape)
