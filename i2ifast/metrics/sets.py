"""Scores of two sets of images by their features, FID, KID, IS, precision, recall, density and coverage. In float64.

Subsets and splits are drawn as torch-fidelity draws them, so that KID and IS too are its numbers.

Heusel et al. GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium. NeurIPS 2017 (FID).
Binkowski et al. Demystifying MMD GANs. ICLR 2018 (KID).
Salimans et al. Improved Techniques for Training GANs. NeurIPS 2016 (IS).
Kynkaanniemi et al. Improved Precision and Recall Metric for Assessing Generative Models. NeurIPS 2019.
Naeem et al. Reliable Fidelity and Diversity Metrics for Generative Models. ICML 2020 (density, coverage).
"""

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

ROWS = 1024  # features at a time
SEED = 2020  # torch-fidelity's


class _Given(nn.Identity):
    """The network of features that there are already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def frechet_distance(fake: Tensor, real: Tensor) -> float:
    """|m - n|^2 + tr(A + B - 2 sqrt(A B)) for features [N,D] with means m, n and unbiased covariances A, B.

    The trace of the root is the sum of the roots of the eigenvalues of A B, which needs no regular covariances.
    ValueError for less than two features of either set.
    """
    if min(len(fake), len(real)) < 2:
        raise ValueError(f"{len(fake)} and {len(real)} images: FID takes at least 2 of each set")
    metric = FrechetInceptionDistance(_Given(fake.size(1)), sync_on_compute=False).to(fake.device)
    for features, is_real in ((fake, False), (real, True)):
        for rows in features.split(ROWS):
            metric.update(rows.double(), real=is_real)
    return metric.compute().item()


def kernel_distance(fake: Tensor, real: Tensor, subsets: int = 100, subset_size: int = 1000) -> tuple[float, float]:
    """Mean and standard deviation over subsets of the unbiased squared MMD with kernel (<x, y> / D + 1)^3.

    ValueError for sets of less than `subset_size` features, or that of less than 2.
    """
    if not 2 <= subset_size <= min(len(fake), len(real)):
        raise ValueError(
            f"kid_subset_size {subset_size}: expected 2 to {min(len(fake), len(real))}, the images there are"
        )
    draw = np.random.RandomState(SEED)
    found = []
    for _ in range(subsets):
        x, y = (f[draw.choice(len(f), subset_size, replace=False)].double() for f in (fake, real))
        found.append(poly_mmd(x, y))
    values = torch.stack(found)
    return values.mean().item(), values.std(correction=0).item()


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over splits of exp(mean over images of KL(p(y | x) || mean of p(y | x))).

    p is the softmax of logits [N,classes]. ValueError for less images than splits.
    """
    count = len(logits)
    if count < splits:
        raise ValueError(f"{count} images for {splits} splits: expected at least one each")
    logits = logits[np.random.RandomState(SEED).permutation(count)].double()
    found = []
    for i in range(splits):
        part = logits[i * count // splits : (i + 1) * count // splits].log_softmax(1)
        marginal = part.exp().mean(0).log()
        found.append((part.exp() * (part - marginal)).sum(1).mean().exp())
    values = torch.stack(found)
    return values.mean().item(), values.std(correction=0).item()


def neighbours(fake: Tensor, real: Tensor, nearest_k: int = 5) -> dict[str, float]:
    """precision, recall, density and coverage of features [N,D], by balls that reach to the k-th nearest of their set.

    precision: fakes in the ball of some real; recall: reals in the ball of some fake; density: balls of reals that a
    fake is in, over k; coverage: reals with a fake in their ball. ValueError for sets of no more than k.
    """
    if min(len(fake), len(real)) <= nearest_k:
        raise ValueError(f"{len(fake)} and {len(real)} images: expected more than nearest_k = {nearest_k} of each set")
    fake, real = fake.double(), real.double()

    def radii(x: Tensor) -> Tensor:  # the nearest of all is x itself
        return torch.cat([torch.cdist(rows, x).kthvalue(nearest_k + 1).values for rows in x.split(ROWS)])

    reach, balls = radii(fake), real.new_zeros(len(fake))
    recalled, covered = [], []
    for rows, radius in zip(real.split(ROWS), radii(real).split(ROWS), strict=True):
        distance = torch.cdist(rows, fake)
        inside = distance < radius[:, None]
        balls += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distance < reach).any(1))
    return {
        "precision": (balls > 0).double().mean().item(),
        "recall": torch.cat(recalled).double().mean().item(),
        "density": balls.mean().item() / nearest_k,
        "coverage": torch.cat(covered).double().mean().item(),
    }
