"""Clusters of the features that an encoder gives regions: by label, typical ones to generate with."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Clusters = dict[int, Tensor]  # label -> centres [K, feat_num]
PER_LABEL = 1000  # ids of a label's instances are label * PER_LABEL + number; smaller ones are labels themselves


def labels_of(ids: Tensor) -> Tensor:
    return torch.where(ids < PER_LABEL, ids, ids // PER_LABEL)


def k_means(points: Tensor, count: int, rand: Callable[..., Tensor], rounds: int = 300) -> Tensor:
    """Centres [count, C] of points [P, C], P at least `count`; `rand(shape, like)` draws the first ones by k-means++.

    Arthur, Vassilvitskii. k-means++: The Advantages of Careful Seeding. SODA 2007.
    """
    centres = points[(rand((1,), points) * len(points)).long()]
    while len(centres) < count:
        reach = torch.cdist(points, centres).amin(1).square().cumsum(0)
        centres = torch.cat([centres, points[torch.searchsorted(reach, rand((1,), points) * reach[-1])]])
    nearest = None
    for _ in range(rounds):
        before, nearest = nearest, torch.cdist(points, centres).argmin(1)
        if before is not None and torch.equal(before, nearest):
            break
        sizes = nearest.bincount(minlength=count)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


def save(clusters: Clusters, path: str | Path) -> None:
    """Write a .safetensors file."""
    save_file({str(label): centres.contiguous() for label, centres in clusters.items()}, path)


class _Arrays(pickle.Unpickler):
    """Reads arrays and plain containers, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "_codecs" and name == "encode":  # of bytes, in files written for Python 2
            return lambda text, encoding: text.encode("latin1")
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np._core.multiarray._reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load(path: str | Path) -> Clusters:
    """Read a .safetensors file, or an original's .npy file of a dict; ValueError for what is neither."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return {int(label): centres for label, centres in load_file(path).items()}
    try:
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            found = _Arrays(file, encoding="latin1").load().item()
        if not isinstance(found, Mapping):
            raise ValueError("it holds no dict")
        return {int(label): torch.from_numpy(np.asarray(centres, np.float32)) for label, centres in found.items()}
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, EOFError, IndexError) as error:
        raise ValueError(f"{path}: no clusters of features ({error})") from error
