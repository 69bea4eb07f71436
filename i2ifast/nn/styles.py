"""Styles of regions: vectors per sample and region, made from images, and what they add to a modulation (SEAN)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..labels import LabelPlan, Level
from ..ops import PackedLinear, linear
from .label_conv import resized, sum_windows


def region_masks(seg: Tensor) -> Tensor:
    """1 where a channel of seg [N, R, ...] is the last one that is not zero, else 0: of no channel where all are."""
    present = seg.detach() != 0
    later = present.flip(1).cumsum(1).flip(1)
    return (present & (later == 1)).to(seg.dtype)


def region_means(x: Tensor, seg: Tensor | LabelPlan) -> Tensor:
    """Mean of x [N, C, H, W] over the pixels of every region: [N, R, C], zeros for regions without pixels.

    Region r is where channel r of seg, resized to x by nearest, is not zero. One product with the masks of all regions.
    """
    size = (x.size(2), x.size(3))
    seg = seg.dense(size) if isinstance(seg, LabelPlan) else resized(seg.detach(), size)
    masks = (seg != 0).flatten(2).to(x.dtype)
    return torch.bmm(masks, x.flatten(2).transpose(1, 2)) / masks.sum(2, keepdim=True).clamp(min=1)


class StyleModulator:
    """(gamma, beta) = share * conv(relu(fc_r(style of r))), r the region at a pixel, each of the two with its own 3x3
    convolution and share.

    `kernel` is that of the label windows it is computed on. With `fixed`, for inference, weights are laid out once.
    """

    def __init__(
        self, fc: Sequence[nn.Linear], convs: Sequence[nn.Conv2d], shares: Sequence[Tensor], kernel: int, fixed: bool
    ) -> None:
        self.fc, self.convs, self.shares = fc, convs, shares
        self.border = kernel // 2 - 1  # taps that a window has around 3x3
        self.products = [self._product(conv, fixed) for conv in self.convs]
        self.stacked: tuple[Tensor, Tensor] | None = None
        if fixed:
            self.stacked = torch.stack([fc.weight.t() for fc in self.fc]), torch.stack([fc.bias for fc in self.fc])

    @staticmethod
    def _product(conv: nn.Conv2d, fixed: bool) -> Callable[[Tensor], Tensor]:
        # Outputs first, taps last: no copy of a channels_last weight, which is far larger than its few products.
        matrix = conv.weight.permute(0, 2, 3, 1).reshape(-1, conv.in_channels)
        return PackedLinear(matrix, None) if fixed else lambda x: linear(x, matrix)

    def hidden(self, styles: Tensor) -> Tensor:
        """relu(fc_r(styles[:, r])): [N, R, S]."""
        if styles.size(1) != len(self.fc):
            raise ValueError(f"styles of {styles.size(1)} regions, expected {len(self.fc)}")
        if self.stacked is not None:
            weight, bias = self.stacked
            return F.relu(torch.baddbmm(bias[:, None], styles.transpose(0, 1), weight)).transpose(0, 1)
        each = [fc(style) for fc, style in zip(self.fc, styles.unbind(1), strict=True)]
        return F.relu(torch.stack(each, 1))

    def rows(self, styles: Tensor, plan: LabelPlan, level: Level) -> Tensor:
        """[D, 2C], for the distinct windows of labels (level.hidden) of a plan that keeps samples apart."""
        masks = region_masks(plan.values.to(styles.dtype)).view(len(styles), -1, len(self.fc))
        shown = torch.bmm(masks, self.hidden(styles)).flatten(0, 1).to(self.convs[0].weight.dtype)  # [N * symbols, S]
        taps = [product(shown) * share for product, share in zip(self.products, self.shares, strict=True)]
        taps = torch.stack(taps, 1).view(len(shown), -1, 3, 3)  # [N * symbols, 2C, 3, 3]
        taps = F.pad(taps, [self.border] * 4).permute(0, 2, 3, 1).flatten(0, 2)
        bias = torch.cat([conv.bias * share for conv, share in zip(self.convs, self.shares, strict=True)])
        return sum_windows(taps, level.hidden) + bias

    def map(self, styles: Tensor, seg: Tensor) -> Tensor:
        """[N, 2C, H, W], for any seg [N, R, H, W]."""
        masks = region_masks(seg).flatten(2).transpose(1, 2)
        pixels = torch.bmm(masks.to(styles.dtype), self.hidden(styles))
        pixels = pixels.transpose(1, 2).unflatten(2, seg.shape[2:])
        return torch.cat([conv(pixels) * a for conv, a in zip(self.convs, self.shares, strict=True)], 1)
