"""Drop-in modules: constructor arguments, state_dict keys and numbers of the originals, on the fused ops."""

from .bake import bake
from .flow import channelnorm, correlation, resample2d
from .instance import AdaIN, InstanceNormAct
from .label_conv import label_conv2d
from .modulated_conv import minibatch_stddev, modulated_conv2d, resampled_conv2d
from .norm_act import BatchNormAct, TrackedInstanceNormAct
from .spade import SPADE, SPADEResnetBlock
from .spectral import spectral_norm
from .stylegan import EqualConv2d, EqualLinear, FusedLeakyReLU, ModulatedConv2d, StyledConv, ToRGB

__all__ = [
    "AdaIN",
    "BatchNormAct",
    "EqualConv2d",
    "EqualLinear",
    "FusedLeakyReLU",
    "InstanceNormAct",
    "ModulatedConv2d",
    "SPADE",
    "SPADEResnetBlock",
    "StyledConv",
    "ToRGB",
    "TrackedInstanceNormAct",
    "bake",
    "channelnorm",
    "correlation",
    "label_conv2d",
    "minibatch_stddev",
    "modulated_conv2d",
    "resample2d",
    "resampled_conv2d",
    "spectral_norm",
]
