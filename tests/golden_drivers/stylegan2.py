"""How recorded cases of StyleGAN2 run: the networks of both ports, and the training of the first."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from golden_recipe import Case
from golden_system import recorded_outputs
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import System, _stylegan2_ada, stylegan2

VARIANTS = ("",)


def keyed(recorded: dict[str, Any]) -> dict[str, nn.Module]:
    system = models.build("stylegan2", "ffhq_256")
    return {"generator_256": system.nets["G"], "discriminator_256": system.nets["D"]}


def build(case: Case) -> System:
    widths = {"channel_max": sum(divmod(512, case.options["channel_divisor"]))}  # as recordings shrink them
    system = models.build("stylegan2", **vars(stylegan2.Config.from_original(case.options | widths)))
    load(system.nets, case)
    return system


def load(nets: dict[str, nn.Module], case: Case) -> None:
    for name, net in nets.items():
        assert {key: (list(v.shape), v.dtype) for key, v in net.state_dict().items()} == case.keys(name), name
        net.load_state_dict(case.state(name))


def gradients(loss: Tensor, leaves: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """By name; what the loss does not depend on has none."""
    found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
    return {prefix + name: g for name, g in zip(leaves, found, strict=True) if g is not None}


def outputs_of(case: Case, mode: str) -> list[str]:
    names = [name.removeprefix(f"out.{mode}.") for name in case.names if name.startswith(f"out.{mode}.")]
    return [name for name in names if name[:2] in ("G.", "D.")]


def of_networks(case: Case) -> dict[str, Tensor]:
    """Images of mixed, fixed, truncated and given styles; every term and its gradients."""
    system, given = build(case), {k: v.requires_grad_() for k, v in case.inputs("in.").items() if v.is_floating_point()}
    generator, discriminator, options = system.nets["G"], system.nets["D"], case.options
    z1, z2, noise = given["z1"], given["z2"], [given[f"noise{i}"] for i in range(len(generator.noise_sizes))]
    wplus = (given["wplus"].detach() * 0.5).requires_grad_()
    values = {"w1": generator.style(z1), "w2": generator.style(z2)}
    with recorded_outputs(system, outputs_of(case, "any")) as recorded:
        values["img_mix"], values["latent_mix"] = generator([z1, z2], options["inject_index"], noise=noise)
        values["d_real"] = discriminator(given["real"])
    fake, styles = values["img_mix"], values["latent_mix"]
    values["d_fake"] = discriminator(fake)
    values["img_const_noise"] = generator([z1], randomize_noise=False)[0]
    values["mean_latent"] = torch.cat([values["w1"], values["w2"]]).mean(0, keepdim=True)
    values["img_trunc"] = generator(
        [z1], truncation=0.6, truncation_latent=values["mean_latent"], randomize_noise=False
    )[0]
    values["img_wplus"] = generator([wplus], input_is_latent=True, noise=noise)[0]
    r1 = stylegan2.gradient_penalty(values["d_real"], given["real"])
    lengths = stylegan2.path_lengths(fake, styles, next(case.noise("noise.any.")))
    mean = options["mean_path_length"] + 0.01 * (lengths.mean() - options["mean_path_length"])
    values |= {"path_lengths": lengths, "path_mean": mean}
    terms = {
        "d_logistic": (F.softplus(values["d_fake"]) + F.softplus(-values["d_real"])).mean(),
        "g_nonsat": F.softplus(-values["d_fake"]).mean(),
        "r1": r1,
        "path_penalty": (lengths - mean).square().mean(),
    }
    found = {f"out.any.{name}": value for name, value in {**values, **recorded}.items()}
    found |= {f"loss.any.{name}": value for name, value in terms.items()}
    of_g = terms["g_nonsat"] + 2 * terms["path_penalty"]
    found |= gradients(
        of_g, {**dict(generator.named_parameters(prefix="G")), "in.z1": z1, "in.noise1": noise[1]}, "grad.any."
    )
    d_logistic = (F.softplus(discriminator(fake.detach())) + F.softplus(-values["d_real"])).mean()
    found |= gradients(d_logistic + 5 * r1, dict(discriminator.named_parameters(prefix="D")), "grad.any.")
    objective = (values["img_wplus"] * given["gy_wplus"]).sum()
    return found | gradients(objective, {"in.wplus": wplus, "in.wplus_noise2": noise[2]}, "grad.any.")


def of_ada(case: Case) -> dict[str, Tensor]:
    """The mapping in training, which moves its average, and truncated; the image, its logits and gradients."""
    o, given = case.options, case.inputs("in.")
    sizes = {name: o[name] for name in ("channel_base", "channel_max", "conv_clamp")}
    shared = {"img_resolution": o["resolution"], "img_channels": 3, **sizes}
    nets = nn.ModuleDict()
    nets["G"] = _stylegan2_ada.Generator(
        o["z_dim"], o["c_dim"], o["w_dim"], num_layers=o["num_layers"], architecture=o["g_architecture"], **shared
    )
    nets["D"] = _stylegan2_ada.Discriminator(
        o["c_dim"],
        architecture=o["d_architecture"],
        mapping_layers=o["d_mapping_num_layers"],
        mbstd_group_size=o["mbstd_group_size"],
        **shared,
    )
    load(nets, case)
    z = given["z"].requires_grad_()
    c = torch.eye(o["c_dim"])[torch.arange(len(z)) % o["c_dim"]] if o["c_dim"] else None
    nets.train()
    ws = nets["G"].mapping(z, c)
    values = {"out.train.ws": ws}
    values["post.train.G.mapping.w_avg"] = nets["G"].mapping.w_avg.clone()
    nets.eval()
    system = models.System()
    system.nets = nets
    with recorded_outputs(system, outputs_of(case, "eval")) as recorded:
        image = nets["G"].synthesis(ws, noise_mode="const")
        logits = nets["D"](image, c)
    values["out.eval.ws_trunc"] = nets["G"].mapping(z, c, truncation_psi=0.7, truncation_cutoff=3)
    values |= {"out.eval.img": image, "out.eval.logits": logits}
    values |= {f"out.eval.{name}": value for name, value in recorded.items()}
    values["loss.eval.g_nonsat"] = F.softplus(-logits).mean()
    objective = (image * given["gy"]).sum() + values["loss.eval.g_nonsat"]
    return values | gradients(objective, {**dict(nets.named_parameters()), "in.z": z}, "grad.eval.")


class Recorded:
    """The system's draws replaced by the recorded ones, and the numbers of its passes that are recorded."""

    def __init__(self, system: System, case: Case) -> None:
        self.noise: Iterator[Tensor] = case.noise("noise.train.")
        self.mixes, self.injects = iter(case.options["random_draws"]), iter(case.options["inject_draws"])
        self.mixing, self.logits = system.config.mixing, []
        system.randn, system.crossover = self.randn, self.crossover
        system.nets["D"].register_forward_hook(lambda module, args, output: self.logits.append(output.mean().item()))

    def randn(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        drawn = next(self.noise)
        assert list(drawn.shape) == list(shape)
        return drawn

    def crossover(self) -> int | None:
        return next(self.injects) if next(self.mixes) < self.mixing else None


def of_training(case: Case) -> dict[str, Tensor]:
    system, options = build(case), case.options
    draws = Recorded(system, case)
    adams = {
        phase.name: torch.optim.Adam(system.nets[phase.nets[0]].parameters(), **vars(phase.optimizer))
        for phase in system.phases
        if not phase.shares
    }
    average = copy.deepcopy(system.nets["G"])
    series: dict[str, list[float]] = {}
    for it in range(options["iters"]):
        row = dict.fromkeys(
            ("d", "g", "r1", "path", "path_length", "mean_path_length", "real_score", "fake_score"), 0.0
        )
        batch = system.prepare({"image": case.inputs(f"in.real{it}")[""]})
        for phase in system.phases:
            if not phase.when(it):
                continue
            draws.logits.clear()
            before = system.mean_path_length.clone()
            system.freeze_all_but(phase)
            adam = adams[phase.shares or phase.name]
            adam.zero_grad()
            loss = sum(phase.loss(batch).values())
            loss.backward()
            adam.step()
            if phase.name == "D":
                row["d"], row["fake_score"], row["real_score"] = loss.item(), *draws.logits
            elif phase.name == "G":
                row["g"] = loss.item()
            elif phase.name == "D_reg":
                row["r1"] = loss.item() / (options["r1"] / 2 * system.config.d_reg_every)
            else:
                row["path"] = loss.item() / (options["path_regularize"] * system.config.g_reg_every)
                row["path_length"] = ((system.mean_path_length - before) / 0.01 + before).item()
        row["mean_path_length"] = system.mean_path_length.item()
        for mean, now in zip(average.parameters(), system.nets["G"].parameters(), strict=True):
            mean.data.lerp_(now.data, 1 - options["accum"])
        for name, value in row.items():
            series.setdefault(f"traj.{name}", []).append(value)
    assert next(draws.noise, None) is None, "noise was left over"
    found = {name: torch.tensor(values) for name, values in series.items()}
    found |= {f"traj.after.{key}": value for key, value in system.nets.state_dict().items()}
    return found | {f"traj.ema.G.{key}": value for key, value in average.state_dict().items()}


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor]:
    if case.trains:
        return of_training(case)
    return of_ada(case) if case.meta["case"].startswith("ada") else of_networks(case)
