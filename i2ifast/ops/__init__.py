"""Fused ops. Each is a few lines of differentiable PyTorch (the reference) with optional kernels for CPU and CUDA."""

from ._panoptic import PanopticSources, PanopticWindows, panoptic_sources, panoptic_windows
from .bias_act import bias_act
from .channel_pool import channel_pool
from .conv2d import conv2d, conv_transpose2d
from .conv3x3 import PackedConv3x3, conv3x3
from .dynamic_conv import dynamic_conv
from .feature_matching import feature_matching
from .gather_sum import gather_sum
from .label_patches import label_patches
from .linear import PackedLinear, linear
from .modulate import modulate
from .modulate_mix import mix_sums, modulate_mix
from .modulate_mixed import modulate_mixed
from .modulate_region import modulate_region
from .modulate_style import modulate_style
from .modulate_table import Segments, modulate_table
from .moments import Statistics, batch_statistics, fixed_statistics, instance_statistics, moments, no_statistics
from .panoptic_conv import panoptic_conv
from .panoptic_upsample import panoptic_upsample
from .positional_norm import positional_norm
from .region_moments import RegionStatistics, region_moments, region_statistics
from .spectral_weight import spectral_weight
from .upfirdn2d import upfirdn2d

__all__ = [
    "PackedConv3x3",
    "PackedLinear",
    "PanopticSources",
    "PanopticWindows",
    "RegionStatistics",
    "Segments",
    "Statistics",
    "batch_statistics",
    "bias_act",
    "channel_pool",
    "conv3x3",
    "conv2d",
    "conv_transpose2d",
    "dynamic_conv",
    "feature_matching",
    "fixed_statistics",
    "gather_sum",
    "instance_statistics",
    "label_patches",
    "linear",
    "mix_sums",
    "modulate",
    "modulate_mix",
    "modulate_mixed",
    "modulate_region",
    "modulate_style",
    "modulate_table",
    "moments",
    "no_statistics",
    "panoptic_conv",
    "panoptic_sources",
    "panoptic_upsample",
    "panoptic_windows",
    "positional_norm",
    "region_moments",
    "region_statistics",
    "spectral_weight",
    "upfirdn2d",
]
