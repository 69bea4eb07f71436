"""Networks of DRIT++: encoders of content and of attributes, generators, discriminators.

Those of the two domains are one network each, with parts A and B.
"""

from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import InstanceNormAct
from i2ifast.nn.conv import Conv2d, ConvTranspose2d
from i2ifast.nn.instance import instance_norm_act
from i2ifast.ops import spectral_weight

from ._blocks import LayerNormAct, half_size, numbered, reflecting, tiled

NZ = 8  # of an attribute vector
SLOPE = 0.01  # of leaky relus behind convolutions; elsewhere 0.2
STYLED = 4  # blocks of the generator that takes attributes feature-wise


class Sizes(Protocol):
    """The options that discriminators read."""

    dis_scale: int
    dis_spectral_norm: bool
    base_channels: int


class SizesOfTwo(Sizes, Protocol):
    """The options that networks of two domains read."""

    input_dim_a: int
    input_dim_b: int


def channels(config: SizesOfTwo) -> dict[str, int]:
    """Of the images of each domain."""
    return {"A": config.input_dim_a, "B": config.input_dim_b}


class PaddedConv2d(Conv2d):
    """A convolution with reflection padding."""

    def __init__(self, fin: int, fout: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(fin, fout, kernel, stride, padding, padding_mode="reflect")


class SpectralConv2d(PaddedConv2d):
    """A convolution with reflection padding whose weight, in training, is divided by its spectral norm.

    Evaluation takes the weight of the last pass in training, which is in the state_dict, as in the original's.
    """

    def __init__(self, fin: int, fout: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(fin, fout, kernel, stride, padding)
        weight = self.weight.detach()
        del self.weight
        self.weight_orig = nn.Parameter(weight)
        self.register_buffer("weight", weight.clone())
        self.register_buffer("weight_u", F.normalize(torch.randn(fout), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.training:
            start = weight.new_empty(self.weight_orig[0].numel())  # follows from u
            weight, u, _, _ = spectral_weight(self.weight_orig, self.weight_u, start)
            self.weight.copy_(weight.detach())
            self.weight_u.copy_(u)
        return self._conv_forward(x, weight, self.bias)


class LeakyConv2d(nn.Module):
    """A convolution with reflection padding and a leaky relu."""

    def __init__(self, fin: int, fout: int, kernel: int, stride: int, padding: int, spectral: bool = False) -> None:
        super().__init__()
        kind = SpectralConv2d if spectral else PaddedConv2d
        self.model = numbered({1: kind(fin, fout, kernel, stride, padding)})

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.model(x), SLOPE)


class NormedConv2d(nn.Module):
    """A 3x3 convolution of stride 2 with reflection padding, instance norm and relu."""

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__()
        self.model = numbered({1: reflecting(fin, fout, 3, 2, bias=True), 2: InstanceNormAct(fout)})

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class ResBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))) with instance norms and reflection padding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = (reflecting(width, width, 3, bias=True) for _ in range(2))
        layers = {1: first, 2: InstanceNormAct(width), 5: second, 6: InstanceNormAct(width, "none")}
        self.model = numbered(layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.model(x)


class ContentEncoder(nn.Module):
    """Images of A, of B or of both to their contents [N,4c,H/4,W/4], in that order."""

    def __init__(self, config: SizesOfTwo) -> None:
        super().__init__()
        c = config.base_channels
        self.conv_share = nn.Sequential(ResBlock(4 * c))
        for side, fin in channels(config).items():
            layers = [LeakyConv2d(fin, c, 7, 1, 3), NormedConv2d(c, 2 * c), NormedConv2d(2 * c, 4 * c)]
            self.add_module(f"conv{side}", nn.Sequential(*layers, *(ResBlock(4 * c) for _ in range(3))))

    def forward(self, **images: Tensor) -> tuple[Tensor, ...]:
        own = [self.get_submodule(f"conv{side}")(x) for side, x in images.items()]
        return self.conv_share(torch.cat(own)).split([len(x) for x in own])


class AttributeBlock(nn.Module):
    """Two convolutions behind activations, and one of a pixel beside them, to half the size."""

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__()
        first, second = reflecting(fin, fin, 3, bias=True), reflecting(fin, fout, 3, bias=True)
        self.conv = numbered({2: first, 4: numbered({1: second, 2: nn.AvgPool2d(2)})})
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(fin, fout, 1))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.conv
        return second(F.leaky_relu(first(F.leaky_relu(x, 0.2)), 0.2)) + self.shortcut(x)


class VariationalEncoder(nn.Module):
    """Images of A, of B or of both to [N,2nz]: mean and log variance of their attributes."""

    def __init__(self, config: SizesOfTwo) -> None:
        super().__init__()
        c = config.base_channels
        widths = [c, 2 * c, 3 * c, 4 * c]
        for side, fin in channels(config).items():
            blocks = [AttributeBlock(*pair) for pair in pairwise(widths)]
            layers = [PaddedConv2d(fin, c, 4, 2, 1), *blocks]
            self.add_module(f"conv_{side}", numbered(dict(enumerate(layers, 1))))
            for name in ("fc", "fcVar"):
                self.add_module(f"{name}_{side}", nn.Sequential(nn.Linear(widths[-1], NZ)))

    def forward(self, **images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._encode(side, x) for side, x in images.items())

    def _encode(self, side: str, images: Tensor) -> Tensor:
        part = self.get_submodule
        x = F.leaky_relu(part(f"conv_{side}")(images), 0.2).mean((2, 3))
        return torch.cat([part(f"fc_{side}")(x), part(f"fcVar_{side}")(x)], 1)


class AttributeEncoder(nn.Module):
    """Images of A, of B or of both to their attributes [N,nz]."""

    def __init__(self, config: SizesOfTwo) -> None:
        super().__init__()
        c = config.base_channels
        for side, fin in channels(config).items():
            layers: list[nn.Module] = [PaddedConv2d(fin, c, 7, 1, 3)]
            layers += [PaddedConv2d(a, b, 4, 2, 1) for a, b in pairwise((c, 2 * c, 4 * c, 4 * c, 4 * c))]
            layers.append(nn.Conv2d(4 * c, NZ, 1))
            self.add_module(f"model_{side.lower()}", numbered({3 * i + 1: layer for i, layer in enumerate(layers)}))

    def forward(self, **images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._encode(side, x) for side, x in images.items())

    def _encode(self, side: str, x: Tensor) -> Tensor:
        *layers, last = self.get_submodule(f"model_{side.lower()}")
        for layer in layers:
            x = F.relu(layer(x))
        return last(x.mean((2, 3), keepdim=True)).flatten(1)


class NormedUpConv2d(nn.Module):
    """A transposed 3x3 convolution to twice the size, layer norm and relu."""

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__()
        self.model = nn.Sequential(ConvTranspose2d(fin, fout, 3, 2, 1, 1), LayerNormAct(fout))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def pixelwise(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution of x with z in every pixel, with weight [O,C+D]: what z adds is the same in all pixels."""
    of_x, of_z = weight.split([x.size(1), z.size(1)], 1)
    return F.conv2d(x, of_x[..., None, None]) + (z @ of_z.t() + bias)[..., None, None]


class ToImages(nn.Sequential):
    """A convolution of a pixel, stored as a transposed one, to images in [-1, 1]."""

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__(nn.ConvTranspose2d(fin, fout, 1))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(pixelwise(x, z, self[0].weight.flatten(1).t(), self[0].bias))


class ConcatGenerator(nn.Module):
    """Contents and attributes to images of a domain; attributes are maps beside the content.

    An attribute is the same in all pixels. Convolutions with reflection padding keep it so, and instance norms take
    away what is: the residual blocks add the same to content and attributes, whatever these are. So what they do is
    done once for all attributes, without them (`begin`); they are added behind.
    """

    def __init__(self, config: SizesOfTwo) -> None:
        super().__init__()
        width = 4 * config.base_channels
        self.dec_share = nn.Sequential(ResBlock(width))
        for side, fout in channels(config).items():
            own = width + NZ
            self.add_module(f"dec{side}1", nn.Sequential(*(ResBlock(own) for _ in range(3))))
            for i in (2, 3):
                self.add_module(f"dec{side}{i}", nn.Sequential(NormedUpConv2d(own + NZ, (own + NZ) // 2)))
                own = (own + NZ) // 2
            self.add_module(f"dec{side}4", ToImages(own + NZ, fout))

    def share(self, content: Tensor) -> Tensor:
        """What the domains have in common."""
        return self.dec_share(content)

    def begin(self, shared: Tensor, side: str) -> Tensor:
        """What all images of a domain with a content have in common."""
        without = shared.new_zeros(len(shared), NZ)
        return self.get_submodule(f"dec{side}1")(torch.cat([shared, tiled(without, shared)], 1))

    def forward(self, begun: Tensor, z: Tensor, side: str) -> Tensor:
        x = begun + F.pad(z, (begun.size(1) - NZ, 0))[:, :, None, None]
        for i in (2, 3):
            x = self.get_submodule(f"dec{side}{i}")(torch.cat([x, tiled(z, x)], 1))
        return self.get_submodule(f"dec{side}4")(x, z)


class StyledBlock(nn.Module):
    """A residual block with two layers of a pixel, of features and attributes, behind each of its convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for i in "12":
            self.add_module(f"conv{i}", nn.Sequential(numbered({1: reflecting(width, width, 3, bias=True)})))
            layers = {0: nn.Conv2d(2 * width, 2 * width, 1), 2: nn.Conv2d(2 * width, width, 1)}
            self.add_module(f"blk{i}", numbered(layers))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        y = x
        for conv, (first, second) in ((self.conv1, self.blk1), (self.conv2, self.blk2)):
            y = instance_norm_act(conv(y))
            y = F.relu(second(F.relu(pixelwise(y, z, first.weight.flatten(1), first.bias))))
        return y + x


class StyledGenerator(nn.Module):
    """Contents and attributes to images of a domain; attributes are vectors of each block."""

    def __init__(self, config: SizesOfTwo) -> None:
        super().__init__()
        c = config.base_channels
        width = 4 * c
        for side, fout in channels(config).items():
            for i in range(1, STYLED + 1):
                self.add_module(f"dec{side}{i}", StyledBlock(width))
            ups = NormedUpConv2d(width, 2 * c), NormedUpConv2d(2 * c, c)
            self.add_module(f"dec{side}5", nn.Sequential(*ups, nn.ConvTranspose2d(c, fout, 1), nn.Tanh()))
            first, second, third = nn.Linear(NZ, width), nn.Linear(width, width), nn.Linear(width, STYLED * width)
            self.add_module(f"mlp{side}", nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third))

    def share(self, content: Tensor) -> Tensor:
        return content

    def begin(self, shared: Tensor, side: str) -> Tensor:
        return shared

    def forward(self, x: Tensor, z: Tensor, side: str) -> Tensor:
        part = self.get_submodule
        for i, style in enumerate(part(f"mlp{side}")(z).chunk(STYLED, 1), 1):
            x = part(f"dec{side}{i}")(x, style)
        return part(f"dec{side}5")(x)


def layers_of(config: Sizes, fin: int, count: int, kernel: int, outputs: int) -> list[nn.Module]:
    """Leaky convolutions of stride 2, each with twice the channels, and one of a pixel to logits."""
    spectral = config.dis_spectral_norm
    widths = [fin, *(config.base_channels << i for i in range(count))]
    blocks = [LeakyConv2d(a, b, kernel, 2, 1, spectral) for a, b in pairwise(widths)]
    return [*blocks, (SpectralConv2d if spectral else PaddedConv2d)(widths[-1], outputs, 1)]


class MultiScaleDis(nn.Module):
    """Patch discriminators of images at full resolution, at half, ... -> logits per scale."""

    def __init__(self, config: Sizes, fin: int, outputs: int = 1) -> None:
        super().__init__()
        scales = range(config.dis_scale)
        self.Diss = nn.ModuleList(nn.Sequential(*layers_of(config, fin, 4, 4, outputs)) for _ in scales)

    def forward(self, images: Tensor) -> list[Tensor]:
        logits = []
        for i, net in enumerate(self.Diss):
            images = half_size(images) if i else images
            logits.append(net(images))
        return logits


class Dis(nn.Module):
    """A deeper discriminator of images at full resolution -> its logits."""

    def __init__(self, config: Sizes, fin: int, outputs: int = 1) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers_of(config, fin, 6, 3, outputs))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.model(images)]


class ContentDis(nn.Module):
    """Contents of at least 53x53 pixels to a logit of being of domain B, or one for each domain."""

    def __init__(self, config: Sizes, outputs: int = 1) -> None:
        super().__init__()
        width = 4 * config.base_channels
        layers = [LeakyConv2d(width, width, 7, 2, 1) for _ in range(3)]
        self.model = nn.Sequential(*layers, LeakyConv2d(width, width, 4, 1, 0), nn.Conv2d(width, outputs, 1))

    def forward(self, content: Tensor) -> Tensor:
        return self.model(content).flatten(1)
