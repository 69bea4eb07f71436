"""SMIS: as every System, with what the recordings changed: group numbers, and pixels that would count as empty."""

from pathlib import Path
from typing import Any

import golden_system
import torch
from golden_recipe import Case
from golden_system import VARIANTS
from torch import Tensor

from i2ifast.models.smis import BLOCKS

__all__ = ["VARIANTS", "found"]


class Recorded(Case):
    @property
    def options(self) -> dict[str, Any]:
        """Group numbers are those of the recorded weights: channels in over channels of a group."""
        keys = self.keys("G")
        groups = [len_of(keys, f"{name}.norm_0.param_free_norm.running_mean") for name in BLOCKS]
        groups = [n // keys[f"{name}.conv_0.weight_orig"][0][1] for name, n in zip(BLOCKS, groups, strict=True)]
        return super().options | {"group_nums": groups}

    def inputs(self, prefix: str) -> dict[str, Tensor]:
        found = super().inputs(prefix)
        empty = found["image"].sum(1, keepdim=True) == 0
        return found | {"image": torch.where(empty, 1 / 128, found["image"])}


def len_of(keys: dict[str, tuple[list[int], torch.dtype]], name: str) -> int:
    return keys[name][0][0]


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor]:
    return golden_system.found(Recorded(case.path), variant, backend, folder)
