"""Photographs with boxes of their objects, and label maps of other images whose boxes are alike.

The photographs and label maps are found as `labels.find` says, the boxes as `read_boxes` does.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from i2ifast.data import _items
from i2ifast.data._cache import Cache
from i2ifast.data.kinds import labels
from i2ifast.data.kinds.labels import Classes, Files, read_label
from i2ifast.data.pixels import Geometry, read_map, size_of

SHOWN = ("label", "fake", "image")

Options = labels.Options

RETRIEVED = 3  # label maps with every item
NOTHING = -1  # in those, where their objects were
OBJECTS = 1000  # instance numbers from here on are of objects, class * 1000 + n
COARSE = 16  # side of the maps in which boxes are compared
BITS = np.array([number.bit_count() for number in range(256)], np.uint8)


@dataclass(frozen=True, kw_only=True)
class Settings(Classes, Options):
    """Nothing that kinds with label maps have not."""


class Bank:
    """Label maps with boxes [K,5] (class, left, top, right, bottom), the sides in parts of the image's."""

    def __init__(self, files: Sequence[Files], boxes: Sequence[np.ndarray], num_classes: int) -> None:
        self.files, self.boxes = list(files), list(boxes)
        self.num_classes = num_classes
        self.coarse = np.stack([self._coarse(each) for each in boxes])
        self.areas = BITS[self.coarse].sum((1, 2), dtype=np.int64)

    def _coarse(self, boxes: np.ndarray) -> np.ndarray:
        """Small maps of boxes, [num_classes, COARSE * COARSE / 8] uint8 with eight pixels in a number."""
        maps = rasterise(boxes, self.num_classes, COARSE, COARSE) > 0
        return np.packbits(maps.reshape(self.num_classes, -1), axis=1)

    def nearest(self, boxes: np.ndarray, without: Path | None = None) -> list[int]:
        """The numbers of the images whose boxes have the highest intersection over union with these."""
        wanted = self._coarse(boxes)
        shown = wanted.any(1)
        common = BITS[self.coarse[:, shown] & wanted[shown]].sum((1, 2), dtype=np.int64)
        score = common / np.maximum(1, self.areas + BITS[wanted].sum(dtype=np.int64) - common)
        order = [int(n) for n in np.argsort(-score, kind="stable") if self.files[n].label != without]
        if not order:
            raise ValueError(f"{without}: there is no other label map to retrieve")
        return (order * RETRIEVED)[:RETRIEVED]


def rasterise(boxes: np.ndarray, num_classes: int, height: int, width: int) -> np.ndarray:
    """[num_classes,H,W] float32: 1 where there is a box of that class, every box at least a pixel."""
    found = np.zeros((num_classes, height, width), np.float32)
    for number, left, top, right, bottom in boxes:
        x, y = int(np.clip(left * width, 0, width - 1)), int(np.clip(top * height, 0, height - 1))
        found[int(number), y : max(y + 1, round(bottom * height)), x : max(x + 1, round(right * width))] = 1
    return found


class Boxes(labels.Photographed):
    """Items {boxes [nc,H,W] float32, label [1,H,W], retrieved [3,H,W] int64, image [3,H,W] in [-1, 1], path}.

    boxes are 1 inside the boxes of a class; retrieved has the label maps of the three images of `bank` whose boxes are
    most alike, -1 within their own boxes.
    """

    def __init__(
        self,
        files: Sequence[Files],
        boxes: Sequence[np.ndarray],
        bank: Bank,
        settings: Settings,
        train: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(files, settings, train, seed)
        self.boxes, self.bank = list(boxes), bank

    def item(self, index: int, rng: Generator) -> _items.Item:
        file, boxes = self.files[index], self.boxes[index]
        image = self.open(file.image)
        where = self.place(image.size, rng, file.image)
        item = {"boxes": placed(boxes, where, image.size, self.settings.num_classes), "image": where.photo(image)}
        item["label"] = where.map(read_label(file.label, self.settings, self.cache))
        item["retrieved"] = retrieve(self.bank, boxes, where, self.settings, file.label, self.cache)
        return {**item, "path": str(file.label)}


def placed(boxes: np.ndarray, where: Geometry, size: tuple[int, int], num_classes: int) -> Tensor:
    """Boxes of an image of `size` (width, height) where an item has them, see `rasterise`."""
    corners = where.points(boxes[:, 1:].reshape(-1, 2, 2) * size, size)
    width, height = where.box[2] - where.box[0], where.box[3] - where.box[1]
    low, high = corners.min(1) / (width, height), corners.max(1) / (width, height)
    inside = ((high > 0) & (low < 1)).all(1)
    moved = np.concatenate([boxes[:, :1], low, high], 1)[inside]
    return torch.from_numpy(rasterise(moved, num_classes, height, width))


def retrieve(
    bank: Bank, boxes: np.ndarray, where: Geometry, settings: Settings, own: Path | None, cache: Cache | None = None
) -> Tensor:
    """[3,H,W] int64: label maps of the images with the most similar boxes but `own`, -1 within their boxes."""
    found = []
    for number in bank.nearest(boxes, own):
        label = read_label(bank.files[number].label, settings, cache)
        covered = rasterise(bank.boxes[number], settings.num_classes, *label.shape).any(0)
        found.append(where.map(np.where(covered, NOTHING, label).astype(np.int32)))
    return torch.cat(found)


def read_boxes(root: Path, phase: str, files: Sequence[Files], settings: Settings) -> list[np.ndarray]:
    """Boxes [K,5] of each image, the sides in parts of the image's, from the first of these that there is:

    {phase}_boxes.json        {"name of an image": [[class, left, top, right, bottom], ...], ...}
    {phase}_boxes/<name>.txt  lines `class left top right bottom`
    instance maps             the boxes around objects, whose numbers are class * 1000 + n

    left, ... in pixels; right and bottom are behind the last one. FileNotFoundError where there are none, ValueError
    for a class that there is not, or a box that is none.
    """
    table = root / f"{phase}_boxes.json"
    if table.exists():
        rows = {Path(name).stem: values for name, values in json.loads(table.read_text()).items()}
        given = [(table, rows.get((file.image or file.label).stem, ())) for file in files]
    elif (root / f"{phase}_boxes").is_dir():
        texts = [root / f"{phase}_boxes" / f"{(file.image or file.label).stem}.txt" for file in files]
        given = [(text, [line.split() for line in text.read_text().splitlines()]) for text in texts]
    elif all(file.instance for file in files):
        return [boxes_of(read_map(file.instance), settings.num_classes, file.instance) for file in files]
    else:
        raise FileNotFoundError(f"{root}: no {phase}_boxes.json, no folder {phase}_boxes and no instance maps")
    found = []
    for file, (source, boxes) in zip(files, given, strict=True):
        width, height = size_of(file.image or file.label)
        found.append(_checked(np.array(boxes, dtype=float).reshape(-1, 5), settings.num_classes, source))
        found[-1][:, 1:] /= (width, height, width, height)
    return found


def _checked(boxes: np.ndarray, num_classes: int, source: Path) -> np.ndarray:
    for box in boxes:
        if not 0 <= box[0] < num_classes or not (box[1:3] < box[3:]).all():
            raise ValueError(
                f"{source}: box {box.tolist()}, expected class 0 to {num_classes - 1}, left, top, right, bottom"
            )  # noqa: E501
    return boxes


def boxes_of(instance: np.ndarray, num_classes: int, source: Path) -> np.ndarray:
    """Boxes [K,5] around the objects of an instance map [H,W]."""
    height, width = instance.shape
    found = []
    for number in np.unique(instance[instance >= OBJECTS]):
        y, x = np.nonzero(instance == number)
        found.append(
            (number // OBJECTS, x.min() / width, y.min() / height, (x.max() + 1) / width, (y.max() + 1) / height)
        )
    return _checked(np.array(found, dtype=float).reshape(-1, 5), num_classes, source)


def bank_of(root: Path, settings: Settings) -> Bank:
    """What is retrieved: the label maps of phase "train"."""
    files = labels.find(root, "train", settings.dataset_mode)
    return Bank(files, read_boxes(root, "train", files, settings), settings.num_classes)


def folder(root: str | Path, phase: str, settings: Settings, seed: int = 0, train: bool = False) -> Boxes:
    """The images of `phase` below `root`; label maps are retrieved from those of phase "train"."""
    root = Path(root)
    files = labels.find(root, phase, settings.dataset_mode)
    boxes = read_boxes(root, phase, files, settings)
    return Boxes(files, boxes, bank_of(root, settings), settings, train, seed)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    boxes: Path
    """folder of text files with lines `class left top right bottom`, in pixels of the result"""
    data: Path
    """folder that the system was trained on, whose label maps are retrieved"""

    def batches(self, system: Any, size: int) -> Iterator[dict[str, Any]]:
        """All files of boxes, in batches of at most `size`."""
        settings = Settings.of(system)
        width, height = settings.crop_size, round(settings.crop_size / settings.aspect_ratio)
        bank, whole = bank_of(self.data, settings), Geometry((width, height), (0, 0, width, height), False)
        files = sorted(self.boxes.glob("*.txt"))
        if not files:
            raise FileNotFoundError(f"{self.boxes}: no such folder, or no text files in it")

        def item(file: Path) -> _items.Item:
            rows = np.array([line.split() for line in file.read_text().splitlines()], dtype=float).reshape(-1, 5)
            boxes = _checked(rows, settings.num_classes, file)
            boxes[:, 1:] /= (width, height, width, height)
            found = rasterise(boxes, settings.num_classes, height, width)
            retrieved = retrieve(bank, boxes, whole, settings, None)
            return {"boxes": torch.from_numpy(found), "retrieved": retrieved, "path": file}

        return _items.batches_by_size(map(item, files), size, lambda item: item["boxes"].shape)
