"""Drop-in modules: constructor arguments, state_dict keys and numbers of the originals, on the fused ops."""

from .bake import bake
from .clade import CLADEResnetBlock, ClassAffine, SPADELight
from .instance import AdaIN, InstanceNormAct
from .label_conv import label_conv2d
from .smis import GROUP_SPADE, SPADEV2ResnetBlock
from .spade import SPADE, SPADEResnetBlock
from .spectral import spectral_norm

__all__ = [
    "AdaIN",
    "CLADEResnetBlock",
    "ClassAffine",
    "GROUP_SPADE",
    "InstanceNormAct",
    "SPADE",
    "SPADELight",
    "SPADEResnetBlock",
    "SPADEV2ResnetBlock",
    "bake",
    "label_conv2d",
    "spectral_norm",
]
