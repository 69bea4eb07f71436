"""Networks of vid2vid: a generator with flow and mask per scale, and discriminators of several scales."""

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from i2ifast.nn import BatchNormAct, TrackedInstanceNormAct
from i2ifast.nn.conv import Conv2d, ConvTranspose2d, ValidConv2d
from i2ifast.nn.flow import resample2d

if TYPE_CHECKING:
    from .vid2vid import Config

Features = list[list[Tensor]]  # discriminator outputs [scale][layer], the last layer being the logits

NORMS = {"batch": partial(BatchNormAct, synchronise=False), "instance": TrackedInstanceNormAct}


class ResnetBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x)))))"""

    def __init__(self, channels: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            *[nn.ReflectionPad2d(1), ValidConv2d(channels, channels, 3), norm(channels), nn.Identity()],
            *[nn.ReflectionPad2d(1), ValidConv2d(channels, channels, 3), norm(channels, act="none")],
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


# The norms hold their activations: identities keep the originals' numbering of layers.


def encoder(fin: int, width: int, steps: int, norm: type[nn.Module]) -> list[nn.Module]:
    layers = [nn.ReflectionPad2d(3), nn.Conv2d(fin, width, 7), norm(width), nn.Identity()]
    for i in range(steps):
        layers += [Conv2d(width << i, width << i + 1, 3, 2, 1), norm(width << i + 1), nn.Identity()]
    return layers


def decoder(width: int, steps: int, norm: type[nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in reversed(range(steps)):
        conv = ConvTranspose2d(width << i + 1, width << i, 3, 2, 1, output_padding=1)
        layers += [conv, norm(width << i), nn.Identity()]
    return layers


def blocks(channels: int, count: int, norm: type[nn.Module]) -> list[nn.Module]:
    return [ResnetBlock(channels, norm) for _ in range(count)]


def head(width: int, channels: int, act: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(width, channels, 7), *([act] if act else []))


class Generated(NamedTuple):
    """A frame, and what a larger generator builds on."""

    image: Tensor
    raw: Tensor  # without what was warped
    flow: Tensor | None  # in pixels, to the frame before
    weight: Tensor | None  # of the raw image
    features: tuple[Tensor | None, ...]  # of image, flow, foreground

    def detach(self) -> "Generated":
        features = tuple(None if f is None else f.detach() for f in self.features)
        return self._replace(image=self.image.detach(), features=features)


class Generator(nn.Module):
    """A frame from label maps [N, n_frames_G * semantic_nc, H, W] and the frames before it.

    scale 0 is the coarsest, complete generator; the others add detail to the features of the one before. A raw image
    and the frame before it, warped along a flow, are mixed by a weight per pixel; the foreground has its own branch.
    """

    def __init__(self, config: "Config", scale: int) -> None:
        super().__init__()
        norm, width, self.scale, flow = NORMS[config.norm], config.ngf >> scale, scale, config.flow
        labels, images = config.n_frames_G * config.semantic_nc, (config.n_frames_G - 1) * config.output_nc
        steps = 1 if scale else config.n_downsample_G
        own = width // 2 if config.n_downsample_G > 2 else width  # of the foreground
        deep, behind = width << steps, config.n_blocks // 2

        def up(width: int, count: int) -> nn.Sequential:
            """The larger generators' blocks begin what is numbered as their decoder."""
            return nn.Sequential(*(blocks(width << steps, count, norm) if scale else []), *decoder(width, steps, norm))

        before = 0 if scale else config.n_blocks - behind
        self.model_down_seg = nn.Sequential(*encoder(labels, width, steps, norm), *blocks(deep, before, norm))
        self.model_down_img = nn.Sequential(*encoder(images, width, steps, norm), *blocks(deep, before, norm))
        branches = ["img", "flow"] if flow else ["img"]
        for branch in branches:
            if not scale:
                self.add_module(f"model_res_{branch}", nn.Sequential(*blocks(deep, behind, norm)))
            self.add_module(f"model_up_{branch}", up(width, config.n_blocks_local))
        self.model_final_img = head(width, config.output_nc, nn.Tanh())
        if flow:
            self.model_final_flow = head(width, 2)
            self.model_final_w = head(width, 1, nn.Sigmoid())
        if config.fg:
            self.indv_down = nn.Sequential(*encoder(labels, own, steps, norm))
            if not scale:
                self.indv_res = nn.Sequential(*blocks(own << steps, config.n_blocks, norm))
            self.indv_up = up(own, config.n_blocks_local)
            self.indv_final = head(own, config.output_nc, nn.Tanh())

    def _branch(self, name: str, x: Tensor, coarse: Tensor | None) -> Tensor:
        kind = "indv" if name == "indv" else "model"
        suffix = "" if name == "indv" else f"_{name}"
        x = self.get_submodule(f"{kind}_res{suffix}")(x) if coarse is None else x + coarse
        return self.get_submodule(f"{kind}_up{suffix}")(x)

    def forward(
        self, labels: Tensor, before: Tensor, mask: Tensor | None, coarse: tuple[Tensor | None, ...], raw_only: bool
    ) -> Generated:
        """mask [N, 1, H, W]: the foreground, or None. coarse: features of the generator before this, or Nones."""
        x = self.model_down_seg(labels) + self.model_down_img(before)
        of_image = self._branch("img", x, coarse[0])
        image = raw = self.model_final_img(of_image)
        flow = weight = of_flow = of_foreground = None
        if hasattr(self, "model_final_flow"):
            of_flow = self._branch("flow", x, coarse[1])
            flow, weight = self.model_final_flow(of_flow) * (20 << self.scale), self.model_final_w(of_flow)
            if not raw_only:
                warped = resample2d(before[:, -raw.size(1) :], flow)
                image = torch.lerp(warped, raw, weight)
        if mask is not None:
            of_foreground = self._branch("indv", self.indv_down(labels), coarse[2])
            foreground = self.indv_final(of_foreground)
            image, raw = torch.lerp(image, foreground, mask), torch.lerp(raw, foreground, mask)
        return Generated(image, raw, flow, weight, (of_image, of_flow, of_foreground))


class MultiscaleDiscriminator(nn.Module):
    """Patch discriminators at full resolution, at half, ... -> the outputs of all their layers, the logits last.

    The one named scale<num_D - 1> sees full resolution.
    """

    def __init__(self, fin: int, config: "Config") -> None:
        super().__init__()
        self.num_D, self.layers, norm = config.num_D, config.n_layers_D + 2, partial(NORMS[config.norm], act=0.2)
        for i in range(config.num_D):
            first = min(64, config.ndf << config.num_D - 1 - i)
            widths = [fin, *(min(512, first << k) for k in range(config.n_layers_D + 1))]
            for k, (a, b) in enumerate(pairwise(widths)):
                conv = Conv2d(a, b, 4, 1 if k == config.n_layers_D else 2, 2)
                act = [nn.LeakyReLU(0.2)] if k == 0 else [norm(b), nn.Identity()]
                self.add_module(f"scale{i}_layer{k}", nn.Sequential(conv, *act))
            last = nn.Sequential(nn.Conv2d(widths[-1], 1, 4, 1, 2))
            self.add_module(f"scale{i}_layer{config.n_layers_D + 1}", last)
        self.downsample = nn.AvgPool2d(3, 2, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Features:
        outputs = []
        for i in reversed(range(self.num_D)):
            outputs.append([])
            y = x
            for k in range(self.layers):
                y = self.get_submodule(f"scale{i}_layer{k}")(y)
                outputs[-1].append(y)
            x = self.downsample(x) if i else x
        return outputs
