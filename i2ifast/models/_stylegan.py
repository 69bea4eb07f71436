"""StyleGAN's generator, with the state_dict keys of its first port to PyTorch.

Karras, Laine, Aila. A Style-Based Generator Architecture for Generative Adversarial Networks. CVPR 2019.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import AdaIN, EqualLinear, upsample_conv2d
from i2ifast.nn.conv import convolve
from i2ifast.nn.modulated_conv import fir, normalise_second_moment
from i2ifast.ops import bias_act, upfirdn2d

FUSED = 128  # pixels per side from which on the original upsamples by a transposed convolution


class Mapping(nn.Module):
    """z [N, C] to w [N, C]."""

    def __init__(self, channels: int = 512, layers: int = 8, lr_mul: float = 0.01) -> None:
        super().__init__()
        self.lr_mul = lr_mul
        for i in range(layers):
            self.add_module(f"dense{i}", EqualLinear(channels, channels, lr_mul=lr_mul))

    def forward(self, z: Tensor) -> Tensor:
        x, gain = normalise_second_moment(z), math.sqrt(2)
        for layer in self.children():
            scale = gain * self.lr_mul / math.sqrt(layer.weight.size(1))  # the gain is of the weight alone
            x = F.leaky_relu(F.linear(x, layer.weight * scale, layer.bias * self.lr_mul), 0.2)
        return x


class Conv(nn.Module):
    """Convolution without its bias, which follows a blur in upsampling ones, and with weights scaled at run time."""

    def __init__(self, fin: int, fout: int, kernel: int = 3, gain: float = math.sqrt(2), upsample: bool = False):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(fout, fin, kernel, kernel)), nn.Parameter(torch.zeros(fout))
        self.scale = gain / math.sqrt(fin * kernel**2)
        if upsample:
            self.intermediate = nn.Module()
            self.intermediate.register_buffer("kernel", fir((1, 2, 1))[None, None])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        if not hasattr(self, "intermediate"):
            return convolve(x, weight, None)
        # The original's transposed convolution of large maps applies the kernel the other way round.
        flipped = 2 * min(x.shape[2:]) >= FUSED
        y = upsample_conv2d(x, weight.flip(2, 3) if flipped else weight)
        return upfirdn2d(y, self.intermediate.kernel[0, 0], padding=1)


class Epilogue(nn.Module):
    """Bias, noise of a strength per channel, leaky relu, and AdaIN by a style w."""

    def __init__(self, channels: int, w_dim: int) -> None:
        super().__init__()
        self.top_epi = nn.ModuleDict({"noise": nn.Module()})
        self.top_epi["noise"].weight = nn.Parameter(torch.zeros(channels))
        self.style_mod = nn.ModuleDict({"lin": EqualLinear(w_dim, 2 * channels)})
        self.adain = AdaIN()

    def forward(self, x: Tensor, bias: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        strength = self.top_epi["noise"].weight[:, None, None]
        x = bias_act(x + strength * noise, bias, act="lrelu", gain=1.0)
        return self.adain(x, self.style_mod["lin"](w))


class Block(nn.Module):
    """Two layers of a resolution; the first block starts from a constant, others from a map half as large."""

    def __init__(self, fin: int, channels: int, w_dim: int) -> None:
        super().__init__()
        if fin:
            self.conv0_up, self.conv1 = Conv(fin, channels, upsample=True), Conv(channels, channels)
        else:
            self.const = nn.Parameter(torch.ones(1, channels, 4, 4))
            self.bias = nn.Parameter(torch.ones(channels))
            self.conv = Conv(channels, channels)
        self.epi1, self.epi2 = Epilogue(channels, w_dim), Epilogue(channels, w_dim)

    def forward(self, x: Tensor | None, w: Tensor, noise: Sequence[Tensor]) -> Tensor:
        first = x is None
        x = self.const.expand(len(w), -1, -1, -1) if first else self.conv0_up(x)
        x = self.epi1(x, self.bias if first else self.conv0_up.bias, w[:, 0], noise[0])
        conv = self.conv if first else self.conv1
        return self.epi2(conv(x), conv.bias, w[:, 1], noise[1])


class Synthesis(nn.Module):
    """Styles [N, layers, C] and a noise map of every layer to images [N, 3, resolution, resolution]."""

    def __init__(self, resolution: int = 1024, fmap_base: int = 8192, fmap_max: int = 512, w_dim: int = 512) -> None:
        super().__init__()
        self.resolutions = [2**i for i in range(2, resolution.bit_length())]
        self.blocks, channels = nn.ModuleDict(), 0
        for r in self.resolutions:
            fin, channels = channels, min(2 * fmap_base // r, fmap_max)
            self.blocks[f"{r}x{r}"] = Block(fin, channels, w_dim)
        self.torgb = ToImage(channels)

    @property
    def noise_sizes(self) -> list[int]:
        """Pixels per side of the noise of each layer; there are as many styles."""
        return [r for r in self.resolutions for _ in range(2)]

    def forward(self, w: Tensor, noise: Sequence[Tensor], edit: Callable[[int, Tensor], Tensor] | None = None):
        """`edit` gets every block's resolution and activations, and returns those to go on with: perhaps of the first
        images alone, with whose styles the rest is then made."""
        x = None
        for i, (r, block) in enumerate(zip(self.resolutions, self.blocks.values(), strict=True)):
            x = block(x, w[:, 2 * i : 2 * i + 2], noise[2 * i : 2 * i + 2])
            if edit is not None:
                x = edit(r, x)
                w = w[: len(x)]
        return self.torgb(x)


class ToImage(Conv):
    """The last layer, 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 3, 1, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias)
