"""How recorded cases of DMIT run."""

from pathlib import Path
from typing import Any

import torch
from golden_cyclegan import Found, backward, feeding, recording
from golden_recipe import Case
from golden_unpaired import build, series_of, settled
from torch import nn

from i2ifast import models
from i2ifast._state import State
from i2ifast.models import Batch, System

VARIANTS = ("",)
OTHERS = {
    "dec_pixelshuffle": ("dec", {"up_type": "pixelshuffle"}),
    "dec_nearest": ("dec", {"up_type": "nearest"}),
    "dec_cbbn": ("dec", {"norm_type": "cbbn"}),
    "enc_content_cbbn": ("enc_content", {"norm_type": "cbbn"}),
    "dis_cbbn": ("dis_rand_prior", {"norm_type": "cbbn"}),
}
STEPS = ("G", "Dec", "Content")
FAKES = ("rec", "encoded", "random", "random2")


def nets_of(name: str, options: dict[str, Any]) -> dict[str, nn.Module]:
    """The networks of the file of keys: all of the published system, and those of some other options."""
    config = models.system(name).Config.from_original
    nets = dict(models.build(name, **vars(config(options))).nets)
    return nets | {
        key: models.build(name, **vars(config(options | other))).nets[net] for key, (net, other) in OTHERS.items()
    }


def batch_of(system: System, case: Case) -> Batch:
    image, reference = case.inputs("in.x_").values()
    domains = {"domain": torch.tensor([0]), "reference_domain": torch.tensor([1])}
    return system.prepare({"image": image, "reference": reference, **domains})


def named(system: System, terms: Found) -> Found:
    """Discriminators by the number of their update too; totals."""
    found = {"errCyc": torch.zeros(()), "errDiv": torch.zeros(())}  # where there are none
    found |= {name: value for name, value in terms.items() if name.startswith("err")}
    dis = {f"D.{name}": value for name, value in terms.items() if name.startswith("dis")}
    second = "dis_rand_prior.2" if system.config.use_same_dis else "dis_rand_enc.1"
    for name, value in dis.items():
        found |= {name: value, "D." + second if name == "D.dis_rand_enc" else f"{name}.1": value}
    of_decoder = ("errStyle", "errDiv")
    rest = [
        value for name, value in found.items() if name.startswith("err") and name not in (*of_decoder, "errContent")
    ]
    return found | {"errG_total": sum(rest), "errDec_total": sum(found[name] for name in of_decoder)}


@torch.no_grad()
def evaluated(system: System, case: Case, batch: Batch) -> Found:
    """Contents, styles and a translation to the own attribute in the mean style, and layers on the way."""
    nets, found = system.nets, {}
    layers = {
        f"{net}.{i}": layer for net in ("dec", "enc_content") for i, layer in enumerate(next(nets[net].children()))
    }
    with recording(layers) as calls:
        content, (mu, logvar) = nets["enc_content"](batch["real"]), nets["enc_style"](batch["real"])
        system.style((mu, logvar))  # the original's encoder draws, and what it draws is not used here
        code = torch.cat([batch["source"], mu], 1)
        found |= {"content": content, "mu": mu, "logvar": logvar}
        found["dec_out"] = nets["dec"](content, code)
    found["dis_content"] = nets["dis_content"](content, batch["source"])
    logits = nets["dis_rand_prior"](batch["real"], batch["source"])
    found |= {f"dis_image.{i}": scale for i, scale in enumerate(logits)}
    for name, (output,) in calls.items():
        found |= {name: output, f"{name}.0": output, f"{name}.1": code}  # the original's blocks hand the code on
    return {f"out.eval.{name}": value for name, value in found.items()}


def run_phases(system: System, case: Case) -> Found:
    batch = batch_of(system, case)
    with feeding(system, case, "noise.eval."):
        found, terms = evaluated(system, case, batch), {}
        for i, phase in enumerate(system.phases):
            system.zero_grad()
            terms |= backward(system, phase.name, batch)
            own = f"{phase.name}." if phase.name in STEPS else ""
            for net in phase.nets:
                grads = {key: p.grad for key, p in system.nets[net].named_parameters()}
                found |= {f"grad.eval.{own}{net}.{key}": grad for key, grad in grads.items()}
                found |= {f"grad.eval.D{i}.{net}.{key}": grad for key, grad in grads.items() if not own}
    made = batch["made"]
    found |= {f"out.eval.fakes.{i}": made[name] for i, name in enumerate(FAKES) if name in made}
    found |= {"out.eval.mu_rec": made["mu_rec"], "out.eval.style_enc": made["style"]}
    return found | {f"loss.eval.{name}": value for name, value in named(system, terms).items()}


def buffers(system: System) -> Found:
    return {f"post.train.{key}": value.clone() for key, value in system.nets.named_buffers()}


def run_training(system: System, case: Case) -> Found:
    system.train()
    optimizers, steps = State(system).optimizers, []
    with feeding(system, case, "noise.train."):
        for _ in range(case.options["iterations"]):
            batch, terms = batch_of(system, case), {}
            for phase in system.phases:
                optimizers[phase.name].zero_grad()
                terms |= backward(system, phase.name, batch)
                optimizers[phase.name].step()
            steps.append(named(system, terms))
    found = series_of(steps) | buffers(system)
    for name, net in system.nets.items():
        found |= {f"traj.after.{name}.{key}": value for key, value in net.state_dict().items()}
    return found


def run(system: System, case: Case) -> Found:
    if case.trains:
        return run_training(system, case)
    found, batch = run_phases(system.eval(), case), batch_of(system, case)
    with torch.no_grad():
        logits = system.train().nets["dis_rand_prior"](batch["real"], batch["source"])
    return found | {f"out.train.dis_rand_prior.{i}": scale for i, scale in enumerate(logits)} | buffers(system)


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case))
