"""Nearest x2 upsampling and the convolution behind it, as one convolution of the small map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _backend
from ..ops import conv_transpose2d
from ..ops._winograd import fast
from ..ops.conv3x3 import PADDINGS, PackedConv3x3, conv3x3
from .downsample_conv import widened

WORTH = 1e8  # products of the large convolution from which on the small one, with its copies, takes less time
# Which taps of a line of three make the four of a transposed convolution; and which of five meet the pixel before, the
# same one and the next of the small map, for even and for odd pixels of the large one.
DOUBLED = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))
QUARTERED = (
    ((1, 1, 0, 0, 0), (0, 0, 1, 1, 0), (0, 0, 0, 0, 1)),
    ((1, 0, 0, 0, 0), (0, 1, 1, 0, 0), (0, 0, 0, 1, 1)),
)


def small_weight(weight: Tensor) -> Tensor:
    """weight [O, C, 5, 5] as [4 O, C, 3, 3], for the four pixels that one of the small map becomes, row by row."""
    lines = torch.tensor(QUARTERED, dtype=weight.dtype, device=weight.device)
    both = torch.einsum("aik,bjl->abijkl", lines, lines).reshape(36, 25)
    four = both @ weight.permute(0, 2, 3, 1).flatten(1, 2)  # [O, 36, C]
    return four.unflatten(1, (4, 3, 3)).transpose(0, 1).flatten(0, 1).permute(0, 3, 1, 2)


def _spread(z: Tensor) -> Tensor:
    """[N, 4 O, H, W] to [N, O, 2 H, 2 W]."""
    n, _, h, w = z.shape
    cells = z.unflatten(1, (2, 2, -1))  # [N, row, column, O, H, W]
    if z.is_contiguous():
        return cells.permute(0, 3, 4, 1, 5, 2).reshape(n, -1, 2 * h, 2 * w)
    return cells.permute(0, 4, 1, 5, 2, 3).reshape(n, 2 * h, 2 * w, -1).permute(0, 3, 1, 2)


def _reflect_rows(y: Tensor, x: Tensor, weight: Tensor, corners: bool) -> None:
    """Turn the first and last row of y, made by replication of x, into those of reflection of the upsampled x.

    Two upsampled pixels of padding differ in the outer one only: it shows the second row of x instead of the first.
    """
    height = x.size(2)
    for line, second, out, tap in ((0, 1, 0, 0), (height - 1, height - 2, -1, 4)):
        replicated = F.pad(x[:, :, line, None], (1, 1, 0, 0), "replicate").repeat_interleave(2, 3)
        reflected = F.pad(x[:, :, second, None].repeat_interleave(2, 3), (2, 2, 0, 0), "reflect")
        difference = reflected - replicated
        if not corners:
            difference = F.pad(difference[..., 1:-1], (1, 1))
        y[:, :, out] += F.conv2d(difference, weight[:, :, tap, None])[:, :, 0]


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Whether the small convolution is the faster: measured on the CPU.

    Autocast is torch's to handle.
    """
    if not _backend.fast() or x.device.type != "cpu" or x.dtype is not weight.dtype or torch.is_autocast_enabled("cpu"):
        return False
    saves = weight.size(-1) == 5 or fast(x, x.size(1), 4 * weight.size(0))
    return saves and 4 * x[:, 0].numel() * weight.numel() >= WORTH


def upsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding_mode: str = "zeros") -> Tensor:
    """conv2d of x upsampled x2 by nearest and padded to keep its size.

    x [N, C, H, W], weight [O, C, k, k] with k 3 or 5, bias [O] -> [N, O, 2 H, 2 W]; padding_mode 'zeros', 'replicate'
    or 'reflect'. Exact up to summation order, at borders too. Of 36 (100 for k = 5) products for a pixel of x and a
    pair of channels 16 (36) are left, 7 (16) as `conv_transpose2d` (`conv3x3`) computes them.
    """
    kernel = weight.size(-1)
    if kernel not in (3, 5) or weight.size(-2) != kernel:
        raise ValueError(f"weight has shape {list(weight.shape)}, expected [O, C, 3, 3] or [O, C, 5, 5]")
    if padding_mode not in PADDINGS:
        raise ValueError(f"padding_mode {padding_mode!r}: expected one of {', '.join(PADDINGS)}")
    if not _pays(x, weight):
        pad, mode = (kernel // 2,) * 4, "constant" if padding_mode == "zeros" else padding_mode
        return F.conv2d(F.pad(F.interpolate(x, scale_factor=2), pad, mode), weight, bias)
    if kernel == 3:
        return _transposed(x, widened(weight, DOUBLED), bias, padding_mode)
    return _enlarged(conv3x3(x, *_small(weight, bias, padding_mode)), x, weight, padding_mode)


def _transposed(x: Tensor, weight: Tensor, bias: Tensor | None, padding_mode: str) -> Tensor:
    """With weight [O, C, 4, 4]. One upsampled pixel of reflection is the outermost one repeated."""
    if padding_mode == "zeros":
        return conv_transpose2d(x, weight.transpose(0, 1), bias)
    return conv_transpose2d(F.pad(x, (1, 1, 1, 1), "replicate"), weight.transpose(0, 1), bias, 3)


def _small(weight: Tensor, bias: Tensor | None, padding_mode: str) -> tuple[Tensor, Tensor | None, str]:
    """Weight, bias and padding of the convolution of the small map, for 5x5 kernels."""
    padding = "zeros" if padding_mode == "zeros" else "replicate"
    return small_weight(weight), None if bias is None else bias.repeat(4), padding


def _enlarged(z: Tensor, x: Tensor, weight: Tensor, padding_mode: str) -> Tensor:
    """What the large convolution of x upsampled gives, of z, which the small one of x gave."""
    y = _spread(z)
    if padding_mode == "reflect":
        _reflect_rows(y, x, weight, corners=True)
        _reflect_rows(y.transpose(2, 3), x.transpose(2, 3), weight.transpose(2, 3), corners=False)
    return y


class UpsampleConv2d(nn.Conv2d):
    """An nn.Upsample(scale_factor=2) and the nn.Conv2d behind it, by `upsample_conv2d`; parameters are the Conv2d's."""

    _baked: Tensor | PackedConv3x3 | None = None

    def bake(self) -> None:
        """Make the small weight once, for inference: later changes of the parameters have no effect."""
        if self.weight.size(-1) == 3:
            self._baked = widened(self.weight, DOUBLED)
        else:
            self._baked = PackedConv3x3(*_small(self.weight, self.bias, self.padding_mode))

    def forward(self, x: Tensor) -> Tensor:
        if self._baked is None or not _pays(x, self.weight):
            return upsample_conv2d(x, self.weight, self.bias, self.padding_mode)
        if isinstance(self._baked, Tensor):
            return _transposed(x, self._baked, self.bias, self.padding_mode)
        return _enlarged(self._baked(x), x, self.weight, self.padding_mode)
