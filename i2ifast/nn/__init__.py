"""Drop-in modules: constructor arguments, state_dict keys and numbers of the originals, on the fused ops."""

from . import losses
from .attentive import AttentiveNorm, regional_norm
from .bake import bake
from .batch import BatchNormAct
from .ccfpse import DepthsepCC, DepthsepCCBlock
from .clade import CLADEResnetBlock, ClassAffine, SPADELight
from .correspondence import SelfAttention
from .downsample_conv import DownsampleConv2d, downsample_conv2d
from .fade import FADE, FAdaIN, FADEResnetBlock
from .flow import channelnorm, correlation, resample2d
from .instance import AdaIN, InstanceNormAct, TrackedInstanceNormAct
from .label_conv import label_conv2d
from .layer import ILN, AdaILN, ConditionalNorm, LayerNorm, minibatch_std
from .modulated_conv import modulated_conv2d, resampled_conv2d
from .panoptic import PanopticConv2d, PanopticPlan, PanopticUpsample
from .partial_conv import PartialConv2d, PartialConv3d
from .partial_loss import VGG16PartialLoss
from .positional import PositionalNorm2d, ReflectionSPADE
from .region_norm import RN, RN_B, RN_L, RegionNorm, region_average_pool, region_means
from .sean import ACE, SEANResnetBlock
from .smis import GROUP_SPADE, SPADEV2ResnetBlock
from .spade import SPADE, SPADEResnetBlock
from .spectral import spectral_norm
from .stylegan import EqualConv2d, EqualLinear, FusedLeakyReLU, ModulatedConv2d, StyledConv, ToRGB
from .upsample_conv import UpsampleConv2d, upsample_conv2d

__all__ = [
    "ACE",
    "AdaILN",
    "AdaIN",
    "AttentiveNorm",
    "BatchNormAct",
    "CLADEResnetBlock",
    "ClassAffine",
    "ConditionalNorm",
    "DepthsepCC",
    "DepthsepCCBlock",
    "DownsampleConv2d",
    "EqualConv2d",
    "EqualLinear",
    "FADE",
    "FADEResnetBlock",
    "FAdaIN",
    "FusedLeakyReLU",
    "GROUP_SPADE",
    "ILN",
    "InstanceNormAct",
    "LayerNorm",
    "ModulatedConv2d",
    "PanopticConv2d",
    "PanopticPlan",
    "PanopticUpsample",
    "PartialConv2d",
    "PartialConv3d",
    "PositionalNorm2d",
    "RN",
    "RN_B",
    "RN_L",
    "ReflectionSPADE",
    "RegionNorm",
    "SEANResnetBlock",
    "SPADE",
    "SPADELight",
    "SPADEResnetBlock",
    "SPADEV2ResnetBlock",
    "SelfAttention",
    "StyledConv",
    "ToRGB",
    "TrackedInstanceNormAct",
    "UpsampleConv2d",
    "VGG16PartialLoss",
    "bake",
    "channelnorm",
    "correlation",
    "downsample_conv2d",
    "label_conv2d",
    "losses",
    "minibatch_std",
    "modulated_conv2d",
    "region_average_pool",
    "region_means",
    "regional_norm",
    "resample2d",
    "resampled_conv2d",
    "spectral_norm",
    "upsample_conv2d",
]
