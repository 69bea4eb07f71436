"""How recorded cases of the synthesis network of SIMS run."""

import re
from pathlib import Path
from typing import Any

from golden_recipe import Case, enlarge
from golden_system import recorded_outputs
from golden_tensorflow import check, gradients, load, named, of_preset
from torch import Tensor

from i2ifast import models
from i2ifast.models import sims
from i2ifast.models._crn import bytes_of

VARIANTS = ("",)


def check_keys(recorded: dict[str, Any]) -> None:
    check(of_preset("sims", "cityscapes_512"), {own(key): shape for key, shape in recorded["tf_variables_512"].items()})


def own(name: str) -> str:
    """A recorded name with this system's name of a head."""
    for pattern, head in sims.HEADS.items():
        name = re.sub(rf"\b{pattern}\b", head, name)
    return name


def build(case: Case) -> models.System:
    """Shrunk widths, and what the two files of the original differ in, are those of the recorded variables."""
    widths = {own(name).rpartition("/")[0]: shape[-1] for name, (shape, _) in case.keys("W").items() if len(shape) == 4}
    options = {
        "label_nc": case.options["classes"] - 1,
        "crop_size": 2 * case.options["sp"],
        "dim": widths["g_encoder_conv1/g_encoder_conv1_1"],
        "halved": "g_decoder_512/g_decoder_512_1" in widths,
        "final": widths["g_decoder_final/g_decoder_final_1"],
        "semantic": widths.get("g_semantic", 0),
    }
    return models.build("sims", **options)


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor]:
    system = build(case)
    load(system, case, folder)
    given = case.inputs("in.")
    mask = enlarge((given["mask"] < 0.6).float(), 8, 8, *given["label"].shape[2:])
    seg = system.prepare({"label": given["label"]})["semantics"]
    scopes = {own(name): name for name in case.names if name.startswith("out.any.g_")}
    with recorded_outputs(system, [name.replace("out.any.", "G.") for name in scopes]) as recorded:
        fake, logits = system.nets["G"](seg, bytes_of(given["canvas"]).round() * mask, mask)
    image = bytes_of(fake)
    objective = (image * given["gy"]).mean()
    values = {"image": image}
    if logits is not None:
        values["semantic"] = logits
        objective = objective + (logits[:, : given["gsem"].size(1)] * given["gsem"]).mean()
    objective.backward()
    values = named(values) | named(recorded) | gradients(system, "any")
    return values | {name: values[own(name)] for name in case.names if own(name) in values}
