"""Label maps or poses, their photographs, and photographs to translate in the style of, with theirs.

What there is of labels: see `labels.find`. Which photograph is an exemplar for which: lists, see `candidates`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from i2ifast.data import _items, _parts, _pose
from i2ifast.data.kinds import labels
from i2ifast.data.kinds.labels import Classes, Files, read_label
from i2ifast.data.pixels import Geometry, images_in, pair, read_map, read_photo

SHOWN = ("label", "ref", "fake", "image")


@dataclass(frozen=True, kw_only=True)
class Options(_items.Options):
    dataset_mode: Literal["auto", "coco", "ade20k", "cityscapes", "celebamask", "deepfashion", "pose"] = "auto"
    """layout of the data folder"""
    real_reference_probability: float = 0.7
    """how often the exemplar of a training image is another image than itself"""
    hard_reference_probability: float = 0.2
    """how often that is the second of the list's exemplars, where there are two"""


@dataclass(frozen=True, kw_only=True)
class Settings(Classes, Options):
    glasses: bool = False  # a second channel of label maps, the mask of glasses

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("real_reference_probability", "hard_reference_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected 0 to 1")


class Exemplars(_items.Items):
    """Items of `names`, keys of `files`: label, image [3,H,W] float32 in [-1, 1], label_ref, ref, self_ref, path.

    label, label_ref: [1,H,W] int64, of poses [20,H,W] float32 (see `_pose.maps`), with glasses [2,H,W]. self_ref [] is
    1 where the exemplar is the image itself, else 0. The exemplar is cropped and mirrored by itself; it is drawn in
    training, from the list as far as there is one, else it is the first of the list, or the next image.
    """

    def __init__(
        self,
        names: Sequence[str],
        files: dict[str, Files],
        lists: dict[str, list[str]],
        same: dict[str, list[str]],
        settings: Settings,
        train: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(settings, train, seed)
        self.names, self.files, self.lists, self.same = list(names), files, lists, same
        for name in self.names:
            if files[name].image is None:
                raise ValueError(f"{files[name].label}: has no photograph")

    def __len__(self) -> int:
        return len(self.names)

    def item(self, index: int, rng: Generator) -> _items.Item:
        name = self.names[index]
        reference, own = self.reference(index, rng)
        label, image = self.pair(self.files[name], rng)
        label_ref, ref = self.pair(self.files[reference], rng)
        item = {"label": label, "image": image, "label_ref": label_ref, "ref": ref}
        return {**item, "self_ref": torch.tensor(float(own)), "path": str(self.files[name].label)}

    def reference(self, index: int, rng: Generator) -> tuple[str, bool]:
        """The name of the exemplar, and whether it is the image itself, or another of the same person."""
        name, settings = self.names[index], self.settings
        listed = [other for other in self.lists.get(name, ()) if other in self.files]
        if not self.train:
            return listed[0] if listed else self.names[(index + 1) % len(self.names)], False
        other, hard, drawn = rng.random(), rng.random(), rng.random()  # always three, whatever the lists
        if other >= settings.real_reference_probability:
            same = [each for each in self.same.get(name, ()) if each in self.files] or [name]
            return same[int(drawn * len(same))], True
        if listed:
            return listed[1 if len(listed) > 1 and hard < settings.hard_reference_probability else 0], False
        return self.names[int(drawn * len(self.names))], False

    def pair(self, files: Files, rng: Generator) -> tuple[Tensor, Tensor]:
        """A label map or pose and its photograph, placed alike."""
        image = read_photo(files.image)
        where = self.place(image.size, rng, files.image)
        return read_condition(files, self.settings, image.size, where), where.photo(image)


def read_condition(files: Files, settings: Settings, size: tuple[int, int], where: Geometry) -> Tensor:
    """The label map or the pose of a photograph of `size` (width, height), placed."""
    if files.label.suffix == ".txt":
        return _pose.maps(_pose.read(files.label), size, where)
    label = where.map(read_label(files.label, settings))
    if not settings.glasses:
        return label
    if files.instance is None:
        return torch.cat([label, torch.zeros_like(label)])
    return torch.cat([label, where.map((read_map(files.instance) > 0).astype(np.int32))])


def find(root: Path, phase: str, layout: str) -> tuple[list[str], dict[str, Files]]:
    """Names of the images of `phase`, and the files by name of all that may be their exemplars."""
    if layout == "pose" or (layout == "auto" and (root / "pose").is_dir()):
        return _poses(root, phase)
    parts = labels.find(root, phase, layout)
    files = {key(str(item.label)): item for item in parts}
    names = list(files)
    if phase != "train":
        try:
            files |= {key(str(item.label)): item for item in labels.find(root, "train", layout)}
        except FileNotFoundError:
            pass
    # The mask of glasses is where other kinds have instance maps.
    return names, {name: item._replace(instance=_parts.mask(item.label, "eye_g")) for name, item in files.items()}


def _poses(root: Path, phase: str) -> tuple[list[str], dict[str, Files]]:
    """pose/**/*_candidate.txt and *_subset.txt with img/**; {phase}.txt, or all that val.txt does not name."""
    candidates = sorted((root / "pose").rglob("*_candidate.txt"))
    files = {}
    for file in candidates:
        stem = file.relative_to(root / "pose").as_posix().removesuffix("_candidate.txt")
        image = [f for f in (root / "img" / f"{stem}{end}" for end in (".jpg", ".png")) if f.exists()]
        if not image:
            raise FileNotFoundError(f"{file}: no photograph img/{stem}.jpg")
        files[stem] = Files(file, image=image[0])
    names = _lines(root / f"{phase}.txt")
    held_out = {key(name, poses=True) for name in _lines(root / "val.txt")}
    named = [key(name, poses=True) for name in names] or [name for name in files if name not in held_out]
    if not names and phase != "train" or not files:
        raise FileNotFoundError(f"{root}: no {phase}.txt, or no poses in {root / 'pose'}")
    for name in named:
        if name not in files:
            raise FileNotFoundError(f"{root / f'{phase}.txt'}: {name} has no pose in {root / 'pose'}")
    return named, files


def key(name: str, poses: bool = False) -> str:
    """What a name in a list, with either slash, is of: of poses the path below img, else the bare name."""
    path = PurePosixPath(name.replace("\\", "/"))
    if poses:
        return path.with_suffix("").as_posix().removeprefix("img/")
    return path.stem.lstrip("0") or "0"


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text().splitlines() if line.strip()] if file.exists() else []


def candidates(root: Path, ending: str, poses: bool) -> dict[str, list[str]]:
    """Names by the first name of their line in the file *{ending}; the names of a line are divided by commas."""
    found = {}
    for file in sorted(root.glob(f"*{ending}")):
        for line in _lines(file):
            name, *others = (key(each, poses) for each in line.split(","))
            found[name] = others
    return found


def folder(root: str | Path, phase: str, settings: Settings, seed: int = 0, train: bool = False) -> Exemplars:
    """The images of `phase` below `root`; lists are *_ref.txt for training, else *_ref_test.txt.

    A line of those is `image,exemplar` or `image,exemplar,harder exemplar`; of *_self_pair.txt it has images of the
    same person. FileNotFoundError where there is nothing.
    """
    root = Path(root)
    names, files = find(root, phase, settings.dataset_mode)
    poses = files[names[0]].label.suffix == ".txt"
    lists = candidates(root, "_ref.txt" if phase == "train" else "_ref_test.txt", poses)
    return Exemplars(names, files, lists, candidates(root, "_self_pair.txt", poses), settings, train, seed)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    labels: Path
    """folder of label maps"""
    exemplars: Path
    """folder of photographs in the style of which to translate; they are taken in turn"""
    exemplar_labels: Path
    """folder of the photographs' label maps, by name"""

    def batches(self, system: Any, size: int) -> Iterator[dict[str, Any]]:
        """All label maps, as they are, in batches of at most `size` of the same height and width.

        Exemplars are resized to the size of the label map.
        """
        settings, maps = Settings.of(system), _items.images_of(self.labels)
        photos = _items.images_of(self.exemplars)
        exemplars = [
            Files(*files)
            for files in zip(pair(photos, images_in(self.exemplar_labels)), [None] * len(photos), photos, strict=True)
        ]  # noqa: E501

        def item(number: int, file: Path) -> _items.Item:
            exemplar = exemplars[number % len(exemplars)]
            height, width = read_label(file, settings).shape
            whole = Geometry((width, height), (0, 0, width, height), False)
            ref = read_photo(exemplar.image)
            return {
                "label": read_condition(Files(file), settings, (width, height), whole),
                "label_ref": read_condition(exemplar, settings, ref.size, whole),
                "ref": whole.photo(ref),
                "path": file,
            }

        items = (item(number, file) for number, file in enumerate(maps))
        return _items.batches_by_size(items, size, lambda item: item["label"].shape)
