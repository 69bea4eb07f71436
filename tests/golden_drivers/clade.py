"""CLADE: as every System, and the offsets of pixels from the centres of their objects."""

from pathlib import Path

import golden_system
from golden_recipe import Case
from golden_system import VARIANTS
from torch import Tensor

from i2ifast import labels

__all__ = ["VARIANTS", "found"]


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor]:
    values = golden_system.found(case, variant, backend, folder)
    if "out.dist" in case.names:
        maps = case.inputs("in.")["label"]
        values["out.dist"] = labels.centre_offsets(maps)
        values["out.dist_unnormalised"] = labels.centre_offsets(maps, normalise=False)
    return values
