"""Drop-in modules: constructor arguments, state_dict keys and numbers of the originals, on the fused ops."""

from . import losses
from .bake import bake
from .correspondence import SelfAttention
from .instance import AdaIN, InstanceNormAct
from .label_conv import label_conv2d
from .spade import SPADE, SPADEResnetBlock
from .spectral import spectral_norm

__all__ = [
    "AdaIN",
    "InstanceNormAct",
    "SPADE",
    "SPADEResnetBlock",
    "SelfAttention",
    "bake",
    "label_conv2d",
    "losses",
    "spectral_norm",
]
