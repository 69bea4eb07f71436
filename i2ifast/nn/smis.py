"""Grouped SPADE layers (GroupDNet): Zhu et al., Semantically Multi-modal Image Synthesis, CVPR 2020."""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..labels import LabelPlan, Windows
from ..ops import PackedLinear, linear
from .conv import Conv2d
from .label_conv import centred, sum_windows, tap_matrix
from .spade import Layer, ModulatedResnetBlock, Modulator, modulated

DataMode = Literal["deepfashion", "cityscapes", "ade20k"]


class GroupedModulator(Modulator):
    """(gamma, beta) = conv(relu(conv(seg))) of grouped convolutions: only the groups' own blocks are multiplied."""

    def __init__(self, shared: nn.Conv2d, gamma: nn.Conv2d, beta: nn.Conv2d, fixed: bool = False) -> None:
        self.shared, self.kernel, self.convolutions = shared, shared.kernel_size[0], (gamma, beta)
        taps = self.kernel**2
        weight = shared.weight.unflatten(0, (shared.groups, -1)).permute(0, 2, 3, 4, 1)  # [groups, in, k, k, out]
        self.of_values = weight.flatten(2)
        self.of_hidden = []
        of_gamma, of_beta = (zip(c.weight.chunk(c.groups), c.bias.chunk(c.groups), strict=True) for c in (gamma, beta))
        for (weight, bias), (weight_beta, bias_beta) in zip(of_gamma, of_beta, strict=True):
            matrix = tap_matrix(torch.cat([weight, weight_beta]))
            bias = centred(torch.cat([bias, bias_beta]), taps)
            self.of_hidden.append(PackedLinear(matrix, bias) if fixed else partial(linear, weight=matrix, bias=bias))

    def first(self, values: Tensor) -> Tensor:
        """What each tap of the shared convolution makes of the distinct vectors: [S, k * k * hidden], taps first."""
        groups = self.shared.groups
        rows = torch.bmm(values.unflatten(1, (groups, -1)).transpose(0, 1), self.of_values)
        return rows.unflatten(2, (self.kernel**2, -1)).permute(1, 2, 0, 3).flatten(1)

    def rows(self, hidden: Tensor, windows: Windows, more: None = None) -> Tensor:
        tables = []
        for part, second in zip(hidden.chunk(len(self.of_hidden), 1), self.of_hidden, strict=True):
            tables.append(sum_windows(second(part).view(len(part) * self.kernel**2, -1), windows).chunk(2, 1))
        return torch.cat([gamma for gamma, _ in tables] + [beta for _, beta in tables], 1)

    def dense(self, hidden: Tensor) -> Tensor:
        maps = [F.conv2d(hidden, c.weight, c.bias, padding=c.padding, groups=c.groups) for c in self.convolutions]
        return torch.cat(maps, 1)


class GROUP_SPADE(nn.Module):
    """y = norm(x) * (1 + gamma) + beta, (gamma, beta) = conv(relu(conv(segmap))) with grouped convolutions.

    Drop-in for the original: norm_nc channels of x, label_nc classes, and the channels and groups that `data_mode` says
    of the convolutions; the same state_dict keys and numbers. With `use_instance` the label map has a channel for the
    edges of instances behind that of each class. `seg` is a dense map or a LabelPlan, as for SPADE. Batch statistics
    are synchronised over all ranks.
    """

    def __init__(
        self,
        norm_nc: int,
        label_nc: int,
        group_num: int,
        use_instance: bool = False,
        data_mode: DataMode = "deepfashion",
    ) -> None:
        super().__init__()
        hidden, shared_groups, groups = widths(label_nc, group_num, data_mode)
        self.param_free_norm = nn.BatchNorm2d(norm_nc, affine=False)
        channels = 2 * label_nc if use_instance else label_nc
        self.mlp_shared = nn.Sequential(Conv2d(channels, hidden, 3, padding=1, groups=shared_groups), nn.ReLU())
        self.mlp_gamma = Conv2d(hidden, norm_nc, 3, padding=1, groups=groups)
        self.mlp_beta = Conv2d(hidden, norm_nc, 3, padding=1, groups=groups)
        self.to(memory_format=torch.channels_last)
        self._baked: Modulator | None = None

    def _modulator(self, fixed: bool = False) -> Modulator:
        convolutions = self.mlp_shared[0], self.mlp_gamma, self.mlp_beta
        kind = Modulator if all(conv.groups == 1 for conv in convolutions) else GroupedModulator
        return kind(*convolutions, fixed=fixed)

    @property
    def layer(self) -> Layer:
        return Layer(self.param_free_norm, self._baked or self._modulator(), True)

    def bake(self) -> None:
        """Lay the weights out once, for inference: later changes of the parameters have no effect."""
        self._baked = self._modulator(fixed=True)

    def forward(self, x: Tensor, seg: Tensor | LabelPlan, act: str | float = "none", upsample: bool = False) -> Tensor:
        """x [N, C, H, W] -> act(...) of the same shape, or x2 with `upsample`, which first upsamples x by nearest."""
        return modulated(x, seg, self.layer, act, upsample)


def widths(label_nc: int, group_num: int, data_mode: DataMode) -> tuple[int, int, int]:
    """Hidden channels, groups of the first convolution, and of the second ones."""
    if data_mode == "deepfashion":
        return 128, group_num, group_num
    if data_mode == "cityscapes":
        return label_nc * group_num, label_nc, label_nc
    if data_mode == "ade20k":
        return 2 * label_nc if label_nc % group_num == 0 else label_nc * group_num, label_nc, group_num
    raise ValueError(f"data_mode={data_mode!r}: expected deepfashion, cityscapes or ade20k")


class SPADEV2ResnetBlock(ModulatedResnetBlock):
    """SPADEResnetBlock with GROUP_SPADE layers and grouped convolutions.

    Drop-in for the original: `norm_G` with 'spectral' in it asks for spectral norm on the convolutions.
    """

    def __init__(
        self,
        fin: int,
        fout: int,
        norm_G: str,
        semantic_nc: int,
        group_num: int,
        use_instance: bool = False,
        data_mode: DataMode = "deepfashion",
    ) -> None:
        def layer(channels: int) -> GROUP_SPADE:
            return GROUP_SPADE(channels, semantic_nc, group_num, use_instance, data_mode)

        conv = partial(Conv2d, groups=group_num)
        super().__init__(fin, min(fin, fout), fout, conv, layer, "spectral" in norm_G)
