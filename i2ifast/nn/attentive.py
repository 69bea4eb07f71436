"""Attentive normalisation: Wang et al., Attentive Normalization for Conditional Image Generation, CVPR 2020."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import mix_sums, modulate_mix
from ..ops._op import accumulation_dtype

# How the statistics of a soft region of weights s are taken, with S = sum(s) + eps over the P pixels:
#   released  mean = sum(v s) / (P S), std^2 = sum((v s - mean)^2) / S: as published code computes them
#   paper     mean = sum(v s) / S, the same std
#   weighted  mean = sum(v s) / S, std^2 = sum(s (v - mean)^2) / S: of the weighted pixels
Form = Literal["released", "paper", "weighted"]
FORMS = ("released", "paper", "weighted")
EPS = 1e-7


def regional_norm(
    v: Tensor,
    layout: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    form: Form = "released",
    gain: Tensor | float = 1.0,
) -> Tensor:
    """gain * sum_i layout_i * ((v - mean_i) / (std_i + eps) * weight_i + bias_i)

    v [N, C, H, W]; layout [N, K, H, W], soft regions that add up to 1; weight, bias [K, C], 1 and 0 if None. The sum is
    v * (layout @ scale) + layout @ shift with rows for the regions, so that no map is made for a region.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r}: expected one of {', '.join(FORMS)}")
    n, _, h, w = v.shape
    if form == "weighted":  # does not depend on what is subtracted here, but its variance is exact only near zero
        v = v - v.detach().mean((2, 3), keepdim=True)
    squares, sums = mix_sums(v, layout if form == "weighted" else layout.square(), layout)
    total = layout.sum((2, 3), dtype=sums.dtype)[..., None]
    count = total + EPS
    mean = sums / (h * w * count if form == "released" else count)
    rest = total if form == "weighted" else h * w
    var = (squares - 2 * mean * sums + rest * mean * mean) / count
    scale = 1 / (var.clamp(min=torch.finfo(var.dtype).tiny).sqrt() + EPS)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return modulate_mix(v, layout, gain * torch.cat([scale, shift], 2))


class Attended(NamedTuple):
    """What AttentiveNorm returns."""

    output: Tensor  # [N, C, H, W]
    layout: Tensor  # [N, K, H, W]
    orthogonality: Tensor  # [], to be added to the loss


class AttentiveNorm(nn.Module):
    """x + sigma * regional_norm(value(x), layout): normalisation within regions that are learned.

    layout = softmax over n of (semantic(x) + clip(alpha, 0, 1) * self_sampling(x)) / temperature. Self-sampling is the
    product of query(x) with key(x) at one position per region, drawn with replacement and shared by the batch.

    `form` as in regional_norm. "released" is the published code: self-sampling always, no affine parameters,
    orthogonality 1e-3 * sum(W^T W - I). Else it is the paper: self-sampling in training only, weight and bias [n, C],
    orthogonality 1e-3 * |W^T W - I|^2. `load_tensorflow` reads variables of the published code.
    """

    def __init__(
        self, channels: int, num_regions: int = 16, temperature: float = 10.0, form: Form = "released"
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form={form!r}: expected one of {', '.join(FORMS)}")
        if channels < 8:
            raise ValueError(f"channels={channels}: expected at least 8, keys have an eighth of them")
        self.temperature, self.form = temperature, form
        self.key, self.query = nn.Conv2d(channels, channels // 8, 1), nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.semantic = nn.Conv2d(channels, num_regions, 1, bias=False)
        self.alpha, self.sigma = nn.Parameter(torch.full((num_regions,), 0.1)), nn.Parameter(torch.zeros(1))
        self.weight = self.bias = None
        if form != "released":
            self.weight = nn.Parameter(torch.ones(num_regions, channels))
            self.bias = nn.Parameter(torch.zeros(num_regions, channels))
        for conv in (self.key, self.query, self.value):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        nn.init.normal_(self.semantic.weight)

    def layout(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Soft regions [N, K, H, W] of x, channels_last; without self-sampling if `positions` [K] (y * W + x) is None.

        Both terms are linear in x: a matrix per sample makes the logits, and keys are made where they are sampled.
        """
        n, c, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(n, h * w, c)
        matrix, bias = self.semantic.weight.flatten(1), None
        if positions is None:
            logits = F.linear(rows, matrix)
        else:
            keys = F.linear(rows[:, positions], self.key.weight.flatten(1), self.key.bias)
            keys = self.alpha.clamp(0, 1)[:, None] * keys  # [N, K, C / 8]
            matrix = matrix + keys @ self.query.weight.flatten(1)
            bias = keys @ self.query.bias
            logits = torch.baddbmm(bias[:, None], rows, matrix.transpose(1, 2))
        layout = torch.softmax(logits / self.temperature, 2, dtype=accumulation_dtype(x))
        return layout.view(n, h, w, -1).permute(0, 3, 1, 2)

    def orthogonality(self) -> Tensor:
        matrix = self.semantic.weight.flatten(1)
        rest = matrix @ matrix.t() - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return 1e-3 * (rest.sum() if self.form == "released" else rest.square().sum())

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Attended:
        """`positions` [K]: where keys are sampled, drawn if None."""
        sampling = self.training or self.form == "released"
        if sampling and positions is None:
            positions = torch.randint(x.size(2) * x.size(3), (len(self.alpha),), device=x.device)
        layout = self.layout(x, positions if sampling else None)
        y = regional_norm(self.value(x), layout, self.weight, self.bias, self.form, self.sigma)
        return Attended(x + y, layout, self.orthogonality())

    @torch.no_grad()
    def load_tensorflow(self, variables: dict[str, Tensor], scope: str = "sn/") -> None:
        """Take the variables of the published code: kernels [1, 1, in, out] are transposed."""
        names = {"key": "sn_key_conv", "query": "sn_query_conv", "value": "sn_value_conv"}
        for module, name in names.items():
            conv = self.get_submodule(module)
            conv.weight.copy_(variables[f"{scope}{name}/kernel"].permute(3, 2, 0, 1))
            conv.bias.copy_(variables[f"{scope}{name}/bias"])
        self.semantic.weight.copy_(variables[f"{scope}mask_filters"].permute(3, 2, 0, 1))
        self.alpha.copy_(variables[f"{scope}alpha"].flatten())
        self.sigma.copy_(variables[f"{scope}sigma"])
