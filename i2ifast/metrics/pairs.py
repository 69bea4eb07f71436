"""Scores of images against the ones they should be: one number per pair. In float64.

Wang et al. Image Quality Assessment: From Error Visibility to Structural Similarity. IEEE TIP 2004 (SSIM).
Huang et al. Multimodal Unsupervised Image-to-Image Translation. ECCV 2018 (DIPD).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

LEVELS = 255.0  # the range of 8 bit pixels
BORDER = 5  # pixels that SSIM's Gaussian window reaches


def ssim(fake: Tensor, real: Tensor) -> Tensor:
    """Structural similarity [N] of images [N,C,H,W] uint8: Gaussian windows of deviation 1.5, where they fit, C alike.

    ValueError for images of less than 11 pixels a side.
    """
    if min(fake.shape[2:]) <= 2 * BORDER:
        raise ValueError(f"images of {fake.size(3)}x{fake.size(2)}: SSIM takes at least {2 * BORDER + 1} pixels a side")
    options = {"data_range": LEVELS, "reduction": "none", "return_full_image": True}
    _, full = structural_similarity_index_measure(fake.double(), real.double(), **options)
    return full[..., BORDER:-BORDER, BORDER:-BORDER].mean((1, 2, 3))


def psnr(fake: Tensor, real: Tensor) -> Tensor:
    """10 log10(255^2 / mean squared error) [N] in dB of images [N,C,H,W] uint8; infinite for equal ones."""
    options = {"data_range": LEVELS, "reduction": "none", "dim": (1, 2, 3)}
    return peak_signal_noise_ratio(fake.double(), real.double(), **options)


def squared_error(fake: Tensor, real: Tensor) -> Tensor:
    """Mean squared difference [N] of pixels [N,C,H,W] uint8; the root of its mean over images is the RMSE."""
    return (fake.double() - real.double()).square().mean((1, 2, 3))


def domain_invariant_distance(vgg: Callable[[Tensor], list[Tensor]], fake: Tensor, real: Tensor) -> Tensor:
    """DIPD [N]: mean squared difference of the last features of `vgg`, normalised by plane and image."""
    features = vgg(torch.cat([fake, real]))[-1]
    x, y = F.instance_norm(features.double()).chunk(2)
    return (x - y).square().mean((1, 2, 3))
