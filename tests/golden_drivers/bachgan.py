"""BachGAN: as every System, with its box maps and its head for segmentation, which the original runs always."""

import re
from pathlib import Path
from typing import Any
from unittest import mock

import golden_system
import torch
from golden_recipe import Case
from golden_system import VARIANTS, build, load, prepare, run_phases
from golden_unpaired import settled
from torch import Tensor, nn

__all__ = ["VARIANTS", "found", "nets_of"]


def nets_of(name: str, options: dict[str, Any]) -> dict[str, nn.Module]:
    """With the modules that the original does not use."""
    nets = golden_system.nets_of(name, options)
    convs = {"conv1_1": (35, 64, 3), "conv1_1_memory": (70, 64, 3), "conv1_2": (64, 64, 5), "conv2_1": (64, 128, 3)}
    for unused, shape in {**convs, "conv2_2": (128, 128, 5)}.items():
        nets["G"].add_module(unused, nn.Conv2d(*shape))
    nets["G"].upscore = nn.ConvTranspose2d(128, 35, 32, bias=False)
    return nets


class Recorded(Case):
    def inputs(self, prefix: str) -> dict[str, Tensor]:
        given = super().inputs(prefix)
        n, _, h, w = given["image"].shape
        note = self.meta["inputs"][f"{prefix}label"]["note"]
        classes, height, width, rows, columns = map(
            int, re.search(r"v0 % (\d+), y0:y0\+(\d+), x0:x0\+(\d+)\].*v1 % (\d+), x0 = v2 % (\d+)", note).groups()
        )
        boxes = torch.zeros(n, self.keys("G")["fc.weight"][0][1], h, w)
        for image, corners in zip(boxes, given["label"].tolist(), strict=True):
            for number, y, x in corners:
                image[number % classes, y % rows :, x % columns :][:height, :width] = 1
        retrieved = torch.cat([given[f"retrival.{i}"] for i in range(3)], 1)
        return {"boxes": boxes, "image": given["image"], "label": given["fine_label"], "retrieved": retrieved}


@torch.no_grad()
def segmentation(case: Case, dense: bool, folder: Path, mode: str) -> Tensor:
    system = build(case, folder)
    load(system, case)
    net, seen = system.train(mode == "train").nets["G"], []
    net.conv_img.register_forward_pre_hook(lambda module, args: seen.extend(args))
    system.generate(prepare(system, case.inputs("in."), dense), None)
    return net.conv_seg(*seen)


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor]:
    recorded, dense = Recorded(case.path), variant == "dense"
    with mock.patch.dict(golden_system.OUTPUTS, fake="G.0"):
        values = golden_system.found(recorded, variant, backend, folder)
        if case.trains:
            return values
        for name in [f"out.{mode}.G.conv_seg" for mode in case.meta["modes"]]:
            if name in case.names and name not in values:
                values[name] = segmentation(recorded, dense, folder, name.split(".")[1])
        if not dense or backend != "reference":
            return values
        # Of the formulation that all others are held to: a kink that the recording did not find.
        return settled(case, lambda seed: values | run_phases(build(recorded, folder), recorded, True, seed))
