"""Partial convolutions and the loss of inpainting, by the layers' own options."""

import re
from pathlib import Path

from golden_recipe import Case
from safetensors.torch import save_file
from torch import Tensor

from i2ifast.nn import PartialConv2d, PartialConv3d
from i2ifast.nn.partial_loss import SLICES, VGG16PartialLoss, gram

VARIANTS = ("",)


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor | None]:
    return loss(case, folder) if "VGG16" in case.meta["nets"] else layers(case)


def check_keys(recorded: dict[str, dict[str, list[str]]]) -> None:
    """state_dict keys and ranks; sizes are recorded as words."""
    keys = recorded["PartialConv2d"]
    found = PartialConv2d(4, 6, 3, groups=2).state_dict()
    assert {key: value.dim() for key, value in found.items()} == {key: len(shape) for key, shape in keys.items()}


def layers(case: Case) -> dict[str, Tensor]:
    values = {}
    for i, options in enumerate(case.options["cases"]):
        given, state = case.inputs(f"in.{i}."), case.state(f"M{i}")
        kind = PartialConv2d if given["x"].dim() == 4 else PartialConv3d
        layer = kind(
            given["x"].size(1),
            state["weight"].size(0),
            state["weight"].shape[2:],
            options["s"],
            options["p"],
            options["d"],
            options.get("groups", 1),
            options["bias"],
            multi_channel=options["multi"],
            return_mask=True,
        )
        layer.load_state_dict(state)
        mask = given.get("mask")
        if mask is not None:
            mask = (mask > 0.6).float()
            mask[..., :5, :5] = 0
        x = given["x"].requires_grad_()
        y, seen = layer(x, mask)
        y.backward(given["gy"])
        values |= {f"out.any.{i}.y": y.detach(), f"out.any.{i}.mask": seen, f"grad.any.{i}.in.x": x.grad}
        values[f"out.any.{i}.mask_ratio"] = layer.mask_ratio
        values |= {f"grad.any.{i}.{name}": p.grad for name, p in layer.named_parameters()}
    return values


def loss(case: Case, folder: Path) -> dict[str, Tensor]:
    """Terms, gradient and Gram matrices; images are recorded in [0, 1], or are of kind `image`, in [-1, 1]."""
    state = case.state("VGG16")
    weights, biases = ([state[key] for key in state if key.endswith(leaf)] for leaf in ("weight", "bias"))
    convs = [i for convs in SLICES for i in convs]
    vgg = {f"features.{i}.weight": t for i, t in zip(convs, weights, strict=False)}
    vgg |= {f"features.{i}.bias": t for i, t in zip(convs, biases, strict=False)}
    path = folder / "vgg16.safetensors"
    save_file(vgg, path)
    criterion = VGG16PartialLoss(vgg_path=path)
    kinds = [entry["kind"] for entry in case.meta["inputs"].values()]
    images = [(t + 1) / 2 if kind == "image" else t for kind, t in zip(kinds, case.inputs("").values(), strict=True)]
    output, target = images[0].requires_grad_(), images[1]
    total, perceptual, style = criterion(output, target)
    total.backward()
    values = {"tot": total, "vgg": perceptual, "style": style, "grad": output.grad}
    for which, image in (("target", target), ("output", output.detach())):
        features = (image - criterion.mean) / criterion.std
        for i, layers in enumerate(criterion.slices):
            features = layers(features)
            values |= {f"gram.{which}.{i}": gram(features), f"gram.{i}": gram(features)}

    numbers = sorted({re.findall(r"[0-9]", name)[-1] for name in case.names if "gram" in name})

    def value(name: str) -> Tensor:
        """By what the name contains: the term, or `gram` and the number of the feature, of the output or the target."""
        if "gram" in name:
            which = "target." if re.search(r"target|\by\b", name) else ""
            return values[f"gram.{which}{numbers.index(re.findall(r'[0-9]', name)[-1])}"]
        return values[next(key for key in ("grad", "style", "vgg", "tot") if key in name)].detach()

    return {name: value(name) for name in case.names}
