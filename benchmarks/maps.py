"""Batches of label maps to measure on: procedural scenes, noise, and real maps where a folder of them is given."""

from pathlib import Path
from typing import Any

import torch

from i2ifast.data import procedural
from i2ifast.data.kinds.labels import LabelDataset, Settings, find
from i2ifast.models import Batch

KINDS = ("procedural", "real", "noise")
REAL = {"coco": ("coco_stuff", "val"), "cityscapes": ("cityscapes", "test")}  # preset -> folder and phase


def batches(
    kind: str, config: Any, size: tuple[int, int], n: int, count: int, real: tuple[Path, str] | None = None
) -> list[Batch]:
    """`count` batches of `n` {label, instance [1,h,w], image [3,h,w]}; images are noise.

    For real maps `real` is a folder as data.labels.find reads it, and a phase; with few maps batches repeat some.
    """
    made = []
    for i in range(count):
        items = [_item(kind, config, size, i * n + j, real) for j in range(n)]
        image = torch.rand((n, 3, *size), generator=torch.Generator().manual_seed(i)) * 2 - 1
        made.append({name: torch.stack([item[name] for item in items]) for name in items[0]} | {"image": image})
    return made


def _item(kind: str, config: Any, size: tuple[int, int], index: int, real: tuple[Path, str] | None) -> Batch:
    if kind == "noise":  # nearly every neighbourhood is distinct
        generator = torch.Generator().manual_seed(index)
        label, instance = (torch.randint(config.num_classes, (1, *size), generator=generator) for _ in range(2))
        return {"label": label, "instance": instance}
    if kind == "real":
        shape = {"crop_size": size[1], "aspect_ratio": size[1] / size[0]}
        unknown = getattr(config, "contain_dontcare_label", False)
        classes = {"label_nc": config.label_nc, "contain_dontcare_label": unknown}
        dataset = LabelDataset(find(*real), Settings(**classes, **shape))
        item = dataset[index % len(dataset)]
        return {"label": item["label"], "instance": item["instance"]}
    scene = procedural.scene(size, seed=index)
    return {name: torch.from_numpy(getattr(scene, name)).long()[None] for name in ("label", "instance")}
