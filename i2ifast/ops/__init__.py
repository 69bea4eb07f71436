"""Fused ops. Each is a few lines of differentiable PyTorch (the reference) with optional kernels for CPU and CUDA."""

from ._panoptic import PanopticSources, PanopticWindows, panoptic_sources, panoptic_windows
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
from .panoptic_conv import panoptic_conv
from .panoptic_upsample import panoptic_upsample
from .spectral_weight import spectral_weight

__all__ = [
    "PackedConv3x3",
    "PackedLinear",
    "PanopticSources",
    "PanopticWindows",
    "Segments",
    "Statistics",
    "batch_statistics",
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
    "panoptic_conv",
    "panoptic_sources",
    "panoptic_upsample",
    "panoptic_windows",
    "spectral_weight",
]
