"""How a recorded case of region normalisation runs: its two modules alone, the networks with all losses, training."""

from pathlib import Path

import torch
from golden_recipe import Case
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import System
from i2ifast.nn import RN_B, RN_L

VARIANTS = ("",)
# Terms by the recorded names, which are without the weights.
TERMS = {"D_fake": ("d_fake", 2.0), "D_real": ("d_real", 2.0), "GAN": ("g_gan", 10.0), "L1": ("g_l1", 1.0)}


def rectangles(u: Tensor, h: int, w: int) -> Tensor:
    """Masks [N,1,h,w], 1 in a rectangle of each image, from four numbers in [0, 1) of each."""
    mask = torch.zeros(len(u), 1, h, w)
    for plane, (a, b, c, d) in zip(mask, u.double().tolist(), strict=True):
        y, x = int(a * h / 2), int(b * w / 2)
        plane[:, y : y + h // 4 + int(c * h / 4), x : x + w // 4 + int(d * w / 4)] = 1
    return mask


def vanishing(n: int, h: int, w: int) -> Tensor:
    """Masks of one pixel that resizing to half by nearest drops."""
    mask = torch.zeros(n, 1, h, w)
    mask[:, :, 1, 1] = 1
    return mask


def gradients(prefix: str, net: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": p.grad.clone() for key, p in net.named_parameters() if p.grad is not None}


def modules(case: Case) -> dict[str, Tensor]:
    inputs, found = case.inputs("in."), {}
    n, c, h, w = inputs["x"].shape
    mask = vanishing(n, 2 * h, 2 * w) if case.options["vanishing_mask"] else rectangles(inputs["mask"], 2 * h, 2 * w)
    nets = {"RN_B": RN_B(c), "RN_L": RN_L(c, case.options["threshold"])}
    for name, net in nets.items():
        net.load_state_dict(case.state(name))
        x = inputs["x"].clone().requires_grad_()
        y = net(x, *([mask] if name == "RN_B" else []))
        (y * inputs["gy"]).sum().backward()
        found |= {f"out.train.{name}": y, f"grad.train.in.x_{name}": x.grad, **gradients(f"grad.train.{name}", net)}
    importance, maps = nets["RN_L"].sa(inputs["x"])
    gamma, beta = maps.chunk(2, 1)
    found |= {"out.train.RN_L_map": importance, "out.train.RN_L_gamma": gamma, "out.train.RN_L_beta": beta}
    return found | {"out.train.RN_L_mask": (importance >= case.options["threshold"]).float()}


def build(case: Case) -> System:
    system = models.build("region_norm", **vars(models.system("region_norm").Config.from_original(case.options)))
    for name, net in system.nets.items():
        assert {key: (list(v.shape), v.dtype) for key, v in net.state_dict().items()} == case.keys(name), name
        net.load_state_dict(case.state(name))
    return system.train()


def batch_of(case: Case, which: str = "") -> dict[str, Tensor]:
    inputs = case.inputs("in.")
    image = inputs[f"gt{which}"]
    return {"image": image, "mask": rectangles(inputs[f"hole{which}"], *image.shape[2:])}


def networks(case: Case) -> dict[str, Tensor]:
    system, found, outputs = build(case), {}, {}

    def record(name: str):
        def hook(module: nn.Module, args: tuple, y: Tensor) -> None:
            if name.startswith("G.encoder_in"):  # recorded without the activation, which comes with it here
                # Its second activation serves the first layer too, so that is what was recorded of it.
                outputs.setdefault(f"G.encoder_relu{max(2, int(name[-1]))}", y.detach())
                with torch.no_grad():
                    y = _without_act(module, *args)
            outputs.setdefault(name, y.detach().clone())

        return hook

    def record_logits(module: nn.Module, args: tuple, logits: Tensor) -> None:
        name = next((name for name in ("d_real", "d_fake") if name not in outputs), None)
        if name:
            outputs[name] = torch.sigmoid(logits.detach())

    children = {f"{net}.{name}": m for net in system.nets for name, m in system.nets[net].named_children()}
    handles = [module.register_forward_hook(record(name)) for name, module in children.items()]
    handles.append(system.nets["D"].register_forward_hook(record_logits))
    batch = system.prepare(batch_of(case))
    for phase in system.phases:
        system.freeze_all_but(phase)
        terms = phase.loss(batch)
        sum(terms.values()).backward()
        found |= {f"loss.train.{TERMS[name][0]}": TERMS[name][1] * value for name, value in terms.items()}
        found[f"loss.train.{phase.name.lower()}"] = sum(terms.values())
        found |= gradients(f"grad.train.{phase.name}", system.nets[phase.name])
    found |= {f"post.train.D.{key}": buffer.clone() for key, buffer in system.nets["D"].named_buffers()}
    for handle in handles:
        handle.remove()
    found |= {f"out.train.{name}": y for name, y in outputs.items()}
    system.eval()
    G, D = system.nets["G"], system.nets["D"]
    with torch.no_grad():
        prediction = G(batch["truth"], batch["mask"])
        found |= {"out.eval.prediction": prediction, "out.train.prediction": prediction}
        found["out.eval.d_real"] = torch.sigmoid(D(batch["truth"]))
        found["out.train.merged"] = prediction * batch["mask"] + batch["truth"] * (1 - batch["mask"])
    return found


def _without_act(module: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    plain = RN_B(x.size(1))
    plain.load_state_dict(module.state_dict())
    return plain(x, mask)


def training(case: Case) -> dict[str, Tensor]:
    system, series = build(case), {}
    adams = [
        torch.optim.Adam([p for name in phase.nets for p in system.nets[name].parameters()], **vars(phase.optimizer))
        for phase in system.phases
    ]
    for it in range(case.options["iters"]):
        batch = system.prepare(batch_of(case, str(it)))
        for phase, adam in zip(system.phases, adams, strict=True):
            system.freeze_all_but(phase)
            adam.zero_grad()
            terms = phase.loss(batch)
            sum(terms.values()).backward()
            adam.step()
            series.setdefault(f"traj.{phase.name.lower()}", []).append(sum(terms.values()).detach())
            for name in terms.keys() & {"GAN", "L1"}:
                recorded, weight = TERMS[name]
                series.setdefault(f"traj.{recorded}", []).append(weight * terms[name].detach())
    found = {name: torch.stack(values) for name, values in series.items()}
    for name, net in system.nets.items():
        found |= {f"traj.after.{name}.{key}": p for key, p in net.named_parameters()}
        found |= {f"post.traj.{name}.{key}": buffer for key, buffer in net.named_buffers()}
    return found


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor | None]:
    return training(case) if case.trains else modules(case) | networks(case)


def check_keys(recorded: dict) -> None:
    """state_dict keys and shapes at the published widths."""
    with torch.device("meta"):
        system = models.build("region_norm", "places2")
    ours = {name: {k: list(v.shape) for k, v in net.state_dict().items()} for name, net in system.nets.items()}
    assert ours == {
        net: {k: v for k, v in recorded[name].items() if not k.startswith("__")}
        for net, name in (("G", "generator"), ("D", "discriminator"))
    }
