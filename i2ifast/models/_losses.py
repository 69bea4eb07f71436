"""The losses of `i2ifast.nn.losses` and the perceptual network that systems share."""

from i2ifast.nn.losses import GAN_LOSSES, GANLoss, feature_matching, kl_divergence, perceptual
from i2ifast.nn.vgg import VGG19

__all__ = ["GAN_LOSSES", "GANLoss", "VGG19", "feature_matching", "kl_divergence", "perceptual"]
