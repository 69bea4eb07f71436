"""The pix2pixHD networks in plain PyTorch, computed as published: what the system is measured against.

State-dict keys are those of i2ifast.models.pix2pixhd, so that one set of weights runs in both.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            *[nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels), nn.ReLU(True)],
            *[nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels)],
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def first(fin: int, width: int) -> list[nn.Module]:
    return [nn.ReflectionPad2d(3), nn.Conv2d(fin, width, 7), nn.InstanceNorm2d(width), nn.ReLU(True)]


def down(width: int) -> list[nn.Module]:
    return [nn.Conv2d(width, 2 * width, 3, 2, 1), nn.InstanceNorm2d(2 * width), nn.ReLU(True)]


def up(width: int) -> list[nn.Module]:
    conv = nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1)
    return [conv, nn.InstanceNorm2d(width), nn.ReLU(True)]


def last(width: int, channels: int) -> list[nn.Module]:
    return [nn.ReflectionPad2d(3), nn.Conv2d(width, channels, 7), nn.Tanh()]


class PlainGenerator(nn.Module):
    """The generator of i2ifast.models.pix2pixhd for the same config (instance norm, no encoder)."""

    def __init__(self, config) -> None:
        super().__init__()
        self.enhancers = config.n_local_enhancers if config.netG == "local" else 0
        width, fin, steps = config.ngf << self.enhancers, config.semantic_nc, config.n_downsample_global
        layers = first(fin, width)
        for i in range(steps):
            layers += down(width << i)
        layers += [PlainBlock(width << steps) for _ in range(config.n_blocks_global)]
        for i in reversed(range(steps)):
            layers += up(width << i)
        self.model = nn.Sequential(*layers, *([] if self.enhancers else last(width, config.output_nc)))
        for n in range(1, self.enhancers + 1):
            width //= 2
            blocks = [PlainBlock(2 * width) for _ in range(config.n_blocks_local)]
            end = last(width, config.output_nc) if n == self.enhancers else []
            self.add_module(f"model{n}_1", nn.Sequential(*first(fin, width), *down(width)))
            self.add_module(f"model{n}_2", nn.Sequential(*blocks, *up(width), *end))

    def forward(self, seg: Tensor) -> Tensor:
        pyramid = [seg]
        for _ in range(self.enhancers):
            pyramid.append(F.avg_pool2d(pyramid[-1], 3, 2, 1, count_include_pad=False))
        y = self.model(pyramid.pop())
        for n in range(1, self.enhancers + 1):
            y = self.get_submodule(f"model{n}_2")(self.get_submodule(f"model{n}_1")(pyramid.pop()) + y)
        return y


class PlainDiscriminator(nn.Module):
    """The multi-scale discriminator of i2ifast.models.pix2pixhd for the same config (instance norm, with ganFeat)."""

    def __init__(self, config) -> None:
        super().__init__()
        self.scales, self.layers = config.num_D, config.n_layers_D + 2
        for i in range(config.num_D):
            nf, fin = config.ndf, config.semantic_nc + config.output_nc
            groups = [[nn.Conv2d(fin, nf, 4, 2, 2), nn.LeakyReLU(0.2, True)]]
            for k in range(1, config.n_layers_D + 1):
                fin, nf = nf, min(2 * nf, 512)
                conv = nn.Conv2d(fin, nf, 4, 1 if k == config.n_layers_D else 2, 2)
                groups.append([conv, nn.InstanceNorm2d(nf), nn.LeakyReLU(0.2, True)])
            groups.append([nn.Conv2d(nf, 1, 4, 1, 2)])
            for j, group in enumerate(groups):
                self.add_module(f"scale{i}_layer{j}", nn.Sequential(*group))

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        outputs = []
        for i in reversed(range(self.scales)):
            y, features = x, []
            for j in range(self.layers):
                y = self.get_submodule(f"scale{i}_layer{j}")(y)
                features.append(y)
            outputs.append(features)
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return outputs


def squares(outputs: list[list[Tensor]], target: float) -> Tensor:
    return sum(F.mse_loss(scale[-1], torch.full_like(scale[-1], target)) for scale in outputs)


def losses(g: nn.Module, d: nn.Module, seg: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Of generator and discriminator, least squares and feature matching, without the perceptual term."""
    fake = g(seg)
    on_pool, on_real, on_fake = (d(torch.cat([seg, images], 1)) for images in (fake.detach(), real, fake))
    of_g = squares(on_fake, 1.0)
    for scale, target in zip(on_fake, on_real, strict=True):
        for x, y in list(zip(scale, target, strict=True))[:-1]:
            of_g = of_g + 10.0 * 4 / (len(scale) - 1) / len(on_fake) * F.l1_loss(x, y.detach())
    return of_g, 0.5 * (squares(on_pool, 0.0) + squares(on_real, 1.0))


def train_step(g: nn.Module, d: nn.Module, optimizers: tuple, seg: Tensor, real: Tensor) -> None:
    """One iteration: all losses of one forward, then a step of the generator and one of the discriminator."""
    for optimizer, loss in zip(optimizers, losses(g, d, seg, real), strict=True):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
