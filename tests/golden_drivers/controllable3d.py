"""How recorded cases of controllable 3D synthesis run: the generator with drawn poses given, and the discriminator."""

from pathlib import Path
from typing import Any

import torch
from golden_recipe import Case
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import System, _controllable3d, controllable3d
from i2ifast.nn.losses import cross_entropy, input_gradient

VARIANTS = ("",)


def check_keys(recorded: dict[str, Any]) -> None:
    """At the published widths. Vectors of spectral norms are parameters of the original, and buffers here."""
    with torch.device("meta"):
        system = models.build("controllable3d", "point")
        judge = _controllable3d.Discriminator(128, 2)
    for name, net in (("generator_default_point3", system.nets["G"]), ("discriminator_car_nlabels2", judge)):
        keys = dict(recorded[name])
        count = keys.pop("__total_params__")
        assert {key: list(value.shape) for key, value in net.state_dict().items()} == keys
        vectors = {b for key, b in net.named_buffers() if key.endswith(("weight_u", "weight_v"))}
        assert sum(t.numel() for t in (*net.parameters(), *vectors)) == count


def build(case: Case) -> System:
    options = case.options
    widths = {"hidden_3d": (16, 32, 64), "hidden_2d": 24}  # as recordings shrink them
    config = controllable3d.Config.from_original(options | widths)
    system = models.build("controllable3d", **vars(config))
    generators: nn.ModuleDict = system.nets["G"]
    for name, net in {
        "G3D": generators["generator_3d"],
        "G2D": generators["generator_2d"],
        "D": system.nets["D"],
    }.items():
        assert {key: (list(v.shape), v.dtype) for key, v in net.state_dict().items()} == case.keys(name), name
        net.load_state_dict(case.state(name))
    return system


def watched(system: System, values: dict[str, Tensor]) -> None:
    """Adds to `values` what layers put out at first: of the objects as they are, before they are moved."""
    three, two, judge = system.nets["G"]["generator_3d"], system.nets["G"]["generator_2d"], system.nets["D"]
    layers = {
        "G3D.mlp_tr": three.mlp_tr, "G3D.mlp_feat": three.mlp_feat, "G2D.conv_img_in": two.conv_img_in,
        "G2D.mlp": two.mlp.model, "G2D.resnet": two.resnet[-1], "G2D.conv_img": two.conv_img,
    }  # fmt: skip

    def keep(name: str, value: Tensor) -> None:
        values.setdefault(f"out.train.{name}", value)

    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, __, y, name=name: keep(name, y))
    judge.fc["module"].register_forward_pre_hook(lambda _, given: keep("D.model", given[0]))


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor]:
    system, given = build(case), case.inputs("in.")
    z = given["z"].requires_grad_()
    turned, shifted = given["tf0_R"], given["tf0_t"][:, :, None]

    def transformed(pose: Tensor) -> Tensor:
        turn, place = pose[:, :, :3], pose[:, :, 3:]
        return torch.cat([turned @ turn.mT.detach() @ turn, shifted + place - place.detach()], 2)

    system.transformed = transformed
    values: dict[str, Tensor] = {}
    watched(system, values)
    sampled = system.sample(z, given["cam_RT"], given["obj_masks"])
    compactness, consistency = system.compactness(sampled), system.consistency(sampled)
    objective = (sampled.images.flatten(0, 1) * given["gy_img"]).sum() + 0.03 * compactness + 0.1 * consistency
    objective.backward()
    values |= {"grad.train.in.z": z.grad, "loss.train.compactness": compactness, "loss.train.consistency": consistency}
    for name, key in (("G3D", "generator_3d"), ("G2D", "generator_2d")):
        net = system.nets["G"][key]
        values |= {f"grad.train.{name}.{key}": p.grad for key, p in net.named_parameters()}
        values |= {f"post.train.{name}.{key}": buffer.clone() for key, buffer in net.named_buffers()}
    (first, second), layers, n = sampled.scenes, sampled.layers[0], len(z)
    pose, scale, numbers = system.nets["G"]["generator_3d"](z)
    outputs = {
        "R": pose[:, :, :3].contiguous(), "t": pose[:, :, 3].contiguous(), "scale": scale, "feature": numbers,
        "G3D.tanh": pose[:, :, 3].contiguous(), "G3D.sigmoid": (scale - 0.1) / 0.5,
        "prim_RT": first.view, "tf0_prim_RT": second.view, "prim_area": first.area,
        "prim_center_depth": first.view[:, 2, 3] / 4,
        "prim": torch.cat([first.features, 2 * first.cover - 1, 2 * first.nearest - 1], 1),
        "tf0_prim": torch.cat([second.features, 2 * second.cover - 1, 2 * second.nearest - 1], 1),
        "layers_rgb": layers.rgb, "layers_alpha": 2 * layers.alpha - 1, "layers_depth": layers.depth,
        "img_single": layers.single, "img": sampled.images[:, 0], "tf0_img": sampled.images[:, 1],
    }  # fmt: skip
    real = given["d_x"].requires_grad_()
    label = [0, system.config.nlabels - 1]
    logits = system.nets["D"](real)[range(n), (label * n)[:n]]
    penalty = 10 * input_gradient(logits, real).square().sum(1).mean()
    judged = cross_entropy(logits, True)
    (judged + penalty).backward()
    values |= {f"out.train.{name}": value for name, value in (outputs | {"d": logits}).items()}
    values |= {"loss.train.d_real": judged, "loss.train.r1_x10": penalty}
    values |= {f"grad.train.D.{key}": p.grad for key, p in system.nets["D"].named_parameters(remove_duplicate=False)}
    values |= {f"post.train.D.{key}": b for key, b in system.nets["D"].named_buffers(remove_duplicate=False)}
    return values
