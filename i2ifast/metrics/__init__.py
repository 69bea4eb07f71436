"""Scores as functions of images, features and label maps; `i2ifast.evaluate` runs them over folders."""

from .inception import inception, is_torchscript
from .labels import confusion, inside_and_outside, mean_iou, pixel_accuracy
from .lpips import LPIPS
from .pairs import domain_invariant_distance, psnr, squared_error, ssim
from .sets import frechet_distance, inception_score, kernel_distance, neighbours
from .swd import patch_descriptors, sliced_wasserstein

__all__ = [
    "LPIPS",
    "confusion",
    "domain_invariant_distance",
    "frechet_distance",
    "inception",
    "inception_score",
    "inside_and_outside",
    "is_torchscript",
    "kernel_distance",
    "mean_iou",
    "neighbours",
    "patch_descriptors",
    "pixel_accuracy",
    "psnr",
    "sliced_wasserstein",
    "squared_error",
    "ssim",
]
