"""How recorded cases of CycleGAN run."""

from pathlib import Path

import torch
from golden_cyclegan import Found, backward, buffers, feeding, gradients, layers, recording, restore, run_training
from golden_recipe import Case
from golden_unpaired import build, settled

from i2ifast.models import Batch, System

VARIANTS = ("",)
IMAGES = ("fake_A", "fake_B", "rec_A", "rec_B", "idt_A", "idt_B")


def batch_of(case: Case, prefix: str) -> Batch:
    return {name.lower(): images for name, images in case.inputs(prefix).items()}


def named(system: System, terms: Found) -> Found:
    generator = [value for name, value in terms.items() if not name.startswith("D")]
    return {**terms, "G_total": sum(generator)}


def run_phases(system: System, case: Case) -> Found:
    batch, prefix = batch_of(case, "in."), "out.train."
    judges = {f"{prefix}{name}": system.nets[name] for name in ("D_A", "D_B")}
    inner = layers(system, case, prefix)
    system.train()
    with feeding(system, case, "noise.train."), recording(judges | inner) as calls:
        terms = backward(system, "G", batch) | backward(system, "D", batch)
    n, found = len(batch["a"]), gradients(system, "grad.train") | buffers(system)
    found |= {f"loss.train.{name}": value for name, value in named(system, terms).items()}
    found |= {f"{prefix}{name}": batch[name] for name in IMAGES if name in batch}
    found |= {name: calls[name][0][:n] for name in inner}  # the first pass, whatever passes with it
    for name in judges:
        passes = [logits for call in calls[name] for logits in call.split(n)]
        found |= {f"{name}.call{i}": logits for i, logits in enumerate(passes)}
    return found


@torch.no_grad()
def evaluated(system: System, case: Case) -> Found:
    system.eval()
    batch, nets = batch_of(case, "in."), system.nets
    found = system.images(batch)
    found |= {f"D_A_{name}": nets["D_A"](x) for name, x in {"real_B": batch["b"], "fake_B": found["fake_B"]}.items()}
    found |= {f"D_B_{name}": nets["D_B"](x) for name, x in {"real_A": batch["a"], "fake_A": found["fake_A"]}.items()}
    return {f"out.eval.{name}": value for name, value in found.items()}


def run(system: System, case: Case) -> Found:
    if case.trains:
        count = len({name.split(".")[1] for name in case.meta["inputs"]})
        batches = [batch_of(case, f"in.{i}.") for i in range(count)]
        trained = run_training(system, case, batches, named, "noise.traj.")
        return {**trained, "out.train.fake_B_last": batches[-1]["fake_B"]}
    found = run_phases(system, case)
    restore(system, case, found)
    return found | evaluated(system, case)


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case))
