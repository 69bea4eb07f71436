"""How a recorded case of attentive normalisation runs: the op of the published code, and the paper's definitions."""

from pathlib import Path

import torch
from golden_recipe import Case
from torch import Tensor

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
    convs = {"sn_key_conv": net.key, "sn_query_conv": net.query, "sn_value_conv": net.value}
    for name, conv in convs.items():
        found[f"grad.train.AN.sn/{name}/kernel"] = conv.weight.grad.permute(2, 3, 1, 0)
        found[f"grad.train.AN.sn/{name}/bias"] = conv.bias.grad
    found["grad.train.AN.sn/mask_filters"] = net.semantic.weight.grad.permute(2, 3, 1, 0)
    return found | {
        "grad.train.AN.sn/alpha": net.alpha.grad.view(1, 1, 1, -1),
        "grad.train.AN.sn/sigma": net.sigma.grad,
    }


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
    x = case.inputs("in.")["x"].contiguous(memory_format=layout).requires_grad_()
    return paper(case, x) if case.meta["case"] == "paper" else layer(case, x)
