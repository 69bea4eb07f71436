"""How recorded cases of DRIT++ run."""

from pathlib import Path
from typing import Any

import torch
from golden_cyclegan import Found, backward, feeding, recording
from golden_recipe import Case
from golden_unpaired import batch_of, build, series_of, settled
from torch import nn

from i2ifast import models
from i2ifast._nonfinite import Place, Watch
from i2ifast._state import State
from i2ifast._update import Updater
from i2ifast.models import System
from i2ifast.models.drit import CLIP

VARIANTS = ("",)
OTHERS = {
    "enc_a_concat0": {"concat": 0},
    "gen_concat0": {"concat": 0},
    "disA_scale1": {"dis_scale": 1},
    "disA_sn": {"dis_spectral_norm": True},
}


def nets_of(name: str, options: dict[str, Any]) -> dict[str, nn.Module]:
    """The networks of the file of keys: all of the published system, and those of some other options."""
    config = models.system(name).Config.from_original
    nets = dict(models.build(name, **vars(config(options))).nets)
    others = {key: models.build(name, **vars(config(options | other))).nets for key, other in OTHERS.items()}
    return nets | {key: found[key.rpartition("_")[0]] for key, found in others.items()}


@torch.no_grad()
def evaluated(system: System, case: Case) -> Found:
    """Translations of small images in random styles and in that of a reference, and layers on the way."""
    system.eval()
    nets, gen, prefix = system.nets, system.nets["gen"], "out.eval."
    a, b = (case.inputs(f"in.x_{side}64")[""] for side in "ab")
    modules = {name: system.nets.get_submodule(name.removeprefix(prefix)) for name in layers_of(system, case, prefix)}
    with feeding(system, case, "noise.eval."), recording(modules) as calls:
        content = system.contents({"A": a})["A"]
        found = {"test_a2b": system.translate({"a": a})["fake"]}
        z = system.random_styles(1)
        found["test_b2a"] = gen(gen.begin(gen.share(system.contents({"B": b})["B"]), "A"), z, "A")
        styles = system.attributes(system.codes({"A": a, "B": b}))  # the original draws for both
        found["transfer_a2b"] = system.in_styles(a, [styles["B"]])[0]
    code = system.codes({"A": a})["A"]
    parts = code.chunk(2, 1) if system.config.concat else ()
    found |= {"content_a": content, "attr_a": code} | {f"attr_a.{i}": part for i, part in enumerate(parts)}
    found |= {f"d_a.{i}": logits for i, logits in enumerate(nets["disA"](a))}
    layers = {name: outputs[0] for name, outputs in calls.items()}
    if system.config.concat and f"{prefix}gen.decB1" in layers:  # the original's has the attributes with it
        z = next(case.noise("noise.eval."))
        layers[f"{prefix}gen.decB1"][:, -z.size(1) :] += z[:, :, None, None]
    return {f"{prefix}{name}": value for name, value in found.items()} | layers


def layers_of(system: System, case: Case, prefix: str) -> list[str]:
    """What is recorded of modules."""
    known = {f"{prefix}{path}" for path, _ in system.nets.named_modules()}
    return [name for name in case.names if name in known]


def gradients(system: System, prefix: str, nets: tuple[str, ...]) -> Found:
    return {f"{prefix}{net}.{key}": p.grad for net in nets for key, p in system.nets[net].named_parameters()}


def named(terms: Found) -> Found:
    """The original logs the total of the first generator step."""
    of_encoded = [value for name, value in terms.items() if name.startswith(("gan_", "kl_", "l1_recon_"))]
    total = sum(value for value in of_encoded) - sum(v for name, v in terms.items() if "recon_z" in name)
    return terms | {"G_loss": total} if of_encoded else terms


def run_phases(system: System, case: Case) -> Found:
    system.train()
    found: Found = {}
    with feeding(system, case, "noise.train."):
        terms = {"D_content_only": backward(system, "D_content", batch_of(case))["disContent_loss"]}
        batch = batch_of(case, requires_grad=True)
        for phase in system.phases:
            system.zero_grad()
            for images in batch["a"], batch["b"]:
                images.grad = None
            terms |= backward(system, phase.name, batch)
            nn.utils.clip_grad_norm_(system.nets["disContent"].parameters(), CLIP)
            own = f"{phase.name}." if phase.name in ("EG", "G_alone") else ""
            found |= gradients(system, f"grad.train.{own}", phase.nets)
            found |= {f"grad.train.{own}in.x_{side}": batch[side].grad for side in "ab"}
    made = {f"out.train.{name}": value for name, value in batch["made"].items()}
    made["out.train.z_content_a"] = batch["made"]["content_A"]
    made["out.train.z_attr_a"] = batch["made"]["z_attr_A"]
    return found | made | {f"loss.train.{name}": value for name, value in named(terms).items()}


def run_training(system: System, case: Case) -> Found:
    """The content discriminator alone, then all, as often as recorded."""
    system.train()
    state = State(system)
    updater, phases = Updater(state, None, Watch(torch.device("cpu"))), {phase.name: phase for phase in system.phases}

    def step(name: str, batch: models.Batch) -> Found:
        state.optimizers[name].zero_grad()
        terms = backward(system, name, batch)
        updater.step(Place(1, 1, 0), phases[name])
        return terms

    steps = []
    with feeding(system, case, "noise.train."):
        for _ in range(2):
            alone = step("D_content", batch_of(case))["disContent_loss"]
            batch, terms = batch_of(case), {}
            for phase in system.phases:
                terms |= step(phase.name, batch)
            steps.append(named(terms) | {"D_content_only": alone})
    found = series_of(steps)
    for name, net in system.nets.items():
        found |= {f"traj.after.{name}.{key}": value for key, value in net.state_dict().items()}
    return found


def run(system: System, case: Case) -> Found:
    if case.trains:
        return run_training(system, case)
    return evaluated(system, case) | run_phases(system, case)


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case))
