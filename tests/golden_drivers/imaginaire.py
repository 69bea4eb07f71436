"""How recorded cases of imaginaire run: its operations are functions of this library; COCO-FUNIT is its generator."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from golden_recipe import Case
from golden_system import recorded_outputs
from torch import Tensor, nn

from i2ifast.models.coco_funit import Config, System
from i2ifast.nn.flow import channelnorm, correlation, resample2d
from i2ifast.nn.modulated_conv import fir
from i2ifast.ops import bias_act, upfirdn2d

VARIANTS = ("",)


def of_bias_act(case: Case) -> dict[str, Tensor]:
    given, values = case.inputs("in."), {}
    for act in case.options["acts"]:
        for clamp in (None, 0.9):
            for gain in (None, 1.7):
                name = f"bias_act.{act}.clamp{clamp}.gain{gain}"
                x, b = given["x"].clone().requires_grad_(), given["b"].clone().requires_grad_()
                y = bias_act(x, b, act={"leakyrelu": "lrelu"}.get(act, act), gain=gain, clamp=clamp)
                dx, db = torch.autograd.grad(y, [x, b], given["gy"])
                values |= {f"out.any.{name}": y, f"grad.any.in.x.{name}": dx, f"grad.any.in.b.{name}": db}
    return values


def of_upfirdn2d(case: Case) -> dict[str, Tensor]:
    given, values = case.inputs("in."), {}
    for i, call in enumerate(case.options["calls"]):
        taps = call.pop("filter")
        f = torch.tensor(taps) / 13 if isinstance(taps[0], list) else fir(taps)
        x = given["x"].clone().requires_grad_()
        y = upfirdn2d(x, f, **call)
        values[f"out.any.upfirdn2d.{i}"] = y
        (values[f"grad.any.in.x.upfirdn2d.{i}"],) = torch.autograd.grad(y, x, given[f"gy{i}"])
    return values


def of_flow(case: Case) -> dict[str, Tensor]:
    given = case.inputs("in.")
    flow = 8 * given["flow"] - 4
    flow[0, :, 0, 0] = torch.tensor([2.0, -1.0])
    image, flow = given["image"].requires_grad_(), flow.requires_grad_()
    y = resample2d(image, flow)
    d_image, d_flow = torch.autograd.grad(y, [image, flow], given["gy"])
    values = {"out.any.resample2d": y, "grad.any.in.image": d_image, "grad.any.in.flow": d_flow}
    values["out.any.channelnorm"] = channelnorm(given["image"])
    for name, sizes in case.options["correlation"].items():
        values[f"out.any.correlation.{name}"] = correlation(given["corr_a"], given["corr_b"], *sizes)
    return values


def coco_funit(options: dict[str, Any]) -> System:
    """The system whose generator has these options."""
    given = {f"gen_{name}": value for name, value in options.items()}
    return System(Config(**{field.name: given[field.name] for field in fields(Config) if field.name in given}))


def of_coco_funit(case: Case) -> dict[str, Tensor]:
    system, given = coco_funit(case.options), {k: x.requires_grad_() for k, x in case.inputs("in.").items()}
    net = system.nets["G"] = system.nets["gen"]
    assert {key: (list(v.shape), v.dtype) for key, v in net.state_dict().items()} == case.keys("G")
    net.load_state_dict(case.state("G"))
    recorded = [name.removeprefix("out.any.") for name in case.names if name.startswith("out.any.G.")]
    with recorded_outputs(system, recorded) as outputs:
        content, style_a = net.encode(given["content"]), net.classify(given["content"])
        style_b = net.classify(given["style"])
        values = {"content_code": content, "style_a": style_a, "style_b": style_b}
        values["trans"], values["recon"] = net.decode(content, style_b), net.decode(content, style_a)
    l1 = F.l1_loss(values["recon"], given["content"])
    ((values["trans"] * given["gy"]).sum() + l1).backward()
    found = {f"out.any.{name}": value for name, value in {**values, **outputs}.items()}
    found |= {f"grad.any.G.{key}": p.grad for key, p in net.named_parameters()}
    return found | {f"grad.any.in.{name}": x.grad for name, x in given.items()} | {"loss.any.recon_l1": l1}


def keyed(recorded: dict[str, Any]) -> dict[str, nn.Module]:
    return {"coco_funit_generator_ctor_defaults": coco_funit({}).nets["gen"]}


OPERATIONS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "bias_act": of_bias_act,
    "upfirdn2d": of_upfirdn2d,
    "flow": of_flow,
    "coco_funit": of_coco_funit,
}


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor]:
    return OPERATIONS[case.options["what"]](case)
