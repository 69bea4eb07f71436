"""How recorded cases of pix2pix run."""

from pathlib import Path

import torch
from golden_cyclegan import Found, backward, buffers, feeding, gradients, layers, recording, restore, run_training
from golden_recipe import Case
from golden_unpaired import build, settled

from i2ifast.models import Batch, System

VARIANTS = ("",)


def batch_of(case: Case, prefix: str) -> Batch:
    return {name.lower(): images for name, images in case.inputs(prefix).items()}


def named(system: System, terms: Found) -> Found:
    whole = {name: 2 * value for name, value in terms.items() if name.startswith("D")}
    return terms | whole | {"G_total": terms["G_GAN"] + terms["G_L1"]}


def run_phases(system: System, case: Case) -> Found:
    batch, prefix = batch_of(case, "in."), "out.train."
    inner = layers(system, case, prefix)
    for level in range(1, 8):
        path = ".".join(["G.model.model.1", *["model.3"] * (level - 1)])
        if f"{prefix}G.unet_level{level}" in case.names:
            inner[f"{prefix}G.unet_level{level}"] = system.nets.get_submodule(path)
    system.train()
    with feeding(system, case, "noise.train."), recording({"D": system.nets["D"], **inner}) as calls:
        terms = backward(system, "D", batch) | backward(system, "G", batch)
    found = gradients(system, "grad.train") | buffers(system)
    found |= {f"loss.train.{name}": value for name, value in named(system, terms).items()}
    found |= {f"{prefix}{name}": batch["fake"] for name in ("fake_B", "G.unet_level0")}
    # Levels of the U-Net are recorded as the activation behind them, in place, left them.
    found |= {name: calls[name][0].relu() if ".unet_level" in name else calls[name][0] for name in inner}
    passes = [logits for call in calls["D"] for logits in call.split(len(batch["a"]))]
    return found | {f"{prefix}D.call{i}": logits for i, logits in enumerate(passes)}


@torch.no_grad()
def evaluated(system: System, case: Case) -> Found:
    system.eval()
    batch = batch_of(case, "in.")
    fake = system.nets["G"](batch["a"])
    pairs = {"fake": torch.cat([batch["a"], fake], 1), "real": torch.cat([batch["a"], batch["b"]], 1)}
    judged = {f"out.eval.D_{name}": system.nets["D"](pair) for name, pair in pairs.items()}
    return {"out.eval.fake_B": fake, **judged}


def run(system: System, case: Case) -> Found:
    if case.trains:
        count = len({name.split(".")[1] for name in case.meta["inputs"]})
        batches = [batch_of(case, f"in.{i}.") for i in range(count)]
        trained = run_training(system, case, batches, named, "noise.traj.")
        return {**trained, "out.train.fake_B_last": batches[-1]["fake"]}
    found = run_phases(system, case)
    restore(system, case, found)
    return found | evaluated(system, case)


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case))
