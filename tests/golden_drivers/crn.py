"""How recorded cases of CRN run."""

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from golden_recipe import Case
from golden_tensorflow import check, gradients, load, named, of_preset, outputs
from torch import Tensor

from i2ifast import models
from i2ifast.models import crn
from i2ifast.models._crn import bytes_of, resize

VARIANTS = ("",)


def check_keys(recorded: dict[str, Any]) -> None:
    check(of_preset("crn", "cityscapes_256"), recorded["tf_variables_256p"])


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor]:
    system = models.build("crn", **vars(crn.Config.from_original(case.options)))
    load(system, case, folder)
    given = case.inputs("in.")
    seg = system.prepare({"label": given["label"]})["semantics"]
    with outputs(system, case) as recorded:
        fakes = bytes_of(system.nets["G"](seg))
    image = fakes[0]
    height = round((case.tensors["out.any.resize_bilinear_align.digest"][0].item() / 2) ** 0.5)  # of one-hot pixels
    corner = resize(seg[:, :, : height // 2, :height], (height, 2 * height))
    values = {"image": image, "resize_area_half": F.avg_pool2d(seg, 2), "resize_bilinear_align": corner}
    ((image * given["gy"]).sum() / 255).backward(retain_graph=True)
    found = gradients(system, "any")
    errors = crn.class_errors(fakes, bytes_of(given["real"])[:, None], seg)
    loss = crn.diversity(errors)
    loss.backward()
    found |= gradients(system, "diversity") | {"loss.any.diversity": loss, "out.any.error": errors[0]}
    return found | named(values) | named(recorded)
