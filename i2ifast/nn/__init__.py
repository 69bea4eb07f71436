"""Drop-in modules: constructor arguments, state_dict keys and numbers of the originals, on the fused ops."""

from .bake import bake
from .clade import CLADEResnetBlock, ClassAffine, SPADELight
from .instance import AdaIN, InstanceNormAct
from .label_conv import label_conv2d
from .spade import SPADE, SPADEResnetBlock
from .spectral import spectral_norm

__all__ = [
    "AdaIN",
    "CLADEResnetBlock",
    "ClassAffine",
    "InstanceNormAct",
    "SPADE",
    "SPADELight",
    "SPADEResnetBlock",
    "bake",
    "label_conv2d",
    "spectral_norm",
]
