"""How SIMS places the segments that it retrieves: a network that transforms each, and one for which is in front.

Qi, Chen, Jia, Koltun. Semi-parametric Image Synthesis. CVPR 2018. Nothing is recorded of these networks: they are built
from the paper, and take patches of images in place of whole ones. The original's matrices are of pixels, and rounded to
whole numbers for Cityscapes, which leaves shifts alone; its ordering sees colours of classes in place of one-hot ones.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._crn import ConvNorm
from ._sims import Piece, Segments, resized

REPEATS = (2, 2, 3, 3, 3)  # convolutions of the levels, each of which halves
HIDDEN = 16  # times as many features as the first level has channels, behind the mean
MARGIN = 0.25  # of a box, on each of its sides, that its patch shows too
TURN, SCALE, SHIFT = math.radians(20), 0.25, 0.2  # the largest changes that transformations are learned from


class Trunk(nn.Module):
    """Patches [N,C,P,P] to features [N,8 dim,P/32,P/32]."""

    def __init__(self, fin: int, dim: int) -> None:
        super().__init__()
        for level, (factor, count) in enumerate(zip((1, 2, 4, 8, 8), REPEATS, strict=True), 1):
            for i in range(1, count + 1):
                self.add_module(f"conv{level}_{i}", ConvNorm(fin, factor * dim))
                fin = factor * dim

    def forward(self, x: Tensor) -> Tensor:
        for level, count in enumerate(REPEATS, 1):
            for i in range(1, count + 1):
                x = self.get_submodule(f"conv{level}_{i}")(x)
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False) if level == 1 else F.max_pool2d(x, 3, 2, 1)
        return x


class Transformer(nn.Module):
    """Patches of segments [N,4,P,P], their pixels and shapes, and what they are for, a shape and one-hot classes
    [N,1+L,P,P], to affine matrices [N,2,3], at first the identity.

    A matrix takes places in the result to places in the patch, both in [-1, 1].
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.trunk = Trunk(5 + num_classes, dim)
        self.theta = nn.Linear(8 * dim, 6)

    def reset_theta(self) -> None:
        nn.init.zeros_(self.theta.weight)
        self.theta.bias.detach().copy_(torch.eye(2, 3).flatten())

    def forward(self, segment: Tensor, wanted: Tensor) -> Tensor:
        return self.theta(self.trunk(torch.cat([segment, wanted], 1)).mean((2, 3))).view(-1, 2, 3)


class Ordering(nn.Module):
    """Patches [N,3+L,P,P] of two segments, their pixels and one-hot classes, to logits [N,L] of the class in front."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.trunk = Trunk(3 + num_classes, dim)
        self.hidden, self.logits = nn.Linear(8 * dim, HIDDEN * dim), nn.Linear(HIDDEN * dim, num_classes)

    def forward(self, pair: Tensor, kept: Tensor | None = None) -> Tensor:
        """`kept` [N,features]: in training 1 for features that are kept, else 0."""
        x = F.leaky_relu(self.hidden(self.trunk(pair).mean((2, 3))), 0.2)
        return self.logits(x if kept is None else 2 * x * kept)


def warp(x: Tensor, theta: Tensor) -> Tensor:
    """x [N,C,h,w] transformed by matrices [N,2,3]; zeros from outside."""
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def disturbances(u: Tensor) -> Tensor:
    """Matrices [N,2,3] that turn, scale and shift, of numbers [N,4] in [0, 1)."""
    angle, scale, x, y = (2 * u - 1).unbind(1)
    angle, scale = angle * TURN, torch.exp(scale * math.log1p(SCALE))
    cos, sin = scale * angle.cos(), scale * angle.sin()
    return torch.stack([cos, -sin, SHIFT * x, sin, cos, SHIFT * y], 1).view(-1, 2, 3)


class Box(NamedTuple):
    """Rows and columns of an image."""

    top: int
    left: int
    bottom: int
    right: int

    def wider(self, size: Sequence[int]) -> "Box":
        """With a margin, within an image of a height and width."""
        y, x = math.ceil(MARGIN * (self.bottom - self.top)), math.ceil(MARGIN * (self.right - self.left))
        return Box(
            max(0, self.top - y), max(0, self.left - x), min(size[0], self.bottom + y), min(size[1], self.right + x)
        )

    def around(self, other: "Box") -> "Box":
        """The smallest that has both."""
        low, high = (map(choose, zip(self, other, strict=True)) for choose in (min, max))
        return Box(*[*low][:2], *[*high][2:])

    @property
    def cut(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def patch(self, x: Tensor, side: int) -> Tensor:
        """The part of x [C,H,W] in the box, resized to side x side."""
        return resized(x[:, *self.cut].float(), (side, side))


def box_of(segments: Segments, i: int) -> Box:
    return Box(*segments.box[i].tolist())


def wanted(segments: Segments, i: int, box: Box, side: int, num_classes: int) -> Tensor:
    """What the transformer is to fill: the shape of a segment of a label map, and its class everywhere, [1+L,P,P]."""
    one_hot = F.one_hot(segments.label[i], num_classes).float()[:, None, None].expand(-1, side, side)
    return torch.cat([box.patch((segments.number == i)[None], side), one_hot])


def across(x: Tensor) -> Tensor:
    """Values [2,K] of all pairs of pixels of a map [H,W] that are side by side, or one above the other."""
    pairs = (x[:, :-1], x[:, 1:]), (x[:-1], x[1:])
    return torch.cat([torch.stack([a.flatten(), b.flatten()]) for a, b in pairs], 1)


def neighbours(number: Tensor) -> list[list[int]]:
    """Pairs, the smaller first, of segments of a map [H,W] that have pixels beside each other."""
    low, high = across(number).sort(0).values
    return torch.stack([low, high], 1)[(low >= 0) & (low != high)].unique(dim=0).tolist()


def nearer(number: Tensor, disparity: Tensor, pair: Sequence[int]) -> int | None:
    """Which of two neighbours in a map [H,W] has the larger disparity [H,W] along their border; 0 is unknown."""
    of, shift = across(number), across(disparity.float())
    known = (shift > 0).all(0)
    sums = []
    for i, j in (pair, pair[::-1]):
        sums.append(sum(shift[k][known & (of[k] == i) & (of[1 - k] == j)].sum() for k in (0, 1)))
    return None if sums[0] == sums[1] else pair[int(sums[1] > sums[0])]


def pair_patch(picture: Tensor, segments: Segments, pair: Sequence[int], side: int, num_classes: int) -> Tensor:
    """What the ordering network sees of two segments [3+L,P,P]: `picture` [3,H,W] in [0, 1], which has nothing else on
    it, and their classes."""
    box = box_of(segments, pair[0]).around(box_of(segments, pair[1])).wider(segments.number.shape)
    here, shown = segments.number[box.cut], torch.zeros(num_classes, *segments.number[box.cut].shape)
    for i in pair:
        shown[segments.label[i]] += (here == i).float()
    return torch.cat([box.patch(picture, side), resized(shown, (side, side))])


def transformed(
    net: Transformer, pieces: dict[int, Piece], segments: Segments, side: int, num_classes: int
) -> dict[int, Piece]:
    """Pieces for segments of a label map, each fitted by the network within a box with a margin."""
    if not pieces:
        return pieces
    boxes = {i: box_of(segments, i).wider(segments.number.shape) for i in pieces}
    placed = {}
    for i, piece in pieces.items():
        box, own = boxes[i], box_of(segments, i)
        around = (own.left - box.left, box.right - own.right, own.top - box.top, box.bottom - own.bottom)
        placed[i] = F.pad(torch.cat([piece.image * piece.shape, piece.shape]), around)
    like = net.theta.bias
    shown = torch.stack([resized(x, (side, side)) for x in placed.values()]).to(like)
    shown = torch.cat([shown[:, :3] / 255, shown[:, 3:]], 1)
    asked = torch.stack([wanted(segments, i, boxes[i], side, num_classes) for i in pieces]).to(like)
    found = {}
    for (i, x), theta in zip(placed.items(), net(shown, asked).float().cpu(), strict=True):
        x = warp(x[None], theta[None])[0]
        shape = x[3:].round()
        found[i] = Piece(boxes[i], x[:3] / x[3:].clamp(min=1e-3), shape)  # colours of the segment alone
    return found


def order(net: Ordering, pieces: dict[int, Piece], segments: Segments, side: int, num_classes: int) -> list[int]:
    """The pieces from back to front; of two neighbours of one class the one that ends lower down is in front."""
    pairs = [pair for pair in neighbours(segments.number) if all(i in pieces for i in pair)]
    unclear = [pair for pair in pairs if segments.label[pair[0]] != segments.label[pair[1]]]
    logits = torch.empty(0)
    if unclear:
        shown = torch.stack([
            pair_patch(picture_of(pieces, pair, segments.number.shape), segments, pair, side, num_classes)
            for pair in unclear
        ])  # fmt: skip
        logits = net(shown.to(net.logits.bias)).float().cpu()
    of_pair = dict(zip(map(tuple, unclear), logits, strict=True))
    in_front = []  # (front, behind)
    for i, j in pairs:
        scores = of_pair[i, j][segments.label[[i, j]]] if (i, j) in of_pair else segments.box[[i, j], 2]
        in_front.append((i, j) if scores[0] > scores[1] else (j, i))
    return from_back(list(pieces), in_front)


def picture_of(pieces: dict[int, Piece], pair: Sequence[int], size: Sequence[int]) -> Tensor:
    """Two pieces on an image [3,H,W] in [0, 1]; where both are, their mean."""
    picture, count = torch.zeros(3, *size), torch.zeros(1, *size)
    for i in pair:
        box, image, shape = pieces[i]
        picture[:, *Box(*box).cut] += image / 255 * shape
        count[:, *Box(*box).cut] += shape
    return picture / count.clamp(min=1)


def from_back(items: Sequence[int], in_front: Sequence[tuple[int, int]]) -> list[int]:
    """Items in an order in which those in front come later; where there is a circle, of (front, behind) pairs, next is
    what is in front of the fewest of those left."""
    behind = {item: {b for front, b in in_front if front == item} for item in items}
    ordered = []
    while behind:
        item = min(behind, key=lambda item: len(behind[item] & behind.keys()))
        ordered.append(item)
        del behind[item]
    return ordered
