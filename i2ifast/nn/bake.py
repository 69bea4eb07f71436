"""Inference-only copies of networks, with everything computed once that images and labels do not enter."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from ..ops.conv2d import conv2d
from ..ops.conv3x3 import PackedConv3x3, fast
from .conv import Conv2d, fits_conv2d, is_3x3


def is_winograd(conv: nn.Conv2d) -> bool:
    """Whether the CPU kernel of ops.conv3x3 takes it, whatever its padding."""
    return is_3x3(conv) and fast(conv.weight, conv.in_channels, conv.out_channels)


class PackedConv2d(nn.Module):
    """A convolution whose weight lies as its kernel wants it, instead of being laid out in every forward.

    3x3 convolutions take the kernel of ops.conv3x3 where it applies, strided and 4x4 ones that of ops.conv2d, which
    reads the weight as it is, and others oneDNN's.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.weight = conv.weight.detach()
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.winograd = PackedConv3x3(self.weight, self.bias, conv.padding_mode) if is_winograd(conv) else None
        self.strided = (conv.stride[0], conv.padding[0]) if fits_conv2d(conv) else None
        self.packed: Tensor | None = None

    @staticmethod
    def applies(conv: nn.Module) -> bool:
        """Plain float32 convolutions on the CPU, where torch is built with oneDNN."""
        return (
            isinstance(conv, nn.Conv2d)
            and type(conv).forward is nn.Conv2d.forward
            and type(conv)._conv_forward in (nn.Conv2d._conv_forward, Conv2d._conv_forward)
            and (conv.padding_mode == "zeros" or is_winograd(conv))
            and not isinstance(conv.padding, str)
            and conv.weight.dtype is torch.float32
            and conv.weight.device.type == "cpu"
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("a baked network has no gradients: call it under torch.no_grad(), or the original")
        if self.winograd is not None:
            return self.winograd(x)
        if self.strided is not None:
            return conv2d(x, self.weight, self.bias, *self.strided)
        if self.packed is None:  # the best layout depends on the input's size; any later size works as well
            self.packed = torch._C._nn.mkldnn_reorder_conv2d_weight(
                self.weight.to_mkldnn(), *self.geometry, list(x.shape)
            )
        return torch.ops.mkldnn._convolution_pointwise(x, self.packed, self.bias, *self.geometry, "none", [], "")

    def __getstate__(self) -> dict:
        return self.__dict__ | {"packed": None}  # oneDNN's tensors cannot be copied


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """A copy of `model` for evaluation, whose spectral norms are folded into plain weights."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in model.modules():
        for hook in [h for h in module._forward_pre_hooks.values() if isinstance(h, SpectralNorm)]:
            original = getattr(module, f"{hook.name}_orig")
            torch.nn.utils.remove_spectral_norm(module, hook.name)
            getattr(module, hook.name).requires_grad_(False)
            if isinstance(module, nn.Linear):  # class activation maps are made of these weights as they are
                setattr(module, f"{hook.name}_orig", original)
    return model


@torch.no_grad()
def bake(model: nn.Module) -> nn.Module:
    """A copy of `model` for inference: the same results up to rounding, faster, and no longer trainable.

    Spectral norm is folded into the weights, SPADE layers keep their tap matrices, the statistics of a shortcut's norm
    go into its weights, and on the CPU convolutions keep their weights in the layout of their kernel. Parameters that
    change afterwards have no effect, which is why this is a copy.
    """
    model = fold(model)
    for module in model.modules():
        if hasattr(module, "bake"):
            module.bake()
    conditioned = {
        id(m) for module in model.modules() if getattr(module, "_baked", None) is not None for m in module.modules()
    }
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if PackedConv2d.applies(child) and id(child) not in conditioned:
                setattr(parent, name, PackedConv2d(child))
    return model.to(memory_format=torch.channels_last)
