"""How a recorded case of attentive normalisation runs: the op of the published code, and the paper's definitions."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from golden_recipe import Case
from torch import Tensor, nn

from i2ifast.models._attnorm import Generator, PatchDiscriminator, convolutions
from i2ifast.nn import AttentiveNorm, regional_norm

VARIANTS = ("contiguous", "channels_last")


def layer(case: Case, x: Tensor) -> dict[str, Tensor]:
    inputs, options = case.inputs("in."), case.options
    positions = inputs["sampling_pos"].clone()
    positions[1] = positions[0]
    net = AttentiveNorm(options["c"], options["nClass"], options["kama"])
    net.load_tensorflow(case.state("AN"))
    y, layout, orthogonality = net(x, positions)
    ((y * inputs["gy"]).sum() + 1000 * orthogonality).backward()
    found = {"out.train.y": y, "out.train.layout": layout, "loss.train.orth": orthogonality, "grad.train.in.x": x.grad}
    return found | of_layer(net, "grad.train.AN.sn/", lambda p: p.grad)


def of_layer(net: AttentiveNorm, scope: str, value: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """A value for each parameter, by its TensorFlow name and in its layout."""
    convs = {"sn_key_conv": net.key, "sn_query_conv": net.query, "sn_value_conv": net.value}
    found = {f"{scope}{name}/kernel": value(conv.weight).permute(2, 3, 1, 0) for name, conv in convs.items()}
    found |= {f"{scope}{name}/bias": value(conv.bias) for name, conv in convs.items()}
    found[f"{scope}mask_filters"] = value(net.semantic.weight).permute(2, 3, 1, 0)
    return found | {f"{scope}alpha": value(net.alpha).view(1, 1, 1, -1), f"{scope}sigma": value(net.sigma)}


def of_convolutions(net: nn.Module, scope: str, value: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, conv in convolutions(net).items():
        found |= {
            f"{scope}{name}/kernel": value(conv.weight).permute(2, 3, 1, 0),
            f"{scope}{name}/bias": value(conv.bias),
        }
    return found


def networks(case: Case, layout: torch.memory_format) -> dict[str, Tensor]:
    inputs, options = case.inputs("in."), case.options
    image, (y, x, h, w) = inputs["image"].contiguous(memory_format=layout), options["hole"]
    mask = torch.zeros_like(image[:, :1])
    mask[:, :, y : y + h, x : x + w] = 1
    G, D = Generator(options["g_cnum"]), PatchDiscriminator(options["d_cnum"])
    G.load_tensorflow(case.state("G"))
    D.load_tensorflow(case.state("D"))
    found = {}

    def record(name: str, act: bool):
        def hook(module: nn.Module, args: tuple, y: Tensor) -> None:
            found[f"out.train.G.inpaint_net.{name.rpartition('/')[2]}"] = F.elu(y.detach()) if act else y.detach()

        return hook

    linear = ("conv18", "fconv18", "sconv6")
    for name, conv in convolutions(G).items():
        conv.register_forward_hook(record(name, name not in linear))

    def query(module: AttentiveNorm, args: tuple, y: object) -> None:
        found["out.train.G.inpaint_net.sn_query_conv"] = module.query(args[0]).detach()

    G.sn.register_forward_hook(query)
    coarse, fine, regions, orthogonality = G(image, mask, inputs["sampling_pos"])
    total = (fine * inputs["gy_fine"]).sum() + (coarse * inputs["gy_coarse"]).sum() + 1000 * orthogonality
    total.backward()
    logits, of_patches = D(image * (1 - mask), mask)
    logits.sum().backward()
    found |= {"out.train.coarse": coarse, "out.train.fine": fine, "out.train.layout": regions}
    found |= {"loss.train.orth": orthogonality, "out.train.D_patch": logits}
    found["out.train.D_patch_mask"] = F.interpolate(of_patches, size=image.shape[2:])  # recorded at their size
    found |= of_layer(G.sn, "grad.train.G.inpaint_net/sn/", lambda p: p.grad)
    found |= of_convolutions(G, "grad.train.G.inpaint_net/", lambda p: p.grad)
    return found | of_convolutions(D, "grad.train.D.discriminator_local/", lambda p: p.grad)


def paper(case: Case, x: Tensor) -> dict[str, Tensor]:
    inputs, options = case.inputs("in."), case.options
    found = {}
    net = AttentiveNorm(8, options["n"], options["tau"], "paper")  # of any width: parameters are replaced
    for conv, weight, bias in ((net.key, "wk", "bk"), (net.query, "wq", "bq"), (net.semantic, "wm", None)):
        conv.weight = torch.nn.Parameter(inputs[weight][:, :, None, None])
        conv.bias = None if bias is None else torch.nn.Parameter(inputs[bias])
    net.alpha = torch.nn.Parameter(1.4 * inputs["alpha"] - 0.2)
    found["out.train.layout"], found["out.eval.layout"] = net.layout(x, inputs["pos"]), net.layout(x)
    found["loss.any.orth_paper"] = net.orthogonality()
    net.form = "released"
    found["loss.any.orth_repo"] = net.orthogonality()
    v, affine = inputs["v"] + 1, (1 + 0.3 * inputs["beta_affine"], 0.3 * inputs["alpha_affine"])
    for name, form in (("paper", "paper"), ("repo", "released"), ("weighted", "weighted")):
        found[f"out.train.norm_{name}"] = regional_norm(v, found["out.train.layout"], form=form)
        found[f"out.train.norm_{name}_affine"] = regional_norm(v, found["out.train.layout"], *affine, form)
    return found


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor | None]:
    layout = torch.channels_last if variant == "channels_last" else torch.contiguous_format
    if case.meta["case"] == "gen":
        return networks(case, layout)
    x = case.inputs("in.")["x"].contiguous(memory_format=layout).requires_grad_()
    return paper(case, x) if case.meta["case"] == "paper" else layer(case, x)


def check_keys(recorded: dict) -> None:
    """Variables of the generator at the published width, by their TensorFlow names."""
    with torch.device("meta"):
        net = Generator()
    ours = of_convolutions(net, "inpaint_net/", lambda p: p) | of_layer(net.sn, "inpaint_net/sn/", lambda p: p)
    theirs = {name: shape for name, shape in recorded["generator"].items() if not name.startswith("__")}
    assert {name: list(t.shape) for name, t in ours.items()} == theirs
