"""CoCosNet's correspondence network: features of both domains, their matching, and the exemplar warped by it."""

import sys
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import InstanceNormAct, SelfAttention, spectral_norm
from i2ifast.nn.cocosnet import ReflectedSPADEResnetBlock, reflected
from i2ifast.nn.conv import Conv2d
from i2ifast.nn.correspondence import at_positions, attend, match_features, positions
from i2ifast.nn.instance import instance_norm_act

TEMPERATURE = 0.01


def spectral(conv: nn.Module, norm: str) -> nn.Module:
    return spectral_norm(conv) if norm.startswith("spectral") else conv


def normed(fin: int, fout: int, kernel: int, stride: int, norm: str, act: str | float) -> nn.Sequential:
    conv = spectral(Conv2d(fin, fout, kernel, stride, 1, bias=False), norm)
    return nn.Sequential(conv, InstanceNormAct(fout, act))


class FeatureGenerator(nn.Module):
    """Label maps, or images, [N,C,H,W] to features [N,4 ngf,H/4,W/4] of the domain that both share."""

    def __init__(self, config: Any, channels: int) -> None:
        super().__init__()
        nf, k = config.ngf, config.adaptor_kernel
        widths = pairwise([channels, nf, 2 * nf, 4 * nf, 8 * nf, 8 * nf])
        kinds = [(3, 1), (k, 2), (3, 1), (k, config.warp_stride // 2), (3, 1)]
        for i, ((fin, fout), (kernel, stride)) in enumerate(zip(widths, kinds, strict=True), 1):
            self.add_module(f"layer{i}", normed(fin, fout, kernel, stride, config.norm_E, "none" if i == 5 else 0.2))

        def block(fin: int, fout: int, se: bool = False, dilation: int = 1) -> nn.Module:
            return ReflectedSPADEResnetBlock(
                fin, fout, config.norm_G, config.PONO, channels, config.nhidden, se, dilation
            )

        self.head_0 = block(8 * nf, 8 * nf, config.adaptor_se)
        if config.adaptor_nonlocal:
            self.attn = SelfAttention(8 * nf)
        self.G_middle_0 = block(8 * nf, 8 * nf, config.adaptor_se)
        self.G_middle_1 = block(8 * nf, 4 * nf, config.adaptor_se)
        if config.adaptor_res_deeper:
            for i, dilation in enumerate((1, 2, 4) if config.dilation_conv else (1, 1, 1)):
                self.add_module(f"deeper{i}", block(4 * nf, 4 * nf, dilation=dilation))
            if config.dilation_conv:
                self.degridding0 = normed(4 * nf, 4 * nf, 3, 1, config.norm_E, "none")
                self.degridding1 = normed(4 * nf, 4 * nf, 3, 1, config.norm_E, "none")

    def forward(self, x: Tensor) -> Tensor:
        condition = x
        for layer in self.children():
            x = layer(x, condition) if isinstance(layer, ReflectedSPADEResnetBlock) else layer(x)
        return x


class ResidualBlock(nn.Module):
    """prelu(x + norm(conv(prelu(norm(conv(x)))))), with one slope for both."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = reflected(channels, channels), reflected(channels, channels)
        self.prelu = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.prelu(instance_norm_act(self.conv1(x)))
        return self.prelu(x + instance_norm_act(self.conv2(h)))


def coordinates(x: Tensor) -> Tensor:
    """[N,3,H,W] of row, column in [-1, 1] and the distance to (0.5, 0.5): Liu et al., CoordConv, NeurIPS 2018."""
    n, _, h, w = x.shape
    rows, columns = (torch.linspace(-1, 1, size, dtype=x.dtype, device=x.device) for size in (h, w))
    rows, columns = rows[:, None].expand(h, w), columns.expand(h, w)
    radius = ((rows - 0.5) ** 2 + (columns - 0.5) ** 2).sqrt()
    return torch.stack([rows, columns, radius]).expand(n, -1, -1, -1)


class Correspondence(nn.Module):
    """Where in the exemplar every position of the label map finds its like, and what is there."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.adaptive_model_seg = FeatureGenerator(config, config.semantic_nc)
        self.adaptive_model_img = FeatureGenerator(config, 3)
        width = 4 * config.ngf + 3 * config.use_coordconv + config.semantic_nc * config.maskmix
        self.layer = nn.Sequential(*(ResidualBlock(width) for _ in range(4)))
        self.phi = nn.Conv2d(width, config.inter_channels, 1)
        self.theta = nn.Conv2d(width, config.inter_channels, 1)

    def small(self, maps: Tensor) -> Tensor:
        return F.interpolate(maps, scale_factor=1 / self.config.warp_stride, mode="nearest")

    def mean(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.config.warp_stride)

    def matched(self, features: Tensor, semantics: Tensor, project: nn.Module) -> Tensor:
        """[N,h * w,K] unit vectors of a domain's features."""
        if self.config.use_coordconv:
            features = torch.cat([features, coordinates(features)], 1)
        if self.config.maskmix:
            features = torch.cat([features, self.small(semantics)], 1)
        return match_features(project(self.layer(features)), self.config.match_kernel, self.config.PONO_C)

    def features(self, images: Tensor, of: nn.Module) -> Tensor:
        return F.normalize(of(images), dim=1, eps=sys.float_info.epsilon)

    def match(self, semantics: Tensor, ref: Tensor, ref_semantics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors of the positions of the label map and of the exemplar, and the label map's features."""
        of_labels = self.features(semantics, self.adaptive_model_seg)
        of_ref = self.features(ref, self.adaptive_model_img)
        theta = self.matched(of_labels, semantics, self.theta)
        return theta, self.matched(of_ref, ref_semantics, self.phi), of_labels

    def forward(
        self, semantics: Tensor, ref: Tensor, ref_semantics: Tensor, real: Tensor | None = None
    ) -> dict[str, Tensor]:
        """warp_out [N,3,H,W], the exemplar as the label map has it; warp_mask, its labels; and what losses need.

        With the real image, for training, `pair` is the distance of the two domains' features.
        """
        config, found = self.config, {}
        theta, phi, of_labels = self.match(semantics, ref, ref_semantics)
        size, ref_size = ([side // config.warp_stride for side in t.shape[2:]] for t in (semantics, ref))

        def to_labels(maps: Tensor) -> Tensor:
            return at_positions(attend(theta, phi, positions(maps), 1 / TEMPERATURE), size)

        def to_ref(maps: Tensor) -> Tensor:
            return at_positions(attend(phi, theta, positions(maps), 1 / TEMPERATURE), ref_size)

        if config.warp_patch:
            warped = {"y": F.pixel_unshuffle(ref, config.warp_stride)}
        else:
            warped = {"y": self.mean(ref)}
        if config.warp_mask_losstype == "direct":
            warped["warp_mask"] = self.small(ref_semantics)
        elif config.warp_mask_losstype == "cycle":
            warped["warp_mask"] = to_ref(self.small(semantics))
        if real is not None and config.warp_cycle_w and config.two_cycle:
            warped["i2r2i"] = to_ref(self.mean(real))
        parts = to_labels(torch.cat(list(warped.values()), 1)).split([t.size(1) for t in warped.values()], 1)
        found = dict(zip(warped, parts, strict=True))
        y = found.pop("y")
        if config.warp_patch:
            found["warp_out"] = F.pixel_shuffle(y, config.warp_stride)
        elif config.warp_bilinear:
            found["warp_out"] = F.interpolate(y, scale_factor=config.warp_stride, mode="bilinear")
        else:
            found["warp_out"] = F.interpolate(y, scale_factor=config.warp_stride, mode="nearest")
        if real is not None:
            if config.warp_cycle_w:
                cycle = to_ref(y)
                found["cycle"] = F.pixel_shuffle(cycle, config.warp_stride) if config.warp_patch else cycle
            if config.novgg_featpair:
                found["pair"] = F.l1_loss(of_labels, self.features(real, self.adaptive_model_img))
        return found
