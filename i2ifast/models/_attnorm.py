"""Networks and losses that fill holes by attentive normalisation.

Wang, Chen, Zhang, Jia. Attentive Normalization for Conditional Image Generation. CVPR 2020.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import AttentiveNorm, upsample_conv2d
from i2ifast.nn.conv import convolve, halved


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: ceil(size / stride) outputs, an odd pixel at the end."""

    def forward(self, x: Tensor) -> Tensor:
        (k, _), (s, _), (d, _) = self.kernel_size, self.stride, self.dilation
        if s == d == 1:
            return convolve(x, self.weight, self.bias)
        sides = []
        for size in (x.size(3), x.size(2)):
            total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
            sides += [total // 2, total - total // 2]
        if s == 2 and d == 1 and k in (3, 4):
            return halved(F.pad(x, sides), self.weight, self.bias, padding=0)
        if sides[0] == sides[1] and sides[2] == sides[3]:
            return F.conv2d(x, self.weight, self.bias, self.stride, (sides[2], sides[0]), self.dilation)
        return F.conv2d(F.pad(x, sides), self.weight, self.bias, self.stride, 0, self.dilation)


class SameUpsampleConv2d(SameConv2d):
    """The same behind a nearest upsampling x2."""

    def forward(self, x: Tensor) -> Tensor:
        return upsample_conv2d(x, self.weight, self.bias)


class Conv(NamedTuple):
    """A row of the tables below; channels out are `width` times cnum."""

    name: str
    width: float
    kernel: int = 3
    stride: int = 1
    dilation: int = 1


# fmt: off
ENCODER = (Conv("conv1", 1, kernel=5), Conv("conv2_downsample", 2, stride=2), Conv("conv3", 2),
           Conv("conv4_downsample", 4, stride=2), Conv("conv5", 4), Conv("conv6", 4))
DILATED = tuple(Conv(f"conv{i}_atrous", 4, dilation=2 ** (i - 6)) for i in (7, 8, 9, 10))
DECODER = (Conv("conv11", 4), Conv("conv12", 4), Conv("conv13_upsample", 2), Conv("conv14", 2),
           Conv("conv15_upsample", 1), Conv("conv16", 0.5))
# fmt: on


class Convs(nn.Sequential):
    """Convolutions of a table, each with ELU; those named for it are behind a nearest upsampling x2."""

    def __init__(self, prefix: str, rows: tuple[Conv, ...], channels: int, cnum: int) -> None:
        super().__init__()
        for row in rows:
            out = int(row.width * cnum)
            kind = SameUpsampleConv2d if row.name.endswith("upsample") else SameConv2d
            conv = kind(channels, out, row.kernel, row.stride, dilation=row.dilation)
            self.add_module(prefix + row.name, conv)
            channels = out

    def forward(self, x: Tensor) -> Tensor:
        for conv in self:
            x = F.elu(conv(x))
        return x


class Generator(nn.Module):
    """Images [N,3,H,W] in [-1, 1] and masks [N,1,H,W] of holes (1) to a coarse and a fine image; sides multiples of 4.

    The fine image comes from dilated convolutions and from a branch with attentive normalisation.
    """

    def __init__(self, cnum: int = 32, num_regions: int = 16) -> None:
        super().__init__()
        self.coarse = Convs("", ENCODER + DILATED + DECODER, 5, cnum)
        self.conv18 = SameConv2d(cnum // 2, 3, 3)
        self.dilated = Convs("x", ENCODER + DILATED, 5, cnum)
        self.before = Convs("s", ENCODER[:-1], 5, cnum)
        self.sconv6 = SameConv2d(4 * cnum, 4 * cnum, 3)
        self.sn = AttentiveNorm(4 * cnum, num_regions)
        self.behind = Convs("s", (Conv("conv7", 4), Conv("conv8", 4)), 4 * cnum, cnum)
        self.fine = Convs("f", DECODER, 8 * cnum, cnum)
        self.fconv18 = SameConv2d(cnum // 2, 3, 3)

    def forward(
        self, images: Tensor, mask: Tensor, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Coarse and fine images in [-1, 1], layout of the regions, orthogonality term; `positions` as in the layer."""
        images = images * (1 - mask)
        given = torch.cat([torch.ones_like(mask), mask], 1)
        coarse = self.conv18(self.coarse(torch.cat([images, given], 1))).clamp(-1, 1)
        x = torch.cat([coarse * mask + images * (1 - mask), given], 1)
        attended = self.sn(self.sconv6(self.before(x)), positions)
        branch = self.behind(F.elu(attended.output))
        fine = self.fconv18(self.fine(torch.cat([self.dilated(x), branch], 1))).clamp(-1, 1)
        return coarse, fine, attended.layout, attended.orthogonality

    @torch.no_grad()
    def load_tensorflow(self, variables: dict[str, Tensor], scope: str = "inpaint_net/") -> None:
        """Take the variables of the published code."""
        load_convolutions(self, variables, scope)
        self.sn.load_tensorflow(variables, f"{scope}sn/")


class PatchDiscriminator(nn.Module):
    """Images [N,3,H,W] to scores of patches [N,1,H/32,W/32], and the mask of the patches that holes [N,1,H,W] touch."""

    scope = "discriminator_local/"

    def __init__(self, cnum: int = 64) -> None:
        super().__init__()
        widths = [3, cnum, 2 * cnum, 4 * cnum, 8 * cnum, 1]
        for i, (fin, fout) in enumerate(pairwise(widths), 1):
            self.add_module(f"conv{i}", SameConv2d(fin, fout, 5, 2))

    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        for name, conv in self.named_children():
            images = conv(images)
            images = images if name == "conv5" else F.leaky_relu(images, 0.2)
            mask = F.max_pool2d(mask, 2, ceil_mode=True)
        return images, mask

    def scores(self, images: Tensor, mask: Tensor) -> Tensor:
        """Mean score [N] of the patches that holes touch."""
        logits, touched = self(images, mask)
        return (logits * touched).sum((1, 2, 3)) / touched.sum((1, 2, 3)).clamp(min=1)

    @torch.no_grad()
    def load_tensorflow(self, variables: dict[str, Tensor], scope: str = scope) -> None:
        """Take the variables of the published code."""
        load_convolutions(self, variables, scope)


class GlobalDiscriminator(nn.Module):
    """Images [N,3,H,W] of one size to scores [N]."""

    scope = "discriminator_global/"

    def __init__(self, size: tuple[int, int], cnum: int = 64) -> None:
        super().__init__()
        widths = [3, cnum, 2 * cnum, 4 * cnum, 8 * cnum, 4 * cnum, 2 * cnum]
        self.convs = nn.ModuleDict(
            {f"conv{i}": SameConv2d(fin, fout, 5, 2) for i, (fin, fout) in enumerate(pairwise(widths), 1)}
        )
        h, w = (-(-side // 64) for side in size)
        self.fc = nn.Linear(widths[-1] * h * w, 1)

    def forward(self, images: Tensor) -> Tensor:
        for conv in self.convs.values():
            images = F.leaky_relu(conv(images), 0.2)
        return self.fc(images.permute(0, 2, 3, 1).flatten(1))[:, 0]  # rows, columns, channels: as TensorFlow flattens


class Confidence(nn.Module):
    """Weights [N,1,H,W] of pixels, 1 at the border of a hole and less within: confidence that spreads from outside.

    m <- mask * (g * (1 - mask + m)) seven times from 0, g a Gaussian of 64 pixels and deviation 40.
    Wang, Tao, Qi, Shen, Jia. Image Inpainting via Generative Multi-column Convolutional Neural Networks. NeurIPS 2018.
    """

    def __init__(self, size: int = 64, deviation: float = 40.0, iterations: int = 7) -> None:
        super().__init__()
        self.iterations = iterations
        line = torch.exp(-0.5 * ((torch.arange(size, dtype=torch.float32) - (size - 1) / 2) / deviation).square())
        self.register_buffer("line", line / line.sum(), persistent=False)

    @torch.no_grad()
    def forward(self, mask: Tensor) -> Tensor:
        before, behind = (len(self.line) - 1) // 2, len(self.line) // 2
        weights = torch.zeros_like(mask)
        for _ in range(self.iterations):
            known = F.pad(1 - mask + weights, (before, behind, before, behind))
            weights = mask * F.conv2d(F.conv2d(known, self.line.view(1, 1, 1, -1)), self.line.view(1, 1, -1, 1))
        return weights


def id_mrf(x: Tensor, y: Tensor, bandwidth: float = 0.5, eps: float = 1e-5) -> Tensor:
    """-log of the mean over positions j of y of max over i of s[i, j], [N]: whether x has something like all of y.

    With cosine distances d[i, j] in [0, 1] of positions i of x and j of y, both centred by the mean of y,
    s[i, j] = w[i, j] / sum over j of w[i, j], w = exp((1 - d / (min over j of d + eps)) / h). x, y [N, C, H, W].
    """
    mean = y.mean((0, 2, 3), keepdim=True)
    x, y = (F.normalize((t - mean).flatten(2), dim=1, eps=1e-6) for t in (x, y))
    distances = (1 - x.transpose(1, 2) @ y) / 2
    relative = distances / (distances.amin(2, keepdim=True) + eps)
    return -torch.softmax((1 - relative) / bandwidth, 2).amax(1).mean(1).log()


def convolutions(net: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions of a network by their names in the published code; AttentiveNorm's are its own."""
    found = {}
    for path, module in net.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, SameConv2d):
            found[f"{name}/{name}_conv" if name.endswith("upsample") else name] = module
    return found


def load_convolutions(net: nn.Module, variables: dict[str, Tensor], scope: str) -> None:
    for name, conv in convolutions(net).items():
        conv.weight.copy_(variables[f"{scope}{name}/kernel"].permute(3, 2, 0, 1))
        conv.bias.copy_(variables[f"{scope}{name}/bias"])
