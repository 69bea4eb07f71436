"""Upsample, pad, filter, downsample: StyleGAN's resampling, and its own derivative."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _backend
from ._op import accumulation_dtype, autograd, check_4d, check_device, define, memory_format


def output_size(size: Sequence[int], f: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int]):
    """(height, width) of the result for a map of `size`."""
    (h, w), (fh, fw) = size, f.shape
    return (
        (h * up[1] + padding[2] + padding[3] - fh) // down[1] + 1,
        (w * up[0] + padding[0] + padding[1] - fw) // down[0] + 1,
    )


def reference_forward(x, f, up, down, padding, flip, gain) -> Tensor:
    n, c, h, w = x.shape
    wide = x.to(accumulation_dtype(x))
    if max(up) > 1:
        zeros = F.pad(wide[:, :, :, None, :, None], (0, up[0] - 1, 0, 0, 0, up[1] - 1))
        wide = zeros.reshape(n, c, h * up[1], w * up[0])
    wide = F.pad(wide, list(padding))
    f = f.to(wide.dtype) * gain
    f = f if flip else f.flip([0, 1])
    return F.conv2d(wide, f.expand(c, 1, *f.shape), stride=(down[1], down[0]), groups=c).to(x.dtype)


def _empty(x, f, up, down, padding, *rest) -> Tensor:
    shape = (x.size(0), x.size(1), *output_size(x.shape[2:], f, up, down, padding))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def _upfirdn2d(x, f, up, down, padding, flip, gain):
    layout = inner = memory_format(x)
    backend = _backend.choose("upfirdn2d", "upfirdn2d", x)
    if backend == "cpu":
        inner = _long_runs(x, up)
    if backend == "reference" or inner is None or x.numel() == 0:
        return reference_forward(x, f, up, down, padding, flip, gain).contiguous(memory_format=layout)
    x, f = x.contiguous(memory_format=inner), f.float().contiguous()
    y = _empty(x, f, up, down, padding).contiguous(memory_format=inner)
    _backend.kernel(backend, "upfirdn2d", "upfirdn2d")(x, f, list(up), list(down), list(padding), flip, gain, y)
    return y.contiguous(memory_format=layout)


def _long_runs(x: Tensor, up: Sequence[int]) -> torch.memory_format | None:
    """The layout in which the CPU kernel has most to do at a time: rows of few channels or of many pixels, else pixels.

    None where rows are too short for the one and maps too large to be turned into the other: a convolution is faster.
    """
    if memory_format(x) is torch.channels_last:
        return torch.contiguous_format if x.size(1) < 8 else torch.channels_last
    if x.size(1) < 16 or x.size(3) > 32:
        return torch.contiguous_format
    if x.size(3) <= 4:
        return torch.channels_last
    return None if up[0] == 1 or x.size(3) <= 8 else torch.contiguous_format


def _setup(ctx, inputs, output) -> None:
    x, f, ctx.up, ctx.down, ctx.padding, ctx.flip, ctx.gain = inputs
    ctx.size, ctx.output = x.shape[2:], output.shape[2:]
    ctx.save_for_backward(f)


def _backward(ctx, dy):
    """The transposed filter: up and down exchanged, taps in the other order, padding to the size of x."""
    (f,) = ctx.saved_tensors
    (h, w), (oh, ow), (fh, fw), (left, _, top, _) = ctx.size, ctx.output, f.shape, ctx.padding
    padding = [fw - left - 1, w * ctx.up[0] - ow * ctx.down[0] + left - ctx.up[0] + 1]
    padding += [fh - top - 1, h * ctx.up[1] - oh * ctx.down[1] + top - ctx.up[1] + 1]
    dx = torch.ops.i2ifast.upfirdn2d(dy, f, ctx.down, ctx.up, padding, not ctx.flip, ctx.gain)
    return dx, *[None] * 6


define(
    "upfirdn2d",
    "(Tensor x, Tensor f, SymInt[] up, SymInt[] down, SymInt[] padding, bool flip, float gain) -> Tensor",
    _upfirdn2d,
    _empty,
)
autograd("upfirdn2d", _setup, _backward)


def _pair(name: str, factor: int | Sequence[int]) -> list[int]:
    pair = [factor] * 2 if isinstance(factor, int) else list(factor)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name}={factor}: expected a number of at least 1, or one for x and one for y")
    return pair


def upfirdn2d(
    x: Tensor,
    f: Tensor,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """y = every down-th pixel of convolve(pad(x with up - 1 zeros behind every pixel), f * gain)

    x [N, C, H, W]; f [k] (then the filter is f f^T) or [fh, fw], constant; factors for both axes, or (x, y); padding
    for all sides, or (x, y), or (left, right, top, bottom), negative to crop. `flip_filter` correlates instead of
    convolving. y [N, C, H', W'], H' = (H up + top + bottom - fh) // down + 1. Linear in x, and its own derivative with
    up and down exchanged, so differentiable to any order. Raises ValueError for sizes that leave no pixel.
    """
    check_4d("x", x)
    check_device(x, f=f)
    if f.dim() not in (1, 2) or f.numel() == 0 or f.requires_grad:
        raise ValueError(f"f has shape {list(f.shape)}: expected a constant filter [k] or [fh, fw]")
    f = f[:, None] * f if f.dim() == 1 else f
    up, down = _pair("up", up), _pair("down", down)
    sides = [padding] * 4 if isinstance(padding, int) else list(padding)
    sides = [sides[0], sides[0], sides[1], sides[1]] if len(sides) == 2 else sides
    if len(sides) != 4:
        raise ValueError(f"padding={padding}: expected a number, (x, y) or (left, right, top, bottom)")
    if min(output_size(x.shape[2:], f, up, down, sides)) < 1:
        raise ValueError(
            f"x of {x.size(2)}x{x.size(3)} pixels, padded by {sides}: smaller than the filter {list(f.shape)}"
        )
    return torch.ops.i2ifast.upfirdn2d(x, f, up, down, sides, flip_filter, float(gain))
