"""Label maps to label plans: the distinct neighbourhoods that layers conditioned on a label map are computed on.

A plan depends on labels alone. It is made where they are: on the host, as in a data-loader worker, or on a GPU.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops.label_patches import distinct_vectors, label_bags, label_patches, transpose_bags
from .ops.modulate_table import Segments

Size = tuple[int, int]
PooledWindows = tuple[int, Size, int, int, int]  # average poolings 3x3 of stride 2, then arguments of `windows`


class Bags(NamedTuple):
    """Lists of rows to add up: out[d] = sum of rows[index[offsets[d]:offsets[d+1]]]."""

    offsets: Tensor  # [D+1] int32
    index: Tensor  # [M] int32
    rows: int  # R, the number of source rows

    def transpose(self) -> "Bags":
        """The adjoint: bag r of R lists the bags that row r is in."""
        return Bags(*transpose_bags(self.offsets, self.index, self.rows), self.offsets.numel() - 1)


@dataclass(eq=False)
class Windows:
    """The distinct k x k windows of a map of ids: which one is at each output pixel, and the taps each is made of."""

    patches: Tensor  # [N, Ho, Wo] int32
    bags: Bags  # of each window: members id * k * k + tap; taps outside the image are no members

    @property
    def count(self) -> int:
        """D, the number of distinct windows."""
        return self.bags.offsets.numel() - 1

    @cached_property
    def bags_t(self) -> Bags:
        return self.bags.transpose()

    @cached_property
    def segments(self) -> Segments:
        """Pixels, numbered through [N, Ho, Wo], sorted by `patches`."""
        return _segments(self.patches, self.count)


@dataclass(eq=False)
class Level:
    """The plan of two stacked k x k convolutions over a label map at one resolution (stride 1, zero padding)."""

    symbols: Tensor  # [N, h, w] int32, rows of the plan's values
    hidden: Windows  # of symbols
    table: Windows  # of hidden.patches


@dataclass(eq=False)
class LabelPlan:
    """Distinct channel vectors of a batch of label maps, and levels made on first use and kept.

    Pickles, copies and moves as two tensors, so that it is cheap to hand from a data-loader worker to a device.
    With `separate`, symbols of different samples differ: those of sample n are rows n * S / N to (n + 1) * S / N - 1.
    """

    values: Tensor  # [S, nc] float32: the distinct channel vectors
    symbols: Tensor  # [N, H, W] int32: rows of values
    separate: bool = False
    levels: dict[tuple[Size, int], Level] = field(default_factory=dict)
    windowed: dict[tuple[Size, int, int, int], Windows] = field(default_factory=dict)
    pooled: dict[tuple[int, int, int], "LabelPlan"] = field(default_factory=dict, repr=False)
    maps: dict[Size, Tensor] = field(default_factory=dict, repr=False)
    separated: "LabelPlan | None" = field(default=None, repr=False)

    @property
    def num_channels(self) -> int:
        return self.values.size(1)

    @property
    def size(self) -> Size:
        """(H, W) of the label maps."""
        return self.symbols.size(1), self.symbols.size(2)

    def level(self, size: Size, kernel: int = 3) -> Level:
        """The plan at resolution `size`, to which the labels are resized by nearest, for odd `kernel`."""
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel={kernel}: expected an odd number")
        key = (tuple(size), kernel)
        if key not in self.levels:
            symbols = _resize(self.symbols, size)
            hidden = _windows(symbols, self.values.size(0), kernel, 1, kernel // 2)
            table = _windows(hidden.patches, hidden.count, kernel, 1, kernel // 2)
            self.levels[key] = Level(symbols, hidden, table)
        return self.levels[key]

    def per_sample(self) -> "LabelPlan":
        """The plan in which no window is shared by two samples: for layers that depend on more than labels."""
        if self.separate:
            return self
        if self.separated is None:
            samples, count = self.symbols.size(0), self.values.size(0)
            first = torch.arange(samples, dtype=torch.int32, device=self.symbols.device) * count
            made = (self.levels, self.windowed) if samples == 1 else ({}, {})
            symbols = self.symbols + first.view(-1, 1, 1)
            self.separated = LabelPlan(self.values.repeat(samples, 1), symbols, True, *made)
        return self.separated

    def windows(self, size: Size, kernel: int, stride: int = 1, padding: int = 0) -> Windows:
        """The plan of one convolution over the label map at resolution `size`: windows of symbols."""
        key = (tuple(size), kernel, stride, padding)
        if key not in self.windowed:
            self.windowed[key] = _windows(_resize(self.symbols, size), self.values.size(0), kernel, stride, padding)
        return self.windowed[key]

    def avg_pool2d(self, kernel: int, stride: int, padding: int) -> "LabelPlan":
        """The plan of F.avg_pool2d(dense(), ..., count_include_pad=False): soft vectors, but few distinct ones."""
        key = (kernel, stride, padding)
        if key not in self.pooled:
            self.pooled[key] = LabelPlan(self._means(*key), self.windows(self.size, *key).patches)
        return self.pooled[key]

    def _means(self, kernel: int, stride: int, padding: int) -> Tensor:
        """The vectors of a pooled plan."""
        offsets, index, _ = self.windows(self.size, kernel, stride, padding).bags
        return F.embedding_bag(index // kernel**2, self.values, offsets, mode="mean", include_last_offset=True)

    def dense(self, size: Size | None = None) -> Tensor:
        """The conditioning map [N, nc, h, w] float32, channels_last, resized by nearest."""
        key = tuple(size or self.size)
        if key not in self.maps:
            self.maps[key] = F.embedding(_resize(self.symbols, key), self.values).permute(0, 3, 1, 2)
        return self.maps[key]

    def precompute(
        self, sizes: Iterable[Size], kernel: int = 3, backward: bool = True, windows: Iterable[PooledWindows] = ()
    ) -> "LabelPlan":
        """Make the levels of `sizes` and `windows` now, with the sorted pixels that gradients use if `backward`.

        Returns the plan.
        """
        levels = [self.level(size, kernel) for size in sizes]
        made = [windows for level in levels for windows in (level.hidden, level.table)]
        for pooled, *arguments in windows:
            plan = self
            for _ in range(pooled):
                plan = plan.avg_pool2d(3, 2, 1)
            made.append(plan.windows(*arguments))
        for each in made:
            _ = each.bags_t, backward and each.segments
        return self

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "LabelPlan":
        """The plan on `device`. Copies without waiting if `non_blocking` and the plan is pinned."""
        if torch.device(device) == self.symbols.device:
            return self
        state = self._pack(self.symbols.is_pinned())
        return _unpack({**state, **{k: state[k].to(device, non_blocking=non_blocking) for k in ("values", "words")}})

    def pin_memory(self) -> "LabelPlan":
        """The plan in page-locked memory; data loaders call it."""
        return _unpack(self._pack(True))

    def _pack(self, pinned: bool = False) -> dict[str, Any]:
        """All integer tensors as slices of one; vectors of pooled plans and dense maps, quickly made, are left out."""
        slots: list[tuple[_Slot, Tensor]] = []
        total = 0

        def place(t: Tensor) -> _Slot:
            nonlocal total
            slots.append((_Slot(total, tuple(t.shape)), t))
            total += -(-t.numel() // 32) * 32  # slices start on cache lines
            return slots[-1][0]

        rest = _replace(self._rest(), Tensor, place)
        words = torch.empty(total, dtype=torch.int32, device=self.symbols.device, pin_memory=pinned)
        for slot, t in slots:
            slot.view(words).copy_(t)
        values = self.values.pin_memory() if pinned else self.values
        return {"values": values, "words": words, "rest": rest}

    def _rest(self) -> dict[str, Any]:
        """All but the vectors."""
        names = "symbols", "levels", "windowed", "separate"
        pooled = {key: plan._rest() for key, plan in self.pooled.items()}
        return {name: getattr(self, name) for name in names} | {"pooled": pooled}

    def __reduce__(self) -> tuple:
        return _unpack, (self._pack(),)


class _Slot(NamedTuple):
    """Where a tensor lies in the packed one."""

    begin: int
    shape: tuple[int, ...]

    def view(self, words: Tensor) -> Tensor:
        return words[self.begin : self.begin + torch.Size(self.shape).numel()].view(self.shape)


def _unpack(state: dict[str, Any]) -> LabelPlan:
    return _with_values(state["values"], _replace(state["rest"], _Slot, lambda slot: slot.view(state["words"])))


def _with_values(values: Tensor, rest: dict[str, Any]) -> LabelPlan:
    pooled = rest.pop("pooled")
    plan = LabelPlan(values, **rest)
    plan.pooled = {key: _with_values(plan._means(*key), each) for key, each in pooled.items()}
    return plan


def _replace(value: Any, kind: type, function: Callable) -> Any:
    """A copy of nested plan data in which every `kind` went through `function`."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {k: _replace(v, kind, function) for k, v in value.items()}
    if isinstance(value, tuple):
        items = [_replace(v, kind, function) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, Level | Windows):
        new = object.__new__(type(value))
        new.__dict__ = _replace(vars(value), kind, function)
        return new
    return value


def _resize(symbols: Tensor, size: Size) -> Tensor:
    """Nearest, from the very rows and columns that F.interpolate takes: those of a resized map of coordinates."""
    for dim, length in ((1, size[0]), (2, size[1])):
        if symbols.size(dim) != length:
            here = torch.arange(symbols.size(dim), dtype=torch.float32, device=symbols.device)
            symbols = symbols.index_select(dim, F.interpolate(here[None, None], size=length)[0, 0].int())
    return symbols


def _segments(ids: Tensor, count: int) -> Segments:
    """Pixels, numbered through [N, H, W], sorted by their id."""
    ends = torch.arange(ids.numel() + 1, dtype=torch.int32, device=ids.device)
    offsets, order = transpose_bags(ends, ids.flatten(), count)
    return Segments(order, offsets)


def _windows(ids: Tensor, count: int, kernel: int, stride: int, padding: int) -> Windows:
    patches, neighbours = label_patches(ids, kernel, stride, padding)
    return Windows(patches, Bags(*label_bags(neighbours), count * kernel * kernel))


def plan(
    labels: Tensor,
    num_classes: int,
    edges: Tensor | None = None,
    instances: Tensor | None = None,
    ignore_index: int | None = None,
) -> LabelPlan:
    """The plan of label maps: channel vectors are one-hot over `num_classes`, then the edge channel if there is one.

    labels [N, H, W] or [N, 1, H, W], integers or bool, 0..num_classes-1. Pixels equal to `ignore_index`, and only they,
    get an all-zero vector. The edge channel is `edges` (same shapes, 0 or 1) or `instance_edges(instances)`.
    Raises ValueError naming value, limit and position for a label or edge out of range.
    """
    labels = _integers("labels", labels)
    if not 1 <= num_classes < 2**30:
        raise ValueError(f"num_classes={num_classes}: expected 1..{2**30 - 1}")
    if edges is not None and instances is not None:
        raise ValueError("give edges or instances, not both")
    if instances is not None:
        edges = instance_edges(instances)
    ignored = labels == ignore_index if ignore_index is not None else None
    _check_labels(labels, num_classes, ignored)
    codes = labels
    if edges is not None:
        edges = _planes("edges", edges)
        if edges.shape != labels.shape:
            raise ValueError(f"edges have shape {list(edges.shape)}, labels {list(labels.shape)}")
        if edges.dtype is not torch.bool and (wrong := edges != edges.bool()).any():
            raise ValueError(f"{_where('edges', edges, wrong)}: expected 0 or 1")
        codes = 2 * labels + edges.long()
    if ignored is not None:
        codes = codes.masked_fill(ignored, -1)
    symbols, found = label_patches(codes.int(), 1)
    found = found[:, :1].long()
    known = (found >= 0).float()
    classes = (found if edges is None else found // 2).clamp(min=0)
    values = torch.zeros((found.size(0), num_classes), device=labels.device).scatter_(1, classes, known)
    if edges is not None:
        values = torch.cat([values, (found % 2) * known], 1)
    return LabelPlan(values, symbols)


def plan_dense(segmap: Tensor, limit: int | None = None) -> LabelPlan | None:
    """The plan of any conditioning map [N, nc, H, W]: symbols are its distinct channel vectors, whatever their values.

    Returns None for maps that a plan does not pay for: more than `limit` distinct vectors (default: an eighth of the
    pixels, at least 64), found out without reading on; or float64 values that float32 cannot hold.
    """
    if segmap.dim() != 4:
        raise ValueError(f"segmap: expected a tensor [N, C, H, W], got shape {list(segmap.shape)}")
    x = segmap.detach().float()
    if segmap.dtype is torch.float64 and not torch.equal(x.double(), segmap):
        return None
    pixels = x.size(0) * x.size(2) * x.size(3)
    found = distinct_vectors(x, max(64, pixels // 8) if limit is None else limit)
    if found is None:
        return None
    symbols, values = found
    return LabelPlan(values, symbols)


@dataclass(eq=False)
class Regions:
    """The regions of a batch of maps: which one every pixel belongs to."""

    ids: Tensor  # [N, H, W] int32, 0..R-1
    values: Tensor  # [R] int64: what stands for each region in the map it was made of
    samples: Tensor  # [R] int64: the sample that each region is of; zeros for regions of the batch
    resized: dict[Size, "Regions"] = field(default_factory=dict, repr=False)

    @property
    def count(self) -> int:
        """R, the number of regions."""
        return self.values.numel()

    @cached_property
    def limits(self) -> tuple[int, int]:
        """The least and the largest of `values`."""
        return (int(self.values.min()), int(self.values.max())) if self.count else (0, 0)

    @cached_property
    def segments(self) -> Segments:
        """Pixels, numbered through [N, H, W], sorted by region."""
        return _segments(self.ids, self.count)

    def check_values(self, limit: int) -> None:
        """Raise ValueError for a value outside of 0..limit-1."""
        least, most = self.limits
        if least < 0 or most >= limit:
            raise ValueError(f"id {least if least < 0 else most}: the maximum is {limit - 1}, the minimum 0")

    def at(self, size: Size) -> "Regions":
        """The same regions of the map resized by nearest; small ones may be left without a pixel."""
        size = tuple(size)
        if size == tuple(self.ids.shape[1:]):
            return self
        if size not in self.resized:
            self.resized[size] = Regions(_resize(self.ids, size), self.values, self.samples)
        return self.resized[size]


def regions(maps: Tensor, per_sample: bool = False) -> Regions:
    """The regions of maps of ids [N, H, W] or [N, 1, H, W]: the pixels of an id, of the batch or of one sample.

    Integers of any size or bool. Regions are in the order of samples, if `per_sample`, then of ids.
    """
    values, ids = _integers("maps", maps).unique(return_inverse=True)
    samples = torch.zeros_like(values)
    if per_sample:
        sample = torch.arange(ids.size(0), device=ids.device)[:, None, None]
        codes, ids = (sample * values.numel() + ids).unique(return_inverse=True)
        samples, values = codes // max(1, values.numel()), values[codes % max(1, values.numel())]
    return Regions(ids.int(), values, samples)


def instance_edges(instances: Tensor) -> Tensor:
    """True where one of the four neighbours inside the image has another id.

    instances [N, H, W] or [N, 1, H, W], integers; the result has their shape.
    """
    ids = _integers("instances", instances)
    edges = torch.zeros_like(ids, dtype=torch.bool)
    rows, columns = ids[:, 1:] != ids[:, :-1], ids[:, :, 1:] != ids[:, :, :-1]
    edges[:, 1:] |= rows
    edges[:, :-1] |= rows
    edges[:, :, 1:] |= columns
    edges[:, :, :-1] |= columns
    return edges.view(instances.shape)


def objects(labels: Tensor) -> Tensor:
    """A number for the object at every pixel: for what is connected, corners included, and has one label.

    labels [N, H, W] or [N, 1, H, W], integers; returns [N, H, W] int64. Images of a batch share no number. Numbers are
    below the count of pixels, but not consecutive.
    """
    labels = _integers("labels", labels)
    # Objects are made of runs, pieces of rows, that touch runs of the row below.
    begins = torch.ones_like(labels, dtype=torch.bool)
    begins[:, :, 1:] = labels[:, :, 1:] != labels[:, :, :-1]
    runs = begins.flatten().cumsum(0).view_as(labels) - 1
    width, pairs = labels.size(2), []  # of runs a above and b below, as a * pixels + b
    for shift in (-1, 0, 1):
        above, below = (slice(max(0, s), width + min(0, s)) for s in (shift, -shift))
        alike = labels[:, :-1, above] == labels[:, 1:, below]
        pairs.append((runs[:, :-1, above][alike] * labels.numel() + runs[:, 1:, below][alike]).unique_consecutive())
    ends = torch.cat(pairs)
    ends = torch.stack([ends // labels.numel(), ends % labels.numel()])
    roots = torch.arange(labels.numel(), device=labels.device)
    while True:  # the larger root of two that touch hangs on the smaller one
        a, b = roots[ends]
        if torch.equal(a, b):
            return roots[runs]
        roots = roots.scatter_reduce(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(roots, higher := roots[roots]):
            roots = higher


def centre_offsets(labels: Tensor, normalise: bool = True) -> Tensor:
    """How far each pixel lies from the centre of its object (see `objects`): [N, 2, H, W] float32, rows then columns.

    labels [N, H, W] or [N, 1, H, W], integers. The offsets of an object are divided by its largest one + 1e-5, unless
    not to `normalise`. Label 0 has zeros.
    """
    labels = _integers("labels", labels)
    which = objects(labels).flatten()
    count = which.bincount().clamp(min=1)
    offsets = []
    for dim, size in ((1, labels.size(1)), (2, labels.size(2))):
        shape = [-1 if d == dim else 1 for d in range(3)]
        place = torch.arange(size, dtype=torch.float64, device=labels.device).view(shape).expand_as(labels).flatten()
        offset = place - (which.bincount(place) / count)[which]
        if normalise:
            largest = torch.zeros_like(count, dtype=offset.dtype).scatter_reduce(0, which, offset.abs(), "amax")
            offset = offset / (largest + 1e-5)[which]
        offsets.append(offset.view_as(labels).masked_fill(labels == 0, 0))
    return torch.stack(offsets, 1).float()


def _planes(name: str, maps: Tensor) -> Tensor:
    if maps.dim() == 4 and maps.size(1) == 1:
        return maps[:, 0]
    if maps.dim() != 3:
        raise ValueError(f"{name}: expected a tensor [N, H, W] or [N, 1, H, W], got shape {list(maps.shape)}")
    return maps


def _integers(name: str, maps: Tensor) -> Tensor:
    if maps.is_floating_point() or maps.is_complex():
        raise TypeError(f"{name}: expected integers or bool, got {maps.dtype}")
    return _planes(name, maps).long()


def _check_labels(labels: Tensor, num_classes: int, ignored: Tensor | None) -> None:
    if labels.numel() == 0:
        return
    least, most = labels.aminmax()
    if least >= 0 and most < num_classes:
        return
    wrong = (labels < 0) | (labels >= num_classes)
    if ignored is not None:
        wrong &= ~ignored
    if wrong.any():
        raise ValueError(f"{_where('labels', labels, wrong)}: the maximum is {num_classes - 1}, the minimum 0")


def _where(name: str, maps: Tensor, wrong: Tensor) -> str:
    image, row, column = wrong.nonzero()[0].tolist()
    return f"{name} hold {maps[image, row, column].item()} in image {image} at row {row}, column {column}"
