"""Drop-in modules: constructor arguments, state_dict keys and numbers of the originals, on the fused ops."""

from .bake import bake
from .batch import BatchNormAct
from .ccfpse import DepthsepCC, DepthsepCCBlock
from .fade import FADE, FAdaIN, FADEResnetBlock
from .instance import AdaIN, InstanceNormAct
from .label_conv import label_conv2d
from .positional import PositionalNorm2d, ReflectionSPADE
from .spade import SPADE, SPADEResnetBlock
from .spectral import spectral_norm

__all__ = [
    "AdaIN",
    "BatchNormAct",
    "DepthsepCC",
    "DepthsepCCBlock",
    "FADE",
    "FADEResnetBlock",
    "FAdaIN",
    "InstanceNormAct",
    "PositionalNorm2d",
    "ReflectionSPADE",
    "SPADE",
    "SPADEResnetBlock",
    "bake",
    "label_conv2d",
    "spectral_norm",
]
