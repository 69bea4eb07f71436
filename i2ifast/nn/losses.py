"""Losses of image-to-image systems, with the reductions of the originals."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .correspondence import by_rows

# An adversarial loss takes discriminator outputs of any shape and whether they should look real. `generator` says
# that the generator is trained: only hinge, which does not saturate for it, then differs.
GANLoss = Callable[[Tensor, bool, bool], Tensor]


def hinge(logits: Tensor, real: bool, generator: bool = False) -> Tensor:
    """Mean of relu(1 - logits) for real, relu(1 + logits) for fake; -logits for the generator."""
    if generator:
        return -logits.mean()
    return F.relu(1 - logits if real else 1 + logits).mean()


def least_squares(logits: Tensor, real: bool, generator: bool = False) -> Tensor:
    """Mean of (logits - target)^2 with target 1 for real, 0 for fake."""
    return (logits - float(real)).square().mean()


def cross_entropy(logits: Tensor, real: bool, generator: bool = False) -> Tensor:
    """Mean binary cross entropy of sigmoid(logits) with target 1 for real, 0 for fake."""
    return F.softplus(-logits if real else logits).mean()


def wasserstein(logits: Tensor, real: bool, generator: bool = False) -> Tensor:
    """Mean of -logits for real, logits for fake."""
    return -logits.mean() if real else logits.mean()


GAN_LOSSES: dict[str, GANLoss] = {
    "hinge": hinge,
    "ls": least_squares,
    "original": cross_entropy,
    "w": wasserstein,
}


def reduced(values: Tensor, reduction: Literal["mean", "sum"]) -> Tensor:
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction {reduction!r}: expected mean or sum")
    return values.mean() if reduction == "mean" else values.sum()


def multiscale(
    loss: GANLoss,
    logits: Sequence[Tensor],
    real: bool,
    generator: bool = False,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """The mean or the sum of an adversarial loss over the logits of several discriminators."""
    return reduced(torch.stack([loss(each, real, generator) for each in logits]), reduction)


def feature_matching(fake: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]] | None = None) -> Tensor:
    """Mean absolute difference of features, summed over the layers of a scale and averaged over scales.

    `fake`, `real`: discriminator outputs [scale][layer]; the last layer, the logits, is left out. Without `real`, those
    of a batch whose first half is fake and whose second half is real, which is faster. No gradient goes to the real
    ones. 0 for an empty batch.
    """
    fakes, reals = ([x for scale in outputs or () for x in scale[:-1]] for outputs in (fake, real))
    distances = ops.feature_matching(fakes, reals, [1 / len(fake)] * len(fakes))
    return distances.sum() / max(1, len(distances))


def perceptual(
    vgg: nn.Module,
    fake: Tensor,
    real: Tensor,
    weights: Sequence[float] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1),
) -> Tensor:
    """Sum over the features that `vgg` returns of weight * mean |vgg(fake) - vgg(real)|."""
    with torch.no_grad():
        targets = vgg(real)
    distances = ops.feature_matching(vgg(fake), targets, weights)
    return distances.sum() / max(1, len(distances))


def kl_divergence(mu: Tensor, logvar: Tensor, reduction: Literal["mean", "sum"] = "sum") -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) = -1/2 (1 + logvar - mu^2 - exp(logvar)), over batch and dimensions."""
    return reduced(-0.5 * (1 + logvar - mu.square() - logvar.exp()), reduction)


def gram_matrix(x: Tensor) -> Tensor:
    """Products of channels, summed over positions: x [N, C, ...] -> [N, C, C], divided by C * positions."""
    rows = x.flatten(2)
    return rows @ rows.transpose(1, 2) / max(1, rows.size(1) * rows.size(2))


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of pixels [N, C, H, W] that lie side by side, plus that of such above each other."""
    return (x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()


def input_gradient(logits: Tensor, images: Tensor) -> Tensor:
    """Gradient of the sum of logits with respect to the images they are of, [N, elements], as a function of both."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.flatten(1)


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """1/2 of the squared norm of the logits' gradient with respect to the real images, which require grad; batch mean.

    Mescheder, Geiger, Nowozin. Which Training Methods for GANs do actually Converge? ICML 2018.
    """
    return 0.5 * input_gradient(logits, images).square().sum(1).mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """(norm of the logits' gradient - 1)^2 with respect to images between real and fake ones; batch mean.

    Gulrajani et al. Improved Training of Wasserstein GANs. NeurIPS 2017.
    """
    return (input_gradient(logits, images).norm(dim=1) - 1).square().mean()


def contextual(x: Tensor, y: Tensor, pono: bool = True, bandwidth: float = 0.1, eps: float = 1e-3) -> Tensor:
    """-log CX(x, y) [N]: how well the features of x find similar ones among those of y, wherever they lie.

    With cosine distances d[i, j] of positions i of x and j of y, both centred by the mean of y,
    CX = mean over i of max over j of w[i, j] / sum over j of w[i, j], w = exp((1 - d / (min over j of d + eps)) / h).
    x, y [N, C, H, W]; the mean is over channels (pono) or over positions. Rows i are independent, so that the
    matrix is never held as a whole.
    Mechrez, Talmi, Zelnik-Manor. The Contextual Loss for Image Transformation with Non-Aligned Data. ECCV 2018.
    """
    mean = y.mean(1, keepdim=True) if pono else y.mean((2, 3), keepdim=True)
    x, y = (F.normalize((t - mean).flatten(2), dim=1, eps=2e-16) for t in (x, y))

    def largest(rows: Tensor) -> Tensor:
        cosine = rows @ y
        top = cosine.max(-1).values
        scale = 1 / (bandwidth * (1 - top + eps))
        logits = (cosine - 1) * scale[..., None]
        return torch.exp((top - 1) * scale - logits.logsumexp(-1))

    return -by_rows(largest, x.transpose(1, 2), y.size(2)).mean(1).log()
