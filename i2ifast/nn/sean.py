"""Semantic region-adaptive normalisation (SEAN): Zhu et al., SEAN, CVPR 2020."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..labels import LabelPlan
from ..ops import modulate, modulate_table
from ._norm import statistics_of
from .conv import Conv2d
from .label_conv import plan_of, resized
from .spade import SPADE, Modulator, Table, upsampled
from .spectral import spectral_norm
from .styles import StyleModulator

REGIONS = 19  # linear layers for the styles of regions that the original has, however many labels there are

Noise = Callable[[Sequence[int], Tensor], Tensor]  # of a shape, like a tensor


def standard_normal(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.randn(*shape, device=like.device, dtype=like.dtype)


class _Part(NamedTuple):
    """A convolution times a number, as a Modulator reads it."""

    weight: Tensor
    bias: Tensor
    padding: tuple[int, int]


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

    def _modulators(self, fixed: bool = False) -> tuple[Modulator, StyleModulator | None]:
        shared, *convs = self.Spade.mlp_shared[0], self.Spade.mlp_gamma, self.Spade.mlp_beta
        if not self.use_rgb:
            return Modulator(shared, *convs, fixed), None
        shares = [torch.sigmoid(blending) for blending in (self.blending_gamma, self.blending_beta)]
        parts = [_Part(c.weight * (1 - a), c.bias * (1 - a), c.padding) for c, a in zip(convs, shares, strict=True)]
        fc = [self.get_submodule(f"fc_mu{region}") for region in range(self.regions)]
        by_style = StyleModulator(fc, (self.conv_gamma, self.conv_beta), shares, shared.kernel_size[0], fixed)
        return Modulator(shared, *parts, fixed), by_style

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
