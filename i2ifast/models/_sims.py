"""The memory bank of SIMS: segments of photographs, and canvases made of those that fit a label map."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from i2ifast.labels import objects

from ._crn import bytes_of
from ._system import Batch

SHAPE = 32  # side of the masks that are compared
AREA = 64  # pixels of the smallest segment that is kept


@dataclass
class Segments:
    """The connected pixels of one label, of one label map."""

    number: Tensor  # [H, W], of the segment at every pixel; -1 for small ones
    label: Tensor  # [S]
    box: Tensor  # [S, 4]: top, left, bottom, right
    shape: Tensor  # [S, SHAPE^2], their masks in the box, resized; 0 or 1


def segments(label: Tensor) -> Segments:
    """Those of a label map [H,W] that have at least AREA pixels."""
    _, number, counts = objects(label[None])[0].unique(return_inverse=True, return_counts=True)
    kept = counts >= AREA
    number = torch.where(kept, kept.cumsum(0) - 1, -1)[number]
    labels, boxes, shapes = [], [], []
    for i in range(int(kept.sum())):
        mask = number == i
        rows, columns = (mask.any(dim).nonzero()[:, 0] for dim in (1, 0))
        top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
        labels.append(label[top][mask[top]][0])
        boxes.append(torch.tensor([top, left, bottom, right]))
        shapes.append(resized(mask[None, top:bottom, left:right].float(), (SHAPE, SHAPE)).round().flatten())
    none = label.new_zeros(0)
    return Segments(
        number,
        torch.stack(labels) if labels else none,
        torch.stack(boxes) if boxes else none.view(0, 4),
        torch.stack(shapes) if shapes else none.view(0, SHAPE**2).float(),
    )


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """x [C,h,w], bilinear."""
    return F.interpolate(x[None], size=size, mode="bilinear", antialias=True)[0]


def key_of(path: object) -> int:
    """What stands for a file in a bank."""
    return crc32(Path(str(path)).name.encode())


@dataclass
class Bank:
    """Photographs and their segments, on the host."""

    images: Tensor  # [M, 3, H, W] uint8
    numbers: Tensor  # [M, H, W] int32, of the segment at every pixel, over all images
    keys: Tensor  # [M], of the files
    source: Tensor  # [S], image of the segment
    label: Tensor  # [S]
    box: Tensor  # [S, 4]
    shape: Tensor  # [S, SHAPE^2] bool

    @classmethod
    def of(cls, items: Iterable[Batch]) -> "Bank":
        """The bank of items {label [1,H,W], image [3,H,W] in [-1, 1], path} of one size."""
        images, numbers, keys, found, count = [], [], [], [], 0
        for item in items:
            made = segments(item["label"][0])
            images.append(bytes_of(item["image"]).round().byte())
            numbers.append(torch.where(made.number < 0, -1, made.number + count).int())
            keys.append(key_of(item["path"]))
            found.append((torch.full_like(made.label, len(images) - 1), made.label, made.box, made.shape.bool()))
            count += len(made.label)
        if not images:
            raise ValueError("a bank of no items: expected at least 1")
        of_segments = (torch.cat(each) for each in zip(*found, strict=True))
        return cls(torch.stack(images), torch.stack(numbers), torch.tensor(keys), *of_segments)

    def save(self, path: str | Path) -> None:
        """As .safetensors."""
        save_file({name: value.contiguous() for name, value in vars(self).items()}, path)

    @classmethod
    def load(cls, path: str | Path) -> "Bank":
        """What `save` wrote; ValueError names what is missing."""
        tensors = load_file(path)
        if missing := [field.name for field in fields(cls) if field.name not in tensors]:
            raise ValueError(f"{path} is no memory bank: no {', '.join(missing)}")
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})

    def best(self, query: Segments, without: int | None = None) -> list[int]:
        """For each segment that of the same label whose shape overlaps it most, in a file other than `without`.

        Shapes are compared in their boxes, by intersection over union; -1 where there is no segment of that label.
        """
        shapes = self.shape.float()
        both = query.shape @ shapes.t()
        either = query.shape.sum(1, keepdim=True) + shapes.sum(1) - both
        allowed = query.label[:, None] == self.label
        if without is not None:
            allowed &= self.keys[self.source] != without
        score = torch.where(allowed, both / either.clamp(min=1), -1.0)
        if not score.numel():
            return [-1] * len(query.label)
        best = score.max(1)
        return torch.where(best.values < 0, -1, best.indices).tolist()

    def pieces(self, query: Segments, without: int | None = None) -> dict[int, "Piece"]:
        """The best segment for each of `query`, by its number, resized to its box."""
        found = {}
        for i, (at, best) in enumerate(zip(query.box.tolist(), self.best(query, without), strict=True)):
            if best < 0:
                continue
            top, left, bottom, right = self.box[best].tolist()
            there, image = (..., slice(top, bottom), slice(left, right)), int(self.source[best])
            size = (at[2] - at[0], at[3] - at[1])
            shape = resized((self.numbers[image][there] == best).float()[None], size).round()
            found[i] = Piece(at, resized(self.images[image][there].float(), size), shape)
        return found

    def canvas(
        self, label: Tensor, elide: int, without: int | None = None, place: "Placing | None" = None
    ) -> tuple[Tensor, Tensor]:
        """Canvas [3,H,W] in 0..255 and mask [1,H,W] of what is on it, for a label map [H,W].

        The best segment for each of the map's is resized to its box and cut to its shape, or goes where `place` puts
        it. Nothing is put within `elide` pixels of a border between segments, which are the network's to make.
        """
        label = label.cpu()
        query = segments(label)
        pieces = self.pieces(query, without)
        if place is None:
            pieces = list(cut(pieces, query).values())
        else:
            pieces = place(pieces, query)
        canvas, mask = torch.zeros(3, *label.shape), torch.zeros(1, *label.shape)
        for (top, left, bottom, right), image, shape in pieces:
            here = (..., slice(top, bottom), slice(left, right))
            canvas[here] = torch.where(shape > 0, image.round(), canvas[here])
            mask[here] = torch.maximum(mask[here], shape)
        if elide:
            mask = mask * (1 - near_borders(label, elide))
        return canvas * mask, mask


class Piece(NamedTuple):
    """A retrieved segment, where it is to be on a canvas."""

    box: Sequence[int]  # top, left, bottom, right
    image: Tensor  # [3,h,w] in 0..255
    shape: Tensor  # [1,h,w], 1 where it is


Placing = Callable[[dict[int, Piece], Segments], list[Piece]]  # for the segments of a map, to pieces from back to front


def cut(pieces: dict[int, Piece], query: Segments) -> dict[int, Piece]:
    """Pieces without what lies over the segments of a map that they are for."""

    def inside(i: int, piece: Piece) -> Piece:
        top, left, bottom, right = piece.box
        return piece._replace(shape=piece.shape * (query.number[top:bottom, left:right] == i))

    return {i: inside(i, piece) for i, piece in pieces.items()}


def near_borders(label: Tensor, width: int) -> Tensor:
    """1 at pixels of a map [H,W] with another label within `width` rows and columns, else 0: [1,H,W]."""
    window, values = 2 * width + 1, label[None, None].float()
    high, low = (F.max_pool2d(each, window, 1, width) for each in (values, -values))
    return (high != -low)[0].float()
