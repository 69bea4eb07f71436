"""How recorded cases of few-shot vid2vid run: one frame in training, then one pass of the discriminator."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from golden_recipe import Case
from golden_system import recorded_outputs
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import System, fs_vid2vid
from i2ifast.models._fs_vid2vid import Frame
from i2ifast.models.fs_vid2vid import mask_loss

VARIANTS = ("",)


def keyed(recorded: dict[str, Any]) -> dict[str, nn.Module]:
    """Faces of 256 pixels."""
    nets = models.build("fs_vid2vid", "face_256").nets
    return {"netG_face256_with_temporal": nets["G"], "netD_face256": nets["D"]}


def build(case: Case) -> System:
    # The recordings do not say how the discriminator was built where it is not as published.
    config = fs_vid2vid.Config.from_original({"ndf": 8, "n_layers_D": 2} | case.options)
    system = models.build("fs_vid2vid", **vars(config))
    for name, net in system.nets.items():
        assert {key: (list(v.shape), v.dtype) for key, v in net.state_dict().items()} == case.keys(name), name
        net.load_state_dict(case.state(name))
    return system.train()


def before_of(given: dict[str, Tensor], channels: int) -> Frame | None:
    """The label map and the image of the frame before, of inputs that have it in their names."""
    found = {value.size(-3): value for name, value in given.items() if "prev" in name}
    return (found[channels].view(-1, *found[channels].shape[-3:]), found[3]) if found else None


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor]:
    system, given = build(case), case.inputs("in.")
    config, net = system.config, system.nets["G"]
    shots = sorted(name for name in given if name.startswith("img_ref"))
    label, label_refs = given["label"].requires_grad_(), given["label_refs"].requires_grad_()
    img_refs = torch.stack([given[name] for name in shots], 1).requires_grad_()
    wanted = [
        name.removeprefix("out.train.") for name in case.names if name.startswith(("out.train.G.", "out.train.D."))
    ]
    with recorded_outputs(system, wanted) as outputs:
        made = net(label, label_refs, img_refs, before_of(given, config.semantic_nc))
        target = given["tgt"]
        batch = {"made": [made], "semantics": label[:, None], "semantic_refs": label_refs, "image_refs": img_refs}
        judged = system.judge({**batch, "image": target[:, None]}, 0, made.image.detach())
    values = {f"post.train.{key}": buffer.clone() for key, buffer in system.nets.named_buffers(remove_duplicate=False)}
    real, fake = (system.adversarial(judged, g, not g) for g in (True, False))
    values |= {"loss.train.D_real": real, "loss.train.D_fake": fake}
    values["loss.train.G_GAN"] = system.adversarial(judged, real=True, generated=True)
    logits = [scale[-1].chunk(2)[0].mean() for scale in judged]
    values["loss.train.G_GAN_not_for_D"] = -torch.stack(logits).mean()
    warped = [each for each in made.warped if each is not None]
    masks = sum((mask_loss(each, target) for each in warped), torch.zeros(()))
    warps = sum((F.l1_loss(each.image, target) for each in warped), torch.zeros(()))
    values |= {"loss.train.mask": masks, "loss.train.warp": warps, "loss.train.mask_plus_warp": masks + warps}
    objective = (made.image * given["gy"]).sum() + 10 * (masks + warps)
    inputs = {"grad.train.in.label": label, "grad.train.in.label_refs": label_refs, "grad.train.in.img_refs": img_refs}
    for total, name, more in ((objective, "G", inputs), (real + fake, "D", {})):
        named = system.nets[name].named_parameters(remove_duplicate=False)
        leaves = more | {f"grad.train.{name}.{key}": p for key, p in named}
        gradients = torch.autograd.grad(total, list(leaves.values()), retain_graph=True, allow_unused=True)
        values |= {key: g for key, g in zip(leaves, gradients, strict=True) if g is not None}
    outputs |= {"final": made.image, "ref_idx": made.index} | ({} if made.raw is None else {"raw": made.raw})
    for i, each in enumerate(made.warped):
        if each is not None:
            outputs |= {f"flow.{i}": each.flow, f"mask.{i}": each.mask, f"warp.{i}": each.image}
    for level in range(config.n_adaptive_layers):  # they are left as small as they are made
        if (name := f"G.label_embedding.{level}") in outputs:
            size = [side >> level for side in label.shape[2:]]
            outputs[name] = F.interpolate(outputs[name], size=size)
    return values | {f"out.train.{name}": value for name, value in outputs.items()}
