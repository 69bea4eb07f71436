"""How recorded cases of InfoGAN run."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from golden_recipe import Case
from golden_unpaired import Found, after, backward, build, first_outputs, gradients, optimizers, series_of, settled
from torch import Tensor, nn

from i2ifast import models

VARIANTS = ("",)


def keyed(recorded: dict[str, Any]) -> dict[str, nn.Module]:
    nets = models.build("infogan", "mnist").nets
    return {"generator": nets["G"], "discriminator": nets["D"]}


class Latents:
    """Noise, classes and codes of a pass of the generator, as the system draws them: leaves."""

    def __init__(self, case: Case, suffix: str = "") -> None:
        found = {name: case.inputs(f"in.{name}{suffix}")[""] for name in ("z", "label", "code")}
        self.z, self.label, self.code = found["z"].requires_grad_(), found["label"], found["code"].requires_grad_()

    def feed(self, system: models.System, masks: list[Tensor]) -> None:
        """Dropout takes the masks that are left."""
        system.randn, system.randint = lambda shape, like: self.z, lambda high, shape, like: self.label
        system.rand = lambda shape, like: masks.pop(0) if len(shape) == 4 else self.code


@torch.no_grad()
def forwards(system: models.System, latents: Latents) -> Found:
    found: Found = {"fake": system.generate(latents.z, latents.label, 2 * latents.code - 1)}
    found["validity"], found["pred_label_softmax"], found["pred_code"] = system.nets["D"](found["fake"])
    return {f"out.eval.{name}": value for name, value in found.items()}


def run(system: models.System, case: Case) -> Found:
    masks = list(case.noise("noise.train."))
    if case.trains:
        return run_training(system.train(), case, masks)
    latents, batch = Latents(case), {"image": case.inputs("in.real")[""]}
    layers = {f"G.conv_blocks.{i}" for i in range(11)} | {f"D.conv_blocks.{i}" for i in range(15)}
    layers |= {"G.l1", *(f"D.{name}_layer" for name in ("adv", "aux", "latent"))}
    found: Found = {}
    system.train()
    judged: list[tuple[Tensor, ...]] = []
    hook = system.nets["D"].register_forward_hook(lambda module, args, output: judged.append(output))
    with first_outputs(system, "", layers) as outputs:
        for phase, mode in zip(system.phases, ("train_g", "train_d", "train"), strict=True):
            latents.feed(system, masks)
            system.zero_grad()
            latents.z.grad = latents.code.grad = None
            terms = backward(system, phase, batch)
            found[f"loss.train.{phase.name.lower()}"] = sum(terms.values())
            found |= gradients(system, phase, mode)
    hook.remove()
    assert not masks, "noise was left over"
    found |= {"grad.train.in.z": latents.z.grad, "grad.train.in.code": latents.code.grad / 2}
    values = {"fake": batch["fake"], "validity_fake": judged[0][0], "validity_real": judged[1][0]}
    values |= {"pred_label_softmax": judged[-1][1], "pred_code": judged[-1][2]}
    found |= {f"out.train.{name}": value for name, value in (values | folded(outputs)).items()} | after(system)
    return found | forwards(system.eval(), latents)


def folded(outputs: Found) -> Found:
    """Outputs of layers, with those that are one with their neighbour: upsampling, and activations behind norms."""
    found = dict(outputs)
    for norm in (3, 7):
        act = outputs[f"G.conv_blocks.{norm}"]
        found |= {f"G.conv_blocks.{norm}": torch.where(act < 0, act / 0.2, act), f"G.conv_blocks.{norm + 1}": act}
    for up in (1, 5):
        found[f"G.conv_blocks.{up}"] = F.interpolate(found[f"G.conv_blocks.{up - 1}"], scale_factor=2)
    return found


def run_training(system: models.System, case: Case, masks: list[Tensor]) -> Found:
    adams, steps = optimizers(system), []
    for step in range(case.options["iters"]):
        batch, found = {"image": case.inputs(f"in.real{step}")[""]}, {}
        for phase in system.phases:
            Latents(case, f"_{'i' if phase.name == 'info' else 'g'}{step}").feed(system, masks)
            adams[phase.name].zero_grad()
            found[phase.name.lower()] = sum(backward(system, phase, batch).values())
            adams[phase.name].step()
        steps.append(found)
    assert not masks, "noise was left over"
    states = after(system)
    return series_of(steps) | states | {n.replace("post.train", "post.traj"): v for n, v in states.items()}


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case))
