"""Scores with label maps: whether a segmentation network finds in images what they were made of, and whether a style
changes its own class alone.

Zhu et al. Semantically Multi-modal Image Synthesis. CVPR 2020 (mCSD, mOCD).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

UNKNOWN = 255  # of label maps: left out


def confusion(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Pixels [class, found class] int64 over images [N,3,H,W] in [0, 1] with labels [N,h,w].

    `network` gives logits [N,classes,...], which are resized (bilinear) to the label maps. ValueError for labels that
    are no class of it, nor 255, unknown.
    """
    logits = network(images)
    logits = F.interpolate(logits.float(), labels.shape[1:], mode="bilinear")
    classes = logits.size(1)
    known = labels != UNKNOWN
    if bool((known & (labels >= classes)).any()):
        raise ValueError(f"label {int(labels[known].max())}: the segmentation network has classes 0 to {classes - 1}")
    return multiclass_confusion_matrix(logits.argmax(1)[known], labels[known], classes)


def mean_iou(matrix: Tensor) -> float:
    """Intersection over union, the mean over classes that are in the label maps or found."""
    right = matrix.diagonal().double()
    union = matrix.sum(0) + matrix.sum(1) - right
    return (right / union)[union > 0].mean().item()


def pixel_accuracy(matrix: Tensor) -> float:
    """Share of the known pixels whose class was found."""
    return (matrix.trace() / matrix.sum()).item()


def inside_and_outside(maps: Tensor, region: Tensor) -> Tensor:
    """Means [2,N] of maps [N,H,W] within a region [N,H,W] and out of it; NaN where that is empty.

    With distance maps of pairs of images that differ in the style of one class, and its region, these are the
    class-specific and the other-classes diversity of a pair; mCSD and mOCD are means over pairs and images of a class,
    then over classes.
    """
    maps = maps.double()
    return torch.stack(
        [(maps * part).sum((1, 2)) / part.sum((1, 2)) for part in (region.double(), 1 - region.double())]
    )
