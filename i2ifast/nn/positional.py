"""Positional normalisation, and the SPADE layer with reflection padding of CoCosNet."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import conv3x3, modulate, positional_norm
from ..ops._winograd import READ
from ..ops.conv3x3 import fast
from ._norm import statistics_of
from .label_conv import resized


class PositionalNorm2d(nn.Module):
    """act((x - mean) / sqrt(var + eps)), mean and unbiased var over the channels of a pixel; no parameters.

    x [N, C, H, W] -> [N, C, H, W]. Li et al., Positional Normalization, NeurIPS 2019.
    """

    def __init__(self, act: str | float = "none", eps: float = 1e-5) -> None:
        super().__init__()
        self.act, self.eps = act, eps

    def forward(self, x: Tensor) -> Tensor:
        return positional_norm(x, None, self.act, self.eps)


def reflected(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """conv2d of x [N, C, H, W] padded by reflection, which keeps its size, for an odd kernel.

    Large maps take the kernel of `ops.conv3x3`, if that exists for the device: it pads with zeros, which reaches the
    outermost pixels only, and these are cut off again. It reads channels in blocks of READ, so zeros fill the last one.
    """
    (h, w), side, more = x.shape[2:], weight.size(-1) // 2, (0, 0, 0, 0, 0, -x.size(1) % READ)
    padded = F.pad(x, [side] * 4, mode="reflect")
    pays = side == 1 and (h + 2) * (w + 2) <= 1.25 * h * w and not torch.is_autocast_enabled(x.device.type)
    if not pays or not fast(padded, x.size(1) + more[-1], weight.size(0)):
        return F.conv2d(padded, weight, bias)
    return conv3x3(F.pad(padded, more), F.pad(weight, more), bias)[:, :, 1:-1, 1:-1]


class ReflectionSPADE(nn.Module):
    """y = norm(x) * (1 + gamma) + beta, (gamma, beta) = conv(relu(conv(segmap))), padding by reflection.

    Drop-in for the SPADE of CoCosNet (Zhang et al., Cross-domain Correspondence Learning for Exemplar-based Image
    Translation, CVPR 2020), with its state_dict keys: `config_text` as of SPADE; with `PONO` x is normalised over the
    channels of a pixel, whatever norm the text names. segmap [N, label_nc, H', W'] is resized to x by nearest. x needs
    sides longer than half the kernel.
    """

    def __init__(self, config_text: str, norm_nc: int, label_nc: int, PONO: bool = False, nhidden: int = 128) -> None:
        super().__init__()
        parsed = re.fullmatch(r"spade(batch|syncbatch|instance)(\d+)x\2", config_text)
        if parsed is None or int(parsed[2]) % 2 == 0:
            raise ValueError(f"config_text={config_text!r}: expected spade(batch|syncbatch|instance)KxK with odd K")
        self.synchronise, ks = parsed[1] == "syncbatch", int(parsed[2])
        if PONO:
            self.param_free_norm: nn.Module | None = None
        elif parsed[1] == "instance":
            self.param_free_norm = nn.InstanceNorm2d(norm_nc)
        else:
            self.param_free_norm = nn.BatchNorm2d(norm_nc, affine=False)
        self.mlp_shared = nn.Sequential(nn.ReflectionPad2d(ks // 2), nn.Conv2d(label_nc, nhidden, ks), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(nhidden, norm_nc, ks)
        self.mlp_beta = nn.Conv2d(nhidden, norm_nc, ks)

    def forward(self, x: Tensor, segmap: Tensor, act: str | float = "none") -> Tensor:
        """x [N, C, H, W] -> act(...) of the same shape."""
        shared, gamma, beta = self.mlp_shared[1], self.mlp_gamma, self.mlp_beta
        hidden = F.relu(reflected(resized(segmap, x.shape[2:]), shared.weight, shared.bias))
        gamma_beta = reflected(hidden, torch.cat([gamma.weight, beta.weight]), torch.cat([gamma.bias, beta.bias]))
        if self.param_free_norm is None:
            return positional_norm(x, gamma_beta, act)
        (statistics,) = statistics_of(x, [self.param_free_norm], synchronise=self.synchronise)
        return modulate(x, gamma_beta, None, statistics, act)
