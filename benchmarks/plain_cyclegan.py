"""CycleGAN in plain PyTorch, computed as published: every pass by itself, norms and activations as modules of torch.

State-dict keys are those of i2ifast.models.cyclegan, for its published options: 9 blocks, instance norm, least squares.
On the CPU, torch 2.13 has wrong gradients of InstanceNorm2d for a single channels_last image: there the plain networks
in that layout are rivals for time alone.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for last in (False, True):
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels)]
            layers += [] if last else [nn.ReLU(True)]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class PlainGenerator(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        ngf, blocks = config.ngf, {"resnet_9blocks": 9, "resnet_6blocks": 6}[config.netG]

        def normed(conv: nn.Module, channels: int) -> list[nn.Module]:
            return [conv, nn.InstanceNorm2d(channels), nn.ReLU(True)]

        layers = [nn.ReflectionPad2d(3), *normed(nn.Conv2d(config.input_nc, ngf, 7), ngf)]
        for width in (2 * ngf, 4 * ngf):
            layers += normed(nn.Conv2d(width // 2, width, 3, 2, 1), width)
        layers += [PlainBlock(4 * ngf) for _ in range(blocks)]
        for width in (2 * ngf, ngf):
            layers += normed(nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1), width)
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, config.output_nc, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


class PlainDiscriminator(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        ndf = config.ndf
        layers = [nn.Conv2d(config.output_nc, ndf, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        for fin, fout, stride in ((ndf, 2 * ndf, 2), (2 * ndf, 4 * ndf, 2), (4 * ndf, 8 * ndf, 1)):
            layers += [nn.Conv2d(fin, fout, 4, stride, 1), nn.InstanceNorm2d(fout), nn.LeakyReLU(0.2, True)]
        self.model = nn.Sequential(*layers, nn.Conv2d(8 * ndf, 1, 4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def networks(config: Any) -> dict[str, nn.Module]:
    generators = {name: PlainGenerator(config) for name in ("G_A", "G_B")}
    return generators | {name: PlainDiscriminator(config) for name in ("D_A", "D_B")}


def generator_loss(nets: dict[str, nn.Module], config: Any, batch: dict[str, Tensor]) -> Tensor:
    """The weighted terms, in the order of the original; leaves the fakes in the batch."""
    a, b, real = batch["a"], batch["b"], torch.ones(())
    fake_b = nets["G_A"](a)
    rec_a, fake_a = nets["G_B"](fake_b), nets["G_B"](b)
    rec_b = nets["G_A"](fake_a)
    idt_a, idt_b = nets["G_A"](b), nets["G_B"](a)
    batch |= {"fake_b": fake_b, "fake_a": fake_a}
    loss = config.lambda_identity * config.lambda_B * F.l1_loss(idt_a, b)
    loss = loss + config.lambda_identity * config.lambda_A * F.l1_loss(idt_b, a)
    for judge, fake in (("D_A", fake_b), ("D_B", fake_a)):
        logits = nets[judge](fake)
        loss = loss + F.mse_loss(logits, real.to(logits).expand_as(logits))
    return loss + config.lambda_A * F.l1_loss(rec_a, a) + config.lambda_B * F.l1_loss(rec_b, b)


def discriminator_losses(nets: dict[str, nn.Module], batch: dict[str, Tensor]) -> list[Tensor]:
    losses = []
    for name, side in (("D_A", "b"), ("D_B", "a")):
        real, fake = nets[name](batch[side]), nets[name](batch[f"fake_{side}"].detach())
        losses.append((F.mse_loss(real, torch.ones_like(real)) + F.mse_loss(fake, torch.zeros_like(fake))) / 2)
    return losses


def train_step(nets: dict[str, nn.Module], optimizers: dict[str, Any], config: Any, batch: dict[str, Tensor]) -> None:
    """An iteration without a pool: generators, against discriminators that are frozen, then discriminators."""
    judges = nn.ModuleList([nets["D_A"], nets["D_B"]])
    judges.requires_grad_(False)
    optimizers["G"].zero_grad()
    generator_loss(nets, config, batch).backward()
    optimizers["G"].step()
    judges.requires_grad_(True)
    optimizers["D"].zero_grad()
    for loss in discriminator_losses(nets, batch):
        loss.backward()
    optimizers["D"].step()
