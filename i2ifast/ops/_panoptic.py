"""What follows from id maps alone: the windows and the sources that the panoptic ops run on. Made on the host, once."""

from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .label_patches import transpose_bags

LISTED = 0.5  # share of windows beyond which all are listed, and the plain convolution is left out


class PanopticWindows(NamedTuple):
    """The windows that hold several ids or reach beyond the image; in all others every tap counts.

    Pixels are numbered through [N, H, W], those of the output through [N, Ho, Wo].
    """

    at: Tensor  # [B] int32: pixels of the output, ascending
    taps: Tensor  # [B, k * k] int32: the pixel that each tap shows, -1 where it does not count


class PanopticSources(NamedTuple):
    """Where each pixel of an enlarged map is copied from. Small pixels are numbered within a sample."""

    source: Tensor  # [N, 2H, 2W] int32, -1: a hole, nothing near has its id
    offsets: Tensor  # [N * H * W + 1] int32: of pixel q of the batch, copies[offsets[q]:offsets[q+1]]
    copies: Tensor  # [M] int32, numbered through [N, 2H, 2W]
    holes: Tensor  # [B] int32, numbered through [N, 2H, 2W]


def check_ids(name: str, ids: Tensor) -> None:
    if ids.dim() != 3 or ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"{name}: expected integers [N, H, W], got {ids.dtype} of shape {list(ids.shape)}")
    if ids.numel() >= 2**31:
        raise ValueError(f"{name}: {ids.numel()} pixels do not fit 32-bit indices")


def panoptic_taps(ids: Tensor, at: Tensor, kernel: int, stride: int = 1) -> Tensor:
    """The pixel of `ids` at each tap of the windows `at`, -1 where it is not of the centre's segment.

    at [B]: pixels of the output of a convolution with padding kernel // 2. Returns [B, kernel * kernel] int32.
    """
    _, h, w = ids.shape
    rows, columns = _outputs(h, stride), _outputs(w, stride)
    at = at.long()
    reach = torch.arange(kernel, device=ids.device) - kernel // 2
    y = (at // columns % rows * stride)[:, None, None] + reach[:, None]
    x = (at % columns * stride)[:, None, None] + reach
    inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
    pixel = (at // (rows * columns))[:, None, None] * (h * w) + y.clamp(0, h - 1) * w + x.clamp(0, w - 1)
    found = ids.flatten()[pixel]
    counts = inside & (found == found[:, kernel // 2, kernel // 2, None, None])
    return torch.where(counts, pixel, -1).int().flatten(1)


def panoptic_windows(ids: Tensor, kernel: int, stride: int = 1) -> PanopticWindows:
    """The windows of a convolution with padding kernel // 2 over `ids` that not all taps count in.

    ids [N, H, W], any integers. Where these are more than half of all, every window is listed.
    """
    check_ids("ids", ids)
    if kernel < 1 or kernel % 2 == 0 or stride < 1:
        raise ValueError(f"kernel={kernel}, stride={stride}: expected an odd number, and at least 1")
    listed = ~_uniform(ids, kernel)[:, ::stride, ::stride].flatten()
    at = listed.nonzero()[:, 0]
    if at.numel() > LISTED * listed.numel():
        at = torch.arange(listed.numel(), device=ids.device)
    taps = panoptic_taps(ids, at, kernel, stride)
    if taps.numel() >= 2**31:
        raise ValueError(f"{at.numel()} windows of {kernel * kernel} taps do not fit 32-bit indices")
    return PanopticWindows(at.int(), taps)


def _outputs(size: int, stride: int) -> int:
    return (size - 1) // stride + 1


def _uniform(ids: Tensor, kernel: int) -> Tensor:
    """[N, H, W] bool: the kernel x kernel window around a pixel lies inside of the image and holds one id."""
    r, (_, h, w) = kernel // 2, ids.shape
    uniform = torch.zeros_like(ids, dtype=torch.bool)
    if min(h, w) >= kernel:
        across = _all(ids[:, :, 1:] == ids[:, :, :-1], 2, kernel - 1)
        down = _all(ids[:, 1:, r : w - r] == ids[:, :-1, r : w - r], 1, kernel - 1)
        uniform[:, r : h - r, r : w - r] = _all(across, 1, kernel) & down
    return uniform


def _all(mask: Tensor, dim: int, length: int) -> Tensor:
    """Whether all of `length` neighbours along `dim` are true."""
    places = mask.size(dim) - length + 1
    shape = list(mask.shape)
    shape[dim] = places
    result = mask.new_ones(shape)
    for i in range(length):
        result &= mask.narrow(dim, i, places)
    return result


def _candidates(mode: str, fy: int, fx: int) -> list[tuple[int, int]]:
    """Offsets from pixel (Y // 2, X // 2) of those that (Y, X) may be copied from, in order; fy, fx = Y % 2, X % 2."""
    # Pixel (Y, X) lies a quarter of a small pixel before or behind the centre of that.
    ahead, beside = 2 * fy - 1, 2 * fx - 1
    if mode == "window2x2":
        return [(0, 0), (0, 1), (1, 0), (1, 1)]
    if mode == "nearest3x3":
        offsets = list(product((-1, 0, 1), (-1, 0, 1)))
    elif mode == "bilinear2x2":
        offsets = list(product(sorted((0, ahead)), sorted((0, beside))))
    else:
        raise ValueError(f"mode={mode!r}: expected nearest3x3, window2x2 or bilinear2x2")
    return sorted(offsets, key=lambda d: (4 * d[0] - ahead) ** 2 + (4 * d[1] - beside) ** 2)


def panoptic_sources(ids: Tensor, ids_up: Tensor, mode: str = "nearest3x3") -> PanopticSources:
    """The pixel of `ids` [N, H, W] that each pixel of `ids_up` [N, 2H, 2W] is copied from: the first with its id.

    Candidates of pixel (Y, X) are those around (Y // 2, X // 2): the 3x3 nearest first ("nearest3x3"), the four that
    bilinear interpolation reads nearest first ("bilinear2x2"), or (0, 0), (0, 1), (1, 0), (1, 1) from there on
    ("window2x2"); of two equally near ones the upper, then the left.
    """
    check_ids("ids", ids)
    check_ids("ids_up", ids_up)
    n, h, w = ids.shape
    if tuple(ids_up.shape) != (n, 2 * h, 2 * w):
        raise ValueError(f"ids_up has shape {list(ids_up.shape)}, expected {[n, 2 * h, 2 * w]}")
    source = ids.new_full((n, 2 * h, 2 * w), -1, dtype=torch.int32)
    number = torch.arange(h * w, dtype=torch.int32, device=ids.device).view(h, w)
    for fy, fx in product((0, 1), (0, 1)):
        own = ids_up[:, fy::2, fx::2]
        target = source[:, fy::2, fx::2]
        for dy, dx in _candidates(mode, fy, fx):
            (rows, their_rows), (columns, their_columns) = _overlap(h, dy), _overlap(w, dx)
            part = target[:, rows, columns]
            fits = (part < 0) & (own[:, rows, columns] == ids[:, their_rows, their_columns])
            part.copy_(torch.where(fits, number[their_rows, their_columns], part))
    flat = source.flatten()
    valid = flat >= 0
    ends = F.pad(valid.cumsum(0, dtype=torch.int32), (1, 0))
    first = torch.arange(n, dtype=torch.int32, device=ids.device) * (h * w)
    offsets, copies = transpose_bags(ends, (source + first[:, None, None]).flatten()[valid], ids.numel())
    return PanopticSources(source, offsets, copies, (~valid).nonzero()[:, 0].int())


def _overlap(size: int, d: int) -> tuple[slice, slice]:
    """The places i of 0..size-1 with i + d among them too, and these i + d."""
    return slice(max(0, -d), size - max(0, d)), slice(max(0, d), size - max(0, -d))
