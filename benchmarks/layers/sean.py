"""SEAN: a block of the generator, and the generator, on blocky label maps.

"original" makes the map of styles region by region and sample by sample; "plain" picks them for all pixels at once.
Both convolve that map and the label map at every pixel.
"""

import torch
import torch.nn.functional as F
from plain import maps
from torch import Tensor, nn

from i2ifast.models.sean import Config, SEANGenerator
from i2ifast.nn import ACE, SEANResnetBlock

from . import Layer, Made, Shape

CLASSES = 19


def convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)


class Ours(nn.Module):
    """A block with upsampling in front of it, or a generator, on one label map."""

    def __init__(self, ours: nn.Module, seg: Tensor) -> None:
        super().__init__()
        self.ours = ours
        self.register_buffer("seg", seg, persistent=False)

    def forward(self, x: Tensor, style_codes: Tensor) -> Tensor:
        return self.ours(x, self.seg, style_codes, upsample=True)


class Plain(Ours):
    """The published formulation around the parameters of ours."""

    def __init__(self, ours: nn.Module, seg: Tensor, by_region: bool) -> None:
        super().__init__(ours, seg)
        self.by_region = by_region

    def styles(self, ace: ACE, seg: Tensor, codes: Tensor) -> Tensor:
        if not self.by_region:
            return maps.styles_at_pixels(ace, seg, codes)
        styles = torch.zeros(len(seg), codes.size(2), *seg.shape[2:])
        for i in range(len(seg)):
            for j in range(seg.size(1)):
                mask = seg[i, j].bool()
                if mask.any():
                    mu = F.relu(ace.get_submodule(f"fc_mu{j}")(codes[i, j]))
                    styles[i] = styles[i].masked_scatter(mask, mu[:, None].expand(-1, int(mask.sum())))
        return styles

    def ace(self, ace: ACE, x: Tensor, seg: Tensor, codes: Tensor) -> Tensor:
        return maps.ace(ace, x, seg, codes, styles_of=self.styles)

    def block(self, block: SEANResnetBlock, x: Tensor, seg: Tensor, codes: Tensor) -> Tensor:
        shortcut = convolve(self.ace(block.ace_s, x, seg, codes), block.conv_s) if block.learned_shortcut else x
        h = convolve(F.leaky_relu(self.ace(block.ace_0, x, seg, codes), 0.2), block.conv_0)
        return shortcut + convolve(F.leaky_relu(self.ace(block.ace_1, h, seg, codes), 0.2), block.conv_1)

    def forward(self, x: Tensor, style_codes: Tensor) -> Tensor:
        return self.block(self.ours, F.interpolate(x, scale_factor=2), self.seg, style_codes)


class PlainGenerator(Plain):
    def forward(self, images: Tensor) -> Tensor:
        g, seg = self.ours, self.seg
        codes = self.encode(g.Zencoder.model, images, seg)
        x = convolve(F.interpolate(seg, scale_factor=1 / 32), g.fc)
        x = self.block(g.head_0, x, seg, codes)
        x = self.block(g.G_middle_0, F.interpolate(x, scale_factor=2), seg, codes)
        x = self.block(g.G_middle_1, x, seg, codes)
        for block in (g.up_0, g.up_1, g.up_2, g.up_3):
            x = self.block(block, F.interpolate(x, scale_factor=2), seg, codes)
        return torch.tanh(convolve(F.leaky_relu(x, 0.2), g.conv_img))

    def encode(self, layers: nn.Sequential, x: Tensor, seg: Tensor) -> Tensor:
        for at, layer in enumerate(layers):
            if at in (0, 13):
                x = F.pad(x, [1] * 4, mode="reflect")
            elif at == 14:  # ours pads with zeros around that
                x = F.conv2d(x, layer.weight, layer.bias)
            elif isinstance(layer, nn.Conv2d):
                x = convolve(x, layer)
            elif isinstance(layer, nn.ConvTranspose2d | nn.Tanh):
                x = layer(x)
            elif at in (2, 5, 8, 11):
                x = F.leaky_relu(F.instance_norm(x), 0.2)
        seg = F.interpolate(seg, size=x.shape[2:])
        if not self.by_region:
            return torch.einsum("nrhw,nshw->nrs", seg, x) / seg.sum((2, 3)).clamp(min=1)[..., None]
        codes = torch.zeros(len(x), seg.size(1), x.size(1))
        for i in range(len(x)):
            for j in range(seg.size(1)):
                mask = seg[i, j].bool()
                if mask.any():
                    codes[i, j] = x[i].masked_select(mask).view(x.size(1), -1).mean(1)
        return codes


class OfImages:
    """A generator as a function of images: what it has of weights is no input."""

    def __init__(self, generator: nn.Module, seg: Tensor | None = None) -> None:
        self.generator, self.seg = generator, seg

    def to(self, device: torch.device) -> "OfImages":
        return OfImages(self.generator.to(device), None if self.seg is None else self.seg.to(device))

    def __call__(self, images: Tensor) -> Tensor:
        return self.generator(images) if self.seg is None else self.generator(self.seg, images)


def label_map(n: int, h: int, w: int, g: torch.Generator) -> Tensor:
    cells = torch.arange(64).view(8, 8)[torch.randperm(8, generator=g)] % CLASSES  # all of them
    labels = cells.repeat_interleave(-(-h // 8), 0).repeat_interleave(-(-w // 8), 1)[:h, :w].expand(n, h, w)
    return F.one_hot(labels, CLASSES).permute(0, 3, 1, 2).float().contiguous()


def make_block(shape: Shape, g: torch.Generator) -> Made:
    """Training of a block; shape is that of its input. Without spectral norm, which all would compute alike."""
    n, c, h, w = shape
    block, seg = SEANResnetBlock(c, c // 2, "spadesyncbatch3x3", CLASSES), label_map(n, 2 * h, 2 * w, g)
    inputs = {"x": torch.randn(shape, generator=g), "style_codes": torch.randn(n, CLASSES, 512, generator=g).tanh()}
    rivals = {"plain": Plain(block, seg, by_region=False), "original": Plain(block, seg, by_region=True)}
    return Made({"ours": Ours(block, seg), **rivals}, inputs)


def make_generator(shape: Shape, g: torch.Generator) -> Made:
    """Translation, and its gradient of the images; shape is that of these, with `ngf` in the place of channels."""
    n, ngf, h, w = shape
    generator = SEANGenerator(Config(ngf=ngf, crop_size=w, norm_G="spadesyncbatch3x3")).eval()
    seg = label_map(n, h, w, g)
    functions = {
        "ours": OfImages(generator, seg),
        "plain": OfImages(PlainGenerator(generator, seg, by_region=False)),
        "original": OfImages(PlainGenerator(generator, seg, by_region=True)),
    }
    return Made(functions, {"images": torch.rand((n, 3, h, w), generator=g) * 2 - 1})


LAYERS = [
    Layer("SEANResnetBlock", ((1, 256, 64, 64),), make_block),
    Layer("SEANGenerator", ((1, 64, 256, 256),), make_generator),
]
