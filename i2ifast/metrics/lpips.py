"""LPIPS: distances of images in the features of a pretrained classifier, weighted as people see them.

Zhang et al. The Unreasonable Effectiveness of Deep Features as a Perceptual Metric. CVPR 2018.
"""

import functools
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
import torchmetrics.functional.image
from torch import Tensor, nn

from i2ifast.nn.vgg import VGG, read_state


class AlexNet(nn.Module):
    """The activations of the five convolutions of torchvision's AlexNet, from its state dict."""

    CONVS = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}  # torchvision's number: stride, padding
    POOLED = (3, 6)  # those behind a pooling

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        state = read_state(path)
        for number, (stride, padding) in self.CONVS.items():
            weight, bias = (state[f"features.{number}.{leaf}"] for leaf in ("weight", "bias"))
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride, padding)
            conv.load_state_dict({"weight": weight, "bias": bias})
            self.add_module(str(number), conv)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for number in self.CONVS:
            x = F.max_pool2d(x, 3, 2) if number in self.POOLED else x
            x = F.relu(self.get_submodule(str(number))(x))
            features.append(x)
        return features


class LPIPS(nn.Module):
    """Distances [N] of images [N,3,H,W] in [-1, 1]: the sum over layers of the mean over pixels of what `maps` gives.

    path: the state dict of torchvision's AlexNet or VGG16. The weights of the channels, version 0.1 of the original,
    come with torchmetrics. ValueError for a file of another network.
    """

    SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # per colour
    VGG_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        shapes = {key: tuple(value.shape) for key, value in read_state(path).items()}
        if shapes.get("features.0.weight") == (64, 3, 11, 11):
            name, self.network = "alex", AlexNet(path)
        elif shapes.get("features.28.weight") == (512, 512, 3, 3) and "features.30.weight" not in shapes:
            name, self.network = "vgg", VGG(path, self.VGG_LAYERS)
        else:
            raise ValueError(f"{path}: neither AlexNet nor VGG16 (torchvision's state_dict)")
        with resources.as_file(resources.files(torchmetrics.functional.image) / "lpips_models" / f"{name}.pth") as file:
            weights = read_state(file)
        for layer in range(5):
            self.register_buffer(f"weight{layer}", weights[f"lin{layer}.model.1.weight"])
        self.eval().requires_grad_(False)

    def distances(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Of each layer: the weighted sum over channels of the squared difference of unit vectors, [N,1,h,w]."""
        shift, scale = (x.new_tensor(values).view(1, 3, 1, 1) for values in (self.SHIFT, self.SCALE))
        features = self.network((torch.cat([x, y]) - shift) / scale)
        found = []
        for layer, both in enumerate(features):
            a, b = (both * (both.square().sum(1, keepdim=True) + 1e-8).rsqrt()).chunk(2)
            found.append(F.conv2d((a - b).square(), self.get_buffer(f"weight{layer}")))
        return found

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return functools.reduce(torch.add, (layer.mean((1, 2, 3)) for layer in self.distances(x, y)))

    def maps(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances of every pixel [N,H,W]: those of the layers upsampled (bilinear) and added."""
        size = x.shape[2:]
        grown = (F.interpolate(layer, size, mode="bilinear")[:, 0] for layer in self.distances(x, y))
        return functools.reduce(torch.add, grown)
