"""The losses of `i2ifast.nn.losses` and the perceptual networks that systems share."""

from i2ifast.nn.losses import (
    GAN_LOSSES,
    GANLoss,
    cross_entropy,
    feature_matching,
    hinge,
    kl_divergence,
    least_squares,
    perceptual,
)
from i2ifast.nn.vgg import VGG16, VGG19

__all__ = [
    "GAN_LOSSES",
    "VGG16",
    "VGG19",
    "GANLoss",
    "cross_entropy",
    "feature_matching",
    "hinge",
    "kl_divergence",
    "least_squares",
    "perceptual",
]
