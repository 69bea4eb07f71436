"""Convolutions of StyleGAN: modulated by a style, and resampled by 2 without the pixels in between.

Karras et al., Analyzing and Improving the Image Quality of StyleGAN, CVPR 2020.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import conv3x3, upfirdn2d


def fir(taps: Sequence[float], gain: float = 1.0) -> Tensor:
    """The separable filter [k, k] of these taps, of sum `gain`."""
    row = torch.tensor(taps, dtype=torch.float32)
    return row[:, None] * row * (gain / row.sum().square())


def normalise_second_moment(x: Tensor, eps: float = 1e-8) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over dimension 1."""
    return x * (x.square().mean(1, keepdim=True) + eps).rsqrt()


def convolve(x: Tensor, weight: Tensor, padding: int = 0) -> Tensor:
    if weight.shape[2:] == (3, 3) and padding == 1 and not torch.is_autocast_enabled(x.device.type):
        return conv3x3(x, weight)
    return F.conv2d(x, weight, padding=padding)


def upsample2d(x: Tensor, f: Tensor, gain: float = 1.0) -> Tensor:
    """x upsampled by 2 with filter f."""
    taps = f.size(-1)
    return upfirdn2d(x, f, up=2, padding=[(taps + 1) // 2, (taps - 2) // 2] * 2, gain=gain)


def downsample2d(x: Tensor, f: Tensor) -> Tensor:
    """x downsampled by 2 with filter f."""
    taps = f.size(-1)
    return upfirdn2d(x, f, down=2, padding=[(taps - 1) // 2, (taps - 2) // 2] * 2)


def resampled_conv2d(
    x: Tensor, weight: Tensor, f: Tensor | None = None, up: int = 1, down: int = 1, gain: float = 1.0
) -> Tensor:
    """Convolution with weight [O, C, k, k], padded by k // 2, of x upsampled or downsampled by 2 with filter f.

    Upsampling convolves, that is the taps are flipped, by a transposed convolution, and filters what it makes, with
    `gain`. Downsampling filters, and convolves with a stride; for a 1x1 convolution it filters at every second pixel.
    """
    k = weight.size(-1)
    if up == 1 and down == 1:
        return convolve(x, weight, k // 2)
    if k == 1:
        return upsample2d(convolve(x, weight), f, gain) if up > 1 else convolve(downsample2d(x, f), weight)
    taps = f.size(-1)
    if up > 1:
        x = F.conv_transpose2d(x, weight.transpose(0, 1).contiguous(), stride=2)  # else the library copies it slowly
        before, behind = k // 2 + (taps + 1) // 2 - (k - 1), k // 2 + (taps - 2) // 2 - (k - 2)
        return upfirdn2d(x, f, padding=[before, behind] * 2, gain=gain)
    sides = [k // 2 + (taps - 1) // 2, k // 2 + (taps - 2) // 2] * 2
    return F.conv2d(upfirdn2d(x, f, padding=sides), weight, stride=2)


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    noise: Tensor | None = None,
    demodulate: bool = True,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    gain: float = 1.0,
) -> Tensor:
    """y = conv(x, weight * style, scaled to unit norm with `demodulate`) + noise

    x [N, C, H, W], weight [O, C, k, k], style [N, C], noise [N or 1, 1, H', W']. The weight of every sample differs in
    scales of its inputs and outputs alone, so x and y are scaled and one convolution serves all samples.
    """
    y = resampled_conv2d(x * style[..., None, None], weight, f, up, down, gain)
    if not demodulate:
        return y if noise is None else y + noise
    # Sums over the taps are the same for all samples.
    scale = (F.linear(style.square(), weight.square().sum((2, 3))) + 1e-8).rsqrt()[..., None, None]
    return y * scale if noise is None else torch.addcmul(noise, y, scale)
