"""Faster forwards for networks whose classes others wrote: what is known is found by structure and changed in place.

A changed module gets a subclass of its class, made of that class and one of the mixins in this package. It stays the
same object, with the same parameters, buffers and children, so references, state_dict keys and DataParallel replicas
stay valid.
"""

from collections import Counter

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm as TorchSpectralNorm

from ..nn.conv import Conv2d, ConvTranspose2d, fits_conv2d, is_3x3
from ..nn.spade import SPADE
from ..nn.spectral import SpectralNorm, adopt, release
from ._change import Changed, change, difference, replace, restored
from .norms import candidates
from .sequential import FusedSequential, count_pairs
from .spade import assignments, change_block, change_layer, change_upsampling

KINDS = (
    "SPADE layers",
    "instance norms with activation",
    "spectral norms",
    "convolutions",
    "SPADE residual blocks",
    "upsamplings in front of them",
    "upsamplings with convolution",
    "other norms",
)


def accelerate(model: nn.Module) -> nn.Module:
    """Make `model` faster in place, print what was changed and what was left and why, and return it.

    - SPADE layers: a module with a norm without affine parameters, three convolutions and `forward(x, segmap)`.
      Structure does not prove a formula: the layer is changed only if a copy of it with random parameters and its
      replacement agree on random inputs, in training and in evaluation.
    - Residual blocks of two or three such layers and as many convolutions, proved in the same way; without gradients,
      the nn.Upsample (x2 nearest) in front of them is read where it is needed and never written.
    - InstanceNorm2d (affine or not, without running statistics) followed by ReLU or LeakyReLU in an nn.Sequential.
    - Upsample (x2 nearest) followed by a 3x3 or 5x5 convolution, with or without a padding layer between, there.
    - Layers with the parameters and formula of MUNIT's layer norm and adaptive instance norm, ILN and AdaILN (U-GAT-IT,
      NICE-GAN), AdaIN of a style vector (StarGAN v2), FADE (TSIT) and CLADE's affine of classes, proved as above.
    - Hooks of torch.nn.utils.spectral_norm.
    - 3x3 convolutions with stride 1 and padding 1; 4x4 ones, and 3x3 and transposed ones of stride 2, where their
      numbers of channels are such that `ops.conv2d` is fast.

    Outputs and gradients are the same up to summation order. A layer called in a way that its replacement does not know
    (keyword arguments, hooks on its children) runs its own forward. The model can be copied, pickled (loading it takes
    i2ifast) and run by DataParallel and DistributedDataParallel; `restore` it before scripting, tracing or export.
    """
    count, left = Counter(), []
    for name, module in model.named_modules():
        if isinstance(module, SPADE | torch.jit.ScriptModule) or not _changeable(module):
            continue
        if possible := list(assignments(module)):
            reason = change_layer(module, possible)
            count["SPADE layers"] += not reason
            left += [f"{name or type(module).__name__}: {reason}"] if reason else []
        elif type(module).forward is nn.Sequential.forward and any(pairs := count_pairs(module)):
            change(module, FusedSequential)
            count["instance norms with activation"] += pairs[0]
            count["upsamplings with convolution"] += pairs[1]
        elif type(module) in CONVOLUTIONS and (fits_conv2d(module) or (type(module) is nn.Conv2d and is_3x3(module))):
            change(module, CONVOLUTIONS[type(module)])
            count["convolutions"] += 1
        else:
            for mixin, parts, inputs, attributes in candidates(module):
                if not difference(module, mixin, parts, inputs, attributes):
                    replace(module, mixin, parts)
                    count["other norms"] += 1
                    break
        for hook in module._forward_pre_hooks.values():
            if type(hook) is TorchSpectralNorm:
                adopt(module, hook)
                hook._accelerated = True
                count["spectral norms"] += 1
    for module in filter(_changeable, model.modules()):
        count["SPADE residual blocks"] += change_block(module)
    for module in model.modules():
        count["upsamplings in front of them"] += change_upsampling(module)
    print("accelerate:", ", ".join(f"{count[what]} {what}" for what in KINDS))
    print(*(f"  left {line}\n" for line in left), sep="", end="")
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undo `accelerate` in place and return the model."""
    for module in model.modules():
        if isinstance(module, Changed):
            restored(module)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm) and hook.__dict__.pop("_accelerated", False):
                release(module, hook)
    return model


def _changeable(module: nn.Module) -> bool:
    """Not changed yet, and with a forward that is its class's."""
    return not isinstance(module, Changed) and "forward" not in vars(module)


class _Conv2d(Changed):
    """Convolutions through ops.conv3x3 and ops.conv2d."""

    _conv_forward = Conv2d._conv_forward


class _ConvTranspose2d(Changed):
    """Transposed convolutions through ops.conv_transpose2d."""

    forward = ConvTranspose2d.forward


CONVOLUTIONS = {nn.Conv2d: _Conv2d, nn.ConvTranspose2d: _ConvTranspose2d}
