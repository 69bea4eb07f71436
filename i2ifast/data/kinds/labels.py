"""Label maps, instance maps and photographs: folders to items to batches with label plans."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.random import Generator

from i2ifast.data import _items, _parts
from i2ifast.data._cache import Cache
from i2ifast.data.pixels import Geometry, images_in, natural, pair, read_map, read_photo, unpaired
from i2ifast.labels import PooledWindows, centre_offsets, plan

SHOWN = ("label", "fake", "image")
TAKES = ("label", "instance", "image")

UNKNOWN = 255  # in files; class `label_nc` with contain_dontcare_label
# Cityscapes' names have these after what pairs them, outermost first.
ENDINGS = ("_labelIds", "_instanceIds", "_leftImg8bit", "_disparity", "_gtFine", "_gtCoarse")
# Cityscapes' names of those label maps, and the classes in them that are evaluated; the others are unknown.
IDS, EVALUATED = "_labelIds", np.array([7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33], np.int32)

Layout = Literal["auto", "coco", "ade20k", "cityscapes", "celebamask", "deepfashion"]


@dataclass(frozen=True, kw_only=True)
class Options(_items.Options):
    dataset_mode: Layout = "auto"
    """layout of the data folder"""


@dataclass(frozen=True, kw_only=True)
class Classes(_items.Settings):
    """Settings of all kinds that have label maps."""

    label_nc: int
    contain_dontcare_label: bool = False  # 255 (unknown) is class label_nc

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_nc < 1:
            raise ValueError(f"label_nc {self.label_nc}: expected at least 1")

    @property
    def num_classes(self) -> int:
        """Labels of items are 0 .. num_classes - 1."""
        return self.label_nc + self.contain_dontcare_label


@dataclass(frozen=True, kw_only=True)
class Settings(Classes, Options):
    instance: bool = True  # read instance maps
    disparity: bool = False  # read disparities in training: integers per pixel, more is nearer, 0 unknown
    add_dist: bool = False  # offsets of pixels from the centres of their objects, see `i2ifast.labels.centre_offsets`
    plan_sizes: Sequence[tuple[int, int]] = ()  # levels of label plans that batches have made
    plan_windows: Sequence[PooledWindows] = ()  # and windows of single convolutions, in training
    plan_per_sample: bool = False  # keep the samples of a plan apart


class Files(NamedTuple):
    """The files of one item."""

    label: Path
    instance: Path | None = None
    image: Path | None = None


def sources_of(files: Files) -> list[tuple[_items.Role, Path]]:
    """The files that there are, and what each is read as."""
    found = (("label map", files.label), ("instance map", files.instance), ("photograph", files.image))
    return [(role, file) for role, file in found if file is not None]


def match(labels: Sequence[Path], instances: Sequence[Path] = (), images: Sequence[Path] = ()) -> list[Files]:
    """Label maps with their instance maps and photographs by name (`pixels.pair`); either of those may be empty.

    Label maps without photograph are left out, with a warning that names the first: data sets come with more maps than
    photographs. Any other file without partner is an error.
    """
    missing = [None] * len(labels)
    paired = pair(labels, instances, ENDINGS) if instances else missing
    if not images:
        return [Files(*item) for item in zip(labels, paired, missing, strict=True)]
    without = set(unpaired(labels, images, ENDINGS))
    if without:
        logging.getLogger(__name__).warning(
            "%s: no photograph of that name; %d of %d label maps are left out", min(without), len(without), len(labels)
        )
    kept = [item for item in zip(labels, paired, strict=True) if item[0] not in without]
    photographs = pair([label for label, _ in kept], images, ENDINGS)
    return [Files(*item, image) for item, image in zip(kept, photographs, strict=True)]


def _coco(root: Path, phase: str) -> list[Files]:
    return [
        item
        for tail in ("", "_portrait")
        for item in match(*(images_in(root / f"{phase}_{kind}{tail}") for kind in ("label", "inst", "img")))
    ]


def _cityscapes(root: Path, phase: str) -> list[Files]:
    truth = root / "gtFine" / phase
    kinds = (
        truth.rglob("*_labelIds.png"),
        truth.rglob("*_instanceIds.png"),
        (root / "leftImg8bit" / phase).rglob("*.png"),
    )
    return match(*(sorted(files, key=natural) for files in kinds))


def _ade20k(root: Path, phase: str) -> list[Files]:
    labels, images = (sorted(root.rglob(f"*_{phase}_*{ending}"), key=natural) for ending in (".png", ".jpg"))
    return match(labels, (), images)


def _deepfashion(root: Path, phase: str) -> list[Files]:
    return match(images_in(root / f"cihp_{phase}_mask"), (), images_in(root / phase))


def _celebamask(root: Path, phase: str) -> list[Files]:
    maps = images_in(root / _parts.FOLDER / _parts.MERGED) or _parts.faces(root)
    items = match(maps, (), images_in(root / "CelebA-HQ-img"))
    if not items or phase not in ("train", "val"):
        return []
    listing = root / "val.txt"
    held_out = {int(Path(line).stem) for line in listing.read_text().split()} if listing.exists() else ()
    return [item for item in items if (int(item.label.stem) in held_out) == (phase == "val")]


LAYOUTS: dict[str, Callable[[Path, str], list[Files]]] = {
    "coco": _coco,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "celebamask": _celebamask,
    "deepfashion": _deepfashion,
}


def find(root: str | Path, phase: str, layout: str = "auto") -> list[Files]:
    """The items of `phase` ("train", "val", ...) below `root`, in natural order. The layouts:

    coco        {phase}_label, {phase}_inst, {phase}_img, and each with _portrait
    cityscapes  gtFine/{phase}/**/*_labelIds.png, *_instanceIds.png, leftImg8bit/{phase}/**/*.png
    ade20k      **/*_{phase}_*.png labels and .jpg photographs
    celebamask  CelebAMask-HQ-mask-anno/all_parts_except_glasses, CelebA-HQ-img; of phase "val" are the names in
                val.txt, all others of "train"; where that folder is missing, the masks of parts
                CelebAMask-HQ-mask-anno/*/NNNNN_<part>.png are merged
    deepfashion cihp_{phase}_mask, {phase}

    Folders of instances or photographs may be missing as a whole; for single files see `match`. `auto` takes the one
    layout that finds something; FileNotFoundError where none does, ValueError where several do.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    if layout not in ("auto", *LAYOUTS):
        raise ValueError(f"layout {layout!r}: expected auto or one of {', '.join(LAYOUTS)}")
    found = {name: LAYOUTS[name](root, phase) for name in (LAYOUTS if layout == "auto" else (layout,))}
    found = {name: items for name, items in found.items() if items}
    if not found:
        raise FileNotFoundError(f"{root}: no label maps of phase {phase!r} in layout {layout} of {', '.join(LAYOUTS)}")
    if len(found) > 1:
        raise ValueError(f"{root}: label maps in several layouts ({', '.join(found)}); name one as dataset_mode")
    return next(iter(found.values()))


def read_label(path: str | Path, settings: Classes, cache: Cache | None = None) -> np.ndarray:
    """Label map [H,W] int32, UNKNOWN being class label_nc with contain_dontcare_label.

    The ids of Cityscapes become those of the 19 EVALUATED where there are as many classes, and unknown ones.
    ValueError names file, value and maximum.
    """
    return checked(read_classes(path, cache), path, settings)


def read_classes(path: str | Path, cache: Cache | None = None) -> np.ndarray:
    """What a file of classes, or of the parts of a face, says: [H,W] int32."""
    return _parts.merge(Path(path), cache) if Path(path).suffix == _parts.SUFFIX else read_map(path, cache)


def checked(label: np.ndarray, path: str | Path, settings: Classes) -> np.ndarray:
    """See `read_label`."""
    if settings.contain_dontcare_label:
        if settings.label_nc == len(EVALUATED) and Path(path).stem.endswith(IDS):
            place = np.minimum(np.searchsorted(EVALUATED, label), len(EVALUATED) - 1).astype(np.int32)
            label = np.where(EVALUATED[place] == label, place, UNKNOWN)
        label[label == UNKNOWN] = settings.label_nc
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= settings.num_classes:
        hint = f"; {UNKNOWN} is unknown with contain_dontcare_label" if high == UNKNOWN else ""
        raise ValueError(f"{path}: label {low if low < 0 else high}, allowed are 0 to {settings.num_classes - 1}{hint}")
    return label


class LabelDataset(_items.Items):
    """Items {label, instance [1,H,W] int64, image [3,H,W] float32 in [-1, 1], path of the label map} of `files`.

    `instance` is there if settings.instance, `dist` [2,H,W] if settings.add_dist, `image` if the file is, `disparity`
    [1,H,W] int64 if there are `disparities`, a file for each. Batches have a label `plan` too.
    """

    def __init__(
        self,
        files: Sequence[Files],
        settings: Settings,
        train: bool = False,
        seed: int = 0,
        disparities: Sequence[Path] = (),
    ) -> None:
        for file in files:
            if settings.instance and file.instance is None:
                raise ValueError(f"{file.label}: has no instance map (instance=False does without)")
            if train and file.image is None:
                raise ValueError(f"{file.label}: has no photograph to learn from")
        super().__init__(files, settings, train, seed)
        self.disparities = list(disparities)

    def sources(self, index: int) -> list[tuple[_items.Role, Path]]:
        return sources_of(self.files[index])

    def item(self, index: int, rng: Generator) -> _items.Item:
        file, settings = self.files[index], self.settings
        label = read_label(file.label, settings, self.cache)
        height, width = label.shape
        where = self.place((width, height), rng, file.label)
        item: _items.Item = {"label": where.map(label), "path": str(file.label)}
        if settings.add_dist:  # of the whole map
            item["dist"] = where.offsets(centre_offsets(torch.from_numpy(label)[None])[0])
        if settings.instance:
            item["instance"] = where.map(read_instances(file.instance, file.label, label, self.cache))
        if self.disparities:
            item["disparity"] = where.map(read_instances(self.disparities[index], file.label, label, self.cache))
        if file.image is not None:
            image = self.open(file.image)
            rounding = max(*image.size, width, height)  # one pixel of the smaller of the two
            if abs(image.size[0] * height - image.size[1] * width) > rounding:
                raise ValueError(
                    f"{file.image}: {image.size[0]}x{image.size[1]} pixels upright, another shape than "
                    f"its label map's {width}x{height}"
                )
            item["image"] = where.photo(image)
        return item

    def collate(self, items: Sequence[_items.Item]) -> dict[str, Any]:
        batch, settings = _items.stack(items), self.settings
        made = plan(batch["label"], settings.num_classes, instances=batch.get("instance"))
        made = made.per_sample() if settings.plan_per_sample else made
        windows = settings.plan_windows if self.train else ()
        return {**batch, "plan": made.precompute(settings.plan_sizes, backward=self.train, windows=windows)}


class Photographed(_items.Items):
    """Items of label maps, or what stands in their place, and their photographs; ValueError for one without."""

    def __init__(self, files: Iterable[Files], settings: Classes, train: bool = False, seed: int = 0) -> None:
        super().__init__(files, settings, train, seed)
        for file in self.files:
            if file.image is None:
                raise ValueError(f"{file.label}: has no photograph")

    def sources(self, index: int) -> list[tuple[_items.Role, Path]]:
        return sources_of(self.files[index]._replace(instance=None))


def read_instances(file: Path, label_file: Path, label: np.ndarray, cache: Cache | None = None) -> np.ndarray:
    """Instance map or disparities [H,W] int32 that belong to a label map; ValueError if they are of another size."""
    instance = read_map(file, cache)
    if instance.shape != label.shape:
        raise ValueError(
            f"{file}: {instance.shape[1]}x{instance.shape[0]} pixels, "
            f"but its label map {label_file} has {label.shape[1]}x{label.shape[0]}"
        )
    return instance


def folder(root: str | Path, phase: str, settings: Settings, seed: int = 0, train: bool = False) -> LabelDataset:
    """The data set of `phase` below `root`, see `find`; disparities are in {phase}_disparity, or Cityscapes' own."""
    files, disparities = find(root, phase, settings.dataset_mode), []
    if train and settings.disparity:
        found = images_in(Path(root) / f"{phase}_disparity")
        found = found or sorted((Path(root) / "disparity" / phase).rglob("*_disparity.png"), key=natural)
        disparities = pair([file.label for file in files], found, ENDINGS)
    return LabelDataset(files, settings, train, seed, disparities)


def maps_in(folder: Path) -> list[Path]:
    """Label maps directly in `folder`: images but JPEGs, photographs beside them; those keep no values."""
    return [file for file in images_in(folder) if file.suffix.lower() not in (".jpg", ".jpeg")]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    labels: Path
    """folder of label maps"""
    instances: Path | None = None
    """folder of instance maps of the same names, for a system that takes them"""
    images: Path | None = None
    """folder of photographs of the same names, in whose styles to translate, for a system that takes them"""

    def batches(self, system: Any, size: int) -> Iterator[dict[str, Any]]:
        """All label maps, in batches of at most `size` of the same height and width.

        They are as they are, but resized for a system with networks of `one_size`.
        """
        settings = Settings.of(system)
        labels = maps_in(self.labels)
        if not labels:
            raise ValueError(f"{self.labels}: no label maps, which no JPEG is")
        instances = images_in(self.instances) if self.instances else []
        if settings.instance and not instances:
            raise ValueError(f"this system takes instance maps, and --instances {self.instances} has none")
        images = [file for file in _items.images_of(self.images) if file not in labels] if self.images else []
        others = set(unpaired(images, labels, ENDINGS))
        images = [file for file in images if file not in others]
        if self.images and not images:
            raise FileNotFoundError(f"{self.images}: no photographs with the names of label maps in {self.labels}")
        items = self._items(match(labels, instances if settings.instance else (), images), settings)
        return _items.batches_by_size(items, size, lambda item: item["label"].shape)

    def _items(self, files: Sequence[Files], settings: Settings) -> Iterator[_items.Item]:
        for file in files:
            label = read_label(file.label, settings)
            height, width = label.shape
            where = Geometry((width, height), (0, 0, width, height), False)
            if settings.one_size:
                where = settings.place((width, height), None, file.label)
            item = {"label": where.map(label), "path": file.label}
            if file.instance is not None:
                item["instance"] = where.map(read_instances(file.instance, file.label, label))
            if file.image is not None:
                item["image"] = where.photo(read_photo(file.image))
            yield item
