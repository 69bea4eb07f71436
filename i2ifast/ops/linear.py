"""Matrix product of table rows and weights, through the faster library of the device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _backend
from ._op import autograd, define, refuse_forward_mode


def _onednn(x: Tensor) -> bool:
    """Whether oneDNN multiplies float32 here: measured at 2.3 times the rate of the MKL GEMM behind F.linear on
    AVX-512.

    torch's compiler calls it in the same way; where this op of torch's is not built in, F.linear stays.
    """
    plain = x.device.type == "cpu" and x.dtype is torch.float32 and x.numel() > 0 and _backend.fast()
    return plain and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _whole(x: Tensor) -> Tensor:
    """x without gaps between its rows or columns, for which oneDNN has slow code alone."""
    return x if x.t().is_contiguous() else x.contiguous()


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if _onednn(x):
        return torch.ops.mkldnn._linear_pointwise(_whole(x), _whole(weight), bias, "none", [], "")
    return F.linear(x, weight, bias).contiguous()


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((x.size(0), weight.size(0)))


def _setup(ctx, inputs, output) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    need_x, need_weight, need_bias = ctx.needs_input_grad
    dx = torch.ops.i2ifast.linear(dy, weight.t(), None) if need_x else None
    dweight = torch.ops.i2ifast.linear(dy.t(), x.t(), None) if need_weight else None
    return dx, dweight, dy.sum(0) if need_bias else None


define("linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _forward, _fake)
autograd("linear", _setup, _backward)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias. x [M, K], weight [L, K], bias [L] -> [M, L], contiguous. Differentiable to any order."""
    if x.dim() != 2 or weight.dim() != 2 or x.size(1) != weight.size(1):
        raise ValueError(f"x has shape {list(x.shape)}, weight {list(weight.shape)}: expected [M, K] and [L, K]")
    refuse_forward_mode(x, weight)
    return torch.ops.i2ifast.linear(x, weight, bias)


class PackedLinear:
    """linear() with weight and bias fixed: the weight is laid out for oneDNN once."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias, self._packed = weight, bias, None

    def __call__(self, x: Tensor) -> Tensor:
        if not _onednn(x):
            return linear(x, self.weight, self.bias)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, x.size(0))
        return torch.ops.mkldnn._linear_pointwise(_whole(x), self._packed, self.bias, "none", [], "")

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None}  # oneDNN's tensors cannot be copied
