"""SMIS: as every System, with what the recordings changed: group numbers, and pixels that would count as empty."""

from pathlib import Path
from typing import Any

import golden_system
import torch
from golden_recipe import Case
from golden_system import VARIANTS
from torch import Tensor

from i2ifast import labels
from i2ifast.models.smis import BLOCKS, Config, class_crops

__all__ = ["VARIANTS", "found"]


class Recorded(Case):
    @property
    def options(self) -> dict[str, Any]:
        """Group numbers are those of the recorded weights: channels in over channels of a group."""
        keys = self.keys("G")

        def groups(block: str) -> int:
            (channels,), _ = keys[f"{block}.norm_0.param_free_norm.running_mean"]
            return channels // keys[f"{block}.conv_0.weight_orig"][0][1]

        return super().options | {"group_nums": tuple(map(groups, BLOCKS))}

    def inputs(self, prefix: str) -> dict[str, Tensor]:
        found = super().inputs(prefix)
        empty = found["image"].sum(1, keepdim=True) == 0
        return found | {"image": torch.where(empty, 1 / 128, found["image"])}


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor]:
    case = Recorded(case.path)
    values = golden_system.found(case, variant, backend, folder)
    if "mid.trans_img" in case.names:
        config = Config.from_original(case.options)
        batch = case.inputs("in.")
        plan = labels.plan(batch["label"], config.num_classes)
        values["mid.trans_img"] = class_crops(batch["image"], plan, config.num_classes)
    return values
