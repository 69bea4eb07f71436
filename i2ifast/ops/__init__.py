"""Fused ops. Each is a few lines of differentiable PyTorch (the reference) with optional kernels for CPU and CUDA."""

from .bias_act import bias_act
from .conv3x3 import PackedConv3x3, conv3x3
from .gather_sum import gather_sum
from .label_patches import label_patches
from .linear import PackedLinear, linear
from .modulate import modulate
from .modulate_style import modulate_style
from .modulate_table import Segments, modulate_table
from .moments import (
    Statistics,
    batch_statistics,
    fixed_statistics,
    instance_statistics,
    moments,
    no_statistics,
)
from .spectral_weight import spectral_weight
from .upfirdn2d import upfirdn2d

__all__ = [
    "PackedConv3x3",
    "PackedLinear",
    "Segments",
    "Statistics",
    "batch_statistics",
    "bias_act",
    "conv3x3",
    "fixed_statistics",
    "gather_sum",
    "instance_statistics",
    "label_patches",
    "linear",
    "modulate",
    "modulate_style",
    "modulate_table",
    "moments",
    "no_statistics",
    "spectral_weight",
    "upfirdn2d",
]
