"""The loss that networks of partial convolutions are trained with to fill holes."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv import Conv2d
from .vgg import read_state

SLICES = (
    (0, 2),
    (5, 7),
    (10, 12, 14),
)  # convolutions of VGG16, by their numbers in torchvision; a pooling ends a slice


def gram(features: Tensor) -> Tensor:
    """[N, C, H, W] to [N, C, C]: <f_i, f_j> / (C H W)."""
    f = features.flatten(2)
    return f @ f.transpose(1, 2) / (f.size(1) * f.size(2))


class VGG16PartialLoss(nn.Module):
    """Differences of pixels, of VGG16 features and of their Gram matrices: Liu et al., Image Inpainting, ECCV 2018.

    `forward(output, target)`, images [N, 3, H, W] in [0, 1], gives (total, perceptual, style), total = l1_alpha *
    mean|x - y| + perceptual + style + smooth_alpha * tv(x), where x and y are the images normalised as VGG16 takes
    them, perceptual = perceptual_alpha * sum of mean|f(x) - f(y)| over `feat_num` features, each behind a pooling,
    style = style_alpha times the same of Gram matrices, and tv the mean absolute differences of neighbours. No gradient
    goes to the target. vgg_path: the state dict of torchvision's vgg16, as .safetensors or a torch file; widths are
    those of the file.
    """

    def __init__(
        self,
        l1_alpha: float = 5.0,
        perceptual_alpha: float = 0.05,
        style_alpha: float = 120.0,
        smooth_alpha: float = 0.0,
        feat_num: int = 3,
        vgg_path: str | Path = "vgg16-397923af.pth",
    ) -> None:
        super().__init__()
        if not 1 <= feat_num <= len(SLICES):
            raise ValueError(f"feat_num={feat_num}: expected 1..{len(SLICES)}")
        self.l1_alpha, self.perceptual_alpha = l1_alpha, perceptual_alpha
        self.style_alpha, self.smooth_alpha = style_alpha, smooth_alpha
        path = Path(vgg_path).expanduser()
        state = read_state(path)
        names = [f"features.{i}.{leaf}" for s in SLICES[:feat_num] for i in s for leaf in ("weight", "bias")]
        if missing := [name for name in names if name not in state]:
            raise ValueError(f"{path} is no VGG16: it has no {', '.join(missing)}")
        self.slices = nn.ModuleList(self._slice(convs, state) for convs in SLICES[:feat_num])
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    @staticmethod
    def _slice(convs: tuple[int, ...], state: dict[str, Tensor]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for i in convs:
            outputs, inputs = state[f"features.{i}.weight"].shape[:2]
            conv = Conv2d(inputs, outputs, 3, padding=1)
            conv.load_state_dict({leaf: state[f"features.{i}.{leaf}"] for leaf in ("weight", "bias")})
            layers += [conv, nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, nn.MaxPool2d(2))

    def forward(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y = ((image - self.mean) / self.std for image in (output, target.detach()))
        total = self.l1_alpha * F.l1_loss(x, y)
        if self.smooth_alpha:
            total = total + self.smooth_alpha * sum(x.diff(dim=dim).abs().mean() for dim in (2, 3))
        perceptual = style = torch.zeros_like(total)
        for layers in self.slices:
            x = layers(x)
            with torch.no_grad():
                y = layers(y)
            perceptual = perceptual + self.perceptual_alpha * F.l1_loss(x, y)
            style = style + self.style_alpha * F.l1_loss(gram(x), gram(y))
        return total + perceptual + style, perceptual, style
