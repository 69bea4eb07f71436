"""Drop-in modules: constructor arguments, state_dict keys and numbers of the originals, on the fused ops."""

from .bake import bake
from .instance import AdaIN, InstanceNormAct
from .label_conv import label_conv2d
from .panoptic import PanopticConv2d, PanopticPlan, PanopticUpsample
from .partial_conv import PartialConv2d, PartialConv3d
from .partial_loss import VGG16PartialLoss
from .spade import SPADE, SPADEResnetBlock
from .spectral import spectral_norm

__all__ = [
    "AdaIN",
    "InstanceNormAct",
    "PanopticConv2d",
    "PanopticPlan",
    "PanopticUpsample",
    "PartialConv2d",
    "PartialConv3d",
    "SPADE",
    "SPADEResnetBlock",
    "VGG16PartialLoss",
    "bake",
    "label_conv2d",
    "spectral_norm",
]
