"""Layers that keep the segments of a panoptic map apart: Dundar et al., Panoptic-based Image Synthesis, CVPR 2020."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..labels import LabelPlan
from ..ops import PanopticSources, PanopticWindows, panoptic_conv, panoptic_sources, panoptic_upsample, panoptic_windows
from ..ops._panoptic import check_ids, panoptic_taps

_plans = WeakTensorKeyDictionary()  # tensor -> (its version, its plan)


class PanopticPlan:
    """What layers need to know of id maps [N, H, W], at every resolution; made on first use and kept.

    Finding it waits for the device of the ids, using it does not. All ids are equal or not: any integers, 0 included.
    """

    def __init__(self, ids: Tensor) -> None:
        check_ids("ids", ids)
        self.ids = ids
        self._levels: dict[tuple[int, int], PanopticPlan] = {}
        self._windows: dict[tuple[int, int], PanopticWindows] = {}
        self._sources: dict[tuple[str, PanopticPlan], PanopticSources] = {}

    def level(self, size: tuple[int, int]) -> "PanopticPlan":
        """The plan at resolution `size`, to which the ids are resized by nearest."""
        size, (h, w) = tuple(size), self.ids.shape[1:]
        if size == (h, w):
            return self
        if size not in self._levels:
            rows, columns = (
                torch.arange(s, device=self.ids.device) * f // s for s, f in zip(size, (h, w), strict=True)
            )
            self._levels[size] = PanopticPlan(self.ids[:, rows[:, None], columns])
        return self._levels[size]

    def windows(self, kernel: int, stride: int = 1) -> PanopticWindows:
        key = (kernel, stride)
        if key not in self._windows:
            self._windows[key] = panoptic_windows(self.ids, kernel, stride)
        return self._windows[key]

    def sources(self, small: "PanopticPlan", mode: str) -> PanopticSources:
        """Where a map of these ids is copied from, out of one of the ids of `small`."""
        key = (mode, small)
        if key not in self._sources:
            self._sources[key] = panoptic_sources(small.ids, self.ids, mode)
        return self._sources[key]


def panoptic_plan(ids: Tensor | PanopticPlan) -> PanopticPlan:
    """The plan of id maps, remembered as long as the tensor lives unchanged: all layers of a forward share one."""
    if isinstance(ids, PanopticPlan):
        return ids
    if ids.is_inference():
        return PanopticPlan(ids)
    remembered = _plans.get(ids)
    if remembered is None or remembered[0] != ids._version:
        # Of an alias: a plan that held its own key would never be forgotten.
        remembered = _plans[ids] = (ids._version, PanopticPlan(ids.detach()))
    return remembered[1]


class PanopticConv2d(nn.Conv2d):
    """Convolution within segments: y = k^2 / |M| * W . (x * M) + bias, M the taps with the id of the window's centre.

    `forward(x, ids)`: x [N, C, H, W]; ids [N, H', W'] integers or a PanopticPlan, resized by nearest to H x W. Odd
    kernel_size, zero padding of half of it, which never counts. state_dict as torch.nn.Conv2d.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, bias: bool = True
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: expected an odd number, so that a window has a centre")
        super().__init__(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=bias)

    def forward(self, x: Tensor, ids: Tensor | PanopticPlan) -> Tensor:
        windows = panoptic_plan(ids).level(x.shape[2:]).windows(self.kernel_size[0], self.stride[0])
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return panoptic_conv(x, self.weight.to(x.dtype), bias, windows, self.stride[0])


class PanopticUpsample(nn.Module):
    """Upsampling x2 within segments: each pixel is a copy of a near one with its id, and a hole where there is none.

    `forward(x, ids, seg=None, ids_small=None)` gives y [N, C, 2H, 2W] and `valid` [N, 2H, 2W], False at holes. x is
    [N, C, H, W]; ids [N, H', W'] integers or a PanopticPlan, resized by nearest to 2H x 2W, and to H x W for the ids of
    x where ids_small is None. `mode`: the candidates and their order, see ops.panoptic_sources. Holes are 0, or with
    `fill`, a PanopticConv2d from the channels of the semantic map `seg` to those of x, what that gives: seg is
    [N, K, 2H, 2W], or a LabelPlan of any size.
    """

    def __init__(self, mode: str = "nearest3x3", fill: PanopticConv2d | None = None) -> None:
        super().__init__()
        self.mode, self.fill = mode, fill

    def forward(
        self,
        x: Tensor,
        ids: Tensor | PanopticPlan,
        seg: Tensor | LabelPlan | None = None,
        ids_small: Tensor | PanopticPlan | None = None,
    ) -> tuple[Tensor, Tensor]:
        h, w = x.shape[2:]
        large = panoptic_plan(ids).level((2 * h, 2 * w))
        small = panoptic_plan(ids if ids_small is None else ids_small).level((h, w))
        sources = large.sources(small, self.mode)
        y = panoptic_upsample(x, sources)
        if self.fill is not None:
            if seg is None:
                raise ValueError("seg is None: holes are filled from a semantic map")
            fill_holes(y, sources.holes, seg, large.ids, self.fill)
        return y, sources.source >= 0


def fill_holes(y: Tensor, holes: Tensor, seg: Tensor | LabelPlan, ids: Tensor, conv: PanopticConv2d) -> None:
    """Write conv(seg, ids) to the pixels `holes` of y, computed there only: few windows, and one matrix product."""
    n, _, h, w = y.shape
    taps = panoptic_taps(ids, holes, conv.kernel_size[0])
    shown = taps.long().clamp(min=0)
    if isinstance(seg, LabelPlan):
        columns = seg.values[seg.level((h, w)).symbols.flatten()[shown]]
    elif tuple(seg.shape[2:]) == (h, w):
        columns = seg.permute(0, 2, 3, 1)[shown // (h * w), shown // w % h, shown % w]
    else:
        raise ValueError(f"seg is {list(seg.shape[2:])}, the upsampled map {[h, w]}")
    columns = columns.masked_fill((taps < 0)[..., None], 0).flatten(1).to(y.dtype)
    rows = F.linear(columns, conv.weight.permute(0, 2, 3, 1).flatten(1).to(y.dtype))
    rows = rows * (taps.size(1) / (taps >= 0).sum(1, keepdim=True).to(y.dtype))
    if conv.bias is not None:
        rows = rows + conv.bias.to(y.dtype)
    at = holes.long()
    y.permute(0, 2, 3, 1)[at // (h * w), at // w % h, at % w] = rows
