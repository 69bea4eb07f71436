"""Optical flow: reading of .flo files, warping, and an estimate for data that comes without."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MAGIC = 202021.25  # first number of a .flo file


def read_flow(file: Path) -> np.ndarray:
    """[H,W,2] float32 of a Middlebury .flo file: pixels to the right and down; ValueError for one that is none."""
    data = file.read_bytes()
    if len(data) < 12 or np.frombuffer(data, "<f4", 1)[0] != np.float32(MAGIC):
        raise ValueError(f"{file}: not a .flo file")
    width, height = (int(side) for side in np.frombuffer(data, "<i4", 2, 4))
    if len(data) != 12 + 8 * width * height:
        raise ValueError(f"{file}: {len(data)} bytes, but a flow of {width}x{height} has {12 + 8 * width * height}")
    return np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2)


def write_flow(file: Path, flow: np.ndarray) -> None:
    """Write [H,W,2] as `read_flow` reads it."""
    height, width, _ = flow.shape
    header = np.float32(MAGIC).tobytes() + np.array((width, height), "<i4").tobytes()
    file.write_bytes(header + flow.astype("<f4").tobytes())


def warp(images: Tensor, flow: Tensor) -> Tensor:
    """Images [N,C,H,W] at where the flow [N,2,H,W] in pixels (right, down) points to, the border beyond it."""
    h, w = images.shape[-2:]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    grid = torch.stack([(x + flow[:, 0]) * (2 / max(1, w - 1)), (y + flow[:, 1]) * (2 / max(1, h - 1))], -1) - 1
    return F.grid_sample(images, grid, padding_mode="border", align_corners=True)


def estimate(images: Tensor, others: Tensor, levels: int = 4, rounds: int = 3, window: int = 9) -> Tensor:
    """Flow [N,2,H,W] from `images` [N,C,H,W] to `others`, such that warp(others, flow) resembles images.

    Lucas and Kanade's least squares over windows, coarse to fine: enough for slow cameras, and no match for a network.
    """
    pyramid = [(images.mean(1, keepdim=True), others.mean(1, keepdim=True))]
    while len(pyramid) < levels and min(pyramid[-1][0].shape[-2:]) >= 4 * window:
        pyramid.append(tuple(F.avg_pool2d(x, 2) for x in pyramid[-1]))
    flow = images.new_zeros(len(images), 2, *pyramid[-1][0].shape[-2:])
    for image, other in reversed(pyramid):
        size = image.shape[-2:]
        scale = flow.new_tensor([size[1] / flow.size(3), size[0] / flow.size(2)])
        flow = F.interpolate(flow, size, mode="bilinear", align_corners=False) * scale[:, None, None]
        for _ in range(rounds):
            flow = flow + _step(image, warp(other, flow), window)
            flow = _mean(flow, 3)
    return flow


def _mean(x: Tensor, window: int) -> Tensor:
    return F.avg_pool2d(x, window, 1, window // 2, count_include_pad=False)


def _step(image: Tensor, warped: Tensor, window: int) -> Tensor:
    """The displacement that explains image - warped best around each pixel, at most one pixel long a side."""
    padded = F.pad((image + warped) / 2, (1, 1, 1, 1), mode="replicate")
    gx, gy = (
        (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2,
        (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2,
    )
    gt = image - warped
    xx, xy, yy, xt, yt = _mean(torch.cat([gx * gx, gx * gy, gy * gy, gx * gt, gy * gt], 1), window).split(1, 1)
    xx, yy = xx + 1e-3, yy + 1e-3  # no motion where there is no texture
    step = torch.cat([yy * xt - xy * yt, xx * yt - xy * xt], 1) / (xx * yy - xy * xy)
    return step.clamp(-1, 1)
