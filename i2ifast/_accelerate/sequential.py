"""What runs as one in a Sequential: an instance norm and its activation, an upsampling and its convolution."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.instance import instance_norm_act
from ..nn.upsample_conv import upsample_conv2d
from ._change import Changed, hooked, is_map

PADS = {nn.ZeroPad2d: "zeros", nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "replicate"}


class FusedSequential(Changed):
    """A Sequential that runs pairs as one. They are found as it runs."""

    def forward(self, x: Any) -> Any:
        modules = list(self._modules.values())
        while modules:
            module = modules.pop(0)
            act = modules[0] if modules else None
            if _is_pair(module, act) and is_map(x) and not hooked(module, act):
                x = instance_norm_act(x, module.weight, module.bias, _slope(modules.pop(0)), module.eps)
            elif (found := _upsampled([module, *modules[:2]])) and is_map(x) and not _autocast(x):
                count, conv, padding = found
                x = upsample_conv2d(x, conv.weight, conv.bias, padding)
                del modules[: count - 1]
            else:
                x = module(x)
        return x


def _autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


def _upsampled(modules: list[nn.Module]) -> tuple[int, nn.Conv2d, str] | None:
    """Of an upsampling x2 by nearest and, behind it, a convolution that keeps the size, padding as a layer of its own
    or not: how many modules that is, the convolution, and how it pads."""
    first, *rest = modules
    if type(first) is not nn.Upsample or first.mode != "nearest" or first.size is not None or len(rest) == 0:
        return None
    if first.scale_factor not in (2, (2, 2)):
        return None
    pad = rest.pop(0) if type(rest[0]) in PADS else None
    conv = rest[0] if rest else None
    if type(conv) is not nn.Conv2d and not (isinstance(conv, Changed) and isinstance(conv, nn.Conv2d)):
        return None
    kernel = conv.kernel_size[0]
    plain = conv.kernel_size == (kernel, kernel) and conv.stride == conv.dilation == (1, 1) and conv.groups == 1
    if not plain or kernel not in (3, 5) or hooked(first, conv, *([pad] if pad else [])):
        return None
    side = kernel // 2
    if pad is None:
        mode = conv.padding_mode if conv.padding == (side, side) else ""
        return (2, conv, mode) if mode in PADS.values() else None
    fits = tuple(pad.padding) == (side,) * 4 and conv.padding == (0, 0)
    return (3, conv, PADS[type(pad)]) if fits else None


def _is_pair(norm: nn.Module, act: nn.Module | None) -> bool:
    known = type(norm) is nn.InstanceNorm2d and not norm.track_running_stats
    return known and type(act) in (nn.ReLU, nn.LeakyReLU)


def count_pairs(modules: nn.Sequential) -> tuple[int, int]:
    """Instance norms with activation, and upsamplings with convolution."""
    layers = list(modules)
    folded = sum(_upsampled(layers[i : i + 3]) is not None for i in range(len(layers)))
    return sum(_is_pair(a, b) for a, b in itertools.pairwise(layers)), folded


def _slope(act: nn.ReLU | nn.LeakyReLU) -> float:
    return act.negative_slope if isinstance(act, nn.LeakyReLU) else 0.0
