"""Feature-adaptive denormalisation (FADE) and feature-adaptive instance normalisation (FAdaIN).

Jiang et al., TSIT: A Simple and Versatile Framework for Image-to-Image Translation, ECCV 2020.
"""

import re
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..ops import PackedConv3x3
from .conv import Conv2d, convolve
from .instance import adain
from .spade import Layer, ModulatedResnetBlock, modulated


class FAdaIN(nn.Module):
    """y = alpha * (std(style) * (x - mean(x)) / std(x) + mean(style)) + (1 - alpha) * x, per sample and channel.

    x [N, C, H, W], style [N, C, H', W'] -> [N, C, H, W]; std is the square root of the unbiased variance plus eps.
    """

    def __init__(self, alpha: float = 1.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.alpha, self.eps = alpha, eps

    def forward(self, x: Tensor, style: Tensor, repeats: int = 1) -> Tensor:
        """`repeats`: how often the map that is said to be normalised has every element of x, as `adain` takes it."""
        return adain(x, style, eps=self.eps, alpha=self.alpha, repeats=repeats)


class FADE(nn.Module):
    """y = norm(x) * (1 + gamma) + beta, gamma and beta each a convolution of feature maps as large as x.

    Drop-in for the original: `config_text` is 'fade' + (batch | syncbatch | instance) + k + 'x' + k; norm_nc channels
    of x, label_nc channels of the features; the same state_dict keys and numbers. Batch statistics are synchronised
    over all ranks for 'syncbatch' where torch.distributed is initialised.
    """

    def __init__(self, config_text: str, norm_nc: int, label_nc: int) -> None:
        super().__init__()
        parsed = re.fullmatch(r"fade(batch|syncbatch|instance)(\d+)x\2", config_text)
        if parsed is None or int(parsed[2]) % 2 == 0:
            raise ValueError(f"config_text={config_text!r}: expected fade(batch|syncbatch|instance)KxK with odd K")
        self.synchronise, ks = parsed[1] == "syncbatch", int(parsed[2])
        instance = parsed[1] == "instance"
        self.param_free_norm = nn.InstanceNorm2d(norm_nc) if instance else nn.BatchNorm2d(norm_nc, affine=False)
        self.mlp_gamma = Conv2d(label_nc, norm_nc, ks, padding=ks // 2)
        self.mlp_beta = Conv2d(label_nc, norm_nc, ks, padding=ks // 2)
        self.to(memory_format=torch.channels_last)
        self._baked: Callable[[Tensor], Tensor] | None = None

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of gamma's and beta's convolutions as one of 2C outputs."""
        gamma, beta = self.mlp_gamma, self.mlp_beta
        return torch.cat([gamma.weight, beta.weight]), torch.cat([gamma.bias, beta.bias])

    def bake(self) -> None:
        """Lay the weights out once, for inference: later changes of the parameters have no effect."""
        weight, bias = self.stacked()
        packed = PackedConv3x3(weight, bias) if weight.size(-1) == 3 else None
        self._baked = packed or partial(convolve, weight=weight, bias=bias)

    def gamma_beta(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """[N, 2C, h, w], from one convolution unless its weight were more than it makes; ValueError for features of
        another size."""
        if tuple(features.shape[2:]) != tuple(size):
            raise ValueError(f"features of size {list(features.shape[2:])} for x of size {list(size)}")
        if self._baked:
            return self._baked(features)
        if self.mlp_gamma.weight[0].numel() > size[0] * size[1]:  # of a map: one form for any batch
            return torch.cat([self.mlp_gamma(features), self.mlp_beta(features)], 1)
        return convolve(features, *self.stacked())

    @property
    def layer(self) -> Layer:
        return Layer(self.param_free_norm, self.gamma_beta, self.synchronise)

    def forward(self, x: Tensor, features: Tensor, act: str | float = "none", upsample: bool = False) -> Tensor:
        """x [N, C, H, W] -> act(...) of the same shape, or x2 with `upsample`, which first upsamples x by nearest."""
        return modulated(x, features, self.layer, act, upsample)


class FADEResnetBlock(ModulatedResnetBlock):
    """y = shortcut + conv_1(lrelu(norm_1(conv_0(lrelu(norm_0(x)))))); shortcut = x, or conv_s(norm_s(x)).

    Drop-in for the original: `norm_G` is a FADE config text, with 'spectral' before it for spectral norm on the
    convolutions. Features have the channels of x.
    """

    def __init__(self, fin: int, fout: int, norm_G: str) -> None:
        config = norm_G.replace("spectral", "")
        super().__init__(fin, fin, fout, Conv2d, partial(FADE, config, label_nc=fin), "spectral" in norm_G)
