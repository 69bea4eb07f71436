"""Cases of StyleGAN's ops: bias and activation, resampling."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ._case import Case, normal

PLAIN = {
    "linear": lambda z: z,
    "lrelu": lambda z: F.leaky_relu(z, 0.2),
    "tanh": torch.tanh,
    "elu": F.elu,
    "softplus": F.softplus,
    "swish": F.silu,
}


def _bias_inputs(shape, g):
    return {"x": normal(g, *shape), "b": normal(g, shape[1])}


def _bias_act(act: str, gain: float, clamp: float | None = None) -> Case:
    def plain(x: Tensor, b: Tensor) -> Tensor:
        y = PLAIN[act](x + b[:, None, None]) * gain
        return y if clamp is None else y.clamp(-clamp, clamp)

    name = f"bias_act-{act}" + ("-clamp" if clamp is not None else "")
    return Case(name, _bias_inputs, lambda x, b: ops.bias_act(x, b, act=act, gain=gain, clamp=clamp), plain)


FIR = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
SKEW = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 1.0], [4.0, 0.0, 2.0]], dtype=torch.float64) / 13


def _upfirdn2d(name: str, f: Tensor, up: int, down: int, padding: tuple[int, ...], gain: float = 1.0) -> Case:
    kernel = f[:, None] * f if f.dim() == 1 else f

    def plain(x: Tensor) -> Tensor:
        """As a user of PyTorch would: a transposed or a strided convolution of every channel alone."""
        c, weight = x.size(1), (gain * kernel.flip([0, 1])).to(x)
        x = F.conv_transpose2d(x, x.new_ones(c, 1, 1, 1), stride=up, output_padding=up - 1, groups=c) if up > 1 else x
        return F.conv2d(F.pad(x, padding), weight.expand(c, 1, *weight.shape), stride=down, groups=c)

    def ours(x: Tensor) -> Tensor:
        return ops.upfirdn2d(x, f.to(x), up, down, padding, gain=gain)

    return Case(f"upfirdn2d-{name}", lambda shape, g: {"x": normal(g, *shape)}, ours, plain)


CASES = [
    _bias_act("lrelu", math.sqrt(2)),
    _bias_act("linear", 1.7, 0.9),
    *[_bias_act(act, 1.0) for act in ("tanh", "elu", "softplus")],
    _bias_act("swish", math.sqrt(2), 0.9),
    _upfirdn2d("blur", FIR, 1, 1, (2, 1, 2, 1)),
    _upfirdn2d("up", FIR, 2, 1, (2, 1, 2, 1), 4.0),
    _upfirdn2d("down", FIR, 1, 2, (2, 2, 2, 2)),
    _upfirdn2d("skew", SKEW, 3, 2, (-1, 3, 4, 2), 0.7),
]
