"""SPADE's layers in plain PyTorch, as published: what the modules are compared with, and the label maps to do it on."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm


class PlainSPADE(nn.Module):
    """Instance or batch norm, and two convolutions of the segmentation map that make gamma and beta."""

    def __init__(self, kind: str, channels: int, label_nc: int, hidden: int, k: int = 3) -> None:
        super().__init__()
        instance = kind == "instance"
        self.param_free_norm = nn.InstanceNorm2d(channels) if instance else nn.BatchNorm2d(channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_nc, hidden, k, padding=k // 2), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, k, padding=k // 2)
        self.mlp_beta = nn.Conv2d(hidden, channels, k, padding=k // 2)

    def forward(self, x: Tensor, segmap: Tensor, act: str | float = "none", upsample: bool = False) -> Tensor:
        x = F.interpolate(x, scale_factor=2) if upsample else x
        hidden = self.mlp_shared(F.interpolate(segmap, size=x.shape[2:]))
        y = self.param_free_norm(x) * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)
        return y if act == "none" else F.relu(y) if act == "relu" else F.leaky_relu(y, act)


class PlainBlock(nn.Module):
    """SPADE's residual block."""

    def __init__(self, fin: int, fout: int, kind: str, label_nc: int, hidden: int, spectral: bool = False) -> None:
        super().__init__()
        wrap, middle, self.learned = (spectral_norm if spectral else lambda m: m), min(fin, fout), fin != fout
        self.conv_0 = wrap(nn.Conv2d(fin, middle, 3, padding=1))
        self.conv_1 = wrap(nn.Conv2d(middle, fout, 3, padding=1))
        if self.learned:
            self.conv_s = wrap(nn.Conv2d(fin, fout, 1, bias=False))
        self.norm_0 = PlainSPADE(kind, fin, label_nc, hidden)
        self.norm_1 = PlainSPADE(kind, middle, label_nc, hidden)
        if self.learned:
            self.norm_s = PlainSPADE(kind, fin, label_nc, hidden)

    def forward(self, x: Tensor, segmap: Tensor, upsample: bool = False) -> Tensor:
        x = F.interpolate(x, scale_factor=2) if upsample else x
        shortcut = self.conv_s(self.norm_s(x, segmap)) if self.learned else x
        return shortcut + self.conv_1(self.norm_1(self.conv_0(self.norm_0(x, segmap, 0.2)), segmap, 0.2))


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """labels [N, H, W] to [N, classes, H, W] float32."""
    return F.one_hot(labels, classes).permute(0, 3, 1, 2).float()


def blocks(n: int, h: int, w: int, classes: int, cell: int = 4, seed: int = 0) -> Tensor:
    """Label maps [n, h, w], constant in cells."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randint(classes, (n, -(-h // cell), -(-w // cell)), generator=g)
    return coarse.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, :h, :w].contiguous()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradients(module: nn.Module, x: Tensor, *inputs: Tensor, **options) -> dict[str, Tensor]:
    """Output, gradients of x and of all parameters for a random upstream gradient, and the buffers afterwards."""
    module.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    y = module(x, *inputs, **options)
    y.backward(normal(*y.shape, seed=1, dtype=y.dtype))
    of_parameters = {f"d {name}": p.grad for name, p in module.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **of_parameters, **{n: b.clone() for n, b in module.named_buffers()}}
