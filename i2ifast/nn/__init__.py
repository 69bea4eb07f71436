"""Drop-in modules: constructor arguments, state_dict keys and numbers of the originals, on the fused ops."""

from . import losses
from .attentive import AttentiveNorm, regional_norm
from .bake import bake
from .batch import BatchNormAct
from .ccfpse import DepthsepCC, DepthsepCCBlock
from .correspondence import SelfAttention
from .fade import FADE, FAdaIN, FADEResnetBlock
from .instance import AdaIN, InstanceNormAct
from .label_conv import label_conv2d
from .layer import ILN, AdaILN, ConditionalNorm, LayerNorm, minibatch_std
from .panoptic import PanopticConv2d, PanopticPlan, PanopticUpsample
from .partial_conv import PartialConv2d, PartialConv3d
from .partial_loss import VGG16PartialLoss
from .positional import PositionalNorm2d, ReflectionSPADE
from .region_norm import RN, RN_B, RN_L, RegionNorm, region_average_pool, region_means
from .sean import ACE, SEANResnetBlock
from .spade import SPADE, SPADEResnetBlock
from .spectral import spectral_norm
from .upsample_conv import UpsampleConv2d, upsample_conv2d

__all__ = [
    "ACE",
    "AdaILN",
    "AdaIN",
    "AttentiveNorm",
    "BatchNormAct",
    "ConditionalNorm",
    "DepthsepCC",
    "DepthsepCCBlock",
    "FADE",
    "FADEResnetBlock",
    "FAdaIN",
    "ILN",
    "InstanceNormAct",
    "LayerNorm",
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
    "SPADEResnetBlock",
    "SelfAttention",
    "UpsampleConv2d",
    "VGG16PartialLoss",
    "bake",
    "label_conv2d",
    "losses",
    "minibatch_std",
    "region_average_pool",
    "region_means",
    "regional_norm",
    "spectral_norm",
    "upsample_conv2d",
]
