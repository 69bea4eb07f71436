"""Spatially-adaptive normalisation (SPADE): Park et al., Semantic Image Synthesis with SPADE, CVPR 2019."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..labels import LabelPlan, Windows
from ..ops import (
    PackedConv3x3,
    PackedLinear,
    Segments,
    Statistics,
    conv3x3,
    fixed_statistics,
    linear,
    modulate,
    modulate_table,
)
from ._norm import statistics_of
from .conv import Conv2d
from .label_conv import COLUMNS, centred, expand, plan_of, resized, sum_windows, table_pays, tap_matrix, tap_table
from .spectral import spectral_norm


class Table(NamedTuple):
    """(gamma, beta) as rows of a table and the index of the row at every pixel."""

    rows: Tensor  # [D, 2C]
    patches: Tensor  # [N, H, W]
    segments: Segments | None
    scales: Tensor | None = None  # [N, 2, H, W], of 1 + gamma and of beta


class Modulator:
    """(gamma, beta) = conv(relu(conv(seg))), for whatever holds the three convolutions.

    Gamma and beta are one convolution of 2C outputs. With `fixed`, for inference, weights are laid out once.
    """

    def __init__(self, shared: nn.Conv2d, gamma: nn.Conv2d, beta: nn.Conv2d, fixed: bool = False) -> None:
        self.shared, self.padding, self.kernel = shared, gamma.padding, shared.kernel_size[0]
        self.weight = torch.cat([gamma.weight, beta.weight])  # [2C, hidden, k, k]
        self.bias = torch.cat([gamma.bias, beta.bias])
        self.first = PackedLinear(*self._first()) if fixed else lambda x: linear(x, *self._first())
        self.packed = [PackedLinear(*taps) for taps in self._taps()] if fixed else None
        self.dense = PackedConv3x3(self.weight, self.bias) if fixed and self.kernel == 3 else self._dense

    def _first(self) -> tuple[Tensor, Tensor | None]:
        return tap_matrix(self.shared.weight), None

    def _taps(self) -> Iterator[tuple[Tensor, Tensor]]:
        for weight, bias in zip(self.weight.split(COLUMNS), self.bias.split(COLUMNS), strict=True):
            yield tap_matrix(weight), centred(bias, self.kernel**2)

    def _dense(self, hidden: Tensor) -> Tensor:
        if self.kernel == 3 and not torch.is_autocast_enabled(hidden.device.type):
            return conv3x3(hidden, self.weight, self.bias)
        return F.conv2d(hidden, self.weight, self.bias, padding=self.padding)

    def __call__(self, seg: Tensor | LabelPlan, size: tuple[int, int], more: Tensor | None = None) -> Table | Tensor:
        """For seg resized to `size` by nearest: a table, or a dense map [N, 2C, H, W] where that is cheaper.

        `more` is added: rows [D, 2C], one for each distinct window of the plan of seg; a map where seg has none.
        """
        plan = plan_of(seg)
        if plan is None:
            shared = self.shared
            hidden = F.conv2d(resized(seg, size), shared.weight, shared.bias, 1, shared.padding, 1, shared.groups)
            dense = self.dense(F.relu(hidden))
            return dense if more is None else dense + more
        level = plan.level(size, self.kernel)
        rows = self.first(plan.values.to(self.shared.weight.dtype)).view(-1, self.shared.out_channels)
        hidden = F.relu(sum_windows(rows, level.hidden) + self.shared.bias)
        if not table_pays(level):
            dense = self.dense(expand(hidden, level.hidden))
            return dense if more is None else dense + expand(more, level.hidden)
        rows = self.rows(hidden, level.table, more)
        return Table(rows, level.table.patches, level.table.segments if rows.is_cuda else None)

    def rows(self, hidden: Tensor, windows: Windows, more: Tensor | None = None) -> Tensor:
        """The table [D, 2C] of the distinct windows of hidden rows."""
        products = self.packed or (partial(linear, weight=weight, bias=bias) for weight, bias in self._taps())
        return tap_table(hidden, products, self.bias.numel(), windows, more)


def apply(
    x: Tensor, by: Table | Tensor, statistics: Statistics, act: str | float = "none", upsample: bool = False
) -> Tensor:
    """act(norm(x) * (1 + gamma) + beta) with (gamma, beta) as a Modulator gives them."""
    if isinstance(by, Table):
        rows, patches, segments, scales = by
        return modulate_table(x, rows, patches, statistics, act, None, upsample, segments, scales)
    return modulate(upsampled(x) if upsample else x, by, None, statistics, act)


def upsampled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _fixed(norm: nn.Module) -> Statistics:
    return fixed_statistics(norm.running_mean, norm.running_var, norm.eps)


def rebase(table: Tensor, before: Statistics, after: Statistics) -> Tensor:
    """The table that does to x normalised by `after` what `table` does to x normalised by `before` (constants, G = 1).

    (x - m) * r * (1 + gamma) + beta = (x - m') * r' * (1 + gamma') + beta' with 1 + gamma' = r / r' * (1 + gamma) and
    beta' = beta + (m' - m) * r * (1 + gamma).
    """
    scale, beta = (1 + table[:, : table.size(1) // 2]) * before.rstd, table[:, table.size(1) // 2 :]
    return torch.cat([scale / after.rstd - 1, beta + (after.mean - before.mean) * scale], 1)


class Layer(NamedTuple):
    """What a SPADE layer consists of, whichever module holds it."""

    norm: nn.Module
    by: Callable[[Tensor | LabelPlan, tuple[int, int]], Table | Tensor]
    synchronise: bool


def modulated(x: Tensor, seg: Tensor | LabelPlan, layer: Layer, act: str | float, upsample: bool) -> Tensor:
    """What a SPADE layer and the activation behind it make of x, first upsampled x2 by nearest with `upsample`."""
    scale = 2 if upsample else 1
    by = layer.by(seg, (x.size(2) * scale, x.size(3) * scale))
    (statistics,) = statistics_of(x, [layer.norm], scale * scale, layer.synchronise)
    return apply(x, by, statistics, act, upsample)


def modulated_twice(
    x: Tensor, seg: Tensor | LabelPlan, first: Layer, second: Layer, act: str | float, upsample: bool
) -> tuple[Tensor, Tensor]:
    """The first layer with the activation, and the second without, of the same x: one pass, two outputs."""
    scale = 2 if upsample else 1
    size = (x.size(2) * scale, x.size(3) * scale)
    by, by_second = first.by(seg, size), second.by(seg, size)
    norms = [first.norm, second.norm]
    statistics, others = statistics_of(x, norms, scale * scale, first.synchronise)
    same = norms[0] is norms[1] or others is statistics
    if isinstance(by, Table) and (same or by.scales is None):
        rows = torch.cat([by.rows, by_second.rows if same else rebase(by_second.rows, others, statistics)], 1)
        scales = None if by.scales is None else torch.cat([by.scales, by_second.scales], 1)
        return modulate_table(x, rows, by.patches, statistics, act, "none", upsample, by.segments, scales)
    if isinstance(by, Table):
        return apply(x, by, statistics, act, upsample), apply(x, by_second, others, "none", upsample)
    x = upsampled(x) if upsample else x
    if statistics.of_x:  # as many synchronisations as in the branch above, which another rank may take
        return modulate(x, by, None, statistics, act, by_second, "none")
    return modulate(x, by, None, statistics, act), modulate(x, by_second, None, others)


def norm_of(config_text: str, norm_nc: int) -> tuple[nn.Module, bool, int]:
    """What a config text means: the norm, whether its statistics are synchronised, and the kernel size."""
    parsed = re.fullmatch(r"spade(batch|syncbatch|instance)(\d+)x\2", config_text)
    if parsed is None or int(parsed[2]) % 2 == 0:
        raise ValueError(f"config_text={config_text!r}: expected spade(batch|syncbatch|instance)KxK with odd K")
    norm = nn.InstanceNorm2d(norm_nc) if parsed[1] == "instance" else nn.BatchNorm2d(norm_nc, affine=False)
    return norm, parsed[1] == "syncbatch", int(parsed[2])


class SPADE(nn.Module):
    """y = norm(x) * (1 + gamma) + beta, (gamma, beta) = conv(relu(conv(segmap))), segmap resized to x by nearest.

    Drop-in for the original: `config_text` is 'spade' + (batch | syncbatch | instance) + k + 'x' + k; norm_nc channels
    of x, label_nc channels of the segmentation map; the same state_dict keys and numbers. `seg` is a dense map [N,
    label_nc, H', W']
    with any values, or a LabelPlan. Label maps take exact tables of their distinct windows, everything else (soft maps,
    maps that require grad, small or noisy ones) dense convolutions: the same result up to summation order.
    Batch statistics are synchronised over all ranks for 'syncbatch' where torch.distributed is initialised.
    """

    def __init__(self, config_text: str, norm_nc: int, label_nc: int, nhidden: int = 128) -> None:
        super().__init__()
        self.param_free_norm, self.synchronise, ks = norm_of(config_text, norm_nc)
        self.mlp_shared = nn.Sequential(Conv2d(label_nc, nhidden, ks, padding=ks // 2), nn.ReLU())
        self.mlp_gamma = Conv2d(nhidden, norm_nc, ks, padding=ks // 2)
        self.mlp_beta = Conv2d(nhidden, norm_nc, ks, padding=ks // 2)
        self.to(memory_format=torch.channels_last)  # taps of the weights are rows then, see tap_matrix
        self._baked: Modulator | None = None

    @property
    def layer(self) -> Layer:
        by = self._baked or Modulator(self.mlp_shared[0], self.mlp_gamma, self.mlp_beta)
        return Layer(self.param_free_norm, by, self.synchronise)

    def bake(self) -> None:
        """Lay the weights out once, for inference: later changes of the parameters have no effect."""
        self._baked = Modulator(self.mlp_shared[0], self.mlp_gamma, self.mlp_beta, fixed=True)

    def forward(self, x: Tensor, seg: Tensor | LabelPlan, act: str | float = "none", upsample: bool = False) -> Tensor:
        """x [N, C, H, W] -> act(...) of the same shape, or x2 with `upsample`, which first upsamples x by nearest."""
        return modulated(x, seg, self.layer, act, upsample)


class ResnetBlock(nn.Module):
    """The parts of a residual block of SPADE-like layers: `conv` and `norm` make its convolutions and layers."""

    def __init__(
        self,
        fin: int,
        fmiddle: int,
        fout: int,
        conv: Callable[..., nn.Conv2d],
        norm: Callable[[int], nn.Module],
        spectral: bool,
    ) -> None:
        super().__init__()
        wrap = spectral_norm if spectral else lambda module: module
        self.learned_shortcut = fin != fout
        self.conv_0 = wrap(conv(fin, fmiddle, 3, padding=1))
        self.conv_1 = wrap(conv(fmiddle, fout, 3, padding=1))
        if self.learned_shortcut:
            self.conv_s = wrap(conv(fin, fout, 1, bias=False))
        self.norm_0 = norm(fin)
        self.norm_1 = norm(fmiddle)
        if self.learned_shortcut:
            self.norm_s = norm(fin)


class ModulatedResnetBlock(ResnetBlock):
    """y = shortcut + conv_1(lrelu(norm_1(conv_0(lrelu(norm_0(x)))))); shortcut = x, or conv_s(norm_s(x))."""

    def forward(self, x: Tensor, seg: Tensor | LabelPlan, upsample: bool = False) -> Tensor:
        """x [N, fin, H, W] -> [N, fout, H, W], both x2 with `upsample`, which first upsamples x by nearest."""
        if self.learned_shortcut:
            h, shortcut = modulated_twice(x, seg, self.norm_0.layer, self.norm_s.layer, 0.2, upsample)
            shortcut = self.conv_s(shortcut)
        else:
            h = self.norm_0(x, seg, 0.2, upsample)
            shortcut = upsampled(x) if upsample else x
        h = self.conv_0(h)
        h = self.conv_1(self.norm_1(h, seg, 0.2))
        return h + shortcut if torch.is_grad_enabled() else h.add_(shortcut)

    def bake(self) -> None:
        """Move the difference between the running statistics of norm_0 and norm_s into the weights of norm_s."""
        if not self.learned_shortcut or isinstance(self.norm_0.param_free_norm, nn.InstanceNorm2d):
            return
        own, other = (_fixed(norm.param_free_norm) for norm in (self.norm_s, self.norm_0))
        scale, shift = (own.rstd / other.rstd)[0], ((other.mean - own.mean) * own.rstd)[0]
        gamma, beta = self.norm_s.mlp_gamma, self.norm_s.mlp_beta
        # See `rebase`, of which this is the derivation applied to what makes the table.
        beta.weight.add_(shift[:, None, None, None] * gamma.weight)
        beta.bias.add_(shift * (1 + gamma.bias))
        gamma.weight.mul_(scale[:, None, None, None])
        gamma.bias.copy_(scale * (1 + gamma.bias) - 1)
        self.norm_s.param_free_norm = self.norm_0.param_free_norm
        self.norm_s.bake()


class SPADEResnetBlock(ModulatedResnetBlock):
    """y = shortcut + conv_1(lrelu(norm_1(conv_0(lrelu(norm_0(x)))))); shortcut = x, or conv_s(norm_s(x)).

    Drop-in for the original: `norm_G` is a SPADE config text, with 'spectral' before it for spectral norm on the
    convolutions.
    """

    def __init__(self, fin: int, fout: int, norm_G: str, semantic_nc: int, nhidden: int = 128) -> None:
        layer = partial(SPADE, norm_G.replace("spectral", ""), label_nc=semantic_nc, nhidden=nhidden)
        super().__init__(fin, min(fin, fout), fout, Conv2d, layer, "spectral" in norm_G)
