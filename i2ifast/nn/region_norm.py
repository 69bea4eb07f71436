"""Normalisation and pooling by region: Yu et al., Region Normalization for Image Inpainting, AAAI 2020."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..labels import Regions, regions
from ..ops import channel_pool, gather_sum, modulate_region, region_moments, region_statistics
from ..ops._op import memory_format

_regions = WeakTensorKeyDictionary()  # tensor -> (its state, its regions)


def regions_of(maps: Tensor | Regions, per_sample: bool) -> Regions:
    """The regions of a map of ids, remembered as long as the tensor lives unchanged, for all layers of a forward."""
    if isinstance(maps, Regions):
        return maps
    if maps.is_inference():
        return regions(maps, per_sample)
    state = maps._version, maps.data_ptr(), per_sample
    remembered = _regions.get(maps)
    if remembered is None or remembered[0] != state:
        remembered = _regions[maps] = (state, regions(maps, per_sample))
    return remembered[1]


def in_rows(x: Tensor) -> Tensor:
    """x as the CPU kernels read it, so that statistics and modulation share the copy."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


class RegionNorm(nn.Module):
    """y = act((x - mean) / sqrt(var + eps) * weight + bias) with statistics of each region of a map of ids.

    `forward(x, maps)`: x [N, C, H, W]; maps [N, H', W'] or [N, 1, H', W'], integers, resized to x by nearest, or their
    `labels.Regions`. A region is all pixels of an id: of its sample with `per_sample`, else of the batch. With
    `num_regions`, weight and bias [num_regions, C] are learned and ids index them. `act`: 'none', 'relu', or the slope
    of a leaky relu. Raises ValueError for an id that has no weight.
    """

    def __init__(
        self,
        num_features: int,
        num_regions: int | None = None,
        per_sample: bool = True,
        act: str | float = "none",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.per_sample, self.act, self.eps = per_sample, act, eps
        self.weight = self.bias = None
        if num_regions is not None:
            self.weight = nn.Parameter(torch.ones(num_regions, num_features))
            self.bias = nn.Parameter(torch.zeros(num_regions, num_features))

    def forward(self, x: Tensor, maps: Tensor | Regions) -> Tensor:
        found = regions_of(maps, self.per_sample)
        style = None
        if self.weight is not None:
            found.check_values(self.weight.size(0))
            style = torch.cat([F.embedding(found.values, self.weight), F.embedding(found.values, self.bias)], 1)
        found = found.at(x.shape[2:])
        segments, layout = found.segments if x.is_cuda else None, memory_format(x)
        x = in_rows(x)
        statistics = region_statistics(x, found.ids, found.count, self.eps, segments)
        y = modulate_region(x, found.ids, statistics, style, act=self.act, segments=segments)
        return y.contiguous(memory_format=layout)


def region_means(x: Tensor, labels: Tensor | Regions, num_regions: int) -> Tensor:
    """Mean of the features of each label in each sample: [N, num_regions, C], zeros where a label is absent.

    Region-wise average pooling, as of SEAN's style codes. x [N, C, H, W]; labels as in RegionNorm, in
    0..num_regions-1, per sample if they are Regions.
    """
    found = regions_of(labels, per_sample=True)
    found.check_values(num_regions)
    found = found.at(x.shape[2:])
    _, mean, _ = region_moments(x, found.ids, found.count, found.segments if x.is_cuda else None)
    out = mean.new_zeros(x.size(0) * num_regions, x.size(1))
    return out.index_copy(0, found.samples * num_regions + found.values, mean).view(x.size(0), num_regions, x.size(1))


def region_average_pool(x: Tensor, maps: Tensor | Regions, per_sample: bool = True) -> Tensor:
    """Every pixel gets the mean of its region: the instance-wise average pooling of pix2pixHD's encoder.

    x [N, C, H, W]; maps as in RegionNorm. The gradient is deterministic.
    """
    found = regions_of(maps, per_sample).at(x.shape[2:])
    _, mean, _ = region_moments(x, found.ids, found.count, found.segments if x.is_cuda else None)
    ends = torch.arange(found.ids.numel() + 1, dtype=torch.int32, device=x.device)
    y = gather_sum(mean.to(x.dtype), ends, found.ids.flatten(), found.segments.offsets, found.segments.order)
    return y.view(*found.ids.shape, x.size(1)).permute(0, 3, 1, 2)


class RN(nn.Module):
    """Two regions, of the batch: RN(x, mask) = RN(x * mask) + RN(x * (1 - mask)), each normalised by its own pixels.

    mask [N, 1, H, W] of zeros and ones. The published formulation normalises a map in which the region's S of N pixels
    are kept and the mean stands everywhere else, and scales by sqrt(S / N): with the region's own variance,

        (x - mean) / sqrt(var + eps * N / S)
    """

    def __init__(self, feature_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        style: Tensor | None = None,
        maps: Tensor | None = None,
        act: str | float = "none",
    ) -> Tensor:
        """With `style` [2, 2C] (scale, then shift, of the background and of the mask) and `maps` as modulate_region."""
        ids = (mask[:, 0] > 0.5).int()
        layout, x = memory_format(x), in_rows(x)
        statistics = region_statistics(x, ids, 2, self.eps, per_share=True)
        return modulate_region(x, ids, statistics, style, maps, act).contiguous(memory_format=layout)


class RN_B(nn.Module):
    """Basic region normalisation: a scale for each side of the mask; both shifts everywhere, as published.

    y = act(RN(x, mask) * (1 + gamma of the pixel's side) + foreground_beta + background_beta), mask [N, 1, H', W'] of
    zeros and ones, resized to x by nearest.
    """

    def __init__(self, feature_channels: int, act: str | float = "none") -> None:
        super().__init__()
        self.rn, self.act = RN(feature_channels), act
        for name in ("foreground_gamma", "foreground_beta", "background_gamma", "background_beta"):
            self.register_parameter(name, nn.Parameter(torch.zeros(feature_channels)))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scale = 1 + torch.stack([self.background_gamma, self.foreground_gamma])
        shift = (self.foreground_beta + self.background_beta).expand_as(scale)
        if mask.shape[2:] != x.shape[2:]:
            mask = F.interpolate(mask.to(x.dtype), size=x.shape[2:], mode="nearest")
        return self.rn(x, mask, torch.cat([scale, shift], 1), act=self.act)


class SelfAware_Affine(nn.Module):
    """A map in (0, 1) from mean and maximum over channels, and gamma and beta of every pixel from the map."""

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        if kernel_size not in (3, 7):
            raise ValueError(f"kernel_size={kernel_size}: expected 3 or 7")
        padding = kernel_size // 2
        self.conv1 = nn.Conv2d(2, 1, kernel_size, padding=padding, bias=False)
        self.gamma_conv = nn.Conv2d(1, 1, kernel_size, padding=padding)
        self.beta_conv = nn.Conv2d(1, 1, kernel_size, padding=padding)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, C, H, W] -> the map [N, 1, H, W], and gamma and beta [N, 2, H, W]."""
        importance = torch.sigmoid(self.conv1(channel_pool(x).contiguous(memory_format=torch.channels_last)))
        gamma, beta = self.gamma_conv, self.beta_conv
        weight, taken = torch.cat([gamma.weight, beta.weight]), importance
        if x.device.type == "cpu":
            # Of maps of one channel the CPU library's gradient takes five times as long as of two.
            weight, taken = F.pad(weight, (0, 0, 0, 0, 0, 1)), F.pad(taken, (0, 0, 0, 0, 0, 1))
            weight, taken = (t.contiguous(memory_format=torch.channels_last) for t in (weight, taken))
        both = F.conv2d(taken, weight, torch.cat([gamma.bias, beta.bias]), padding=weight.size(-1) // 2)
        return importance, both


class RN_L(nn.Module):
    """Learnable region normalisation: the mask is where a map predicted from x reaches `threshold`.

    y = act(RN(x, mask) * (1 + gamma) + beta); gamma and beta are one number per pixel. Gradients reach the map through
    gamma and beta only, since the mask is hard.
    """

    def __init__(self, feature_channels: int, threshold: float = 0.8, act: str | float = "none") -> None:
        super().__init__()
        self.sa, self.rn = SelfAware_Affine(), RN(feature_channels)
        self.threshold, self.act = threshold, act

    def forward(self, x: Tensor) -> Tensor:
        layout, x = memory_format(x), in_rows(x)
        importance, maps = self.sa(x)
        mask = (importance.detach() >= self.threshold).to(x.dtype)
        return self.rn(x, mask, maps=maps, act=self.act).contiguous(memory_format=layout)
