"""How recorded cases of FUNIT run."""

from pathlib import Path
from typing import Any

import golden_system
import torch
import torch.nn.functional as F
from golden_few_shot import Found, batch_of, run
from golden_recipe import Case
from golden_unpaired import build, first_outputs, settled
from torch import nn

from i2ifast import models

VARIANTS = ("",)


def nets_of(name: str, options: dict[str, Any]) -> dict[str, nn.Module]:
    """The networks of a file of keys: the average is one of them."""
    nets = golden_system.nets_of(name, options)
    return nets | {"gen_test": nets["gen"]}


@torch.no_grad()
def forwards(system: models.System, case: Case) -> Found:
    """Translations of one and of several references, and the layers of each network on the way."""
    gen, batch = system.nets["gen"], batch_of(case)
    parts = {f"gen.{part}": f"gen.{part}.model" for part in ("enc_content", "enc_class_model", "dec")}
    layers = {f"{path}.{i}": f"{short}.{i}" for short, path in parts.items() for i in range(16)}
    layers |= {f"dis.cnn_f.{i}": f"dis.cnn_f.{i}" for i in range(1, 64)} | {"dis.cnn_f.0.conv": "dis.cnn_f.0"}
    with first_outputs(system, "", set(layers)) as outputs:
        content, code = gen.encode(batch["image"]), gen.classify(batch["reference"])
        found = {"content": content, "class_code": code, "adain_params": gen.mlp(code)}
        found["x_trans"] = gen.decode(content, code)
        found["d_a"], found["d_a_feat"] = system.nets["dis"](batch["image"], batch["domain"])
    found |= {layers[path]: value for path, value in outputs.items()}
    for i in range(1, 2 * system.config.gen_n_downs_content, 2):  # upsampling, which is folded into the convolution
        found[f"gen.dec.{i}"] = F.interpolate(found[f"gen.dec.{i - 1}"], scale_factor=2)
    first = content[:1]
    for shots in case.inputs("in.x_kshot").values():
        mean = system.codes({"references": shots[None]})
        of_several = gen.decode(first, mean)
        found |= {"k_style": mean, "translate_k_shot": of_several, "x_trans_kshot": of_several}
    found["gen_forward_firstcontent"] = gen.decode(first, code.mean(0, keepdim=True))
    return {f"out.any.{name}": value for name, value in found.items()}


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case, forwards))
