"""Blocks of CoCosNet: SPADE with positional normalisation and reflection padding, conditioned on any image.

Zhang, Zhang, Chen, Yuan, Wen. Cross-domain Correspondence Learning for Exemplar-based Image Translation. CVPR 2020.
"""

from torch import Tensor, nn

from .positional import ReflectionSPADE
from .spectral import spectral_norm


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
        config = norm_G.replace("spectral", "")
        self.norm_0 = ReflectionSPADE(config, fin, condition_nc, pono, nhidden)
        self.norm_1 = ReflectionSPADE(config, fmiddle, condition_nc, pono, nhidden)
        if self.learned_shortcut:
            self.norm_s = ReflectionSPADE(config, fin, condition_nc, pono, nhidden)
        if se:
            self.se_layar = SqueezeExcite(fout)  # the key of the original

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shortcut = self.conv_s(self.norm_s(x, condition)) if self.learned_shortcut else x
        h = self.conv_0(self.norm_0(x, condition, 0.2))
        h = self.conv_1(self.norm_1(h, condition, 0.2))
        if hasattr(self, "se_layar"):
            h = self.se_layar(h)
        return shortcut + h
