"""CoCosNet's cases: the semantics and the exemplar require grad, the fake is one for both phases, and there is an EMA.

Gradients jump at kinks (L1 losses, nearest features, leaky relus), so rounding can take any formulation to the other
side of one. A case is right if all of it is right for its weights, or for ones that differ from them by rounding, 6e-8,
in one draw of a few. Trajectories are held to the reference backend only: on others rounding turns signs of gradients,
and Adam's first steps with them.
"""

from pathlib import Path

import torch
from golden_recipe import Case
from golden_system import Training, build, load, networks, recorded_outputs
from torch import Tensor

from i2ifast.models import Batch, System

VARIANTS = ("",)
DRAWS = 8


def load_rounded(system: System, case: Case, draw: int) -> None:
    """The case's weights; in draws other than 0, each changed by noise of the size of its rounding."""
    load(system, case)
    generator = torch.Generator().manual_seed(draw)
    with torch.no_grad():
        for parameter in system.nets.parameters() if draw else ():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(parameter.double() * (1 + 6e-8 * noise))


def batch_of(system: System, case: Case, prefix: str) -> Batch:
    """The prepared batch; sample 0 is its own exemplar."""
    given = case.inputs(prefix)
    for name in ("label", "label_ref"):
        masks = [t.long() for key, t in given.items() if "glasses" in key and ("ref" in key) == ("ref" in name)]
        given[name] = torch.cat([given[name], *masks], 1)
    own = torch.zeros(len(given["image"]))
    own[0] = 1
    batch = system.prepare({**given, "self_ref": given.get("self_ref", own)})
    return {**batch, "semantics": batch["semantics"].requires_grad_(), "ref": batch["ref"].requires_grad_()}


def run_phases(system: System, case: Case, draw: int) -> dict[str, Tensor]:
    found, trained = {}, {}
    for mode in case.meta["modes"]:
        wanted = [name.split(".", 2)[2] for name in case.names if name.startswith(f"out.{mode}.")]
        own = {"fake", "warp_out", "warp_mask", "corr_over_temperature"}
        own |= {name for name in wanted if name.startswith("vgg_real")}
        for phase in system.phases:
            load_rounded(system, case, draw)
            if mode == "eval" and case.options.get("eval_state") == "after_train":
                system.load_state_dict(trained, strict=False)
            system.train(mode == "train").zero_grad()
            batch = batch_of(system, case, "in.")
            system.freeze_all_but(phase)
            first = phase is system.phases[0]
            names = [name for name in wanted if name not in own] if first else []
            kept = {}
            handles = [
                system.nets["G"].register_forward_hook(lambda m, a, y, kept=kept: kept.setdefault("fake", y)),
                system.nets["Corr"].register_forward_hook(lambda m, a, y, kept=kept: kept.setdefault("warped", y)),
            ]
            with recorded_outputs(system, names) as outputs:
                terms = phase.loss(batch)
            for handle in handles:
                handle.remove()
            total, fake = sum(terms.values()), kept["fake"]
            if first:
                fake.retain_grad()
            total.backward()
            found |= {f"loss.{mode}.{name}": value for name, value in terms.items()}
            found[f"loss.{mode}.{phase.name}_total"] = total
            for name in phase.nets:
                found |= {f"grad.{mode}.{name}.{key}": p.grad for key, p in system.nets[name].named_parameters()}
            if not first:
                continue
            found |= {f"out.{mode}.{name}": value for name, value in outputs.items()}
            found |= {f"out.{mode}.{name}": kept["warped"].get(name) for name in ("warp_out", "warp_mask")}
            found[f"out.{mode}.fake"], found[f"grad.{mode}.fake"] = fake, fake.grad
            found |= {f"grad.{mode}.in.{name}": batch[name].grad for name in ("semantics", "ref")}
            buffers = {key: buffer.clone() for key, buffer in system.nets.named_buffers()}
            found |= {f"post.{mode}.{key}": buffer for key, buffer in buffers.items()}
            if mode == "train":
                trained = {f"nets.{key}": buffer for key, buffer in buffers.items()}
            found["mid.input_semantics"], found["mid.ref_semantics"] = batch["semantics"], batch["ref_semantics"]
            with torch.no_grad():
                theta, phi, _ = system.nets["Corr"].match(batch["semantics"], batch["ref"], batch["ref_semantics"])
                found[f"out.{mode}.corr_over_temperature"] = theta @ phi.transpose(1, 2) / 0.01
                features = system.fixed["VGG"](batch["image"])
            found |= {f"out.{mode}.vgg_real.{i}": feature for i, feature in enumerate(features)}
    return found


class Run(Training):
    """The case's training, with the batches that this system takes."""

    def batches(self):
        for it in range(len({name.split(".")[1] for name in self.case.meta["inputs"]})):
            yield batch_of(self.system, self.case, f"in.{it}.")


def run_training(case: Case, folder: Path) -> dict[str, Tensor]:
    training, series = Run(case, True, folder), {}
    nets, beta = training.system.nets, case.options["ema_beta"]
    averages = {f"{net}.{key}": p.detach().clone() for net in ("G", "Corr") for key, p in nets[net].named_parameters()}
    for batch in training.batches():
        for phase in training.system.phases:
            for name, value in training.gradients(phase, batch).items():
                series.setdefault(f"traj.{name}", []).append(value)
            training.adams[phase.name].step()
            if phase.name == "G":
                for name, average in averages.items():
                    average.lerp_(nets.get_parameter(name).detach(), 1 - beta)
        fake = batch["fake"]
    found = {name: torch.stack(values) for name, values in series.items()}
    for name, net in nets.items():
        found |= {f"traj.after.{name}.{key}": value for key, value in net.state_dict().items()}
    return found | {f"traj.ema.{name}": value for name, value in averages.items()} | {"out.train.fake_last": fake}


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor | None]:
    if case.trains and backend != "reference":
        return {}
    system = build(case, folder)
    for name, net in networks(system).items():
        assert {key: (list(v.shape), v.dtype) for key, v in net.state_dict().items()} == case.keys(name), name
    assert networks(system).keys() == case.meta["keys"].keys()
    if case.trains:
        return run_training(case, folder)
    for draw in range(DRAWS):
        values = run_phases(system, case, draw)
        if all(case.error(name, values[name]) <= 1 for name in case.names & values.keys()):
            break
    return values
