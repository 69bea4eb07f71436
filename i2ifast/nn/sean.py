"""Semantic region-adaptive normalisation (SEAN): Zhu et al., SEAN, CVPR 2020."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..labels import LabelPlan, Level
from ..ops import PackedLinear, linear, modulate, modulate_table
from ._norm import statistics_of
from .conv import Conv2d
from .label_conv import plan_of, resized, sum_windows
from .spade import SPADE, Modulator, Table, upsampled
from .spectral import spectral_norm

REGIONS = 19  # linear layers for the styles of regions that the original has, however many labels there are

Noise = Callable[[Sequence[int], Tensor], Tensor]  # of a shape, like a tensor


def standard_normal(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.randn(*shape, device=like.device, dtype=like.dtype)


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


class _Part(NamedTuple):
    """A convolution times a number, as a Modulator reads it."""

    weight: Tensor
    bias: Tensor
    padding: tuple[int, int]


class StyleModulator:
    """(gamma, beta) = conv(relu(fc_r(style of r))), r the region at a pixel, for the layers that an ACE holds.

    With `fixed`, for inference, weights are laid out once.
    """

    def __init__(self, ace: "ACE", fixed: bool = False) -> None:
        self.fc = [getattr(ace, f"fc_mu{region}") for region in range(ace.regions)]
        self.convs, self.shares = (ace.conv_gamma, ace.conv_beta), ace.shares()
        self.border = ace.Spade.mlp_shared[0].padding[0] - 1  # taps that the windows of the labels have around 3x3
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
        conv = self.convs[0]
        masks = region_masks(plan.values.to(styles.dtype)).view(len(styles), -1, len(self.fc))
        symbols = torch.bmm(masks, self.hidden(styles)).flatten(0, 1).to(conv.weight.dtype)  # [N * symbols, S]
        taps = [p(symbols).view(len(symbols), -1, 3, 3) * a for p, a in zip(self.products, self.shares, strict=True)]
        taps = F.pad(torch.cat(taps, 1), [self.border] * 4).permute(0, 2, 3, 1).flatten(0, 2)
        return sum_windows(taps, level.hidden) + torch.cat(
            [conv.bias * a for conv, a in zip(self.convs, self.shares, strict=True)]
        )

    def map(self, styles: Tensor, seg: Tensor) -> Tensor:
        """[N, 2C, H, W], for any seg [N, R, H, W]."""
        masks = region_masks(seg).flatten(2).transpose(1, 2)
        pixels = torch.bmm(masks.to(styles.dtype), self.hidden(styles))
        pixels = pixels.transpose(1, 2).unflatten(2, seg.shape[2:])
        return torch.cat([conv(pixels) * a for conv, a in zip(self.convs, self.shares, strict=True)], 1)


class _Convolutions(SPADE):
    """A SPADE layer of which only the convolutions are used, and baked, by the ACE that holds it."""

    def bake(self) -> None:
        pass


class ACE(nn.Module):
    """y = norm(x + noise_var * noise) * (1 + gamma) + beta, with (gamma, beta) from label map and styles of regions.

    (gamma, beta) = a * conv(relu(fc_r(style_codes[:, r]))) + (1 - a) * SPADE's, r the region at a pixel: the last
    channel of segmap that is not zero there; a = sigmoid(blending), one number each. Without `use_rgb` they are SPADE's
    alone. Drop-in for the original: `spade_params` are the arguments of the inner SPADE (config text, channels of x and
    of the segmentation map), and its config_text, label_nc, ACE_Name and status change nothing, as norm is batch norm,
    synchronised, whatever they say. x [N, norm_nc, H, W], segmap a dense map or a LabelPlan, style_codes [N, R,
    style_length]; noise, drawn in every forward, is one plane per sample.
    """

    def __init__(
        self,
        config_text: str,
        norm_nc: int,
        label_nc: int,
        ACE_Name: str | None = None,
        status: str = "train",
        spade_params: Sequence = (),
        use_rgb: bool = True,
        nhidden: int = 128,
        style_length: int = 512,
    ) -> None:
        super().__init__()
        spade_config, _, semantic_nc = spade_params
        if semantic_nc > REGIONS or spade_config.endswith("1x1"):
            raise ValueError(f"{semantic_nc} regions, {spade_config}: expected at most {REGIONS}, and 3x3 or larger")
        self.use_rgb, self.regions = use_rgb, semantic_nc
        self.blending_gamma, self.blending_beta = (nn.Parameter(torch.zeros(1)) for _ in range(2))
        self.noise_var = nn.Parameter(torch.zeros(norm_nc))
        self.Spade = _Convolutions(*spade_params, nhidden=nhidden)
        self.param_free_norm = nn.BatchNorm2d(norm_nc, affine=False)
        if use_rgb:
            for region in range(REGIONS):
                self.add_module(f"fc_mu{region}", nn.Linear(style_length, style_length))
            self.conv_gamma = Conv2d(style_length, norm_nc, 3, padding=1)
            self.conv_beta = Conv2d(style_length, norm_nc, 3, padding=1)
        self.to(memory_format=torch.channels_last)
        self._baked: tuple[Modulator, StyleModulator | None] | None = None

    def shares(self) -> tuple[Tensor, Tensor]:
        """Those of the styles in gamma and in beta."""
        return torch.sigmoid(self.blending_gamma), torch.sigmoid(self.blending_beta)

    def _modulators(self, fixed: bool = False) -> tuple[Modulator, StyleModulator | None]:
        shared, *convs = self.Spade.mlp_shared[0], self.Spade.mlp_gamma, self.Spade.mlp_beta
        if not self.use_rgb:
            return Modulator(shared, *convs, fixed), None
        parts = [
            _Part(c.weight * (1 - a), c.bias * (1 - a), c.padding) for c, a in zip(convs, self.shares(), strict=True)
        ]
        return Modulator(shared, *parts, fixed), StyleModulator(self, fixed)

    def bake(self) -> None:
        """Lay the weights out once, for inference: later changes of the parameters have no effect."""
        self._baked = self._modulators(fixed=True)

    def _modulation(self, seg: Tensor | LabelPlan, styles: Tensor | None, size: tuple[int, int]) -> Table | Tensor:
        by_label, by_style = self._baked or self._modulators()
        if by_style is None:
            return by_label(seg, size)
        plan = plan_of(seg)
        if plan is None:
            return by_label(seg, size, by_style.map(styles, resized(seg, size)))
        plan = plan.per_sample()
        return by_label(plan, size, by_style.rows(styles, plan, plan.level(size, by_label.kernel)))

    def forward(
        self,
        x: Tensor,
        segmap: Tensor | LabelPlan,
        style_codes: Tensor | None = None,
        act: str | float = "none",
        upsample: bool = False,
        noise: Noise = standard_normal,
    ) -> Tensor:
        """act(...) of the shape of x, or x2 with `upsample`, which first upsamples x by nearest."""
        scale = 2 if upsample else 1
        h, w = x.size(2) * scale, x.size(3) * scale
        plane = noise((x.size(0), w, h, 1), x)[..., 0].transpose(1, 2)  # columns first, as the original draws it
        by = self._modulation(segmap, style_codes, (h, w))
        norms = [self.param_free_norm]
        if isinstance(by, Table):
            noisy = {"noise": plane, "strength": self.noise_var}
            (statistics,) = statistics_of(x, norms, scale * scale, **noisy)
            return modulate_table(
                x, by.rows, by.patches, statistics, act, upsample=upsample, segments=by.segments, **noisy
            )
        x = (upsampled(x) if upsample else x) + plane[:, None] * self.noise_var[:, None, None]
        (statistics,) = statistics_of(x, norms)
        return modulate(x, by, None, statistics, act)


class SEANResnetBlock(nn.Module):
    """y = shortcut + conv_1(lrelu(ace_1(conv_0(lrelu(ace_0(x)))))); shortcut = x, or conv_s(ace_s(x)).

    Drop-in for the original: `norm_G` is a SPADE config text, with 'spectral' before it for spectral norm on the
    convolutions; without `use_rgb` no styles enter.
    """

    def __init__(
        self,
        fin: int,
        fout: int,
        norm_G: str,
        semantic_nc: int,
        use_rgb: bool = True,
        nhidden: int = 128,
        style_length: int = 512,
    ) -> None:
        super().__init__()
        fmiddle = min(fin, fout)
        self.learned_shortcut = fin != fout
        self.conv_0 = Conv2d(fin, fmiddle, 3, padding=1)
        self.conv_1 = Conv2d(fmiddle, fout, 3, padding=1)
        if self.learned_shortcut:
            self.conv_s = nn.Conv2d(fin, fout, 1, bias=False)
        if "spectral" in norm_G:
            for name in ("conv_0", "conv_1", "conv_s")[: 3 if self.learned_shortcut else 2]:
                setattr(self, name, spectral_norm(getattr(self, name)))
        config = norm_G.replace("spectral", "")

        def ace(channels: int) -> ACE:
            spade_params = [config, channels, semantic_nc]
            return ACE(config, channels, 3, None, "train", spade_params, use_rgb, nhidden, style_length)

        self.ace_0, self.ace_1 = ace(fin), ace(fmiddle)
        if self.learned_shortcut:
            self.ace_s = ace(fin)

    def forward(
        self,
        x: Tensor,
        seg: Tensor | LabelPlan,
        style_codes: Tensor | None = None,
        upsample: bool = False,
        noise: Noise = standard_normal,
    ) -> Tensor:
        """x [N, fin, H, W] -> [N, fout, H, W], both x2 with `upsample`, which first upsamples x by nearest."""
        if self.learned_shortcut:
            shortcut = self.conv_s(self.ace_s(x, seg, style_codes, "none", upsample, noise))
        else:
            shortcut = upsampled(x) if upsample else x
        h = self.conv_0(self.ace_0(x, seg, style_codes, 0.2, upsample, noise))
        h = self.conv_1(self.ace_1(h, seg, style_codes, 0.2, noise=noise))
        return h + shortcut if torch.is_grad_enabled() else h.add_(shortcut)
