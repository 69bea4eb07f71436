"""Bias, activation, gain and clamp in one pass: what stands behind every convolution of StyleGAN."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _backend
from ._modulation import spread
from ._op import (
    accumulation_dtype,
    autograd,
    check_device,
    check_shape,
    define,
    dense_like,
    memory_format,
    refuse_forward_mode,
)

SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772  # of selu


class Activation(NamedTuple):
    code: int  # of the kernels; 0 is piecewise linear: z if z > 0 else alpha * z
    alpha: float = 0.0
    gain: float = 1.0  # keeps the variance of a standard normal about 1


# fmt: off
ACTIVATIONS = {
    "linear":   Activation(0, alpha=1.0),
    "relu":     Activation(0, gain=math.sqrt(2)),
    "lrelu":    Activation(0, alpha=0.2, gain=math.sqrt(2)),
    "tanh":     Activation(1),
    "sigmoid":  Activation(2),
    "elu":      Activation(3),
    "selu":     Activation(4),
    "softplus": Activation(5),
    "swish":    Activation(6, gain=math.sqrt(2)),
}
Curve = Callable[[Tensor, float], Tensor]
CURVES: tuple[tuple[Curve, Curve], ...] = (  # by code: the function and its derivative
    (F.leaky_relu,                       lambda z, alpha: torch.where(z > 0, torch.ones_like(z), alpha)),
    (lambda z, _: z.tanh(),              lambda z, _: 1 - z.tanh().square()),
    (lambda z, _: z.sigmoid(),           lambda z, _: z.sigmoid() * (-z).sigmoid()),
    (lambda z, _: F.elu(z),              lambda z, _: z.clamp(max=0).exp()),
    (lambda z, _: F.selu(z),             lambda z, _: SCALE * torch.where(z > 0, 1, ALPHA * z.clamp(max=0).exp())),
    (lambda z, _: F.softplus(z),         lambda z, _: z.sigmoid()),
    (lambda z, _: z * z.sigmoid(),       lambda z, _: z.sigmoid() * (1 + z * (-z).sigmoid())),
)
# fmt: on


def _biased(x: Tensor, b: Tensor | None) -> Tensor:
    wide = x.to(accumulation_dtype(x))
    return wide if b is None else wide + spread(b.to(wide.dtype))


def reference_forward(x: Tensor, b: Tensor | None, act: int, alpha: float, gain: float, clamp: float) -> Tensor:
    return (CURVES[act][0](_biased(x, b), alpha) * gain).clamp(-clamp, clamp).to(x.dtype)


def reference_backward(
    dy: Tensor, x: Tensor, b: Tensor | None, act: int, alpha: float, gain: float, clamp: float
) -> tuple[Tensor, Tensor]:
    """dx, and db [C], the sum of dx over samples and pixels."""
    z = _biased(x, b)
    inside = (CURVES[act][0](z, alpha) * gain).abs() <= clamp
    dz = dy.to(z.dtype) * gain * CURVES[act][1](z, alpha) * inside
    return dz.to(x.dtype), dz.sum((0, 2, 3))


def _choose(x: Tensor, kernel: str, act: int) -> str:
    """PyTorch's exp and tanh are vectorised as no portable loop is: on a CPU, kernels are piecewise linear ones."""
    backend = _backend.choose("bias_act", kernel, x)
    return "reference" if x.numel() == 0 or (backend == "cpu" and act) else backend


def _wide(x: Tensor, b: Tensor | None) -> Tensor:
    return x.new_zeros(x.size(1), dtype=torch.float32) if b is None else b.float().contiguous()


def _forward(x, b, act, alpha, gain, clamp):
    layout, backend = memory_format(x), _choose(x, "bias_act", act)
    if backend == "reference":
        return reference_forward(x, b, act, alpha, gain, clamp).contiguous(memory_format=layout)
    y = dense_like(x)
    kernel = _backend.kernel(backend, "bias_act", "bias_act")
    kernel(x.contiguous(memory_format=layout), _wide(x, b), act, alpha, gain, clamp, y)
    return y


def _backward(dy, x, b, act, alpha, gain, clamp):
    layout, backend = memory_format(x), _choose(x, "bias_act_backward", act)
    if backend == "reference":
        dx, db = reference_backward(dy, x, b, act, alpha, gain, clamp)
        return dx.contiguous(memory_format=layout), db
    dx, db = dense_like(x), x.new_empty(x.size(1), dtype=torch.float32)
    dy, x = dy.contiguous(memory_format=layout), x.contiguous(memory_format=layout)
    _backend.kernel(backend, "bias_act", "bias_act_backward")(dy, x, _wide(x, b), act, alpha, gain, clamp, dx, db)
    return dx, db


def _backward_fake(dy, x, b, *rest):
    return dense_like(x), x.new_empty(x.size(1), dtype=accumulation_dtype(x))


def _setup(ctx, inputs, output) -> None:
    x, b, *ctx.rest = inputs
    act, alpha, gain, clamp = ctx.rest
    # Where no slope is negative, y has the sign of z and stands for it: the next layer keeps y anyway.
    by_sign = act == 0 and alpha >= 0 and gain > 0 and clamp == math.inf
    ctx.save_for_backward(*((output, None) if by_sign else (x, b)))
    ctx.of_bias = None if b is None else b.dtype


def _autograd(ctx, dy):
    dx, db = torch.ops.i2ifast.bias_act_backward(dy, *ctx.saved_tensors, *ctx.rest)
    return dx, None if ctx.of_bias is None else db.to(ctx.of_bias), None, None, None, None


def _setup_second(ctx, inputs, output) -> None:
    *tensors, act, alpha, gain, clamp = inputs
    ctx.save_for_backward(*tensors)
    ctx.rest = (act, alpha, gain, clamp)
    ctx.set_materialize_grads(False)


def _second_order(ctx, ddx: Tensor | None, ddb: Tensor | None):
    """The op is linear in dy; what it multiplies by depends on z only where the activation is curved."""
    dy, x, b = ctx.saved_tensors
    dz = ddx if ddb is None else _biased(torch.zeros_like(x) if ddx is None else ddx, ddb).to(x.dtype)
    if dz is None:
        return (None,) * 7
    ddy = torch.ops.i2ifast.bias_act_backward(dz, x, b, *ctx.rest)[0]
    if ctx.rest[0] == 0:
        return ddy, *(None,) * 6
    leaves = [t.detach().requires_grad_() for t in (x, b) if t is not None]
    with torch.enable_grad():
        dx = reference_backward(dy, leaves[0], leaves[1] if b is not None else None, *ctx.rest)[0]
        found = torch.autograd.grad(dx, leaves, dz.to(dx.dtype))
    return ddy, found[0], found[1] if b is not None else None, *(None,) * 4


_ARGS = "Tensor x, Tensor? b, int act, float alpha, float gain, float clamp"
define("bias_act", f"({_ARGS}) -> Tensor", _forward, lambda x, *rest: dense_like(x))
define("bias_act_backward", f"(Tensor dy, {_ARGS}) -> (Tensor, Tensor)", _backward, _backward_fake)
autograd("bias_act", _setup, _autograd)
autograd("bias_act_backward", _setup_second, _second_order)


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """y = clamp(act(x + b) * gain, -clamp, clamp)

    x of any rank, b along its dimension `dim`; y like x. act: linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus,
    swish. alpha is lrelu's slope, 0.2 if None; gain is sqrt(2) for relu, lrelu and swish, else 1, if None; without
    clamp nothing is cut off. Differentiable twice, and to any order where act is piecewise linear. Raises ValueError
    for an unknown act, a clamp below 0, or a bias that does not fit.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"act={act!r}: expected one of {', '.join(ACTIVATIONS)}")
    if clamp is not None and clamp < 0:
        raise ValueError(f"clamp={clamp}: expected 0 or more")
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point tensor, got {x.dtype}")
    refuse_forward_mode(x)
    if b is not None:
        check_shape("b", b, [x.size(dim)])
        check_device(x, b=b)
    kind = ACTIVATIONS[act]
    slope = alpha if alpha is not None and act == "lrelu" else kind.alpha
    rest = (
        kind.code,
        float(slope),
        float(kind.gain if gain is None else gain),
        float(math.inf if clamp is None else clamp),
    )
    if x.dim() == 4 and dim in (1, -3):
        return torch.ops.i2ifast.bias_act(x, b, *rest)
    at = dim % x.dim()
    outer, inner = math.prod(x.shape[:at]), math.prod(x.shape[at + 1 :])
    return torch.ops.i2ifast.bias_act(x.reshape(outer, x.size(at), inner, 1), b, *rest).reshape(x.shape)
