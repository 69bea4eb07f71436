"""What is measured of every system: a row each, at published widths.

Image sizes are the published ones where a training step of plain PyTorch then takes less than about 20 seconds on one
core, else smaller, by the options named. Batches are small for the same reason.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2ifast import models
from i2ifast.data import kind, procedural
from i2ifast.models import Batch, Phase, System

CITY = ("cityscapes", "train")
CATS, AFHQ, FACES = ("cat2dog", "test"), ("afhq", "src"), ("celeba_hq", "")


@dataclass(frozen=True)
class Row:
    system: str
    preset: str
    batch: int = 1
    real: tuple[str, str] | None = None  # with --realdata: a folder, and the phase of it
    options: dict[str, Any] = field(default_factory=dict)  # over those of the preset
    phases: tuple[str, ...] = ()  # those that a training step has, all if empty
    small: dict[str, Any] = field(default_factory=dict)  # over those of the preset "tiny", with --small

    def made(self, small: bool) -> System:
        preset, options = ("tiny", self.small) if small else (self.preset, self.options)
        return models.build(self.system, preset, **options)

    def build(self, small: bool = False) -> System:
        """The system with weights that are always the same."""
        torch.manual_seed(0)
        system = self.made(small)
        system.init_weights()
        return system

    def phases_of(self, system: System) -> list[Phase]:
        """Those of a training step, as they are in the first epoch."""
        return [p for p in system.phases if p.epochs(1) and (not self.phases or p.name in self.phases)]

    def batches(self, count: int, small: bool = False, realdata: Path | None = None) -> list[Batch]:
        """`count` batches as its kind of data makes them: of the real data below a folder, else of procedural ones.

        Label plans that loaders make are left out: the step has to make its own. Few items are taken several times.
        """
        with torch.device("meta"):
            system = self.made(small)
        of_kind = kind(system.data)
        settings = of_kind.Settings.of(system)
        with tempfile.TemporaryDirectory() as made:
            if realdata is None:
                size = round(settings.crop_size / settings.aspect_ratio), settings.crop_size
                procedural.write(made, max(4, self.batch * count), size, kind=system.data)
            folder, phase = (made, "train") if realdata is None else (realdata / self.real[0], self.real[1])
            items = of_kind.folder(folder, phase, settings)
            numbers = [i % len(items) for i in range(self.batch * count)]
            batches = [items.collate([items[n] for n in numbers[i::count]]) for i in range(count)]
        return [{name: value for name, value in batch.items() if isinstance(value, Tensor)} for batch in batches]


CROP128 = {"crop_image_height": 128, "crop_image_width": 128}

# fmt: off
ROWS = [
    Row("adain",            "default",          2, CATS),
    Row("attnorm",          "paris_streetview", 1, AFHQ),
    Row("attnorm_class",    "imagenet",         4, AFHQ, {"num_classes": 3}),
    Row("bachgan",          "cityscapes",       1, CITY, {"crop_size": 256}),
    Row("bicyclegan",       "facades",          2, ("edges2shoes", "")),
    Row("ccfpse",           "cityscapes",       1, CITY, {"crop_size": 256}),
    Row("clade",            "cityscapes",       1, CITY, {"crop_size": 256}),
    Row("coco_funit",       "mammals",          1, AFHQ, {**CROP128, "new_size": 140}),
    Row("cocosnet",         "ade20k",           1, None, {"crop_size": 128}),
    Row("cogan",            "mnistedge",        64),
    Row("controllable3d",   "point",            2),
    Row("crn",              "cityscapes_256",   1, CITY, {"crop_size": 256}, small={"label_nc": 12}),
    Row("cvaegan",          "mnist",            64),
    Row("cyclegan",         "horse2zebra",      1, CATS, {"pool_size": 0}, small={"pool_size": 0}),
    Row("discogan",         "default",          16, CATS, phases=("D", "G")),
    Row("dmit",             "summer2winter",    1, AFHQ, {"n_attribute": 3}, small={"n_attribute": 3}),
    Row("drit",             "cat2dog",          1, CATS),
    Row("edgegan",          "sketchycoco",      4, None, {"num_classes": 3}),
    Row("fs_vid2vid",       "face_256",         1, None, {"label_nc": 12, "fineSize": 128}),
    Row("funit",            "animals",          1, AFHQ),
    Row("gcgan",            "default",          1, CATS),
    Row("hidt",             "daytime",          1, None, {"segmentation_dim": 12}),
    Row("image2styleganpp", "ffhq_1024",        1, FACES, {"resolution": 256}, phases=("W",)),
    Row("infogan",          "mnist",            64),
    Row("init_i2i",         "init",             1, CATS, {**CROP128, "object_size": 64}),
    Row("mdmm",             "artworks",         1, AFHQ),
    Row("munit",            "summer2winter",    1, CATS),
    Row("nicegan",          "light",            1, CATS, {"img_size": 128}),
    Row("panoptic",         "cityscapes",       1, CITY, {"crop_size": 256}),
    Row("pix2pix",          "facades",          1, ("edges2shoes", "")),
    Row("pix2pixhd",        "cityscapes_512",   1, CITY, {"fineSize": 256, "loadSize": 256}),
    Row("progan",           "celeba",           16, FACES),
    Row("region_norm",      "places2",          1, AFHQ),
    Row("sean",             "celebamask_hq",    1, ("celebamask_hq", "val"), {"crop_size": 128}),
    Row("semantic_pyramid", "places365",        2, AFHQ),
    Row("semit",            "animals",          1, AFHQ),
    Row("sims",             "cityscapes_256",   1, CITY, {"crop_size": 256}, small={"label_nc": 12}),
    Row("smis",             "deepfashion",      1, None, {"label_nc": 16}),
    Row("spade",            "cityscapes",       1, CITY, {"crop_size": 256}),
    Row("stackgan",         "stage1",           16, None, {"text_dim": 12}),
    Row("stackgan2",        "birds",            2, None, {"text_dim": 12}),
    Row("stargan",          "rafd",             4, AFHQ),
    Row("starganv2",        "afhq",             1, AFHQ),
    Row("stylegan2",        "ffhq_256",         1, FACES, phases=("D", "G")),
    Row("tsit",             "sis_cityscapes",   1, CITY, {"crop_size": 256}),
    Row("ugatit",           "light",            1, CATS, {"img_size": 128}),
    Row("unit",             "gta2city",         1, CATS),
    Row("vid2vid",          "cityscapes_512",   1, None),
]
# fmt: on
