"""Nearest x2 upsampling and the convolution behind it, as one convolution of the small map."""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import conv3x3

PADDINGS = ("zeros", "replicate", "reflect")


def _taps(kernel: int) -> Tensor:
    """[2, 3, kernel]: which taps of a line of the kernel meet which pixel of the small map, for even and odd pixels.

    Output pixel 2 i + phase reads the upsampled pixels 2 i + phase + tap - kernel // 2, which repeat pixels of the
    small map, i - 1, i or i + 1.
    """
    taps = torch.zeros(2, 3, kernel)
    for phase, tap in product(range(2), range(kernel)):
        taps[phase, (phase + tap - kernel // 2) // 2 + 1, tap] = 1
    return taps


def small_weight(weight: Tensor) -> Tensor:
    """weight [O, C, k, k] as [4 O, C, 3, 3], for the four pixels that one of the small map becomes, row by row."""
    outputs, channels, kernel, _ = weight.shape
    taps = _taps(kernel).to(weight)
    both = torch.einsum("aik,bjl->klabij", taps, taps).reshape(kernel * kernel, 36)
    four = weight.reshape(-1, kernel * kernel) @ both
    return four.view(outputs, channels, 4, 3, 3).permute(2, 0, 1, 3, 4).reshape(4 * outputs, channels, 3, 3)


def _spread(z: Tensor) -> Tensor:
    """[N, 4 O, H, W] to [N, O, 2 H, 2 W]."""
    n, _, h, w = z.shape
    cells = z.unflatten(1, (2, 2, -1))  # [N, row, column, O, H, W]
    if z.is_contiguous():
        return cells.permute(0, 3, 4, 1, 5, 2).reshape(n, -1, 2 * h, 2 * w)
    return cells.permute(0, 4, 1, 5, 2, 3).reshape(n, 2 * h, 2 * w, -1).permute(0, 3, 1, 2)


def _line(small: Tensor) -> Tensor:
    """A row [N, C, 1, W] of the small map as one of the upsampled and reflected map, [N, C, 1, 2 W + 4]."""
    return F.pad(small.repeat_interleave(2, 3), (2, 2, 0, 0), "reflect")


def _reflect(y: Tensor, x: Tensor, weight: Tensor) -> None:
    """Turn the border of y, made by replication of x, into that of reflection of the upsampled x by two pixels.

    They differ in the outermost line of the padding only, which shows the second pixel of x instead of the first.
    """
    for turn, (image, out, kernel) in enumerate(
        ((x, y, weight), (x.transpose(2, 3), y.transpose(2, 3), weight.transpose(2, 3)))
    ):
        for first, second, line, tap in ((0, 1, 0, 0), (-1, -2, -1, 4)):
            rows = [image.narrow(2, at % image.size(2), 1) for at in (first, second)]
            replicated = F.pad(rows[0], (1, 1, 0, 0), "replicate").repeat_interleave(2, 3)
            difference = _line(rows[1]) - replicated
            if turn:  # the corners are done
                difference = F.pad(difference[..., 1:-1], (1, 1))
            out[:, :, line] += F.conv2d(difference, kernel[:, :, tap, None])[:, :, 0]


def upsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding_mode: str = "zeros") -> Tensor:
    """conv2d of x upsampled x2 by nearest and padded to keep its size.

    x [N, C, H, W], weight [O, C, k, k] with k 3 or 5, bias [O] -> [N, O, 2 H, 2 W]; padding_mode 'zeros', 'replicate'
    or 'reflect'. Exact up to summation order, at borders too. Of 36 (100 for k = 5) products for a pixel of x and a
    pair of channels 36 are left, 16 as `conv3x3` computes them.
    """
    kernel = weight.size(-1)
    if kernel not in (3, 5) or weight.size(-2) != kernel:
        raise ValueError(f"weight has shape {list(weight.shape)}, expected [O, C, 3, 3] or [O, C, 5, 5]")
    if padding_mode not in PADDINGS:
        raise ValueError(f"padding_mode {padding_mode!r}: expected one of {', '.join(PADDINGS)}")
    # A border of one upsampled pixel reflected is that pixel repeated.
    padding = "zeros" if padding_mode == "zeros" else "replicate"
    y = _spread(conv3x3(x, small_weight(weight), None if bias is None else bias.repeat(4), padding))
    if padding_mode == "reflect" and kernel == 5:
        _reflect(y, x, weight)
    return y


class UpsampleConv2d(nn.Conv2d):
    """An nn.Upsample(scale_factor=2) and the nn.Conv2d behind it, by `upsample_conv2d`; parameters are the Conv2d's."""

    def forward(self, x: Tensor) -> Tensor:
        return upsample_conv2d(x, self.weight, self.bias, self.padding_mode)
