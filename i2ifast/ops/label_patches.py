"""Distinct windows of label maps, and the lists made of them: what a label plan is computed with."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _backend
from ._op import define, memory_format


def _compiled(name: str, x: Tensor) -> Callable | None:
    """The compiled function `name` for tensors like x, or None where PyTorch is to do it.

    Forcing `triton` or `cuda` chooses for the layers only: those backends have no label kernels, plans being host data.
    """
    if _backend._forced in ("triton", "cuda"):
        backend = "reference" if _backend.why_not("cpu", "label_patches", name, x) else "cpu"
    else:
        backend = _backend.choose("label_patches", name, x)
    return None if backend == "reference" else _backend.kernel(backend, "label_patches", name)


def _renumber(inverse: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Numbers 0..count-1 put in order of first appearance: (the new `inverse`, int32; position of each first one)."""
    position = torch.arange(inverse.numel(), device=inverse.device)
    first = torch.full((count,), inverse.numel(), device=inverse.device)
    first, order = first.scatter_reduce(0, inverse, position, "amin").sort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(count, device=inverse.device)
    return rank[inverse].int(), first


def out_size(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


def reference_forward(ids: Tensor, kernel: int, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    shape = [ids.size(0), *(out_size(s, kernel, stride, padding) for s in ids.shape[1:])]
    padded = F.pad(ids, [padding] * 4, value=-1)
    taps = [
        padded[:, y : y + stride * (shape[1] - 1) + 1 : stride, x : x + stride * (shape[2] - 1) + 1 : stride].flatten()
        for y in range(kernel)
        for x in range(kernel)
    ]
    # `key` < `bound` spells out a window tap by tap. Before it could overflow, the keys so far are numbered anew, and
    # there are no more of them than positions.
    base = int(ids.max()) + 2
    key, bound = torch.zeros_like(taps[0], dtype=torch.int64), 1
    for tap in taps:
        if bound * base > 2**63 - 1:
            distinct, key = key.unique(return_inverse=True)
            bound = distinct.numel()
        key = key * base + (tap + 1)
        bound *= base
    distinct, inverse = key.unique(return_inverse=True)
    patches, first = _renumber(inverse, distinct.numel())
    return patches.view(shape), torch.stack([tap[first] for tap in taps], 1)


def _forward(ids: Tensor, kernel: int, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    if ids.numel() == 0:
        return _empty(ids, kernel, stride, padding, 0)
    if (least := int(ids.min())) < -1:
        raise ValueError(f"ids hold {least}, expected -1 or more")
    run = _compiled("label_patches", ids) or reference_forward
    return run(ids.contiguous(), kernel, stride, padding)


def _empty(ids: Tensor, kernel: int, stride: int, padding: int, count: int | torch.SymInt) -> tuple[Tensor, Tensor]:
    shape = [ids.size(0), *(out_size(s, kernel, stride, padding) for s in ids.shape[1:])]
    return ids.new_empty(shape), ids.new_empty((count, kernel * kernel))


def _fake(ids: Tensor, kernel: int, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    return _empty(ids, kernel, stride, padding, torch.library.get_ctx().new_dynamic_size())


define("label_patches", "(Tensor ids, int kernel, int stride, int padding) -> (Tensor, Tensor)", _forward, _fake)


def label_patches(ids: Tensor, kernel: int, stride: int = 1, padding: int = 0) -> tuple[Tensor, Tensor]:
    """Number the distinct kernel x kernel windows of `ids`, in order of first appearance (batch, row, column).

    ids [N, H, W] int32, -1 or more. Returns patches [N, Ho, Wo] int32, the number of the window at every position of a
    convolution, and neighbours [D, kernel * kernel] int32, the ids of each distinct window, -1 outside the image.
    Exact (windows are compared, not only hashed) and the same on every backend.
    """
    if ids.dim() != 3 or ids.dtype is not torch.int32:
        raise ValueError(f"ids: expected an int32 tensor [N, H, W], got {ids.dtype} of shape {list(ids.shape)}")
    if kernel < 1 or stride < 1 or padding < 0:
        raise ValueError(f"kernel={kernel}, stride={stride}, padding={padding}: expected at least 1, 1 and 0")
    if min(ids.shape[1:]) + 2 * padding < kernel:
        raise ValueError(f"kernel={kernel} is larger than the map {list(ids.shape[1:])} with padding={padding}")
    return torch.ops.i2ifast.label_patches(ids, kernel, stride, padding)


def label_bags(neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """(offsets [D+1], index [M]) int32: bag d lists neighbours[d, t] * T + t for all taps t that are not -1.

    neighbours [D, T] int32.
    """
    if neighbours.numel() * max(1, neighbours.size(1)) > 2**31:
        raise ValueError(f"{neighbours.size(0)} windows of {neighbours.size(1)} taps do not fit 32-bit indices")
    if compiled := _compiled("label_bags", neighbours):
        return compiled(neighbours.contiguous())
    inside = neighbours >= 0
    taps = torch.arange(neighbours.size(1), dtype=torch.int32, device=neighbours.device)
    offsets = F.pad(inside.sum(1, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))
    return offsets, (neighbours * neighbours.size(1) + taps)[inside]


def transpose_bags(offsets: Tensor, index: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The transposed lists (offsets [rows+1], index [M]): bag r lists, in increasing order, the bags that r is in."""
    if compiled := _compiled("label_transpose", index):
        return compiled(offsets, index, rows)
    bags = torch.arange(offsets.numel() - 1, dtype=torch.int32, device=index.device)
    bag = bags.repeat_interleave(offsets.diff(), output_size=index.numel())
    members, order = index.sort(stable=True)
    ends = torch.arange(rows + 1, dtype=torch.int32, device=index.device)
    return torch.searchsorted(members, ends, out_int32=True), bag[order]


def distinct_vectors(x: Tensor, limit: int) -> tuple[Tensor, Tensor] | None:
    """Number the distinct channel vectors of x [N, C, H, W] float32, bit by bit, in order of first appearance.

    Returns (symbols [N, H, W] int32, values [S, C]), or None where S is more than `limit`.
    """
    if x.numel() == 0:
        return x.new_empty((x.size(0), *x.shape[2:]), dtype=torch.int32), x.new_empty((0, x.size(1)))
    if compiled := _compiled("label_vectors", x):
        symbols, values = compiled(x.contiguous(memory_format=memory_format(x)), limit)
        return (symbols, values) if values.size(0) else None
    words = x.contiguous().view(torch.int32).movedim(1, -1).flatten(0, 2)
    factors = torch.randint(1, 2**62, (x.size(1),), generator=torch.Generator().manual_seed(0)).tolist()
    sums = torch.zeros(words.size(0), dtype=torch.int64, device=x.device)
    for column, factor in zip(words.unbind(1), factors, strict=True):
        sums.add_(column, alpha=2 * factor + 1)
    distinct, inverse = sums.unique(return_inverse=True)
    if distinct.numel() > limit:
        return None
    symbols, first = _renumber(inverse, distinct.numel())
    if not torch.equal(words[first][symbols.long()], words):  # two vectors share a sum
        distinct, inverse = words.unique(return_inverse=True, dim=0)
        if distinct.size(0) > limit:
            return None
        symbols, first = _renumber(inverse, distinct.size(0))
    return symbols.view(x.size(0), *x.shape[2:]), words[first].view(torch.float32)
