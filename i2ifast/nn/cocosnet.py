"""Blocks of CoCosNet: SPADE with positional normalisation and reflection padding, conditioned on any image.

Zhang, Zhang, Chen, Yuan, Wen. Cross-domain Correspondence Learning for Exemplar-based Image Translation. CVPR 2020.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import modulate
from ._norm import statistics_of
from .positional import positional_norm
from .spectral import spectral_norm


class ReflectedSPADE(nn.Module):
    """y = act(norm(x) * (1 + gamma) + beta), (gamma, beta) = conv(relu(conv(condition))), all 3x3 with reflection.

    norm is positional with `pono`, else that of SPADE's config text: 'instance', 'batch' or 'syncbatch'.
    """

    def __init__(self, norm: str, pono: bool, channels: int, condition_nc: int, nhidden: int = 128) -> None:
        super().__init__()
        self.pono, self.synchronise = pono, "syncbatch" in norm
        if not pono:
            instance = "instance" in norm
            self.param_free_norm = nn.InstanceNorm2d(channels) if instance else nn.BatchNorm2d(channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Identity(), reflected(condition_nc, nhidden), nn.ReLU())
        self.mlp_gamma = reflected(nhidden, channels)
        self.mlp_beta = reflected(nhidden, channels)

    def forward(self, x: Tensor, condition: Tensor, act: str | float = "none") -> Tensor:
        hidden = self.mlp_shared(F.interpolate(condition, size=x.shape[2:], mode="nearest"))
        weight = torch.cat([self.mlp_gamma.weight, self.mlp_beta.weight])
        bias = torch.cat([self.mlp_gamma.bias, self.mlp_beta.bias])
        gamma_beta = F.conv2d(F.pad(hidden, (1, 1, 1, 1), "reflect"), weight, bias)
        if self.pono:
            return modulate(positional_norm(x), gamma_beta, None, None, act)
        (statistics,) = statistics_of(x, [self.param_free_norm], synchronise=self.synchronise)
        return modulate(x, gamma_beta, None, statistics, act)


def reflected(fin: int, fout: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(fin, fout, 3, padding=dilation, dilation=dilation, padding_mode="reflect")


class SqueezeExcite(nn.Module):
    """x times a factor per channel, which two linear layers compute from the means: Hu, Shen, Sun, CVPR 2018."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        inner = channels // reduction
        self.fc = nn.Sequential(
            nn.Linear(channels, inner, bias=False), nn.ReLU(), nn.Linear(inner, channels, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[..., None, None]


class ReflectedSPADEResnetBlock(nn.Module):
    """SPADE's residual block with reflection padding, and squeeze and excitation at the end of it with `se`."""

    def __init__(
        self,
        fin: int,
        fout: int,
        norm_G: str,
        pono: bool,
        condition_nc: int,
        nhidden: int = 128,
        se: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        fmiddle = min(fin, fout)
        self.learned_shortcut = fin != fout
        self.conv_0 = reflected(fin, fmiddle, dilation)
        self.conv_1 = reflected(fmiddle, fout, dilation)
        if self.learned_shortcut:
            self.conv_s = nn.Conv2d(fin, fout, 1, bias=False)
        if "spectral" in norm_G:
            for name in ("conv_0", "conv_1", "conv_s")[: 3 if self.learned_shortcut else 2]:
                setattr(self, name, spectral_norm(getattr(self, name)))
        self.norm_0 = ReflectedSPADE(norm_G, pono, fin, condition_nc, nhidden)
        self.norm_1 = ReflectedSPADE(norm_G, pono, fmiddle, condition_nc, nhidden)
        if self.learned_shortcut:
            self.norm_s = ReflectedSPADE(norm_G, pono, fin, condition_nc, nhidden)
        if se:
            self.se_layar = SqueezeExcite(fout)  # the key of the original

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shortcut = self.conv_s(self.norm_s(x, condition)) if self.learned_shortcut else x
        h = self.conv_0(self.norm_0(x, condition, 0.2))
        h = self.conv_1(self.norm_1(h, condition, 0.2))
        if hasattr(self, "se_layar"):
            h = self.se_layar(h)
        return shortcut + h
