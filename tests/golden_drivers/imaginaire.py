"""How recorded cases of imaginaire's operations run: each is a function of this library."""

from collections.abc import Callable
from pathlib import Path

import torch
from golden_recipe import Case
from torch import Tensor

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


OPERATIONS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "bias_act": of_bias_act,
    "upfirdn2d": of_upfirdn2d,
    "flow": of_flow,
}


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor]:
    return OPERATIONS[case.options["what"]](case)
