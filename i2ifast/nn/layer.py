"""Norms over whole samples, mixed with instance norm or not, and norms conditioned on a class."""

import torch
from torch import Tensor, nn

from ..ops import modulate_mixed, modulate_style
from ..ops._op import accumulation_dtype
from ._norm import statistics_of


class AdaILN(nn.Module):
    """y = act((rho * instance(x) + (1 - rho) * layer(x)) * gamma + beta), gamma and beta [N, C] or [C].

    instance(x) is normalised over planes, layer(x) over samples, both by the unbiased variance. rho [1,C,1,1] is taken
    as it is: keep it in [0, 1] by `clip_rho` after every step of an optimizer. With `softmax`, of NICE-GAN, rho
    [1,C,2] becomes the two weights by a softmax instead.
    Kim et al., U-GAT-IT, ICLR 2020; Chen et al., Reusing Discriminators for Encoding, CVPR 2020.
    """

    INIT = (0.9, (3.2, 1.0))  # rho without and with softmax

    def __init__(self, num_features: int, eps: float = 1e-5, softmax: bool = False, act: str | float = "none") -> None:
        super().__init__()
        self.eps, self.softmax, self.act = eps, softmax, act
        self.rho = nn.Parameter(torch.empty((1, num_features, 2) if softmax else (1, num_features, 1, 1)))
        AdaILN.reset_parameters(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.rho.copy_(torch.tensor(self.INIT[self.softmax]))

    @torch.no_grad()
    def clip_rho(self) -> None:
        self.rho.clamp_(0, 1)

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        if self.softmax:
            instance, layer = self.rho[0].softmax(1).unbind(1)
        else:
            instance = self.rho.flatten()
            layer = 1 - instance
        mix = [t.expand(x.size(0), -1) for t in (gamma * instance, gamma * layer, beta)]
        return modulate_mixed(x, torch.cat(mix, 1), self.act, self.eps)


class ILN(AdaILN):
    """AdaILN with parameters gamma and beta [1,C,1,1]."""

    INIT = (0.0, (1.0, 3.2))

    def __init__(self, num_features: int, eps: float = 1e-5, softmax: bool = False, act: str | float = "none") -> None:
        super().__init__(num_features, eps, softmax, act)
        self.gamma = nn.Parameter(torch.ones(1, num_features, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, num_features, 1, 1))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.ones_(self.gamma)
        nn.init.zeros_(self.beta)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, self.gamma.flatten(), self.beta.flatten())


class LayerNorm(nn.Module):
    """y = act((x - mean) / (std + eps) * gamma + beta): mean and unbiased std of a sample, gamma and beta [C].

    Huang et al., Multimodal Unsupervised Image-to-Image Translation, ECCV 2018.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True, act: str | float = "none") -> None:
        super().__init__()
        self.eps, self.act = eps, act
        self.gamma = nn.Parameter(torch.rand(num_features)) if affine else None
        self.beta = nn.Parameter(torch.zeros(num_features)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        zero = x.new_zeros(x.size(1))
        affine = (zero + 1, zero) if self.gamma is None else (self.gamma, self.beta)
        mix = torch.cat([zero, *affine]).expand(x.size(0), -1)
        return modulate_mixed(x, mix, self.act, self.eps, outside=True)


class ConditionalNorm(nn.Module):
    """y = act(norm(x) * scale[label] + shift[label]) with a row (scale, shift) of `embed` for each class.

    `kind`: 'batch' or 'instance'. labels [N] integers, or weights [N, num_classes] that mix rows. Dumoulin et al., A
    Learned Representation for Artistic Style, ICLR 2017; de Vries et al., Modulating Early Visual Processing by
    Language, NeurIPS 2017.
    """

    NORMS = {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d}

    def __init__(
        self, num_features: int, num_classes: int, kind: str = "batch", eps: float = 1e-5, act: str | float = "none"
    ) -> None:
        super().__init__()
        if kind not in self.NORMS:
            raise ValueError(f"kind {kind!r}: expected one of {', '.join(self.NORMS)}")
        self.norm = self.NORMS[kind](num_features, eps=eps, affine=False)
        self.embed = nn.Embedding(num_classes, 2 * num_features)
        self.act = act
        nn.init.normal_(self.embed.weight[:, :num_features].detach(), 1, 0.02)
        nn.init.zeros_(self.embed.weight[:, num_features:].detach())

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        (statistics,) = statistics_of(x, [self.norm])
        style = self.embed(labels) if labels.dim() == 1 else labels @ self.embed.weight
        return modulate_style(x, style, statistics, self.act)


def minibatch_std(x: Tensor, group_size: int = 4, channels: int = 1, eps: float = 1e-8) -> Tensor:
    """x [N,C,H,W] with `channels` more: mean over pixels and C / channels channels of the deviation within a group.

    A group is `group_size` samples at a distance of N / group_size of each other, all N if there are fewer.
    Karras et al., Progressive Growing of GANs, ICLR 2018.
    """
    n, c, h, w = x.shape
    size = min(group_size, n)
    if n % size or c % channels:
        raise ValueError(f"{n} samples of {c} channels: expected multiples of group_size {size} and of {channels}")
    groups = x.to(accumulation_dtype(x)).reshape(size, -1, channels, c // channels, h, w)
    deviation = (groups.var(0, correction=0) + eps).sqrt().mean((2, 3, 4))  # [N / size, channels]
    more = deviation.to(x.dtype)[..., None, None].repeat(size, 1, h, w)
    return torch.cat([x, more], 1)
