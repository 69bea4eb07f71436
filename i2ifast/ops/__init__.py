"""Fused ops. Each is a few lines of differentiable PyTorch (the reference) with optional kernels for CPU and CUDA."""

from .channel_pool import channel_pool
from .conv3x3 import PackedConv3x3, conv3x3
from .gather_sum import gather_sum
from .label_patches import label_patches
from .linear import PackedLinear, linear
from .modulate import modulate
from .modulate_mix import mix_sums, modulate_mix
from .modulate_region import modulate_region
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
from .region_moments import RegionStatistics, region_moments, region_statistics
from .spectral_weight import spectral_weight

__all__ = [
    "PackedConv3x3",
    "PackedLinear",
    "RegionStatistics",
    "Segments",
    "Statistics",
    "batch_statistics",
    "channel_pool",
    "conv3x3",
    "fixed_statistics",
    "gather_sum",
    "instance_statistics",
    "label_patches",
    "linear",
    "mix_sums",
    "modulate",
    "modulate_mix",
    "modulate_region",
    "modulate_style",
    "modulate_table",
    "moments",
    "no_statistics",
    "region_moments",
    "region_statistics",
    "spectral_weight",
]
