"""Layers conditioned on label maps or features: densely, at every pixel, on one-hot maps."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.labels import instance_edges
from i2ifast.nn.panoptic import PanopticPlan, panoptic_plan
from i2ifast.nn.sean import Noise, standard_normal
from i2ifast.nn.spade import Layer
from i2ifast.testing.panoptic import unfolded

from .convs import dynamic_conv
from .norms import activated, batch_norm_act, positional_norm

Maps = tuple[Tensor, Tensor]  # what a normalised x is multiplied by, and what is added


def one_hot(
    labels: Tensor,
    num_classes: int,
    edges: Tensor | None = None,
    instances: Tensor | None = None,
    ignore_index: int | None = None,
    layout: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """[N, num_classes (+ 1), H, W]: what published networks take in the place of a label plan."""
    label = labels.long().reshape(len(labels), 1, *labels.shape[-2:])
    edges = instance_edges(instances) if instances is not None else edges
    shape = len(label), num_classes + (edges is not None), *label.shape[2:]
    seg = torch.empty(shape, dtype=dtype, device=label.device, memory_format=layout).zero_()
    if ignore_index is None:
        seg.scatter_(1, label, 1.0)
    else:
        seg.scatter_(1, label.clamp(min=0), (label != ignore_index).to(seg.dtype))
    if edges is not None:
        seg[:, -1:] = edges.reshape(label.shape)
    return seg


def resized(seg: Tensor, size: tuple[int, int]) -> Tensor:
    return seg if tuple(seg.shape[2:]) == tuple(size) else F.interpolate(seg, size=tuple(size))


def convolved(x: Tensor, conv: nn.Conv2d) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def modulated(x: Tensor, seg: Tensor, layer: Layer, act: str | float, upsample: bool) -> Tensor:
    x = F.interpolate(x, scale_factor=2) if upsample else x
    scale, shift = layer.by(seg, tuple(x.shape[2:]))
    return activated(layer.norm(x) * scale + shift, act)


def modulated_twice(
    x: Tensor, seg: Tensor, first: Layer, second: Layer, act: str | float, upsample: bool
) -> tuple[Tensor, Tensor]:
    x = F.interpolate(x, scale_factor=2) if upsample else x
    return modulated(x, seg, first, act, False), modulated(x, seg, second, "none", False)


def spade_maps(self: nn.Module, seg: Tensor, size: tuple[int, int]) -> Maps:
    """SPADE's, and SMIS' by grouped convolutions."""
    hidden = F.relu(convolved(resized(seg, size), self.mlp_shared[0]), inplace=True)
    return 1 + convolved(hidden, self.mlp_gamma), convolved(hidden, self.mlp_beta)


def spade_layer(self: nn.Module) -> Layer:
    return Layer(self.param_free_norm, lambda seg, size: spade_maps(self, seg, size), False)


def spade(self: nn.Module, x: Tensor, seg: Tensor, act: str | float = "none", upsample: bool = False) -> Tensor:
    return modulated(x, seg, spade_layer(self), act, upsample)


def fade_maps(self: nn.Module, features: Tensor, size: tuple[int, int]) -> Maps:
    return 1 + convolved(features, self.mlp_gamma), convolved(features, self.mlp_beta)


def fade(self: nn.Module, x: Tensor, features: Tensor) -> Tensor:
    layer = Layer(self.param_free_norm, lambda features, size: fade_maps(self, features, size), False)
    return modulated(x, features, layer, "none", False)


def clade_layer(self: nn.Module, dist: Tensor | None) -> Layer:
    """Classes by argmax, an embedding of each map."""
    affine = self.class_specified_affine

    def by(seg: Tensor, size: tuple[int, int]) -> Maps:
        classes = resized(seg[:, : len(affine.weight)], size).argmax(1)
        weight, bias = (F.embedding(classes, table).permute(0, 3, 1, 2) for table in (affine.weight, affine.bias))
        if affine.add_dist:
            place = resized(dist, size)
            weight, bias = weight * (1 + affine.dist_conv_w(place)), bias * (1 + affine.dist_conv_b(place))
        return weight, bias

    return Layer(self.param_free_norm, by, False)


def clade(self: nn.Module, x: Tensor, seg: Tensor, dist: Tensor | None = None) -> Tensor:
    return modulated(x, seg, clade_layer(self, dist), "none", False)


def generated_layer(self: nn.Module, weight: Tensor | None) -> Layer:
    """Few-shot vid2vid's, with a weight made for every sample, or one of its own."""

    def generated(x: Tensor, size: tuple[int, int]) -> Maps:
        scale, shift = (weight @ resized(x, size).flatten(2)).unflatten(2, size).chunk(2, 1)
        return 1 + scale, shift

    def own(x: Tensor, size: tuple[int, int]) -> Maps:
        return pixelwise(self, resized(x, size), "")

    return Layer(self.norm, own if weight is None else generated, False)


def pixelwise(layer: nn.Module, x: Tensor, suffix: str) -> Maps:
    scale, shift = (convolved(x, layer.get_submodule(f"mlp_{kind}{suffix}")) for kind in ("gamma", "beta"))
    return 1 + scale, shift


def more_maps(self: nn.Module, x: Tensor, maps: Sequence[Tensor | None], act: str | float) -> Tensor:
    """Few-shot vid2vid's modulations by further maps."""
    for i, each in enumerate(maps, 2):
        if each is not None:
            scale, shift = pixelwise(self, resized(each, x.shape[2:]), str(i))
            x = x * scale + shift
    return x if all(each is None for each in maps) else activated(x, act)


def label_embedder(self: nn.Module, x: Tensor, weights: Sequence[tuple[Tensor, Tensor | None]] = ()) -> list[Tensor]:
    """Few-shot vid2vid's: every level of the way up at its own size."""
    down = [self.conv_first(x)]
    for i in range(self.steps):
        down.append(self.get_submodule(f"down_{i}")(down[-1]))
    up = down[-1:]
    for i in reversed(range(self.steps)):
        x = torch.cat([up[-1], down[i + 1]], 1) if self.unet and i < self.steps - 1 else up[-1]
        if i < self.generated:
            x, (weight, bias) = F.interpolate(x, scale_factor=2), weights[i]
            y = (weight @ x.flatten(2)).unflatten(2, x.shape[2:])
            up.append(F.leaky_relu(y if bias is None else y + bias[..., None, None], 0.2))
        else:
            up.append(self.get_submodule(f"up_{i}")(x))
    return up[::-1]


def edge_conv(self: nn.Conv2d, x: Tensor, edges: Tensor) -> Tensor:
    return convolved(torch.cat([x, edges], 1), self)


def styles_at_pixels(ace: nn.Module, seg: Tensor, codes: Tensor) -> Tensor:
    """For all pixels at once, which the original does region by region."""
    hidden = torch.stack([F.relu(ace.get_submodule(f"fc_mu{j}")(codes[:, j])) for j in range(seg.size(1))], 2)
    return torch.einsum("nsr,nrhw->nshw", hidden, seg)


def ace(
    self: nn.Module,
    x: Tensor,
    segmap: Tensor,
    style_codes: Tensor | None = None,
    act: str | float = "none",
    upsample: bool = False,
    noise: Noise = standard_normal,
    styles_of: Callable[..., Tensor] = styles_at_pixels,
) -> Tensor:
    """SEAN's layer."""
    x = F.interpolate(x, scale_factor=2) if upsample else x
    n, _, h, w = x.shape
    x = x + (noise((n, w, h, 1), x) * self.noise_var).transpose(1, 3)
    seg = resized(segmap, (h, w))
    scale, shift = spade_maps(self.Spade, seg, (h, w))
    if self.use_rgb:
        styles = styles_of(self, seg, style_codes)
        a, b = torch.sigmoid(self.blending_gamma), torch.sigmoid(self.blending_beta)
        scale = 1 + a * convolved(styles, self.conv_gamma) + (1 - a) * (scale - 1)
        shift = b * convolved(styles, self.conv_beta) + (1 - b) * shift
    return activated(self.param_free_norm(x) * scale + shift, act)


def depthsep_block(self: nn.Module, x: Tensor, seg: Tensor, features: Tensor | None = None) -> Tensor:
    """CC-FPSE's block."""
    segmap = resized(seg, tuple(x.shape[2:]))
    segmap = segmap if features is None else torch.cat([segmap, features], 1)

    def predicted(predictor: nn.Sequential) -> Tensor:
        return convolved(F.relu(convolved(segmap, predictor[0]), inplace=True), predictor[2])

    h = self.conv_1(dynamic_conv(batch_norm_act(self.norm_1, x), predicted(self.gen_weights1)))
    h = F.leaky_relu(h * predicted(self.gen_se_weights1).sigmoid(), 0.2)
    h = self.conv_3(dynamic_conv(batch_norm_act(self.norm_2, h), predicted(self.gen_weights2)))
    h = F.leaky_relu(h * predicted(self.gen_se_weights2).sigmoid(), 0.2)
    if self.learned_shortcut:
        x = self.conv_s(spade(self.norm_s, x, segmap))
    return x + h


def reflection_spade(self: nn.Module, x: Tensor, segmap: Tensor, act: str | float = "none") -> Tensor:
    """CoCosNet's."""
    side = [self.mlp_gamma.kernel_size[0] // 2] * 4
    hidden = F.pad(self.mlp_shared(resized(segmap, tuple(x.shape[2:]))), side, mode="reflect")
    normalised = positional_norm(x) if self.param_free_norm is None else self.param_free_norm(x)
    return activated(normalised * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden), act)


def panoptic_conv(self: nn.Conv2d, x: Tensor, ids: Tensor | PanopticPlan) -> Tensor:
    """All taps of all pixels, masked."""
    return unfolded(x, self.weight, self.bias, panoptic_plan(ids).level(x.shape[2:]).ids, self.stride[0])


def panoptic_upsample(
    self: nn.Module,
    x: Tensor,
    ids: Tensor | PanopticPlan,
    seg: Tensor | None = None,
    ids_small: Tensor | PanopticPlan | None = None,
) -> tuple[Tensor, Tensor]:
    """Candidates, each a shifted map, from the farthest to the nearest."""
    h, w = x.shape[2:]
    large, small = (
        panoptic_plan(given).level(size).ids
        for given, size in ((ids, (2 * h, 2 * w)), (ids if ids_small is None else ids_small, (h, w)))
    )
    y, found = copied(x, large, small)
    if self.fill is not None:
        y = torch.where(found[:, None], y, panoptic_conv(self.fill, resized(seg, (2 * h, 2 * w)), ids))
    return y, found


def copied(x: Tensor, ids: Tensor, small: Tensor) -> tuple[Tensor, Tensor]:
    """Every pixel of twice the size, from the nearest of nine ones that has its id; and where there is one."""
    _, _, h, w = x.shape
    y, found = x.new_zeros((*x.shape[:2], 2 * h, 2 * w)), torch.zeros_like(ids, dtype=torch.bool)
    around, around_ids = F.pad(x, [1] * 4), F.pad(small, [1] * 4, value=-1)
    offsets = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    for fy in (0, 1):
        for fx in (0, 1):
            nearness = sorted(offsets, key=lambda d: (4 * d[0] + 1 - 2 * fy) ** 2 + (4 * d[1] + 1 - 2 * fx) ** 2)
            own, part = ids[:, fy::2, fx::2], x.new_zeros(x.shape)
            for dy, dx in reversed(nearness):
                window = (slice(1 + dy, 1 + dy + h), slice(1 + dx, 1 + dx + w))
                same = around_ids[:, *window] == own
                part = torch.where(same[:, None], around[:, :, *window], part)
                found[:, fy::2, fx::2] |= same
            y[:, :, fy::2, fx::2] = part
    return y, found
