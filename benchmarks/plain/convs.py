"""Convolutions, resampling and matching of features by torch's own functions."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn.modulated_conv import upsample2d


def padded(x: Tensor, padding: int, mode: str) -> Tensor:
    return F.pad(x, [padding] * 4, "constant" if mode == "zeros" else mode)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding_mode: str = "zeros") -> Tensor:
    if padding_mode == "zeros":
        return F.conv2d(x, weight, bias, padding=1)
    return F.conv2d(padded(x, 1, padding_mode), weight, bias)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=weight.size(-1) // 2)


def halved(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int = 1) -> Tensor:
    return F.conv2d(x, weight, bias, 2, padding)


def upsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding_mode: str = "zeros") -> Tensor:
    x, side = F.interpolate(x, scale_factor=2), weight.size(-1) // 2
    if padding_mode == "zeros":
        return F.conv2d(x, weight, bias, padding=side)
    return F.conv2d(padded(x, side, padding_mode), weight, bias)


def upsample_module(self: nn.Conv2d, x: Tensor) -> Tensor:
    return upsample_conv2d(x, self.weight, self.bias, self.padding_mode)


def downsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.avg_pool2d(F.conv2d(x, weight, bias, padding=1), 2)


def downsample_module(self: nn.Conv2d, x: Tensor) -> Tensor:
    return downsample_conv2d(x, self.weight, self.bias)


def dynamic_conv(x: Tensor, weight: Tensor) -> Tensor:
    """weight [N, C, 9, H, W]."""
    n, c, h, w = x.shape
    return (F.unfold(x, 3, padding=1).view(n, c, 9, h, w) * weight.view(n, c, 9, h, w)).sum(2)


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """linear, relu, lrelu and tanh, as StyleGAN2's reference has them."""
    if b is not None:
        x = x + b.reshape([-1 if i == dim % x.dim() else 1 for i in range(x.dim())])
    if act == "lrelu":
        x = F.leaky_relu(x, 0.2 if alpha is None else alpha)
    elif act != "linear":
        x = {"relu": torch.relu, "tanh": torch.tanh}[act](x)
    own = math.sqrt(2) if act in ("relu", "lrelu") else 1.0
    gain = own if gain is None else gain
    x = x if gain == 1 else x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def upfirdn2d(
    x: Tensor,
    f: Tensor,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """Zeros between the pixels, padding, and a convolution of every channel alone."""
    c = x.size(1)
    sides = [padding] * 4 if isinstance(padding, int) else list(padding)
    f = (f[:, None] * f if f.dim() == 1 else f).to(x.dtype) * gain
    f = f if flip_filter else f.flip([0, 1])
    if up > 1:
        x = F.conv_transpose2d(x, x.new_ones(c, 1, 1, 1), stride=up, output_padding=up - 1, groups=c)
    return F.conv2d(F.pad(x, sides), f.expand(c, 1, *f.shape), stride=down, groups=c)


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
    """Weights of every sample, and a convolution in groups."""
    (n, c, h, w), k = x.shape, weight.size(-1)
    weight = weight * style[:, None, :, None, None]
    if demodulate:
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    x = x.reshape(1, n * c, h, w)
    if up > 1 and k > 1:
        y = F.conv_transpose2d(x, weight.transpose(1, 2).flatten(0, 1), stride=2, groups=n)
        taps = f.size(-1)
        before, behind = k // 2 + (taps + 1) // 2 - (k - 1), k // 2 + (taps - 2) // 2 - (k - 2)
        y = upfirdn2d(y, f, padding=[before, behind] * 2, gain=gain)
    elif down > 1:
        taps = f.size(-1)
        sides = [k // 2 + (taps - 1) // 2, k // 2 + (taps - 2) // 2] * 2
        y = F.conv2d(upfirdn2d(x, f, padding=sides), weight.flatten(0, 1), stride=2, groups=n)
    else:
        y = F.conv2d(x, weight.flatten(0, 1), padding=k // 2, groups=n)
        y = upsample2d(y, f, gain) if up > 1 else y
    y = y.view(n, -1, *y.shape[2:])
    return y if noise is None else y + noise


def feature_matching(
    fake: Sequence[Tensor], real: Sequence[Tensor] | None = None, weights: Sequence[float] | None = None
) -> Tensor:
    """Layer by layer, over all samples at once: [1] instead of [N], of the same mean."""
    if not real:
        fake, real = zip(*(x.chunk(2) for x in fake), strict=True)
    weights = weights or [1.0] * len(fake)
    terms = [w * F.l1_loss(x, y.detach()) for w, x, y in zip(weights, fake, real, strict=True)]
    return torch.stack(terms).sum()[None]


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float = 1.0) -> Tensor:
    return torch.softmax(torch.matmul(query, key.transpose(1, 2)) * scale, -1) @ value


def contextual(x: Tensor, y: Tensor, pono: bool = True, bandwidth: float = 0.1, eps: float = 1e-3) -> Tensor:
    mean = y.mean(1, keepdim=True) if pono else y.mean((2, 3), keepdim=True)
    a, b = (F.normalize((t - mean).flatten(2), dim=1, eps=2e-16) for t in (x, y))
    d = 1 - torch.matmul(a.transpose(1, 2), b)
    w = torch.exp((1 - d / (d.min(2, keepdim=True).values + eps)) / bandwidth)
    return -torch.log((w / w.sum(2, keepdim=True)).max(2).values.mean(1))
