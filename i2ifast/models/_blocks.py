"""Parts of networks that several systems share."""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.labels import LabelPlan
from i2ifast.nn import InstanceNormAct
from i2ifast.nn.conv import Conv2d
from i2ifast.ops import modulate_mixed


def pad_to(x: Tensor, stride: int) -> Tensor:
    """Pad [...,H,W] at the bottom and the right, by repeating the border, to multiples of `stride`."""
    sides = [(side, -(-side // stride) * stride) for side in x.shape[-2:]]
    if all(side == padded for side, padded in sides):
        return x
    rows, columns = (torch.arange(padded, device=x.device).clamp(max=side - 1) for side, padded in sides)
    return x[..., rows[:, None], columns]


def numbered(layers: dict[int, nn.Module]) -> nn.Sequential:
    """A Sequential that skips numbers: those of layers without parameters in the original's, for equal keys."""
    return nn.Sequential(OrderedDict((str(number), layer) for number, layer in layers.items()))


def reflecting(fin: int, fout: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution with reflection padding that keeps the size, or divides it by the stride."""
    padding = (kernel - 1) // 2
    return Conv2d(fin, fout, kernel, stride, padding, bias=bias, padding_mode="reflect")


class ResnetBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))) with instance norms and reflection padding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second = (reflecting(channels, channels, 3) for _ in range(2))
        layers = {1: first, 2: InstanceNormAct(channels), 5: second, 6: InstanceNormAct(channels, "none")}
        self.conv_block = numbered(layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class LayerNormAct(nn.Module):
    """relu(layer_norm(x) * weight + bias): over whole samples, by the biased variance; weight and bias [C,1,1]."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels, 1, 1)), nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # sqrt(var + eps) = sqrt(k) sqrt(var / k + eps / k) with var / k the unbiased variance. The parameters apart:
        # a graph that outlives an optimiser step (`_shared_graph`) is to meet the new ones.
        count = x[0].numel()
        k = (count - 1) / count
        zero = x.new_zeros(x.size(1))
        mix = torch.cat([zero, zero + k**-0.5, zero]).expand(x.size(0), -1)
        normalised = modulate_mixed(x, mix, eps=self.eps / k)
        return F.relu(torch.addcmul(self.bias, normalised, self.weight))


@torch.no_grad()
def reset(net: nn.Module) -> None:
    """Initialise convolutions and linear layers, spectrally normalised or not, and norms as their constructors do."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module._parameters.get("weight_orig", module._parameters.get("weight"))
            nn.init.kaiming_uniform_(weight, math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(weight[0].numel())
                nn.init.uniform_(module.bias, -bound, bound)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()


def decay_from(niter: int, niter_decay: int, epoch: int) -> float:
    """1 up to epoch niter + 1, then a line to 0 after epoch niter + niter_decay; always 1 without niter_decay."""
    if not niter_decay:
        return 1.0
    return min(1.0, max(0.0, 1 - (epoch - 1 - niter) / niter_decay))


def tiled(vectors: Tensor, x: Tensor) -> Tensor:
    """Vectors [N,D] as maps [N,D,H,W] of the size of x [N,C,H,W]; channels_last if that is, for cat to keep it."""
    maps = vectors[..., None, None].expand(-1, -1, *x.shape[2:])
    if x.is_contiguous(memory_format=torch.channels_last):
        maps = maps.contiguous(memory_format=torch.channels_last)
    return maps


def half_size(x: Tensor | LabelPlan) -> Tensor | LabelPlan:
    """Images, or a label map, of half the size: means of 3x3 pixels, at the border of those that there are."""
    return F.avg_pool2d(x, 3, 2, 1, count_include_pad=False) if isinstance(x, Tensor) else x.avg_pool2d(3, 2, 1)


def pyramid(images: Tensor, scales: int) -> list[Tensor]:
    """Images at full size, at half, ..."""
    levels = [images]
    for _ in range(scales - 1):
        levels.append(half_size(levels[-1]))
    return levels


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Images [N,1 or 3,H,W] with 1 or 3 channels: the mean of three, or three times the one."""
    if images.size(1) == channels:
        return images
    return images.mean(1, keepdim=True) if channels == 1 else images.expand(-1, channels, -1, -1)
