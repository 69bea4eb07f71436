"""How recorded cases of CVAE-GAN run."""

from pathlib import Path
from typing import Any

import torch
from golden_recipe import Case
from golden_unpaired import Found, after, backward, build, first_outputs, gradients, settled
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import Batch

VARIANTS = ("",)


def keyed(recorded: dict[str, Any]) -> dict[str, nn.Module]:
    return dict(models.build("cvaegan", "mnist").nets)


@torch.no_grad()
def outputs(system: models.System, batch: Batch, z_fake: Tensor, noise: Tensor) -> Found:
    """All that the passes of an iteration give, with layers on the way."""
    nets, (mean, logstd) = system.nets, system.nets["vae"].encode(batch["x"])
    z = mean + noise * logstd.exp()
    found = {"mean": mean, "logstd": logstd, "z": z, "recon": nets["vae"].decode(torch.cat([z, batch["classes"]], 1))}
    found |= {"decoded_fake": nets["vae"].decode(z_fake), "vae.encoder_fc1": mean, "vae.encoder_fc2": logstd}
    for name in "CD":
        with first_outputs(system, "", {f"{name}.dis"}) as layers:
            judged = nets[name](batch["x"]).sigmoid()
        found |= {**layers, f"{name}.fc": judged, f"{name}_real": judged.squeeze(1)}
    with first_outputs(system, "", {"vae.encoder_conv"}) as layers:
        nets["vae"].encode(batch["x"])
    return {f"out.train.{name}": value for name, value in (found | layers).items()}


def run(system: models.System, case: Case) -> Found:
    (noise,), z_fake, images = case.noise("noise.train."), case.inputs("in.z_fake")[""], case.inputs("in.x")[""]
    domain = torch.arange(len(images)) % system.config.n_classes
    batch = system.train().prepare({"image": images, "domain": domain})
    draws, terms, found = iter((z_fake, noise)), {}, {}
    system.randn = lambda shape, like: next(draws)
    for phase in system.phases:
        terms = backward(system, phase, batch)
        found |= gradients(system, phase, "train") | {f"loss.train.{phase.name}": sum(terms.values())}
    found |= {"loss.train.vae_recon_kl": terms["recon"] + terms["kl"]}
    found |= {"loss.train.vae_adv": terms["adv"], "loss.train.vae_cls": terms["class"]}
    found |= after(system) | outputs(system, batch, z_fake, noise)
    first, last, *_ = found["out.train.mean"]
    between = system.eval().interpolate(first, last, domain[0])
    return found | {"out.eval.interp": (between[:, :1] + 1) / 2}


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    return settled(case, lambda seed: run(build(case, folder, seed), case))
