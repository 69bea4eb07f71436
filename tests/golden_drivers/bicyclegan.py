"""How recorded cases of BicycleGAN run."""

from pathlib import Path
from typing import Any

import torch
from golden_cyclegan import Found, backward, buffers, feeding, gradients, recording, run_training
from golden_recipe import Case
from golden_unpaired import build, settled
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import Batch, System

VARIANTS = ("",)
OTHERS = {
    "G_unet128_input": {"netG": "unet_128", "where_add": "input"},
    "G_bilinear": {"upsample": "bilinear"},
    "G_batchnorm": {"norm": "batch"},
    "E_conv_256": {"netE": "conv_256"},
    "E_resnet_128": {"netE": "resnet_128"},
}


def nets_of(name: str, options: dict[str, Any]) -> dict[str, nn.Module]:
    """The networks of the file of keys: all of the published system, and those of some other options."""
    config = models.system(name).Config.from_original
    nets = dict(models.build(name, **vars(config(options))).nets)
    others = {key: models.build(name, **vars(config(options | other))).nets for key, other in OTHERS.items()}
    return nets | {key: found[key[0]] for key, found in others.items()}


def batch_of(case: Case, requires_grad: bool = False) -> Batch:
    return {side.lower(): case.inputs(f"in.{side}")[""].requires_grad_(requires_grad) for side in "AB"}


def named(system: System, terms: Found) -> Found:
    parts = {name: [terms[f"{name}_{kind}"] for kind in ("fake", "real")] for name in ("D", "D2")}
    found = {name: value for name, value in terms.items() if not name.startswith("D")}
    found["G"] = sum(value for name, value in found.items() if name != "z_L1")
    for name, values in parts.items():
        found |= {name: sum(values), **{f"{name}_parts.{i}": value for i, value in enumerate(values)}}
    return found


def of_encoder(system: System, case: Case, prefix: str, images: Tensor) -> Found:
    """What layers of the encoder return: the original's activations behind norms, and its mean, are layers too."""
    numbers = [int(name.removeprefix(prefix)) for name in case.names if name.startswith(prefix)]
    found, x = {}, images
    for number, layer in system.nets["E"].conv.named_children():
        x = layer(x)
        found[int(number)] = x.clone()  # before the next one activates it in place
        if getattr(layer, "act", "none") != "none":
            found |= {int(number): torch.where(x < 0, x / layer.act, x), int(number) + 1: x.clone()}
    found[max(numbers, default=0)] = x.mean((2, 3), keepdim=True)
    return {f"{prefix}{number}": value for number, value in found.items()}


@torch.no_grad()
def evaluated(system: System, case: Case) -> Found:
    system.eval()
    batch, prefix, nets = batch_of(case), "out.eval.", system.nets
    inner = {f"{prefix}{path}": module for path, module in nets.named_modules() if path.startswith("G.model.")}
    with recording({name: module for name, module in inner.items() if name in case.names}) as calls:
        fake = nets["G"](batch["a"], case.inputs("in.z")[""])
    mu, logvar = nets["E"](batch["b"])
    found = {"fake_B": fake, "G.model": fake, "mu": mu, "logvar": logvar}
    seen = torch.cat([batch["a"], batch["b"]], 1) if system.config.conditional_D else batch["b"]
    for name in ("D", "D2"):
        found |= {f"{name}_real.{i}": logits for i, logits in enumerate(nets[name](seen))}
    found = {f"{prefix}{name}": value for name, value in found.items()} | {name: c[0] for name, c in calls.items()}
    return found | of_encoder(system, case, f"{prefix}E.conv.", batch["b"])


def run_phases(system: System, case: Case) -> Found:
    batch = batch_of(case, requires_grad=True)
    images = dict(batch)
    system.train()
    with feeding(system, case, "noise.train."):
        terms = backward(system, "G", batch)
        found = {f"grad.train.in.{side.upper()}": image.grad.clone() for side, image in images.items()}
        terms |= backward(system, "D", batch)
    found |= gradients(system, "grad.train") | buffers(system)
    outputs = {"fake_B_encoded": "fake_encoded", "fake_B_random": "fake_random"}
    outputs |= {name: name for name in ("mu", "logvar", "mu2", "z_encoded")}
    found |= {f"out.train.{name}": batch[key] for name, key in outputs.items()}
    return found | {f"loss.train.{name}": value for name, value in named(system, terms).items()}


def run(system: System, case: Case) -> Found:
    if case.trains:
        batches = [batch_of(case) for _ in range(case.options["iterations"])]
        return run_training(system, case, batches, named, "noise.train.")
    return evaluated(system, case) | run_phases(system, case)


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case))
