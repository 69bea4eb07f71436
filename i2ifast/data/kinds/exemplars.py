"""Label maps or poses, their photographs, and photographs to translate in the style of, with theirs.

What there is of labels: see `labels.find`. Which photograph is an exemplar for which: lists, see `candidates`.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from i2ifast.data import _items, _parts, _pose
from i2ifast.data._cache import Cache
from i2ifast.data.kinds import labels
from i2ifast.data.kinds.labels import Classes, Files, read_label
from i2ifast.data.pixels import Geometry, images_below, natural, pair, read_map, read_photo

SHOWN = ("label", "ref", "fake", "image")
TAKES = ("label", "ref", "label_ref")

POSE = "_candidate.txt"  # the joints that OpenPose finds; which of them are of a person is in *_subset.txt


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


class Exemplars(labels.Photographed):
    """Items of `files`, by name: label, image [3,H,W] float32 in [-1, 1], label_ref, ref, self_ref, path.

    label, label_ref: [1,H,W] int64, of poses [20,H,W] float32 (see `_pose.maps`), with glasses [2,H,W]. self_ref [] is
    1 where the exemplar is the image itself, else 0. The exemplar is cropped and mirrored by itself; it is drawn in
    training, from the `lists` of names in `pool` as far as there are, else it is the first of the list, or the next
    image. `same` are names of images of the same person, which then stand for the image itself.
    """

    def __init__(
        self,
        files: dict[str, Files],
        pool: dict[str, Files],
        lists: dict[str, list[str]],
        same: dict[str, list[str]],
        settings: Settings,
        train: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(files.values(), settings, train, seed)
        self.names, self.pool, self.lists, self.same = list(files), pool, lists, same

    def sources(self, index: int) -> list[tuple[_items.Role, Path]]:
        file = self.files[index]
        mask = [("mask", file.instance)] if file.instance else []
        if file.label.suffix == ".txt":
            return [("photograph", file.image)]
        return [*super().sources(index), *mask]

    def item(self, index: int, rng: Generator) -> _items.Item:
        file = self.files[index]
        exemplar, own = self.exemplar(index, rng)
        label, image = self.pair(file, rng)
        label_ref, ref = self.pair(exemplar, rng)
        item = {"label": label, "image": image, "label_ref": label_ref, "ref": ref}
        return {**item, "self_ref": torch.tensor(float(own)), "path": str(file.label)}

    def exemplar(self, index: int, rng: Generator) -> tuple[Files, bool]:
        """The exemplar, and whether it is the image itself, or another of the same person."""
        name, settings = self.names[index], self.settings
        listed = [self.pool[other] for other in self.lists.get(name, ()) if other in self.pool]
        if not self.train:
            return listed[0] if listed else self.files[(index + 1) % len(self)], False
        other, hard, drawn = rng.random(3)  # always three, whatever the lists
        if other >= settings.real_reference_probability:
            same = [self.pool[each] for each in self.same.get(name, ()) if each in self.pool] or [self.files[index]]
            return same[int(drawn * len(same))], True
        if listed:
            return listed[1 if len(listed) > 1 and hard < settings.hard_reference_probability else 0], False
        return self.files[int(drawn * len(self))], False

    def pair(self, files: Files, rng: Generator) -> tuple[Tensor, Tensor]:
        """A label map or pose and its photograph, placed alike."""
        image = self.open(files.image)
        where = self.place(image.size, rng, files.image)
        return read_condition(files, self.settings, image.size, where, self.cache), where.photo(image)


def read_condition(
    files: Files, settings: Settings, size: tuple[int, int], where: Geometry, cache: Cache | None = None
) -> Tensor:
    """The label map or the pose of a photograph of `size` (width, height), placed."""
    if files.label.suffix == ".txt":
        return _pose.maps(_pose.read(files.label), size, where)
    label = where.map(read_label(files.label, settings, cache))
    if not settings.glasses:
        return label
    if files.instance is None:
        return torch.cat([label, torch.zeros_like(label)])
    return torch.cat([label, where.map((read_map(files.instance, cache) > 0).astype(np.int32))])


def find(root: Path, phase: str, layout: str) -> tuple[dict[str, Files], dict[str, Files]]:
    """The files of `phase` by name, and those of the images that may be their exemplars: of phase "train" too."""
    if layout == "pose" or (layout == "auto" and (root / "pose").is_dir()):
        return _poses(root, phase)
    own = pool = _named(labels.find(root, phase, layout))
    if phase != "train":
        with suppress(FileNotFoundError):
            pool = own | _named(labels.find(root, "train", layout))
    return own, pool


def _named(files: Sequence[Files]) -> dict[str, Files]:
    # The mask of glasses is where other kinds have instance maps.
    return {key(file.label.stem): file._replace(instance=_parts.mask(file.label, "eye_g")) for file in files}


def _poses(root: Path, phase: str) -> tuple[dict[str, Files], dict[str, Files]]:
    """pose/**/*_candidate.txt and *_subset.txt with img/**; {phase}.txt, or all that val.txt does not name."""
    pool = {}
    for file in sorted((root / "pose").rglob(f"*{POSE}")):
        stem = file.relative_to(root / "pose").as_posix().removesuffix(POSE)
        images = [image for end in (".jpg", ".png") if (image := root / "img" / f"{stem}{end}").exists()]
        if not images:
            raise FileNotFoundError(f"{file}: no photograph img/{stem}.jpg")
        pool[stem] = Files(file, image=images[0])
    names, held_out = ([key(line, poses=True) for line in _lines(root / f"{name}.txt")] for name in (phase, "val"))
    if phase == "train" and not names:
        names = [name for name in pool if name not in held_out]
    if not names or not pool:
        raise FileNotFoundError(f"{root}: no {phase}.txt, or no poses in {root / 'pose'}")
    for name in names:
        if name not in pool:
            raise FileNotFoundError(f"{root / f'{phase}.txt'}: {name} has no pose in {root / 'pose'}")
    return {name: pool[name] for name in names}, pool


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
    files, pool = find(root, phase, settings.dataset_mode)
    poses = next(iter(files.values())).label.suffix == ".txt"
    lists = candidates(root, "_ref.txt" if phase == "train" else "_ref_test.txt", poses)
    return Exemplars(files, pool, lists, candidates(root, "_self_pair.txt", poses), settings, train, seed)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    labels: Path
    """folder of label maps, or of poses, in pixels of images of the system's size"""
    exemplars: Path
    """folder of photographs in the style of which to translate; they are taken in turn"""
    exemplar_labels: Path
    """folder of the photographs' label maps or poses, by name"""

    def batches(self, system: Any, size: int) -> Iterator[dict[str, Any]]:
        """All label maps, as they are, in batches of at most `size` of the same height and width.

        Exemplars are resized to the size of the label map.
        """
        settings, conditions = Settings.of(system), conditions_of(self.labels)
        exemplars = self._exemplars()

        def item(number: int, file: Path) -> _items.Item:
            exemplar = exemplars[number % len(exemplars)]
            width, height = settings.crop_size, round(settings.crop_size / settings.aspect_ratio)
            if file.suffix != ".txt":
                height, width = read_label(file, settings).shape
            whole = Geometry((width, height), (0, 0, width, height), False)
            ref = read_photo(exemplar.image)
            return {
                "label": read_condition(Files(file), settings, (width, height), whole),
                "label_ref": read_condition(exemplar, settings, ref.size, whole),
                "ref": whole.photo(ref),
                "path": Path("_".join(file.relative_to(self.labels).parts).replace(POSE, ".txt")),
            }

        items = (item(number, file) for number, file in enumerate(conditions))
        return _items.batches_by_size(items, size, lambda item: item["label"].shape)

    def _exemplars(self) -> list[Files]:
        conditions = conditions_of(self.exemplar_labels)
        photos = [file for file in images_below(self.exemplars) if file not in conditions]
        if not photos:
            raise FileNotFoundError(f"{self.exemplars}: no such folder, or no images below it")
        if conditions[0].suffix == ".txt":
            names = [photo.relative_to(self.exemplars).with_suffix("") for photo in photos]
            conditions = [self.exemplar_labels / f"{name}{POSE}" for name in names]
        else:
            conditions = pair(photos, conditions)
        return [Files(condition, image=photo) for condition, photo in zip(conditions, photos, strict=True)]


def conditions_of(folder: Path) -> list[Path]:
    """The poses below `folder`, or else the label maps in it; FileNotFoundError where there are none."""
    found = sorted(folder.rglob(f"*{POSE}"), key=natural) or labels.maps_in(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: no such folder, or no poses or label maps in it")
    return found
