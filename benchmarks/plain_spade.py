"""The SPADE networks in plain PyTorch, computed as published: the rival of every row of the benchmark.

State-dict keys are those of i2ifast.models.spade, so that one set of weights runs in both.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm


class PlainSPADE(nn.Module):
    def __init__(self, channels: int, label_nc: int, hidden: int) -> None:
        super().__init__()
        self.param_free_norm = nn.BatchNorm2d(channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_nc, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        normalized = self.param_free_norm(x)
        actv = self.mlp_shared(F.interpolate(segmap, size=x.shape[2:], mode="nearest"))
        return normalized * (1 + self.mlp_gamma(actv)) + self.mlp_beta(actv)


class PlainBlock(nn.Module):
    def __init__(self, fin: int, fout: int, label_nc: int, hidden: int) -> None:
        super().__init__()
        middle = min(fin, fout)
        self.conv_0 = spectral_norm(nn.Conv2d(fin, middle, 3, padding=1))
        self.conv_1 = spectral_norm(nn.Conv2d(middle, fout, 3, padding=1))
        self.learned = fin != fout
        if self.learned:
            self.conv_s = spectral_norm(nn.Conv2d(fin, fout, 1, bias=False))
        self.norm_0 = PlainSPADE(fin, label_nc, hidden)
        self.norm_1 = PlainSPADE(middle, label_nc, hidden)
        if self.learned:
            self.norm_s = PlainSPADE(fin, label_nc, hidden)

    def forward(self, x: Tensor, seg: Tensor) -> Tensor:
        shortcut = self.conv_s(self.norm_s(x, seg)) if self.learned else x
        dx = self.conv_0(F.leaky_relu(self.norm_0(x, seg), 0.2))
        dx = self.conv_1(F.leaky_relu(self.norm_1(dx, seg), 0.2))
        return shortcut + dx


class PlainGenerator(nn.Module):
    """The generator of i2ifast.models.spade for the same config (without the VAE)."""

    def __init__(self, config) -> None:
        super().__init__()
        nf, nc, hidden = 16 * config.ngf, config.semantic_nc, config.nhidden
        self.stride, self.more = config.stride, config.num_upsampling_layers != "normal"
        self.fc = nn.Conv2d(nc, nf, 3, padding=1)
        self.head_0 = PlainBlock(nf, nf, nc, hidden)
        self.G_middle_0 = PlainBlock(nf, nf, nc, hidden)
        self.G_middle_1 = PlainBlock(nf, nf, nc, hidden)
        self.blocks = 5 if config.num_upsampling_layers == "most" else 4
        for i in range(self.blocks):
            self.add_module(f"up_{i}", PlainBlock(nf >> i, nf >> (i + 1), nc, hidden))
        self.conv_img = nn.Conv2d(nf >> self.blocks, 3, 3, padding=1)
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, seg: Tensor) -> Tensor:
        h, w = seg.shape[2:]
        x = self.fc(F.interpolate(seg, size=(h // self.stride, w // self.stride)))
        x = self.up(self.head_0(x, seg))
        x = self.G_middle_0(x, seg)
        x = self.up(x) if self.more else x
        x = self.G_middle_1(x, seg)
        for i in range(self.blocks):
            x = getattr(self, f"up_{i}")(self.up(x), seg)
        return torch.tanh(self.conv_img(F.leaky_relu(x, 0.2)))


class PlainDiscriminator(nn.Module):
    """The multi-scale discriminator of i2ifast.models.spade for the same config."""

    def __init__(self, config) -> None:
        super().__init__()
        for i in range(config.num_D):
            layers = nn.Module()
            nf, nc = config.ndf, config.semantic_nc + 3
            layers.model0 = nn.Sequential(nn.Conv2d(nc, nf, 4, 2, 2), nn.LeakyReLU(0.2))
            for n in range(1, config.n_layers_D):
                fin, nf = nf, min(2 * nf, 512)
                conv = spectral_norm(nn.Conv2d(fin, nf, 4, 1 if n == config.n_layers_D - 1 else 2, 2, bias=False))
                block = nn.Sequential(nn.Sequential(conv, nn.InstanceNorm2d(nf)), nn.LeakyReLU(0.2))
                layers.add_module(f"model{n}", block)
            layers.add_module(f"model{config.n_layers_D}", nn.Sequential(nn.Conv2d(nf, 1, 4, 1, 2)))
            self.add_module(f"discriminator_{i}", layers)

    def forward(self, seg: Tensor, images: Tensor) -> list[list[Tensor]]:
        x = torch.cat([seg.repeat(len(images) // len(seg), 1, 1, 1), images], 1)
        outputs = []
        for discriminator in self.children():
            y, features = x, []
            for layer in discriminator.children():
                y = layer(y)
                features.append(y)
            outputs.append(features)
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return outputs


def generator_loss(g: nn.Module, d: nn.Module, seg: Tensor, real: Tensor) -> Tensor:
    """Hinge and feature matching, as published, without the perceptual term."""
    fake = g(seg)
    outputs = d(seg, torch.cat([fake, real]))
    n, loss = len(fake), 0.0
    for scale in outputs:
        loss = loss - scale[-1][:n].mean() / len(outputs)
        for feature in scale[:-1]:
            loss = loss + 10.0 * F.l1_loss(feature[:n], feature[n:].detach()) / len(outputs)
    return loss


def discriminator_loss(g: nn.Module, d: nn.Module, seg: Tensor, real: Tensor) -> Tensor:
    with torch.no_grad():
        fake = g(seg)
    outputs = d(seg, torch.cat([fake.detach(), real]))
    n, loss = len(fake), 0.0
    for scale in outputs:
        loss = loss + (F.relu(1 + scale[-1][:n]).mean() + F.relu(1 - scale[-1][n:]).mean()) / len(outputs)
    return loss


def train_step(g: nn.Module, d: nn.Module, optimizers: tuple, seg: Tensor, real: Tensor) -> None:
    """One iteration: a generator step, then a discriminator step with a second fake."""
    for net, other, loss, optimizer in zip(
        (g, d), (d, g), (generator_loss, discriminator_loss), optimizers, strict=True
    ):
        net.requires_grad_(True)
        other.requires_grad_(False)
        optimizer.zero_grad()
        loss(g, d, seg, real).backward()
        optimizer.step()
