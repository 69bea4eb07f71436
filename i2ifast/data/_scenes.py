"""Procedural street scenes with labels, instances and a photo-like rendering.

A scene is made of boxes (sky, buildings, trees, cars, ...) in units of the image height, each filled by a shape in box
coordinates. One fractal displacement of those coordinates makes all outlines ragged, so that label maps have about as
many distinct neighbourhoods as annotated photographs. The rendering is a function of labels, instances, position and
light, plus texture and sensor noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from numpy.random import Generator

CLASSES = ("sky", "hill", "building", "window", "grass", "sidewalk", "road", "lane", "tree", "pole", "car", "person")
SKY, HILL, BUILDING, WINDOW, GRASS, SIDEWALK, ROAD, LANE, TREE, POLE, CAR, PERSON = range(len(CLASSES))

# class                  red  green blue
COLOURS = np.array(
    [
        (122, 172, 226),  # sky
        (104, 126, 116),  # hill
        (178, 134, 104),  # building
        (66, 82, 104),  # window
        (104, 146, 66),  # grass
        (166, 162, 154),  # sidewalk
        (82, 82, 88),  # road
        (226, 224, 212),  # lane
        (48, 98, 46),  # tree
        (96, 80, 66),  # pole
        (186, 44, 44),  # car
        (218, 164, 60),  # person
    ],
    dtype=np.uint8,
)
# How much of the texture each class shows, and how much darker its objects are at their bottom than at their top.
TEXTURE = np.array([0.01, 0.05, 0.04, 0.05, 0.10, 0.05, 0.05, 0.03, 0.16, 0.06, 0.03, 0.06], dtype=np.float32)
SHADING = np.array([-0.12, 0.10, 0.10, -0.15, 0.00, 0.00, 0.00, 0.00, 0.30, 0.10, 0.30, 0.20], dtype=np.float32)
RAGGED = 0.004  # displacement of outlines, standard deviation in image heights

Shape = Callable[[ndarray, ndarray], ndarray]  # box coordinates p (right), q (down), both in [-1, 1] -> mask


class Scene(NamedTuple):
    """Three uint8 arrays of the same height and width."""

    label: ndarray  # [H,W]
    instance: ndarray  # [H,W], the n-th object being len(CLASSES) + n; elsewhere the class
    image: ndarray  # [H,W,3]


def rectangle(p: ndarray, q: ndarray) -> ndarray:
    return (abs(p) < 1) & (abs(q) < 1)


def ellipse(p: ndarray, q: ndarray) -> ndarray:
    return p * p + q * q < 1


def car(p: ndarray, q: ndarray) -> ndarray:
    cabin = (abs(p) < 0.7 + 0.3 * q) & (abs(q + 0.4) < 0.6)
    body = (abs(p) < 1) & (abs(q - 0.25) < 0.4)
    wheels = ellipse((abs(p) - 0.6) / 0.22, (q - 0.65) / 0.35)
    return cabin | body | wheels


def person(p: ndarray, q: ndarray) -> ndarray:
    head = ellipse(p / 0.5, (q + 0.76) / 0.24)
    torso = ellipse(p / 0.95, (q + 0.12) / 0.5)
    legs = (abs(abs(p) - 0.38) < 0.26) & (q > 0) & (q < 1)
    return head | torso | legs


def grid(columns: int, rows: int) -> Shape:
    """Openings in `columns` x `rows` cells of the box."""

    def shape(p: ndarray, q: ndarray) -> ndarray:
        inside = (abs((p + 1) * columns / 2 % 1 - 0.5) < 0.27) & (abs((q + 1) * rows / 2 % 1 - 0.5) < 0.27)
        return inside & rectangle(p, q)

    return shape


def noise(rng: Generator, height: int, width: int, cells: tuple[int, ...]) -> ndarray:
    """Fractal noise [H,W] of about unit variance: bilinear random grids of `cells` per height, weighing 1 / cells."""
    total = np.zeros((height, width), np.float32)
    for n in cells:
        total += (cells[0] / n) * (
            _hats(height, n, height) @ _normal(rng, height, width, n) @ _hats(width, n, height).T
        )
    return total / np.float32(np.sqrt(sum((cells[0] / n) ** 2 for n in cells)) * 2 / 3)  # bilinear: std about 2 / 3


def _normal(rng: Generator, height: int, width: int, n: int) -> ndarray:
    return rng.standard_normal((n + 2, width * n // height + 2), dtype=np.float32)


def _hats(length: int, n: int, height: int) -> ndarray:
    """Weights [length, knots] of linear interpolation between knots `height / n` pixels apart."""
    position = (np.arange(length, dtype=np.float32) + 0.5) * (n / height)
    knots = np.arange(length * n // height + 2, dtype=np.float32)
    return np.maximum(0, 1 - abs(position[:, None] - knots))


class _Canvas:
    """Label, instance and shade maps that boxes are painted on, back to front."""

    def __init__(self, rng: Generator, height: int, width: int) -> None:
        self.size = height, width
        self.label = np.full((height, width), SKY, np.uint8)
        self.instance = np.full((height, width), SKY, np.uint8)
        self.shade = np.zeros((height, width), np.float32)
        self.objects = 0
        u, v = (np.arange(width, dtype=np.float32) + 0.5) / height, (np.arange(height, dtype=np.float32) + 0.5) / height
        cells = tuple(n for n in (10, 20, 40) if n <= height)
        self.u = u + RAGGED * noise(rng, height, width, cells)
        self.v = v[:, None] + RAGGED * noise(rng, height, width, cells)

    def pixels(self, low: float, high: float) -> slice:
        """Rows or columns from low to high (image heights), with room for ragged outlines."""
        height, room = self.size[0], 6 * RAGGED
        return slice(max(0, int((low - room) * height)), max(0, int((high + room) * height) + 1))

    def paint(
        self, kind: int, box: tuple[float, float, float, float], shape: Shape = rectangle, new: bool = False
    ) -> None:
        """Fill `shape` in box (left, top, right, bottom) with class `kind`; `new` makes it an object of its own."""
        left, top, right, bottom = box
        rows, columns = self.pixels(top, bottom), self.pixels(left, right)
        p = (self.u[rows, columns] - left) * (2 / (right - left)) - 1
        q = (self.v[rows, columns] - top) * (2 / (bottom - top)) - 1
        mask = shape(p, q)
        self.label[rows, columns][mask] = kind
        self.shade[rows, columns][mask] = q[mask]
        if new:
            self.objects += 1
        self.instance[rows, columns][mask] = len(CLASSES) + self.objects - 1 if new else kind


def _town(canvas: _Canvas, rng: Generator, aspect: float, horizon: float) -> None:
    """Hills, then a row of buildings with windows and gaps."""
    for _ in range(3):
        x, radius = rng.uniform(0, aspect), rng.uniform(0.25, 0.6)
        canvas.paint(HILL, (x - radius, horizon - rng.uniform(0.05, 0.2), x + radius, horizon + 0.3), ellipse)
    x = rng.uniform(-0.2, 0.0)
    while x < aspect:
        width = rng.uniform(0.22, 0.5)
        if rng.random() < 0.8:
            top, bottom = rng.uniform(0.02, horizon - 0.12), horizon + 0.06
            canvas.paint(BUILDING, (x, top, x + width, bottom), new=True)
            columns, rows = (
                max(1, round(width / rng.uniform(0.11, 0.17))),
                max(1, round((bottom - top) / rng.uniform(0.11, 0.17))),
            )
            canvas.paint(WINDOW, (x + 0.01, top + 0.02, x + width - 0.01, bottom - 0.07), grid(columns, rows))
        x += width


def _ground(canvas: _Canvas, rng: Generator, aspect: float, horizon: float) -> tuple[float, float]:
    """Grass, sidewalks, a road from a vanishing point, lanes. Returns the point's x, half the road's lowest width."""
    vanish, half = aspect * rng.uniform(0.35, 0.65), rng.uniform(0.45, 0.8)
    depth = 1 - horizon
    floor = (0.0, horizon + 0.03, aspect, 1.02)
    canvas.paint(GRASS, (-0.1, horizon + rng.uniform(0.0, 0.03), aspect + 0.1, 1.1))

    def strip(inner: float, outer: float) -> Shape:
        def shape(p: ndarray, q: ndarray) -> ndarray:
            near = (q + 1) / 2 * (floor[3] - floor[1]) + 0.03  # below the horizon
            across = abs((p + 1) / 2 * aspect - vanish) / (near / depth * half + 0.02)
            return (across >= inner) & (across < outer) & (q > -1)

        return shape

    canvas.paint(SIDEWALK, floor, strip(1.0, rng.uniform(1.25, 1.6)))
    canvas.paint(ROAD, floor, strip(0.0, 1.0))
    phase, dashes = rng.uniform(0, 1), rng.uniform(0.25, 0.45)
    middle = strip(0.0, 0.05)
    canvas.paint(LANE, floor, lambda p, q: middle(p, q) & ((dashes / ((q + 1) / 2 * depth + 0.06) + phase) % 1 < 0.55))
    canvas.paint(LANE, floor, strip(0.9, 0.95))
    return vanish, half


def _objects(canvas: _Canvas, rng: Generator, horizon: float, vanish: float, half: float) -> None:
    """Trees, poles, people and cars in perspective, far ones first."""
    kinds = (
        [TREE] * rng.integers(1, 5)
        + [POLE] * rng.integers(0, 3)
        + [PERSON] * rng.integers(1, 5)
        + [CAR] * rng.integers(1, 4)
    )
    feet = np.sort(horizon + 0.05 + (0.9 - horizon) * rng.random(len(kinds)) ** 1.6)
    for kind, y in zip(rng.permutation(kinds), feet, strict=True):
        near = (y - horizon) / (1 - horizon)  # 0 at the horizon, 1 at the lower border
        road, side = near * half + 0.02, rng.choice((-1.0, 1.0))
        size = rng.uniform(0.8, 1.2) * (0.12 + near)
        if kind == TREE:
            x, crown = vanish + side * road * rng.uniform(1.5, 2.4), 0.28 * size
            canvas.paint(POLE, (x - 0.03 * size, y - 0.5 * size, x + 0.03 * size, y), new=True)
            canvas.paint(TREE, (x - crown, y - 0.95 * size, x + crown, y - 0.3 * size), ellipse, new=True)
        elif kind == POLE:
            x, thin = vanish + side * road * rng.uniform(1.05, 1.2), 0.02 * size + 0.004
            canvas.paint(POLE, (x - thin, y - 0.9 * size, x + thin, y), new=True)
        elif kind == PERSON:
            x, wide = vanish + side * road * rng.uniform(1.05, 1.5), 0.075 * size
            canvas.paint(PERSON, (x - wide, y - 0.42 * size, x + wide, y), person, new=True)
        else:
            x, wide = vanish + side * road * rng.uniform(0.3, 0.7), 0.26 * size
            canvas.paint(CAR, (x - wide, y - 0.28 * size, x + wide, y), car, new=True)


def _render(canvas: _Canvas, rng: Generator, horizon: float) -> ndarray:
    """Photo-like [H,W,3] uint8: class colours, shade by height within the box, haze, shadows, texture, light, noise."""
    height, width = canvas.size
    label, instance = canvas.label, canvas.instance
    cells = tuple(n for n in (8, 16, 32, 64, 128) if n <= height)
    texture = noise(rng, height, width, cells) + rng.standard_normal((height, width), dtype=np.float32) / 2
    light = 1 - SHADING[label] * canvas.shade + TEXTURE[label] * texture
    light *= 1 + 0.08 * noise(rng, height, width, (2,))
    light *= np.where(outlines(instance), 0.8, 1.0)
    drop = max(1, height // 40)
    solid = (label == CAR) | (label == PERSON) | (label == POLE)
    light[drop:] *= np.where(solid[:-drop] & ~solid[drop:], 0.65, 1.0)  # contact shadow
    image = COLOURS[label] * light[..., None]
    far = np.exp(-abs((np.arange(height) + 0.5) / height - horizon) / 0.12)[:, None] * (instance < len(CLASSES))
    image += (np.array((214, 222, 230)) - image) * 0.35 * far[..., None]  # haze at the horizon, behind the objects
    image *= rng.uniform(0.95, 1.05, 3) * rng.uniform(0.92, 1.08)
    return np.clip(image + rng.normal(0, 2, image.shape) + 0.5, 0, 255).astype(np.uint8)


def scene(size: int | tuple[int, int], seed: int | list[int]) -> Scene:
    """One scene of `size` (height, width), or a square one; the same for the same seed."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 16 or width > 16 * height:
        raise ValueError(f"size {height}x{width}: expected at least 16x16 pixels, and a width of at most 16 heights")
    rng = np.random.default_rng(seed)
    canvas = _Canvas(rng, height, width)
    horizon = rng.uniform(0.38, 0.52)
    canvas.shade[:] = canvas.v / horizon * 2 - 1  # the sky is painted by nobody
    _town(canvas, rng, width / height, horizon)
    _objects(canvas, rng, horizon, *_ground(canvas, rng, width / height, horizon))
    return Scene(canvas.label, canvas.instance, _render(canvas, rng, horizon))


def portrait(kind: int, size: tuple[int, int], seed: int | list[int]) -> Scene:
    """A single object of class TREE, CAR or PERSON on grass, large in an image of `size` (height, width)."""
    rng, (height, width) = np.random.default_rng(seed), size
    canvas, aspect = _Canvas(rng, height, width), width / height
    horizon = rng.uniform(0.3, 0.6)
    canvas.shade[:] = canvas.v / horizon * 2 - 1
    canvas.paint(GRASS, (-0.1, horizon, aspect + 0.1, 1.1))
    x, half, high = aspect * rng.uniform(0.45, 0.55), rng.uniform(0.3, 0.42), rng.uniform(0.6, 0.85)
    if kind == TREE:
        canvas.paint(POLE, (x - 0.05, 0.5, x + 0.05, 0.95), new=True)
        canvas.paint(TREE, (x - half, 0.9 - high, x + half, 0.9 - high / 3), ellipse, new=True)
    elif kind == PERSON:
        canvas.paint(PERSON, (x - half / 2, 0.95 - high, x + half / 2, 0.95), person, new=True)
    else:
        canvas.paint(CAR, (x - half, 0.9 - half, x + half, 0.9), car, new=True)
    return Scene(canvas.label, canvas.instance, _render(canvas, rng, horizon))


def outlines(instance: ndarray) -> ndarray:
    """Mask [H,W] of pixels whose instance is another above or to the left."""
    contour = np.zeros(instance.shape, bool)
    contour[1:] |= instance[1:] != instance[:-1]
    contour[:, 1:] |= instance[:, 1:] != instance[:, :-1]
    return contour
