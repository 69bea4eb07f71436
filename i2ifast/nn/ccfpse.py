"""Conditional convolutions, whose weights are predicted from a label map at every pixel.

Liu et al., Learning to Predict Layout-to-image Conditional Convolutions for Semantic Image Synthesis, NeurIPS 2019.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..labels import LabelPlan
from ..ops import dynamic_conv, modulate
from ._norm import statistics_of
from .batch import BatchNormAct
from .conv import Conv2d, convolve
from .label_conv import label_conv2d
from .spade import SPADE
from .spectral import spectral_norm


class DepthsepCC(nn.Module):
    """y[n, c, p] = sum over the 3x3 taps t of x[n, c, p + t] * weight[n, 9c + t, p], for predicted weights.

    `norm_layer` is in the original's state_dict and used by nothing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_layer = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [N, C, H, W]; weight [N, 9C, H, W], or [N, C, 9, H, W] as `ops.dynamic_conv` takes it."""
        return dynamic_conv(x, weight if weight.dim() == 5 else weight.unflatten(1, (x.size(1), 9)))


def predicted_weights(hidden: Tensor, conv: nn.Conv2d) -> Tensor:
    """The convolution's 9C outputs as weights [N, C, 9, H, W].

    With its rows in the order of taps, then channels, a channels_last map can be read as it is. The rows are brought
    into it where they are less than the map.
    """
    shape = conv.weight.size(0) // 9, 9
    if conv.weight[0].numel() > hidden.numel() // hidden.size(1) or not _channels_last(hidden):
        return convolve(hidden, conv.weight, conv.bias).unflatten(1, shape)
    weight, bias = (t.unflatten(0, shape).transpose(0, 1).flatten(0, 1) for t in (conv.weight, conv.bias))
    return convolve(hidden, weight, bias).unflatten(1, shape[::-1]).transpose(1, 2)


def _channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and not x.is_contiguous()


class DepthsepCCBlock(nn.Module):
    """Residual block of two depthwise separable convolutions with predicted depthwise weights and predicted gates.

    h = conv_1(conv_0(norm_1(x))), lrelu of h times its gate; h = conv_3(conv_2(norm_2(h))), likewise; y = shortcut + h;
    shortcut = x, or conv_s(norm_s(x)). Drop-in for the original, with the state_dict keys of what it does not use
    either (norm_0, and norm_layer of conv_0 and conv_2): fin channels of x, fout of y <= fin; semantic_nc channels of
    the map that everything is predicted from; with 'spectral' in norm_G spectral norm on conv_s.
    """

    def __init__(self, fin: int, fout: int, norm_G: str, semantic_nc: int, nhidden: int = 128) -> None:
        super().__init__()
        if fout > fin:
            raise ValueError(f"{fin} to {fout} channels: a block makes at most as many as it takes")

        def predictor(outputs: int, *more: nn.Module) -> nn.Sequential:
            first = Conv2d(semantic_nc, nhidden, 3, padding=1)
            return nn.Sequential(first, nn.ReLU(), Conv2d(nhidden, outputs, 3, padding=1), *more)

        self.learned_shortcut = fin != fout
        self.gen_weights1 = predictor(9 * fin)
        self.gen_weights2 = predictor(9 * fout)
        self.gen_se_weights1 = predictor(fout, nn.Sigmoid())
        self.gen_se_weights2 = predictor(fout, nn.Sigmoid())
        self.conv_0, self.norm_0 = DepthsepCC(fin), nn.BatchNorm2d(fout)
        self.conv_1, self.norm_1 = nn.Conv2d(fin, fout, 1), BatchNormAct(fin, "none")
        self.conv_2, self.norm_2 = DepthsepCC(fout), BatchNormAct(fout, "none")
        self.conv_3 = nn.Conv2d(fout, fout, 1)
        if self.learned_shortcut:
            self.conv_s = nn.Conv2d(fin, fout, 1, bias=False)
            if "spectral" in norm_G:
                self.conv_s = spectral_norm(self.conv_s)
            self.norm_s = SPADE("spadesyncbatch3x3", fin, semantic_nc, nhidden)

    def hidden(self, seg: Tensor | LabelPlan, features: Tensor | None, size: tuple[int, int]) -> list[Tensor]:
        """What the first convolutions of the four predictors, and of norm_s, make of the same map."""
        convs = [p[0] for p in (self.gen_weights1, self.gen_weights2, self.gen_se_weights1, self.gen_se_weights2)]
        convs += [self.norm_s.mlp_shared[0]] if self.learned_shortcut else []
        weight, bias = torch.cat([conv.weight for conv in convs]), torch.cat([conv.bias for conv in convs])
        if features is None:
            maps = label_conv2d(seg, weight, bias, size, padding=1)
        else:  # linear in its input: the label map's part is computed on the distinct windows of labels
            of_seg, of_features = weight.split([weight.size(1) - features.size(1), features.size(1)], 1)
            maps = label_conv2d(seg, of_seg, bias, size, padding=1) + convolve(features, of_features, None)
        return list(F.relu(maps, inplace=True).chunk(len(convs), 1))

    def forward(self, x: Tensor, seg: Tensor | LabelPlan, features: Tensor | None = None) -> Tensor:
        """x [N, fin, H, W] -> [N, fout, H, W].

        The map that everything is predicted from is seg, resized to x by nearest, with features [N, K, H, W] stacked
        behind it if given.
        """
        weights1, weights2, gates1, gates2, *shared = self.hidden(seg, features, x.shape[2:])
        h = self.conv_0(self.norm_1(x), predicted_weights(weights1, self.gen_weights1[2]))
        h = F.leaky_relu(self.conv_1(h) * self.gen_se_weights1[2:](gates1), 0.2)
        h = self.conv_2(self.norm_2(h), predicted_weights(weights2, self.gen_weights2[2]))
        h = F.leaky_relu(self.conv_3(h) * self.gen_se_weights2[2:](gates2), 0.2)
        return self.shortcut(x, *shared) + h

    def shortcut(self, x: Tensor, *shared: Tensor) -> Tensor:
        if not self.learned_shortcut:
            return x
        norm, by, synchronise = self.norm_s.layer
        (statistics,) = statistics_of(x, [norm], synchronise=synchronise)
        return self.conv_s(modulate(x, by.dense(*shared), None, statistics))
