"""Matching of positions between feature maps: cosine features, and attention that never holds the whole matrix."""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .spectral import spectral_norm

CHUNK = 1 << 20  # elements of the matrix between positions that are computed at a time
KEPT = 1 << 28  # elements of it that are kept for the backward; of a larger one none are
ALIGNMENT = 8  # of the vectors that CUDA's fused attention takes


def by_rows(function: Callable[[Tensor], Tensor], rows: Tensor, columns: int) -> Tensor:
    """function(rows), where row i of the result depends on row i only and takes memory of `columns` elements.

    rows [N, R, C] are taken in chunks of CHUNK elements. With gradients they are taken as a whole, up to KEPT elements;
    above that each chunk is computed again in the backward.
    """
    step, trains = max(1, CHUNK // max(1, rows.size(0) * columns)), torch.is_grad_enabled()
    if step >= rows.size(1) or trains and rows.size(0) * rows.size(1) * columns <= KEPT:
        return function(rows)
    chunks = rows.split(step, 1)
    if trains:
        return torch.cat([checkpoint(function, chunk, use_reentrant=False) for chunk in chunks], 1)
    return torch.cat([function(chunk) for chunk in chunks], 1)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float = 1.0) -> Tensor:
    """softmax over k of (scale * query[q] . key[k]) @ value, in bounded memory.

    query [N, Q, C], key [N, K, C], value [N, K, D] -> [N, Q, D]. The softmax over the other axis of the same matrix,
    applied to values at the queries, is `attend(key, query, value, scale)`.
    """
    if query.is_cuda:
        return fused_attention(query, key, value, scale)
    key = key.transpose(1, 2)
    return by_rows(lambda rows: torch.softmax((rows @ key).mul_(scale), -1) @ value, query, key.size(2))


def fused_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """`attend` by torch's attention, whose fused kernels take vectors of any width, but for an alignment."""
    padded = (F.pad(t, (0, -t.size(-1) % ALIGNMENT))[:, None] for t in (query, key, value))
    return F.scaled_dot_product_attention(*padded, scale=scale)[:, 0, :, : value.size(-1)]


def match_features(x: Tensor, kernel: int = 3, pono: bool = True) -> Tensor:
    """Unit vectors [N, H * W, C * kernel^2] of the kernel x kernel windows of x [N, C, H, W], zeros outside of it.

    They are centred over their own elements (pono) or, each element, over all positions; so their products are
    correlation coefficients.
    """
    if kernel == 1:
        windows = x.flatten(2)
    else:
        windows = F.unfold(x, kernel, padding=kernel // 2)
    windows = windows - windows.mean(1 if pono else 2, keepdim=True)
    return F.normalize(windows, dim=1, eps=sys.float_info.epsilon).transpose(1, 2)


def positions(x: Tensor) -> Tensor:
    """[N, C, H, W] as vectors of its positions, [N, H * W, C]."""
    return x.flatten(2).transpose(1, 2)


def at_positions(vectors: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of `positions`."""
    return vectors.transpose(1, 2).unflatten(2, size)


class SelfAttention(nn.Module):
    """y = gamma * conv(softmax(theta(x) . phi(x)) g(x)) + x, phi and g pooled 2x2: attention of SAGAN and BigGAN.

    `spectral`: spectral norm on the four 1x1 convolutions. Zhang, Goodfellow, Metaxas, Odena. Self-Attention Generative
    Adversarial Networks. ICML 2019.
    """

    def __init__(self, channels: int, spectral: bool = False) -> None:
        super().__init__()

        def conv(fin: int, fout: int) -> nn.Conv2d:
            made = nn.Conv2d(fin, fout, 1, bias=False)
            return spectral_norm(made) if spectral else made

        self.theta = conv(channels, channels // 8)
        self.phi = conv(channels, channels // 8)
        self.g = conv(channels, channels // 2)
        self.o = conv(channels // 2, channels)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = self.theta(x), F.max_pool2d(self.phi(x), 2), F.max_pool2d(self.g(x), 2)
        found = attend(positions(theta), positions(phi), positions(g))
        return torch.addcmul(x, self.gamma, self.o(at_positions(found, x.shape[2:])))
