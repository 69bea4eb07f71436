"""Networks of EdgeGAN, with the layers of its TensorFlow original: named as its variables, numbers as there."""

from collections import OrderedDict
from functools import cache
from itertools import pairwise
from math import floor

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn.conv import Conv2d, convolve

from ._blocks import reflecting

STRIDE = 16  # of generators and discriminators


def instance_norm(x: Tensor) -> Tensor:
    """(x - mean) / (standard deviation + 1e-5) of every plane.

    The second derivative, which the penalty of critics takes, has the mean within the variance as a constant: that of
    TensorFlow 1, where the first derivative does not depend on it.
    """
    mean = x.mean((2, 3), keepdim=True)
    variance = (x - mean.detach()).square().mean((2, 3), keepdim=True)
    return (x - mean) / (variance.clamp(min=1e-20).sqrt() + 1e-5)


class Generator(nn.Module):
    """Code and class [N,length] to images [N,3,size,size] in [-1, 1].

    The first norm takes the statistics of the batch at hand, in evaluation too.
    """

    def __init__(self, length: int, nf: int, size: int) -> None:
        super().__init__()
        self.side = size // STRIDE
        self.g_lin_0 = nn.Linear(length, 8 * nf * self.side**2)
        self.batch_norm = nn.BatchNorm2d(8 * nf, track_running_stats=False)
        for i, (fin, fout) in enumerate(pairwise([8 * nf, 4 * nf, 2 * nf, nf, 3]), 1):
            self.add_module(f"g_dconv_{i}", nn.ConvTranspose2d(fin, fout, 5, 2, 1))

    def forward(self, z: Tensor) -> Tensor:
        x = self.g_lin_0(z).unflatten(1, (self.side, self.side, -1)).permute(0, 3, 1, 2)
        x = F.relu(self.batch_norm(x))
        for i in range(1, 5):
            x = self.get_submodule(f"g_dconv_{i}")(x)[..., :-1, :-1]
            x = F.relu(instance_norm(x)) if i < 4 else torch.tanh(x)
        return x


class Discriminator(nn.Module):
    """Images [N,3,H,W] of `size` (H, W) to logits [N,1]."""

    def __init__(self, nf: int, size: tuple[int, int]) -> None:
        super().__init__()
        widths = [3, nf, 2 * nf, 4 * nf, 8 * nf]
        self.names = ("d_conv_0", "d_conv_1", "d_conv_3", "d_conv_4")
        for name, (fin, fout) in zip(self.names, pairwise(widths), strict=True):
            self.add_module(name, Conv2d(fin, fout, 4, 2, 1, bias=False))
        self.d_linear_5 = nn.Linear(8 * nf * (size[0] // STRIDE) * (size[1] // STRIDE), 1)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = self.get_submodule(name)(x)
            x = F.leaky_relu(x if name == "d_conv_0" else instance_norm(x), 0.2)
        return self.d_linear_5(x.permute(0, 2, 3, 1).flatten(1))


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + norm(res2(relu(norm(res1(x)))))), then the mean of 2x2 pixels."""

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__()
        self.res1, self.res2 = reflecting(fin, fout, 3, bias=True), reflecting(fout, fout, 3, bias=True)
        self.shortcut = nn.Conv2d(fin, fout, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = instance_norm(self.res2(F.relu(instance_norm(self.res1(x)))))
        return F.avg_pool2d(F.relu(self.shortcut(x) + y), 2)


class Encoder(nn.Module):
    """Edge maps or sketches [N,3,H,W] to mean and logarithm of the deviation of their codes, [N,z_dim] each."""

    def __init__(self, z_dim: int, divisor: int = 1) -> None:
        super().__init__()
        widths = [width // divisor for width in (64, 128, 256, 512, 512)]
        self.e_resnet_64_0 = nn.Conv2d(3, widths[0], 4, 2, 1)
        self.names = ("e_resnet_128_1", "e_resnet_256_2", "e_resnet_512_3", "e_resnet_512_4")
        for name, (fin, fout) in zip(self.names, pairwise(widths), strict=True):
            self.add_module(name, ResidualBlock(fin, fout))
        self.FC8_mu, self.FC8_sigma = (nn.Linear(widths[-1], z_dim) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.e_resnet_64_0(x))
        for name in self.names:
            x = self.get_submodule(name)(x)
        x = x.mean((2, 3))
        return self.FC8_mu(x), self.FC8_sigma(x)


def leaking() -> nn.Sequential:
    return nn.Sequential(OrderedDict(prelu=nn.PReLU(init=0.2)))


def normalised(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """The layer's weight over its largest singular value, by one power iteration from its buffer u.

    Gradients go through the iteration, other than in `nn.spectral_norm`. u moves on when the layer is trained.
    """
    weight, u = layer.weight.flatten(1), layer.u.clone()
    v = F.normalize(u @ weight, dim=0)
    u = F.normalize(weight @ v, dim=0)
    if layer.training and layer.weight.requires_grad:
        layer.u.copy_(u.detach())
    return layer.weight / (u @ weight @ v)


class SpectralConv2d(nn.Conv2d):
    """A convolution of normalised weight that keeps the size, and its activation if there is one."""

    def __init__(self, fin: int, fout: int, kernel: int, act: bool = False) -> None:
        super().__init__(fin, fout, kernel, padding=kernel // 2)
        self.register_buffer("u", torch.randn(fout))
        self.prelu = nn.PReLU(init=0.2) if act else None

    def forward(self, x: Tensor) -> Tensor:
        y = convolve(x, normalised(self), self.bias)
        return y if self.prelu is None else self.prelu(y)


class SpectralLinear(nn.Linear):
    """A linear layer of normalised weight."""

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__(fin, fout)
        self.register_buffer("u", torch.randn(fout))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, normalised(self), self.bias)


class MaskedResidualUnit(nn.Module):
    """State h [N,fin,H,W] and image [N,3,H,W] to the next state [N,fout,H/2,W/2].

    Chen, Hays. SketchyGAN: Towards Diverse and Realistic Sketch to Image Synthesis. CVPR 2018.
    """

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__()
        self.norm_activation_in, self.norm_activation_merge_1 = leaking(), leaking()
        self.update_gate = SpectralConv2d(fin + 3, fin, 3)
        self.Conv = SpectralConv2d(3, fin, 3)
        self.Conv_1 = SpectralConv2d(fin, fout, 3, act=True)
        self.Conv_2 = SpectralConv2d(fout, fout, 3)
        self.Conv_3 = SpectralConv2d(fin, fout, 1)

    def forward(self, h: Tensor, image: Tensor) -> Tensor:
        gate = F.leaky_relu(self.update_gate(torch.cat([self.norm_activation_in(h), image], 1)), 0.2)
        low, high = gate.amin((2, 3), keepdim=True), gate.amax((2, 3), keepdim=True)
        merged = h + (gate - low) / (high - low).clamp(min=1e-20) * self.Conv(image)
        y = self.Conv_2(self.Conv_1(self.norm_activation_merge_1(merged)))
        return F.avg_pool2d(y, 2) + self.Conv_3(F.avg_pool2d(h, 2))


class Classifier(nn.Module):
    """Photographs [N,3,H,W] to logits [N,num_classes]."""

    def __init__(self, num_classes: int, divisor: int = 1) -> None:
        super().__init__()
        widths = [8, *(width // divisor for width in (128, 256, 512, 768))]
        self.Conv = SpectralConv2d(3, widths[0], 7, act=True)
        self.units = [f"mru_conv_unit_t_{i}_layer_0" for i in range(1, 5)]
        for name, (fin, fout) in zip(self.units, pairwise(widths), strict=True):
            self.add_module(name, MaskedResidualUnit(fin, fout))
        self.mru_conv_unit_last_norm = leaking()
        self.Conv_1 = SpectralConv2d(widths[-1], 1, 1)  # which the original has and does not use
        self.fully_connected = SpectralLinear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        h = self.Conv(images)
        for name in self.units:
            h = self.get_submodule(name)(h, images)
            images = F.avg_pool2d(images, 2)
        return self.fully_connected(self.mru_conv_unit_last_norm(h).mean((2, 3)))


@cache
def bicubic(size: int, resized: int, device: torch.device) -> Tensor:
    """Weights [resized, size] of TensorFlow 1's bicubic resizing of a line, whose pixels are not centred.

    Keys' kernel with a = -0.75 at multiples of 1/1024.
    """
    weights = torch.zeros(resized, size, dtype=torch.float64)
    for i in range(resized):
        at = i * size / resized
        offset = round((at - floor(at)) * 1024) / 1024
        for tap in range(-1, 3):
            x = abs(tap - offset)
            near, far = (1.25 * x - 2.25) * x * x + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3
            weights[i, min(max(floor(at) + tap, 0), size - 1)] += near if x <= 1 else far
    return weights.float().to(device)


def resize(x: Tensor, side: int) -> Tensor:
    """Images [N,C,H,W] to [N,C,side,side]."""
    rows, columns = (bicubic(size, side, x.device).to(x.dtype) for size in x.shape[2:])
    return x if x.shape[2:] == (side, side) else rows @ x @ columns.t()
