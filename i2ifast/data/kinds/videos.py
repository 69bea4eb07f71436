"""Label maps of videos with their frames: a folder for each sequence in {phase}_label, {phase}_inst, {phase}_img."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from i2ifast.data import _items
from i2ifast.data._cache import Cache
from i2ifast.data._optical_flow import estimate, read_flow, warp
from i2ifast.data.kinds.labels import ENDINGS, Classes, read_instances, read_label, sources_of
from i2ifast.data.pixels import Geometry, images_in, natural, pair, read_photo

SHOWN = ("label", "fake", "image")

SURE = 0.02  # squared distance of colours in [-1, 1] up to which a flow is trusted


@dataclass(frozen=True, kw_only=True)
class Options(_items.Options):
    n_frames_total: int = 6
    """frames of a clip that are generated in training"""


@dataclass(frozen=True, kw_only=True)
class Settings(Classes, Options):
    instance: bool = True  # read instance maps
    n_frames_G: int = 3  # frames that the generator sees, the one that it makes included
    n_shot: int = 0  # references, other frames of the sequence, of which the very first frame is generated too

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_frames_total < 1 or self.n_frames_G < 2:
            raise ValueError(f"n_frames_total {self.n_frames_total}, n_frames_G {self.n_frames_G}: at least 1 and 2")

    @property
    def ahead(self) -> int:
        """Frames before the first that is generated."""
        return 0 if self.n_shot else self.n_frames_G - 1

    @property
    def frames(self) -> int:
        """Frames of a clip: those before the first that is generated, then n_frames_total."""
        return self.ahead + self.n_frames_total


class Files(NamedTuple):
    """The files of one frame; the flow is from it to the frame before."""

    label: Path
    instance: Path | None = None
    image: Path | None = None
    flow: Path | None = None


class Videos(_items.Items):
    """Clips of sequences: label and instance [T,1,H,W] int64, image [T,3,H,W] float32 in [-1, 1], path of the first.

    `flow` [T',2,H,W] in pixels, from each of the T' = n_frames_total last frames to the one before, and its
    `confidence` [T',1,H,W], 1 where it explains the frame: where colours are as expected, see `SURE`. Flows are those
    of files, else estimated. All frames of a clip are cropped and mirrored alike. The clip is drawn in training, else
    it is the first. ValueError for a sequence that is shorter than a clip.

    With n_shot: `label_refs` [K,1,H,W] and `image_refs` [K,3,H,W], frames of the sequence that are drawn too, else the
    last ones. There is then no flow from the first frame, but estimated flows of all T frames to the references,
    `flow_refs` [T,K,2,H,W], with `confidence_refs` [T,K,1,H,W].
    """

    def __init__(
        self, sequences: Sequence[Sequence[Files]], settings: Settings, train: bool = False, seed: int = 0
    ) -> None:
        super().__init__(sequences, settings, train, seed)
        for frames in self.files:
            if len(frames) < settings.frames:
                raise ValueError(
                    f"{frames[0].label.parent}: {len(frames)} frames, but a clip has {settings.frames} "
                    f"(n_frames_total {settings.n_frames_total} and {settings.ahead} before them)"
                )
            if len(frames) < settings.n_shot:
                raise ValueError(f"{frames[0].label.parent}: {len(frames)} frames, fewer than n_shot {settings.n_shot}")
            if settings.instance and frames[0].instance is None:
                raise ValueError(f"{frames[0].label}: has no instance map (instance=False does without)")
            if frames[0].image is None:
                raise ValueError(f"{frames[0].label}: has no photograph")

    def sources(self, index: int) -> list[tuple[_items.Role, Path]]:
        return [source for frame in self.files[index] for source in sources_of(frame)]

    def item(self, index: int, rng: Generator) -> _items.Item:
        frames, settings = self.files[index], self.settings
        start = int(rng.integers(len(frames) - settings.frames + 1)) if self.train else 0
        clip, count = frames[start : start + settings.frames], settings.n_shot
        drawn = rng.permutation(len(frames))[:count] if self.train else range(len(frames) - count, len(frames))
        shown = clip + [frames[i] for i in drawn]
        photos = [self.open(frame.image) for frame in shown]
        where = self.place(photos[0].size, rng, clip[0].image)
        maps = [maps_of(frame, settings, photos[0].size, self.cache) for frame in shown]
        item = {name: torch.stack([where.map(each[name]) for each in maps]) for name in maps[0]}
        for frame, photo in zip(shown, photos, strict=True):
            if photo.size != photos[0].size:
                raise ValueError(f"{frame.image}: {photo.size[0]}x{photo.size[1]} pixels, other than {clip[0].image}")
        item["image"] = torch.stack([where.photo(photo) for photo in photos])
        refs = {f"{name}_refs": value[len(clip) :] for name, value in item.items()} if count else {}
        item = {name: value[: len(clip)] for name, value in item.items()}
        images, first = item["image"], max(1, settings.ahead)
        item["flow"] = flows(clip[first:], where, images[first - 1 :])
        item["confidence"] = confidence(images[first:], images[first - 1 : -1], item["flow"])
        if count:
            pairs = images.repeat_interleave(count, 0), refs["image_refs"].repeat(len(clip), 1, 1, 1)
            flow = estimate(*pairs)
            refs["flow_refs"] = flow.unflatten(0, (-1, count))
            refs["confidence_refs"] = confidence(*pairs, flow).unflatten(0, (-1, count))
        return {**item, **refs, "path": str(clip[0].label)}


def confidence(images: Tensor, others: Tensor, flow: Tensor) -> Tensor:
    """[N,1,H,W], 1 where the others, moved along the flow, have about the colours of the images."""
    return ((images - warp(others, flow)).square().sum(1, keepdim=True) < SURE).float()


def maps_of(
    frame: Files, settings: Settings, size: tuple[int, int] | None = None, cache: Cache | None = None
) -> dict[str, np.ndarray]:
    """Label and instance maps of a frame; ValueError unless they are of `size` (width, height)."""
    label = read_label(frame.label, settings, cache)
    if size and label.shape[::-1] != size:
        height, width = label.shape
        raise ValueError(f"{frame.label}: {width}x{height} pixels, but the photographs have {size[0]}x{size[1]}")
    found = {"label": label}
    if settings.instance:
        found["instance"] = read_instances(frame.instance, frame.label, label, cache)
    return found


def flows(frames: Sequence[Files], where: Geometry, images: Tensor) -> Tensor:
    """[T',2,H,W] of the last T' of `images`, to the ones before."""
    if not frames or frames[0].flow is None:
        return estimate(images[1:], images[:-1])
    return torch.stack([where.flow(read_flow(frame.flow)) for frame in frames])


def find(root: Path, phase: str) -> list[list[Files]]:
    """Frames of each sequence of `phase`, in natural order, paired by name. For label maps, instance maps, photographs:

    {phase}_label, {phase}_inst, {phase}_img, each with a folder per sequence
    {phase}_A, {phase}_inst, {phase}_B        the same, as vid2vid names them

    and {phase}_flow with .flo files, each from the frame of its name to the one before; a first frame needs none.
    Instance maps, photographs and flows may be missing as a whole.
    """
    for first, last in (("label", "img"), ("A", "B")):
        top = root / f"{phase}_{first}"
        folders = sorted(filter(Path.is_dir, top.iterdir()), key=natural) if top.is_dir() else []
        if folders:
            others = [root / f"{phase}_{name}" for name in ("inst", last, "flow")]
            return [_sequence(each, [other / each.name for other in others]) for each in folders]
    raise FileNotFoundError(f"{root}: no folders of label maps in {phase}_label or {phase}_A")


def _sequence(folder: Path, others: Sequence[Path]) -> list[Files]:
    labels = _items.images_of(folder)
    columns: list[Sequence[Path | None]] = [labels]
    for other in others[:2]:
        files = images_in(other)
        columns.append(pair(labels, files, ENDINGS) if files else [None] * len(labels))
    found = {file.stem: file for file in others[2].glob("*.flo")}
    missing = [label for label in labels[1:] if label.stem not in found] if found else []
    if missing:
        raise FileNotFoundError(f"{missing[0]}: no flow of that name in {others[2]}")
    columns.append([found.get(label.stem) for label in labels])
    return [Files(*frame) for frame in zip(*columns, strict=True)]


def folder(root: str | Path, phase: str, settings: Settings, seed: int = 0, train: bool = False) -> Videos:
    """The sequences of `phase` below `root`, see `find`."""
    sequences = find(Path(root), phase)
    if train and any(frames[-1].flow is None for frames in sequences):
        logging.getLogger(__name__).warning("%s: no %s_flow, so flows are estimated, coarsely", root, phase)
    return Videos(sequences, settings, train, seed)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    labels: Path
    """folder of label maps, or of folders of them, one for each sequence"""
    instances: Path | None = None
    """the same of instance maps, for a system that takes them"""
    images: Path | None = None
    """the same of photographs, at least of the first frames; without them sequences begin with black frames"""
    references: Path | None = None
    """folder of photographs to make frames like, for a system that takes references"""
    reference_labels: Path | None = None
    """folder of their label maps"""

    def batches(self, system: Any, size: int) -> Iterator[dict[str, Any]]:
        """A batch of one whole sequence at a time; "path" names the frames that are made of it.

        `image` [1,T,3,H,W] has the photographs given, for the frames before the first that is made. References, which
        are resized to the frames, are `label_refs` [1,K,1,H,W] and `image_refs` [1,K,3,H,W].
        """
        settings = Settings.of(system)
        refs = self.shown(settings) if settings.n_shot else []
        folders = [f for f in sorted(self.labels.glob("*"), key=natural) if f.is_dir()] or [self.labels]
        for each in folders:
            inner = each.relative_to(self.labels)
            frames = _sequence(each, [(self.instances or each / "-") / inner, each / "-", each / "-"])
            if settings.instance and frames[0].instance is None:
                raise ValueError(f"this system takes instance maps, and --instances {self.instances} has none")
            if len(frames) <= settings.ahead:
                raise ValueError(f"{each}: {len(frames)} frames, expected at least {settings.ahead + 1}")
            maps = [maps_of(frame, settings) for frame in frames]
            batch = {k: torch.from_numpy(np.stack([m[k] for m in maps])).long()[None, :, None] for k in maps[0]}
            height, width = batch["label"].shape[-2:]
            ahead = settings.ahead
            given = images_in(self.images / inner)[:ahead] if self.images else []
            whole = Geometry((width, height), (0, 0, width, height), False)
            first = [whole.photo(read_photo(file)) for file in given]
            first += [torch.full((3, height, width), -1.0)] * (ahead - len(first))
            names = [Path("_".join((*inner.parts, frame.label.name))) for frame in frames[ahead:]]
            if first:
                batch["image"] = torch.stack(first)[None]
            if refs:
                batch["label_refs"] = torch.stack([whole.map(read_label(f.label, settings)) for f in refs])[None]
                batch["image_refs"] = torch.stack([whole.photo(read_photo(f.image)) for f in refs])[None]
            yield {**batch, "path": names}

    def shown(self, settings: Settings) -> list[Files]:
        """The first n_shot references."""
        if self.references is None or self.reference_labels is None:
            raise ValueError("this system takes references: name folders of --references and --reference-labels")
        labels = _items.images_of(self.reference_labels)
        photos = pair(labels, images_in(self.references), ENDINGS)
        if len(labels) < settings.n_shot:
            raise ValueError(f"{self.reference_labels}: {len(labels)} label maps, but n_shot is {settings.n_shot}")
        files = zip(labels, photos, strict=True)
        return [Files(label, image=photo) for label, photo in list(files)[: settings.n_shot]]
