"""Positional normalisation (PONO): Li et al., Positional Normalization, NeurIPS 2019."""

from torch import Tensor


def positional_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(var + eps) with mean and unbiased variance over the channels of every position of x [N, C, H,
    W]."""
    centred = x - x.mean(1, keepdim=True)
    return centred * (centred.square().sum(1, keepdim=True) / max(1, x.size(1) - 1) + eps).rsqrt()
