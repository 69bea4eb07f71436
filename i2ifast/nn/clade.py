"""Class-adaptive normalisation (CLADE): Tan et al., Efficient Semantic Image Synthesis via Class-Adaptive
Normalization, TPAMI 2021."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..labels import LabelPlan
from ..ops import no_statistics
from ..ops._op import activate, slope_of
from .bake import PackedConv2d
from .conv import Conv2d
from .label_conv import plan_of, resized
from .spade import Layer, ResnetBlock, Table, apply, modulated, modulated_twice, norm_of, upsampled


def class_table(
    weight: Tensor, bias: Tensor, seg: Tensor | LabelPlan, size: tuple[int, int], scales: Tensor | None = None
) -> Table:
    """(gamma, beta) = (weight[k] - 1, bias[k]), k being the class of the pixel of seg resized to `size`."""
    classes, plan = weight.size(0), plan_of(seg)
    channels = seg.size(1) if plan is None else plan.num_channels
    if channels < classes:
        raise ValueError(f"segmap has {channels} channels, fewer than the {classes} classes of the layer")
    rows = torch.cat([weight - 1, bias], 1)
    if plan is None:
        return Table(rows, resized(seg[:, :classes], size).argmax(1).int(), None, scales)
    windows = plan.windows(size, 1)  # of one pixel, whose symbol is the only member
    of_symbols = plan.values[:, :classes].argmax(1)
    rows = F.embedding(of_symbols[windows.bags.index.long()], rows)
    return Table(rows, windows.patches, windows.segments if rows.is_cuda else None, scales)


class ClassAffine(nn.Module):
    """y = x * weight[k] + bias[k], k being the class of the pixel: the largest channel of the label map, the first of
    equal ones.

    With `add_dist`, weight and bias are each multiplied by 1 + a 1x1 convolution of `dist` [N, 2, H', W'], how far the
    pixel lies from the centre of its object (`labels.centre_offsets`). Maps are resized to x by nearest. No gradient
    goes to the label map.
    """

    def __init__(self, label_nc: int, affine_nc: int, add_dist: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(label_nc, affine_nc))
        self.bias = nn.Parameter(torch.empty(label_nc, affine_nc))
        self.add_dist = add_dist
        if add_dist:
            self.dist_conv_w = nn.Conv2d(2, 1, 1)
            self.dist_conv_b = nn.Conv2d(2, 1, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        nn.init.uniform_(self.weight)

    def scales(self, dist: Tensor | None, size: tuple[int, int]) -> Tensor | None:
        """[N, 2, h, w]: what weight and bias are multiplied by at each pixel; None without `add_dist`."""
        if not self.add_dist:
            return None
        if dist is None:
            raise ValueError("dist is None: a layer with add_dist takes the offsets of pixels from their objects")
        weight = torch.cat([self.dist_conv_w.weight, self.dist_conv_b.weight])
        bias = torch.cat([self.dist_conv_w.bias, self.dist_conv_b.bias])
        return F.conv2d(resized(dist, size), weight, 1 + bias)

    def table(self, dist: Tensor | None, seg: Tensor | LabelPlan, size: tuple[int, int]) -> Table:
        """(gamma, beta) = (weight - 1, bias) for seg and dist resized to `size`."""
        return class_table(self.weight, self.bias, seg, size, self.scales(dist, size))

    def forward(self, x: Tensor, seg: Tensor | LabelPlan, dist: Tensor | None = None) -> Tensor:
        return apply(x, self.table(dist, seg, tuple(x.shape[2:])), no_statistics(x))


class SPADELight(nn.Module):
    """y = norm(x) * weight[k] + bias[k], k being the class of the pixel: see ClassAffine.

    Drop-in for the original: `config_text` as SPADE's, norm_nc channels of x, label_nc classes; the same state_dict
    keys and numbers. Unless `no_instance`, the last channel of the label map are the edges of instances, and y has one
    channel more, inst_conv(edges). `seg` is a dense map or a LabelPlan, `dist` as ClassAffine takes it.
    """

    def __init__(
        self, config_text: str, norm_nc: int, label_nc: int, no_instance: bool = True, add_dist: bool = False
    ) -> None:
        super().__init__()
        self.param_free_norm, self.synchronise, _ = norm_of(config_text, norm_nc)
        self.class_specified_affine = ClassAffine(label_nc, norm_nc, add_dist)
        self.inst_conv = None if no_instance else nn.Conv2d(1, 1, 1)

    def layer(self, dist: Tensor | None) -> Layer:
        return Layer(self.param_free_norm, partial(self.class_specified_affine.table, dist), self.synchronise)

    def edges(self, seg: Tensor | LabelPlan, size: tuple[int, int], act: str | float = "none") -> tuple[Tensor, ...]:
        """The channel behind those of x and its activation, [N, 1, h, w]; () without instances."""
        if self.inst_conv is None:
            return ()
        plan = plan_of(seg)
        if plan is None:
            edges = resized(seg[:, -1:], size)
        else:
            windows = plan.windows(size, 1)
            edges = plan.values[windows.bags.index.long(), -1][windows.patches.long()][:, None]
        return (activate(self.inst_conv(edges.to(self.inst_conv.weight.dtype)), slope_of(act)),)

    def forward(
        self,
        x: Tensor,
        seg: Tensor | LabelPlan,
        dist: Tensor | None = None,
        act: str | float = "none",
        upsample: bool = False,
    ) -> Tensor:
        """x [N, C, H, W] -> act(...) of the same size, or x2 with `upsample`, which first upsamples x by nearest."""
        y = modulated(x, seg, self.layer(dist), act, upsample)
        edges = self.edges(seg, tuple(y.shape[2:]), act)
        return torch.cat([y, *edges], 1) if edges else y


class EdgeConv2d(Conv2d):
    """Convolution of x and, as its last input channel, of edges [N, 1, H, W], without ever joining the two.

    The channels of x alone come in the multiples that the kernels of convolutions take.
    """

    _baked: PackedConv2d | None = None

    def bake(self) -> None:
        """Lay the weight for x out once, for inference: later changes of the parameters have no effect."""
        with_bias = self.bias is not None
        of_x = Conv2d(self.in_channels - 1, self.out_channels, self.kernel_size, padding=self.padding, bias=with_bias)
        of_x.weight, of_x.bias = nn.Parameter(self.weight[:, :-1].clone()), self.bias
        self._baked = PackedConv2d(of_x) if PackedConv2d.applies(of_x) else None

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        of_x, of_edges = self.weight.split([self.in_channels - 1, 1], 1)
        y = self._conv_forward(x, of_x, self.bias) if self._baked is None else self._baked(x)
        of_edges = F.conv2d(edges.to(x.dtype), of_edges, None, padding=self.padding)
        return y + of_edges if torch.is_grad_enabled() else y.add_(of_edges)


class CLADEResnetBlock(ResnetBlock):
    """SPADEResnetBlock with SPADELight layers.

    Drop-in for the original: `norm_G` is a SPADE config text, with 'spectral' before it for spectral norm on the
    convolutions.
    """

    def __init__(
        self, fin: int, fout: int, norm_G: str, label_nc: int, no_instance: bool = True, add_dist: bool = False
    ) -> None:
        def conv(channels: int, *args: int, **options: Any) -> nn.Conv2d:
            return Conv2d(channels, *args, **options) if no_instance else EdgeConv2d(channels + 1, *args, **options)

        config = norm_G.replace("spectral", "")
        layer = partial(SPADELight, config, label_nc=label_nc, no_instance=no_instance, add_dist=add_dist)
        super().__init__(fin, min(fin, fout), fout, conv, layer, "spectral" in norm_G)

    def forward(self, x: Tensor, seg: Tensor | LabelPlan, dist: Tensor | None = None, upsample: bool = False) -> Tensor:
        """x [N, fin, H, W] -> [N, fout, H, W], both x2 with `upsample`, which first upsamples x by nearest."""
        size = tuple(side * (2 if upsample else 1) for side in x.shape[2:])
        if self.learned_shortcut:
            h, shortcut = modulated_twice(x, seg, self.norm_0.layer(dist), self.norm_s.layer(dist), 0.2, upsample)
            shortcut = self.conv_s(shortcut, *self.norm_s.edges(seg, size))
        else:
            h = modulated(x, seg, self.norm_0.layer(dist), 0.2, upsample)
            shortcut = upsampled(x) if upsample else x
        h = self.conv_0(h, *self.norm_0.edges(seg, size, 0.2))
        h = modulated(h, seg, self.norm_1.layer(dist), 0.2, False)
        h = self.conv_1(h, *self.norm_1.edges(seg, size, 0.2))
        return h + shortcut if torch.is_grad_enabled() else h.add_(shortcut)
