"""Drop-in modules: constructor arguments, state_dict keys and numbers of the originals, on the fused ops."""

from .bake import bake
from .instance import AdaIN, InstanceNormAct
from .label_conv import label_conv2d
from .sean import ACE, SEANResnetBlock
from .spade import SPADE, SPADEResnetBlock
from .spectral import spectral_norm

__all__ = [
    "ACE",
    "AdaIN",
    "InstanceNormAct",
    "SEANResnetBlock",
    "SPADE",
    "SPADEResnetBlock",
    "bake",
    "label_conv2d",
    "spectral_norm",
]
