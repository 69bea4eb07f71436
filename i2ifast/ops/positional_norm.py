"""Positional normalisation: statistics of every pixel over its channels, and modulation by dense maps."""

import torch
from torch import Tensor

from .. import _backend
from ._modulation import activation_gradient
from ._op import (
    accumulation_dtype,
    activate,
    autograd,
    check_4d,
    check_device,
    check_shape,
    define,
    dense_like,
    memory_format,
    second_order,
    slope_of,
)


def _normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """xhat and rstd [N, 1, H, W]; the variance is the unbiased one, of one channel zero."""
    wide = x.to(accumulation_dtype(x))
    var, mean = torch.var_mean(wide, 1, correction=min(1, x.size(1) - 1), keepdim=True)
    rstd = (var + eps).rsqrt()
    return (wide - mean) * rstd, rstd


def _maps(gamma_beta: Tensor | None, xhat: Tensor) -> tuple[Tensor, Tensor]:
    """1 + gamma and beta."""
    if gamma_beta is None:
        return xhat.new_ones(()), xhat.new_zeros(())
    gamma, beta = gamma_beta.to(xhat.dtype).chunk(2, 1)
    return 1 + gamma, beta


def reference_forward(x: Tensor, gamma_beta: Tensor | None, eps: float, slope: float) -> Tensor:
    xhat, _ = _normalised(x, eps)
    scale, beta = _maps(gamma_beta, xhat)
    return activate(xhat * scale + beta, slope).to(x.dtype)


def reference_backward(
    dy: Tensor, x: Tensor, gamma_beta: Tensor | None, eps: float, slope: float
) -> tuple[Tensor, Tensor]:
    """dx, and d_gamma_beta [N, 2C, H, W], empty without maps."""
    xhat, rstd = _normalised(x, eps)
    scale, beta = _maps(gamma_beta, xhat)
    dz = activation_gradient(dy.to(xhat.dtype), xhat * scale + beta, slope)
    g = dz * scale
    along = (g * xhat).sum(1, keepdim=True) / max(1, x.size(1) - 1)
    dx = rstd * (g - g.mean(1, keepdim=True) - xhat * along)
    d_by = x.new_empty(0) if gamma_beta is None else torch.cat([dz * xhat, dz], 1).to(x.dtype)
    return dx.to(x.dtype), d_by


def _forward(x, gamma_beta, eps, slope):
    layout = memory_format(x)
    backend = _backend.choose("positional_norm", "positional_norm", x)
    if backend == "reference" or x.numel() == 0:
        return reference_forward(x, gamma_beta, eps, slope).contiguous(memory_format=layout)
    y, x = dense_like(x), x.contiguous(memory_format=layout)
    by = gamma_beta if gamma_beta is None else gamma_beta.contiguous(memory_format=layout)
    _backend.kernel(backend, "positional_norm", "positional_norm")(x, by, eps, slope, y)
    return y


def _backward(dy, x, gamma_beta, eps, slope):
    layout = memory_format(x)
    backend = _backend.choose("positional_norm", "positional_norm_backward", x)
    if backend == "reference" or x.numel() == 0 or x.size(1) == 1:  # rounding is all that one channel has to scale up
        dx, d_by = reference_backward(dy, x, gamma_beta, eps, slope)
        return dx.contiguous(memory_format=layout), d_by if gamma_beta is None else d_by.contiguous(
            memory_format=layout
        )
    dx, d_by = _backward_fake(dy, x, gamma_beta)
    dy, x = dy.contiguous(memory_format=layout), x.contiguous(memory_format=layout)
    by = gamma_beta if gamma_beta is None else gamma_beta.contiguous(memory_format=layout)
    kernel = _backend.kernel(backend, "positional_norm", "positional_norm_backward")
    kernel(dy, x, by, eps, slope, dx, d_by)
    return dx, d_by


def _backward_fake(dy, x, gamma_beta, *rest):
    if gamma_beta is None:
        return dense_like(x), x.new_empty(0)
    return dense_like(x), torch.empty_like(gamma_beta, memory_format=memory_format(x))


def _gradient(dy, x, gamma_beta, eps, slope):
    inputs = [x] if gamma_beta is None else [x, gamma_beta]
    x, *by = inputs = [t if t.requires_grad else t.detach().requires_grad_() for t in inputs]
    y = reference_forward(x, by[0] if by else None, eps, slope)
    found = torch.autograd.grad(y, inputs, dy.to(y.dtype), create_graph=True)
    return found if by else (*found, None)


def _setup(ctx, inputs, output) -> None:
    x, gamma_beta, *ctx.rest = inputs
    ctx.save_for_backward(x, gamma_beta)


def _autograd(ctx, dy):
    x, gamma_beta = ctx.saved_tensors
    dx, d_by = torch.ops.i2ifast.positional_norm_backward(dy, x, gamma_beta, *ctx.rest)
    return dx, None if gamma_beta is None else d_by, None, None


_ARGS = "Tensor x, Tensor? gamma_beta, float eps, float slope"
define("positional_norm", f"({_ARGS}) -> Tensor", _forward, lambda x, *rest: dense_like(x))
define("positional_norm_backward", f"(Tensor dy, {_ARGS}) -> (Tensor, Tensor)", _backward, _backward_fake)
autograd("positional_norm", _setup, _autograd)
second_order("positional_norm_backward", _gradient)


def positional_norm(
    x: Tensor, gamma_beta: Tensor | None = None, act: str | float = "none", eps: float = 1e-5
) -> Tensor:
    """y = act((x - mean) / sqrt(var + eps) * (1 + gamma) + beta), mean and unbiased var over the channels of a pixel.

    x [N, C, H, W]; gamma_beta [N, 2C, H, W], gamma first, or None: plain normalisation. y like x. Raises ValueError for
    shapes or devices that do not fit.
    """
    check_4d("x", x)
    n, c, h, w = x.shape
    if gamma_beta is not None:
        check_shape("gamma_beta", gamma_beta, (n, 2 * c, h, w))
        check_device(x, gamma_beta=gamma_beta)
        gamma_beta = gamma_beta.to(x.dtype)
    return torch.ops.i2ifast.positional_norm(x, gamma_beta, eps, slope_of(act))
