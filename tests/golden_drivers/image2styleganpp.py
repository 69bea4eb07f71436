"""How recorded cases of embedding into a StyleGAN run: losses and their gradients, then styles and noise by steps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from golden_recipe import Case
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import System, _stylegan, image2styleganpp

VARIANTS = ("",)


class Perceptual(nn.Module):
    """The small network of the recordings, in place of a VGG16."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.c = nn.ModuleList()
        for i, stride in enumerate((1, 1, 2, 2)):
            fout, fin = state[f"c.{i}.weight"].shape[:2]
            self.c.append(nn.Conv2d(fin, fout, 3, stride, 1))
        self.load_state_dict(state)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for conv in self.c:
            x = F.relu(conv(x))
            found.append(x)
        return found


def keyed(recorded: dict[str, Any]) -> dict[str, nn.Module]:
    return {"g_mapping": _stylegan.Mapping(), "g_synthesis_1024": _stylegan.Synthesis()}


def build(case: Case, edit: str) -> System:
    config = image2styleganpp.Config.from_original(case.options)
    system = models.build("image2styleganpp", **vars(replace(config, scale=0.5, edit=edit)))
    generator, state = system.fixed["G"], case.state("G")
    assert {key: (list(v.shape), v.dtype) for key, v in generator.state_dict().items()} == case.keys("G")
    generator.load_state_dict(state)
    system.fixed["VGG"] = Perceptual(case.state("P")).requires_grad_(False)
    given = case.inputs("in.")
    with torch.no_grad():
        system.nets["styles"].w.copy_(0.5 * given["w"])
        for i, noise in enumerate(system.nets["noise"].maps):
            noise.copy_(given[f"noise{i}"])
    return system.to(case.device)


def batch_of(case: Case, system: System) -> dict[str, Tensor]:
    given = case.inputs("in.")
    mask = torch.zeros_like(given["x"][:, :1])
    mask[..., : mask.size(3) // 2] = 1
    return system.prepare({"image": given["x"], "reference": given["y"], "mask": mask})


def of_losses(case: Case) -> dict[str, Tensor]:
    system = build(case, "style")
    batch, styles, noise = batch_of(case, system), system.nets["styles"].w, list(system.nets["noise"].maps)
    image = system.synthesise()
    values = {"out.any.syn": image, "out.any.G.torgb": 2 * image - 1}
    values |= {f"out.any.P.{i}": features for i, features in enumerate(system.fixed["VGG"](image))}
    values["loss.any.W_unmasked"] = system.alike(image, batch["truth"])
    system.freeze_all_but(system.phases[0])
    terms = system.style_step(batch)
    values |= {"loss.any.W_masked": terms["W"], "loss.any.style": terms["W_reference"]}
    values["grad.any.in.w"] = torch.autograd.grad(sum(terms.values()), styles)[0]
    system.freeze_all_but(system.phases[1])
    values["loss.any.noise"] = sum(system.noise_step(batch).values())
    gradients = torch.autograd.grad(values["loss.any.noise"], noise)
    return values | {f"grad.any.in.noise{i}": g for i, g in enumerate(gradients)}


def of_steps(case: Case) -> dict[str, Tensor]:
    system, series = build(case, "crossover"), {"w": [], "noise": []}
    batch = batch_of(case, system)
    for phase, name in zip(system.phases, series, strict=True):
        system.freeze_all_but(phase)
        adam = torch.optim.Adam(system.nets[phase.nets[0]].parameters(), **vars(phase.optimizer))
        for _ in filter(phase.when, range(system.config.w_steps + system.config.n_steps)):
            adam.zero_grad()
            loss = sum(phase.loss(batch).values())
            loss.backward()
            adam.step()
            series[name].append(loss.detach())
    values = {f"traj.{name}": torch.stack(losses) for name, losses in series.items()}
    values |= {"traj.after.w": system.nets["styles"].w, "out.any.syn_final": system.synthesise()}
    return values | {f"traj.after.noise{i}": noise for i, noise in enumerate(system.nets["noise"].maps)}


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor]:
    """Nothing: what is recorded is compared here, since training started from inputs, and not from a network."""
    values, given = of_losses(case) | of_steps(case), case.inputs("in.")
    start = {"w": 0.5 * given["w"]} | {name: given[name] for name in given if name.startswith("noise")}
    missing = case.names - values.keys()
    errors = {name: case.error(name, values[name]) for name in case.names & values.keys()}
    for name in start:
        at = f"traj.after.{name}"
        errors[at] = max(errors[at], case.update_error(at, values[at], start[name]))
    assert not missing and all(error <= 1 for error in errors.values()), (missing, errors)
    return {}
