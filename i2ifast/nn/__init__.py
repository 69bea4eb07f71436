"""Drop-in modules: constructor arguments, state_dict keys and numbers of the originals, on the fused ops."""

from .attentive import AttentiveNorm, regional_norm
from .bake import bake
from .instance import AdaIN, InstanceNormAct
from .label_conv import label_conv2d
from .region_norm import RN, RN_B, RN_L, RegionNorm, region_average_pool, region_means
from .spade import SPADE, SPADEResnetBlock
from .spectral import spectral_norm

__all__ = [
    "AdaIN",
    "AttentiveNorm",
    "InstanceNormAct",
    "RN",
    "RN_B",
    "RN_L",
    "RegionNorm",
    "SPADE",
    "SPADEResnetBlock",
    "bake",
    "label_conv2d",
    "region_average_pool",
    "region_means",
    "regional_norm",
    "spectral_norm",
]
