"""The networks of pix2pixHD. Numbers of layers are the originals': paddings and activations have one, but no layer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.labels import LabelPlan, Regions
from i2ifast.nn import BatchNormAct, InstanceNormAct, label_conv2d, region_average_pool
from i2ifast.nn.conv import Conv2d, ConvTranspose2d, NarrowConv2d

from ._blocks import half_size, numbered, reflecting

Semantics = Tensor | LabelPlan
Features = list[list[Tensor]]  # discriminator outputs [scale][layer], the last layer being the logits
Norm = Callable[..., nn.Module]

NORMS: dict[str, Norm] = {"instance": InstanceNormAct, "batch": BatchNormAct}


def reflected(plan: LabelPlan, border: int) -> LabelPlan:
    """The plan of a label map padded by reflection."""
    symbols = F.pad(plan.symbols[:, None].float(), [border] * 4, mode="reflect")  # exact below 2^24
    return LabelPlan(plan.values, symbols[:, 0].int(), plan.separate)


class InputConv2d(nn.Conv2d):
    """The 7x7 convolution, with reflection padding, of a label map and, with `features` channels more, of features.

    It is linear in its input: of a label plan, the map's part is computed on the distinct windows.
    """

    def __init__(self, semantic_nc: int, features: int, fout: int) -> None:
        super().__init__(semantic_nc + features, fout, 7)
        self.split = [semantic_nc, features]

    def forward(self, inputs: tuple[Semantics, Tensor | None]) -> Tensor:
        seg, features = inputs
        if isinstance(seg, Tensor):
            x = seg if features is None else torch.cat([seg, features], 1)
            return F.conv2d(F.pad(x, [3] * 4, mode="reflect"), self.weight, self.bias)
        of_labels, of_features = self.weight.split(self.split, 1)
        y = label_conv2d(reflected(seg, 3), of_labels, self.bias)
        return y if features is None else y + F.conv2d(F.pad(features, [3] * 4, mode="reflect"), of_features)


def to_images(fin: int, fout: int) -> nn.Conv2d:
    """The 7x7 convolution, with reflection padding, to images."""
    return NarrowConv2d(fin, fout, 7, padding=3, padding_mode="reflect")


class ResnetBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))) with reflection padding."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        first, second = (reflecting(channels, channels, 3, bias=True) for _ in range(2))
        self.conv_block = numbered({1: first, 2: norm(channels), 5: second, 6: norm(channels, act="none")})

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


Layers = list[nn.Module | None]


def down(width: int, norm: Norm) -> Layers:
    return [Conv2d(width, 2 * width, 3, 2, 1), norm(2 * width), None]


def up(width: int, norm: Norm) -> Layers:
    return [ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1), norm(width), None]


def trunk(first: nn.Module, width: int, steps: int, blocks: int, norm: Norm) -> Layers:
    """From the first convolution down by 2^steps, through residual blocks, and up again."""
    layers: Layers = [None, first, norm(width), None]
    for i in range(steps):
        layers += down(width << i, norm)
    layers += [ResnetBlock(width << steps, norm) for _ in range(blocks)]
    for i in reversed(range(steps)):
        layers += up(width << i, norm)
    return layers


def head(width: int, channels: int) -> Layers:
    return [None, to_images(width, channels), nn.Tanh()]


def sequence(layers: Layers) -> nn.Sequential:
    return numbered({i: layer for i, layer in enumerate(layers) if layer is not None})


class GlobalGenerator(nn.Module):
    """Label map and features [N, feat_num, H, W], or None, to images [N, output_nc, H, W] in [-1, 1].

    H and W are multiples of config.stride, also for LocalEnhancer.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        norm, first = NORMS[config.norm], InputConv2d(config.semantic_nc, config.features, config.ngf)
        layers = trunk(first, config.ngf, config.n_downsample_global, config.n_blocks_global, norm)
        self.model = sequence(layers + head(config.ngf, config.output_nc))

    def forward(self, seg: Semantics, features: Tensor | None = None, last_only: bool = False) -> Tensor:
        return self.model((seg, features))


class LocalEnhancer(nn.Module):
    """A generator of global images without its last layers, and enhancers, each of which works at twice the size.

    Its parameters are model<n>_1, which goes down, and model<n>_2. With `last_only` no gradient goes to any other part
    than the last enhancer.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        norm, self.count = NORMS[config.norm], config.n_local_enhancers
        first = partial(InputConv2d, config.semantic_nc, config.features)
        width = config.ngf << self.count
        layers = trunk(first(width), width, config.n_downsample_global, config.n_blocks_global, norm)
        self.model = sequence(layers)
        for n in range(1, self.count + 1):
            width //= 2
            self.add_module(f"model{n}_1", sequence([None, first(width), norm(width), None, *down(width, norm)]))
            blocks = [ResnetBlock(2 * width, norm) for _ in range(config.n_blocks_local)]
            last = head(width, config.output_nc) if n == self.count else []
            self.add_module(f"model{n}_2", sequence([*blocks, *up(width, norm), *last]))

    def forward(self, seg: Semantics, features: Tensor | None = None, last_only: bool = False) -> Tensor:
        pyramid = [(seg, features)]
        for _ in range(self.count):
            seg, features = half_size(seg), None if features is None else half_size(features)
            pyramid.append((seg, features))
        training = torch.is_grad_enabled()
        with torch.set_grad_enabled(training and not last_only):
            y = self.model(pyramid.pop())
        for n in range(1, self.count + 1):
            with torch.set_grad_enabled(training and (n == self.count or not last_only)):
                y = self.get_submodule(f"model{n}_2")(self.get_submodule(f"model{n}_1")(pyramid.pop()) + y)
        return y


class Encoder(nn.Module):
    """Images to features [N, feat_num, H, W] in [-1, 1]: every pixel has the mean of its region in its image."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        first = reflecting(config.output_nc, config.nef, 7, bias=True)
        layers = trunk(first, config.nef, config.n_downsample_E, 0, NORMS[config.norm])
        self.model = sequence(layers + head(config.nef, config.feat_num))

    def forward(self, images: Tensor, regions: Tensor | Regions) -> Tensor:
        return region_average_pool(self.model(images), regions)


class MultiscaleDiscriminator(nn.Module):
    """Patch discriminators of a label map and images, at full resolution, at half, ... -> outputs of all their layers.

    The last of a scale are the logits. The one named for scale num_D - 1 sees full resolution.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.semantic_nc, self.scales, norm = config.semantic_nc, config.num_D, NORMS[config.norm]
        widths = [min(512, config.ndf << k) for k in range(config.n_layers_D + 1)]
        for i in range(config.num_D):
            groups = [[nn.Conv2d(config.semantic_nc + config.output_nc, widths[0], 4, 2, 2), nn.LeakyReLU(0.2)]]
            for k in range(1, len(widths)):
                conv = Conv2d(widths[k - 1], widths[k], 4, 1 if k == config.n_layers_D else 2, 2)
                groups.append([conv, norm(widths[k], act=0.2), nn.Identity()])
            groups.append([nn.Conv2d(widths[-1], 1, 4, 1, 2)])
            if config.ganFeat:
                for j, group in enumerate(groups):
                    self.add_module(f"scale{i}_layer{j}", nn.Sequential(*group))
            else:
                self.add_module(f"layer{i}", nn.Sequential(*sum(groups, [])))

    def layers(self, scale: int) -> list[nn.Sequential]:
        """A discriminator's layers, each with its norm and activation."""
        if not hasattr(self, f"layer{scale}"):
            return [child for name, child in self.named_children() if name.startswith(f"scale{scale}_")]
        flat = self.get_submodule(f"layer{scale}")
        return [flat[:2], *(flat[k : k + 3] for k in range(2, len(flat) - 1, 3)), flat[-1:]]

    def first(self, conv: nn.Conv2d, seg: Semantics, images: Tensor) -> Tensor:
        """The convolution of label maps and images: of a plan, the maps' part is computed once, on distinct windows."""
        if isinstance(seg, Tensor):
            return conv(torch.cat([seg.repeat(len(images) // len(seg), 1, 1, 1), images], 1))
        of_labels, of_images = conv.weight.split([self.semantic_nc, images.size(1)], 1)
        shared = label_conv2d(seg, of_labels, conv.bias, images.shape[-2:], conv.stride[0], conv.padding[0])
        y = F.conv2d(images, of_images, None, conv.stride, conv.padding)
        return (y.unflatten(0, (-1, len(shared))) + shared).flatten(0, 1)

    def forward(self, seg: Semantics, images: Tensor) -> Features:
        """images [kN, output_nc, H, W] of the N label maps, k times over."""
        outputs = []
        for scale in reversed(range(self.scales)):
            (conv, act), *layers = self.layers(scale)
            outputs.append([x := act(self.first(conv, seg, images))])
            for layer in layers:
                outputs[-1].append(x := layer(x))
            if scale:
                seg, images = half_size(seg), half_size(images)
        return outputs
