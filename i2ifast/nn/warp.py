"""Images moved by a flow of pixels, and images put together from overlapping tiles."""

import torch
import torch.nn.functional as F
from torch import Tensor


def flow_warp(image: Tensor, flow: Tensor) -> Tensor:
    """y[p] = image at p + flow[p], bilinear; positions outside of the image are moved to its border.

    image [N, C, H, W]; flow [N, 2, H, W] in pixels, x first.
    """
    h, w = image.shape[-2:]
    kind = {"dtype": flow.dtype, "device": flow.device}
    x = torch.linspace(-1, 1, w, **kind) + flow[:, 0] * (2 / max(1, w - 1))
    y = torch.linspace(-1, 1, h, **kind)[:, None] + flow[:, 1] * (2 / max(1, h - 1))
    return F.grid_sample(image, torch.stack([x, y], -1).to(image.dtype), "bilinear", "border", align_corners=True)


def warp_and_blend(raw: Tensor, previous: Tensor, flow: Tensor, weight: Tensor) -> Tensor:
    """weight * raw + (1 - weight) * flow_warp(previous, flow); weight [N, 1, H, W] is 1 where nothing can be warped.

    Wang et al. Video-to-Video Synthesis. NeurIPS 2018.
    """
    return torch.lerp(flow_warp(previous, flow), raw, weight)


def tile_starts(length: int, size: int, stride: int) -> list[int]:
    """Where tiles of `size` begin, `stride` apart, that cover `length`; the last one ends with it."""
    if not 0 < stride <= size <= length:
        raise ValueError(f"tiles of {size} every {stride} over {length}: expected 0 < stride <= size <= length")
    return [*range(0, length - size, stride), length - size]


def split_tiles(x: Tensor, size: int, stride: int) -> Tensor:
    """x [N, C, H, W] as overlapping tiles [N, T, C, size, size], rows of tiles one after the other."""
    rows, columns = (tile_starts(length, size, stride) for length in x.shape[-2:])
    return torch.stack([x[..., i : i + size, j : j + size] for i in rows for j in columns], 1)


def merge_tiles(tiles: Tensor, shape: tuple[int, int], stride: int) -> Tensor:
    """The image [N, C, *shape] of which `split_tiles` gives these tiles [N, T, C, size, size].

    Where tiles overlap, their mean, weighted by the distance to the nearest border of the tile: no seams.
    """
    size = tiles.size(-1)
    rows, columns = (tile_starts(length, size, stride) for length in shape)
    if tiles.size(1) != len(rows) * len(columns):
        raise ValueError(
            f"{tiles.size(1)} tiles, expected {len(rows)} x {len(columns)} for {shape[0]}x{shape[1]} pixels"
        )
    ramp = torch.arange(1, size + 1, device=tiles.device, dtype=tiles.dtype)
    ramp = torch.minimum(ramp, ramp.flip(0))
    weight = ramp[:, None] * ramp
    merged, total = tiles.new_zeros((tiles.size(0), tiles.size(2), *shape)), tiles.new_zeros(shape)
    corners = [(i, j) for i in rows for j in columns]
    for (i, j), tile in zip(corners, tiles.unbind(1), strict=True):
        merged[..., i : i + size, j : j + size] += weight * tile
        total[i : i + size, j : j + size] += weight
    return merged / total
