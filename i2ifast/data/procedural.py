"""Procedural data of every kind: something to learn from without data.

`python -m i2ifast.data.procedural --kind KIND --out DIR --count N --size 128 256`
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy import ndarray
from PIL import Image

from . import _scenes
from ._optical_flow import write_flow
from ._scenes import CLASSES, COLOURS, Scene, outlines, portrait, scene

__all__ = ["CLASSES", "COLOURS", "KINDS", "Kind", "Scene", "scene", "write"]

Size = tuple[int, int]  # height, width
Content = ndarray | Image.Image | str
Made = Iterator[tuple[str, Content]]  # names of files, extension included, and what is in them
Kind = Literal["boxes", "domains", "embeddings", "exemplars", "images", "inpainting", "labels", "paired", "segmented",
               "sketches", "unpaired", "videos"]  # fmt: skip

FRAMES = 10  # of a video
SPEED = 1 / 64  # image heights that its camera moves by from frame to frame, at most

# Light and seasons: factors on red, green and blue, of all classes and of some.
Factors = dict[str, tuple[float, float, float]]
NIGHT: Factors = {"all": (0.24, 0.28, 0.46), "sky": (0.12, 0.14, 0.24), "window": (3.2, 2.6, 1.4)}
AUTUMN: Factors = {"all": (1.05, 0.97, 0.85), "tree": (3.6, 1.25, 0.6), "grass": (1.5, 0.9, 0.7)}
WINTER: Factors = {"all": (0.92, 0.96, 1.08), "grass": (2.2, 1.6, 3.7), "hill": (2.1, 1.75, 2.1),
                   "road": (1.7, 1.75, 1.75), "tree": (2.4, 1.4, 2.7), "sky": (1.5, 1.15, 0.95)}  # fmt: skip
SEASONS = {"autumn": AUTUMN, "summer": {"all": (1, 1, 1)}, "winter": WINTER}


def tinted(made: Scene, factors: Factors) -> ndarray:
    """The image with each class' colours multiplied; [H,W,3] uint8."""
    table = np.array([factors.get(name, factors["all"]) for name in CLASSES], np.float32)
    return np.clip(made.image * table[made.label], 0, 255).astype(np.uint8)


def palette(label: ndarray) -> Image.Image:
    """A label map whose pixels are class indices, and which a viewer shows in class colours."""
    image = Image.fromarray(label)
    image.putpalette(COLOURS.tobytes())
    return image


def labels(phase: str, name: str, size: Size, seed: list[int]) -> Made:
    made = scene(size, seed)
    yield f"{phase}_label/{name}.png", palette(made.label)
    yield f"{phase}_inst/{name}.png", made.instance
    yield f"{phase}_img/{name}.png", made.image


def boxes(phase: str, name: str, size: Size, seed: list[int]) -> Made:
    """The boxes around what was drawn as an object of its own."""
    made = scene(size, seed)
    yield f"{phase}_label/{name}.png", palette(made.label)
    yield f"{phase}_img/{name}.png", made.image
    lines = []
    for number in np.unique(made.instance[made.instance >= len(CLASSES)]):
        y, x = np.nonzero(made.instance == number)
        lines.append(f"{made.label[y[0], x[0]]} {x.min()} {y.min()} {x.max() + 1} {y.max() + 1}\n")
    yield f"{phase}_boxes/{name}.txt", "".join(lines)


def images(phase: str, name: str, size: Size, seed: list[int]) -> Made:
    yield f"{phase}/{name}.png", scene(size, seed).image


def embeddings(phase: str, name: str, size: Size, seed: list[int]) -> Made:
    """What share of the pixels each class has, in units of the mean share."""
    made = scene(size, seed)
    yield f"{phase}/{name}.png", made.image
    shares = np.bincount(made.label.ravel(), minlength=len(CLASSES)) / made.label.size
    yield f"{phase}_embedding/{name}.npy", (shares * len(CLASSES)).astype(np.float32)


def paired(phase: str, name: str, size: Size, seed: list[int]) -> Made:
    """Colours of labels, and photographs."""
    made = scene(size, seed)
    yield f"{phase}A/{name}.png", COLOURS[made.label]
    yield f"{phase}B/{name}.png", made.image


def unpaired(phase: str, name: str, size: Size, seed: list[int]) -> Made:
    """Scenes by day, and others by night."""
    yield f"{phase}A/{name}.png", scene(size, [*seed, 0]).image
    yield f"{phase}B/{name}.png", tinted(scene(size, [*seed, 1]), NIGHT)


def domains(phase: str, name: str, size: Size, seed: list[int]) -> Made:
    """Three seasons."""
    for number, (season, factors) in enumerate(SEASONS.items()):
        yield f"{phase}/{season}/{name}.png", tinted(scene(size, [*seed, number]), factors)


def videos(phase: str, name: str, size: Size, seed: list[int]) -> Made:
    """A camera that moves along a wide scene, in whole pixels, with the flow from each frame to the one before."""
    height, width = size
    step = max(1, round(height * SPEED * np.random.default_rng(seed).uniform(0.5, 1)))
    wide = scene((height, width + step * (FRAMES - 1)), seed)
    flow = np.zeros((height, width, 2), np.float32)
    flow[..., 0] = step
    for frame in range(FRAMES):
        part = np.s_[:, step * frame : step * frame + width]
        file = f"{name}/{frame:05d}"
        yield f"{phase}_label/{file}.png", palette(np.ascontiguousarray(wide.label[part]))
        yield f"{phase}_inst/{file}.png", wide.instance[part]
        yield f"{phase}_img/{file}.png", wide.image[part]
        if frame:
            yield f"{phase}_flow/{file}.flo", flow


def sketches(phase: str, name: str, size: Size, seed: list[int]) -> Made:
    """Single objects of three classes: outlines to the left, photographs to the right."""
    for kind in (_scenes.CAR, _scenes.PERSON, _scenes.TREE):
        made = portrait(kind, size, [*seed, kind])
        lines = np.where(outlines(made.instance), 0, 255).astype(np.uint8)[..., None].repeat(3, 2)
        yield f"{phase}/{CLASSES[kind]}/{name}.png", np.concatenate([lines, made.image], 1)


KINDS: dict[str, Callable[[str, str, Size, list[int]], Made]] = {
    "boxes": boxes,
    "domains": domains,
    "embeddings": embeddings,
    "exemplars": labels,
    "images": images,
    "inpainting": images,
    "labels": labels,
    "paired": paired,
    "segmented": labels,
    "sketches": sketches,
    "unpaired": unpaired,
    "videos": videos,
}


def save(file: Path, content: Content) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        file.write_text(content)
    elif file.suffix == ".flo":
        write_flow(file, content)
    elif file.suffix == ".npy":
        np.save(file, content)
    else:
        image = content if isinstance(content, Image.Image) else Image.fromarray(content)
        image.save(file, compress_level=1)


def write(folder: str | Path, count: int, size: int | Size = 128, seed: int = 0, kind: str = "labels") -> None:
    """Write `count` training scenes (videos: sequences) and max(4, count // 10) held-out ones, as `kind` is laid out.

    For exemplars there are lists too: of each image the exemplar is the next, the harder one that after it.
    """
    if count < 1:
        raise ValueError(f"count {count}: expected at least 1")
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
    size = (size, size) if isinstance(size, int) else size
    for number, (phase, scenes) in enumerate((("train", count), ("val", max(4, count // 10)))):
        for i in range(scenes):
            for file, content in KINDS[kind](phase, f"{i:05d}", size, [seed, number, i]):
                save(Path(folder) / file, content)
        if kind == "exemplars":
            lines = [f"{i:05d}.png,{(i + 1) % count:05d}.png,{(i + 2) % count:05d}.png\n" for i in range(scenes)]
            save(Path(folder) / ("scenes_ref.txt" if phase == "train" else "scenes_ref_test.txt"), "".join(lines))


@dataclass
class Arguments:
    """Write a data set of procedural street scenes."""

    out: Path
    """folder to write to"""
    kind: Kind = "labels"
    """kind of data"""
    count: int = 200
    """training scenes; a tenth as many are held out"""
    size: int | tuple[int, int] = 128
    """height and width in pixels; one number for square scenes"""
    seed: int = 0


if __name__ == "__main__":
    import tyro

    arguments = tyro.cli(Arguments, prog="python -m i2ifast.data.procedural")
    write(arguments.out, arguments.count, arguments.size, arguments.seed, arguments.kind)
