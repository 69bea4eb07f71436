"""Label maps, instance maps and photographs: folders to items to batches with label plans."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from i2ifast.labels import centre_offsets, plan

from .images import Preprocess, geometry, images_in, natural, pair, read_map, read_photo, unpaired

UNKNOWN = 255  # in files; class `label_nc` with contain_dontcare_label
# Cityscapes' names have these after what pairs them, outermost first.
ENDINGS = ("_labelIds", "_instanceIds", "_leftImg8bit", "_gtFine", "_gtCoarse")


@dataclass(frozen=True)
class Options:
    """How files become items. Where None is allowed it stands for the setting of the published models."""

    label_nc: int
    contain_dontcare_label: bool = False  # 255 (unknown) is class label_nc
    instance: bool = True  # read instance maps
    add_dist: bool = False  # offsets of pixels from the centres of their objects, see `i2ifast.labels.centre_offsets`
    dataset_mode: Literal["auto", "coco", "ade20k", "cityscapes", "celebamask", "deepfashion"] = (
        "auto"  # layout, see `find`
    )
    crop_size: int = 256  # width of the items, see `images.geometry`
    load_size: int | None = None  # crop_size * 286 / 256; always crop_size for `_and_crop` outside training
    aspect_ratio: float = 1.0  # width / height, for `fixed`
    preprocess_mode: Preprocess | None = None  # resize_and_crop, and fixed if aspect_ratio is not 1
    flip: bool = True  # mirror half of the training items

    def __post_init__(self) -> None:
        if self.label_nc < 1:
            raise ValueError(f"label_nc {self.label_nc}: expected at least 1")
        if self.mode not in get_args(Preprocess):
            raise ValueError(f"preprocess_mode {self.mode!r}: expected one of {', '.join(get_args(Preprocess))}")
        if self.crop_size < 1 or self.aspect_ratio <= 0:
            raise ValueError(f"crop_size {self.crop_size}, aspect_ratio {self.aspect_ratio}: both must be positive")
        if self.mode.endswith("_and_crop") and self.loaded(train=True) < self.crop_size:
            raise ValueError(f"load_size {self.load_size} is smaller than crop_size {self.crop_size}")

    @classmethod
    def of(cls, config: Any, **overrides: Any) -> "Options":
        """The options of the same name in a system's `config`, then `overrides`."""
        shared = {f.name: getattr(config, f.name) for f in fields(cls) if hasattr(config, f.name)}
        return cls(**(shared | overrides))

    @property
    def num_classes(self) -> int:
        """Labels of items are 0 .. num_classes - 1."""
        return self.label_nc + self.contain_dontcare_label

    @property
    def mode(self) -> Preprocess:
        return self.preprocess_mode or ("resize_and_crop" if self.aspect_ratio == 1 else "fixed")

    def loaded(self, train: bool) -> int:
        """The load_size in use: outside training nothing is loaded larger than the crop."""
        if not train and self.mode.endswith("_and_crop"):
            return self.crop_size
        return self.load_size or round(self.crop_size * 286 / 256)


class Files(NamedTuple):
    """The files of one item."""

    label: Path
    instance: Path | None = None
    image: Path | None = None


def match(labels: Sequence[Path], instances: Sequence[Path] = (), images: Sequence[Path] = ()) -> list[Files]:
    """Label maps with their instance maps and photographs by name (`images.pair`); either of those may be empty.

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
    items = match(
        images_in(root / "CelebAMask-HQ-mask-anno" / "all_parts_except_glasses"), (), images_in(root / "CelebA-HQ-img")
    )
    if not items:
        return []
    held_out = {int(Path(line).stem) for line in (root / "val.txt").read_text().split()}
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
    celebamask  CelebAMask-HQ-mask-anno/all_parts_except_glasses, CelebA-HQ-img, val.txt with the names of phase "val"
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


def read_label(path: str | Path, options: Options) -> np.ndarray:
    """Label map [H,W] int32, UNKNOWN being class label_nc with contain_dontcare_label.

    ValueError names file, value and maximum.
    """
    label = read_map(path)
    if options.contain_dontcare_label:
        label[label == UNKNOWN] = options.label_nc
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= options.num_classes:
        hint = f"; {UNKNOWN} is unknown with contain_dontcare_label" if high == UNKNOWN else ""
        raise ValueError(f"{path}: label {low if low < 0 else high}, allowed are 0 to {options.num_classes - 1}{hint}")
    return label


class LabelDataset(Dataset):
    """Items {label, instance [1,H,W] int64, image [3,H,W] float32 in [-1, 1], path of the label map} of `files`.

    `instance` is there if options.instance, `dist` [2,H,W] if options.add_dist, `image` if the file is. `train` draws
    place and mirroring anew per item and epoch, from (seed, epoch, index) alone: item (epoch, index) is the same in any
    process, in any order. Outside training the middle is cut. ValueError, with the file's name, for files that are
    missing, unreadable or do not fit each other.
    """

    def __init__(self, files: Sequence[Files], options: Options, train: bool = False, seed: int = 0) -> None:
        for file in files:
            if options.instance and file.instance is None:
                raise ValueError(f"{file.label}: has no instance map (instance=False does without)")
            if train and file.image is None:
                raise ValueError(f"{file.label}: has no photograph to learn from")
        self.files = list(files)
        self.options = options
        self.train = train
        self.seed = seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        file, options = self.files[index], self.options
        label = read_label(file.label, options)
        height, width = label.shape
        rng = np.random.default_rng((self.seed, epoch, index)) if self.train else None
        try:
            where = geometry(
                width,
                height,
                options.mode,
                options.loaded(self.train),
                options.crop_size,
                options.aspect_ratio,
                rng,
                options.flip,
            )
        except ValueError as error:
            raise ValueError(f"{file.label}: {error}") from error
        item: dict[str, Any] = {"label": where.map(label), "path": str(file.label)}
        if options.add_dist:  # of the whole map
            item["dist"] = where.offsets(centre_offsets(torch.from_numpy(label)[None])[0])
        if options.instance:
            instance = read_map(file.instance)
            if instance.shape != label.shape:
                raise ValueError(
                    f"{file.instance}: {instance.shape[1]}x{instance.shape[0]} pixels, "
                    f"but its label map has {width}x{height}"
                )
            item["instance"] = where.map(instance)
        if file.image is not None:
            image = read_photo(file.image)
            rounding = max(*image.size, width, height)  # one pixel of the smaller of the two
            if abs(image.width * height - image.height * width) > rounding:
                raise ValueError(
                    f"{file.image}: {image.width}x{image.height} pixels upright, another shape than "
                    f"its label map's {width}x{height}"
                )
            item["image"] = where.photo(image)
        return item


def folder(root: str | Path, phase: str, options: Options, seed: int = 0) -> LabelDataset:
    """The data set of `phase` below `root` (see `find`); phase "train" crops and mirrors at random."""
    return LabelDataset(find(root, phase, options.dataset_mode), options, phase == "train", seed)


def collate(
    items: Sequence[dict[str, Any]],
    num_classes: int,
    sizes: Sequence[tuple[int, int]] = (),
    backward: bool = True,
    per_sample: bool = False,
) -> dict[str, Any]:
    """Stack items and add their label `plan`, the levels of `sizes` made (`backward`: for training too)."""
    batch: dict[str, Any] = {"path": [item["path"] for item in items]}
    for name in (name for name, value in items[0].items() if isinstance(value, Tensor)):
        shapes = {tuple(item[name].shape) for item in items}
        if len(shapes) > 1:
            raise ValueError(
                f"{name} of different sizes in one batch ({sorted(shapes)}: {', '.join(batch['path'])}); "
                "use batch size 1 or a preprocess_mode that gives one size"
            )
        batch[name] = torch.stack([item[name] for item in items])
    made = plan(batch["label"], num_classes, instances=batch.get("instance"))
    made = made.per_sample() if per_sample else made
    return {**batch, "plan": made.precompute(sizes, backward=backward)}
