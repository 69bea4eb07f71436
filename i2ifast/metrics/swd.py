"""Sliced Wasserstein distance between patches of two sets of images, one for each octave of sizes.

Karras et al. Progressive Growing of GANs for Improved Quality, Stability, and Variation. ICLR 2018.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 16  # side of the last level
PATCHES, SIDE = 128, 7  # of an image and level
REPEATS, DIRECTIONS = 4, 128


def _blur(x: Tensor) -> Tensor:
    taps = x.new_tensor([1, 4, 6, 4, 1]) / 16
    kernel = torch.outer(taps, taps).expand(x.size(1), 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.size(1))


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Images [N,C,H,W] as differences from their upsampled halves, finest first; the last is what is left."""
    levels = []
    while min(images.shape[2:]) >= 2 * SMALLEST:
        half = _blur(images)[:, :, ::2, ::2]
        spread = torch.zeros_like(images)
        spread[:, :, ::2, ::2] = half
        levels.append(images - 4 * _blur(spread))
        images = half
    return [*levels, images]


def patch_descriptors(images: Tensor, first: int, seed: int) -> dict[str, Tensor]:
    """Patches [N,128,C,7,7] of images [N,C,H,W], their numbers counted from `first`, by level ("width x height").

    Where they lie depends on (seed, level, image) alone. ValueError for images smaller than 16 pixels.
    """
    if min(images.shape[2:]) < SMALLEST:
        raise ValueError(f"images of {images.size(3)}x{images.size(2)}: SWD takes at least {SMALLEST}x{SMALLEST}")
    found = {}
    for number, level in enumerate(laplacian_pyramid(images.float())):
        height, width = level.shape[2:]
        windows = level.unfold(2, SIDE, 1).unfold(3, SIDE, 1)
        patches = []
        for index, window in enumerate(windows, first):
            draw = np.random.default_rng((seed, number, index))
            top, left = (torch.from_numpy(draw.integers(side - SIDE + 1, size=PATCHES)) for side in (height, width))
            patches.append(window[:, top.to(level.device), left.to(level.device)].transpose(0, 1))
        found[f"{width}x{height}"] = torch.stack(patches)
    return found


def sliced_wasserstein(fake: Tensor, real: Tensor, seed: int = 0) -> float:
    """1000 times the mean distance of patches [N,128,C,7,7], of as many images each, sorted along random directions.

    The channels of each set are brought to mean 0 and deviation 1 first.
    """
    count = min(len(fake), len(real))
    x, y = (patches[:count].flatten(0, 1) for patches in (fake, real))
    x, y = (
        ((t - t.mean((0, 2, 3), keepdim=True)) / t.std((0, 2, 3), correction=0, keepdim=True)).flatten(1)
        for t in (x, y)
    )
    draw = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(REPEATS):
        directions = F.normalize(torch.randn(x.size(1), DIRECTIONS, generator=draw), dim=0).to(x)
        a, b = ((t @ directions).sort(0).values for t in (x, y))
        distances.append((a - b).abs().mean(dtype=torch.float64))
    return 1000 * torch.stack(distances).mean().item()
