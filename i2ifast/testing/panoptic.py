"""Cases of convolution and upsampling within the segments of an id map."""

import torch
import torch.nn.functional as F

from .. import ops
from ._case import Case, blocky, normal

FIRST_ID = 2**33  # ids that float32 would not tell apart, and 0, which must not equal padding


def _ids(g, n: int, h: int, w: int) -> torch.Tensor:
    """Cells of a few pixels, with single ones in between."""
    ids = blocky(g, n, h, w, 6).long()
    noise = torch.randint(0, 6, ids.shape, generator=g)
    ids = torch.where(torch.rand(ids.shape, generator=g) < 0.05, noise, ids)
    return torch.where(ids == 0, 0, FIRST_ID + ids)


def unfolded(x, weight, bias, ids, stride: int = 1):
    """The definition, on all taps of all pixels."""
    (_, c, h, w), k = x.shape, weight.size(-1)
    number = torch.arange(ids.numel(), device=ids.device).view(ids.shape)
    taps = F.unfold(number[:, None].double() + 1, k, padding=k // 2, stride=stride).long() - 1  # exact below 2^53
    shown = ids.flatten()[taps.clamp(min=0)]
    mask = ((shown == shown[:, k * k // 2, None]) & (taps >= 0)).to(x.dtype)[:, None]
    columns = F.unfold(x, k, padding=k // 2, stride=stride).unflatten(1, (c, k * k)) * mask
    rows = weight.flatten(1) @ columns.flatten(1, 2) * (k * k / mask.sum(2))
    y = rows.unflatten(2, ((h - 1) // stride + 1, (w - 1) // stride + 1))
    return y if bias is None else y + bias[:, None, None]


def _conv(kernel: int, stride: int = 1) -> Case:
    def make(shape, g):
        n, c, h, w = shape
        outputs = 64 if c % 16 == 0 else 5  # 64: what the kernel of conv3x3 takes
        ids = _ids(g, n, h, w)
        tensors = {
            "x": normal(g, *shape),
            "weight": 0.2 * normal(g, outputs, c, kernel, kernel),
            "bias": normal(g, outputs),
        }
        return {**tensors, "ids": ids, **ops.panoptic_windows(ids, kernel, stride)._asdict()}

    def ours(x, weight, bias, ids, **windows):
        return ops.panoptic_conv(x, weight, bias, ops.PanopticWindows(**windows), stride)

    def plain(x, weight, bias, ids, **windows):
        return unfolded(x, weight, bias, ids, stride)

    return Case(f"panoptic_conv-{kernel}-{stride}", make, ours, plain)


def _upsample_inputs(shape, g):
    n, c, h, w = shape
    ids = _ids(g, n, 2 * h, 2 * w)
    return {"x": normal(g, *shape), **ops.panoptic_sources(ids[:, ::2, ::2].contiguous(), ids)._asdict()}


def _upsample_plain(x, source, **lists):
    index = source.flatten(1).long()
    y = (
        x.flatten(2).gather(2, index.clamp(min=0)[:, None].expand(-1, x.size(1), -1))
        * (index >= 0).to(x.dtype)[:, None]
    )
    return y.unflatten(2, source.shape[1:])


CASES = [
    _conv(3),
    _conv(5),
    _conv(3, 2),
    Case(
        "panoptic_upsample",
        _upsample_inputs,
        lambda x, **sources: ops.panoptic_upsample(x, ops.PanopticSources(**sources)),
        _upsample_plain,
    ),
]
