"""The Inception network that FID, KID and IS are defined on, for weights from a local file.

Szegedy et al. Rethinking the Inception Architecture for Computer Vision. CVPR 2016. The weights are of TensorFlow's
release of 2015-12-05, whose average pooling leaves padding out and whose last block pools by maximum.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from i2ifast.nn.vgg import read_state

SIDE = 299  # of the images that the network takes

# Name, channels and kernel of a convolution, and 2 where that is its stride.
Conv = tuple[str, int, int | tuple[int, int]] | tuple[str, int, int, int]
# "average" or "maximum" pooling and convolutions, one after another; some in brackets share an input and are joined.
Steps = Sequence["str | Conv | Sequence[Conv]"]


def tensorflow_resize(images: Tensor, side: int = SIDE) -> Tensor:
    """Bilinear as in TensorFlow 1: pixel i comes from i * size / side, and nothing is averaged when shrinking."""

    def along(x: Tensor, dim: int) -> Tensor:
        at = torch.arange(side, device=x.device, dtype=x.dtype) * (x.size(dim) / side)
        low = at.long()
        high = (low + 1).clamp(max=x.size(dim) - 1)
        weight = (at - low).view([-1 if i == dim else 1 for i in range(x.ndim)])
        return torch.lerp(x.index_select(dim, low), x.index_select(dim, high), weight)

    return along(along(images, 3), 2)


class ConvNormRelu(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], **options: int | str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, bias=False, **options)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def fold(self) -> None:
        """Let the convolution do the normalisation of eval mode too."""
        self.conv, self.bn = fuse_conv_bn_eval(self.conv, self.bn), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Branches(nn.Module):
    """Steps over one input, side by side. Convolutions of stride 2 and the pooling beside them have no padding."""

    def __init__(self, inputs: int, paths: Sequence[Steps]) -> None:
        super().__init__()
        self.paths, self.stride = paths, 1
        self.outputs = 0  # channels of all paths
        for path in paths:
            channels = inputs
            for step in path:
                convs = () if isinstance(step, str) else (step,) if isinstance(step[0], str) else step
                for name, outputs, kernel, *stride in convs:
                    self.stride = max(self.stride, *stride, 1)
                    options = {"stride": 2} if stride else {"padding": "same"}
                    self.add_module(name, ConvNormRelu(channels, outputs, kernel, **options))
                channels = sum(conv[1] for conv in convs) or channels
            self.outputs += channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._along(path, x) for path in self.paths], 1)

    def _along(self, path: Steps, x: Tensor) -> Tensor:
        for step in path:
            if step == "average":
                x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            elif step == "maximum":
                x = F.max_pool2d(x, 3, self.stride, 1 if self.stride == 1 else 0)
            elif isinstance(step[0], str):
                x = self.get_submodule(step[0])(x)
            else:
                x = torch.cat([self.get_submodule(conv[0])(x) for conv in step], 1)
        return x


def block_a(pooled: int) -> Sequence[Steps]:
    return (
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        ["average", ("branch_pool", pooled, 1)],
    )


def block_c(inner: int) -> Sequence[Steps]:
    row, column = (1, 7), (7, 1)
    sizes = [(inner, 1), (inner, column), (inner, row), (inner, column), (192, row)]
    return (
        [("branch1x1", 192, 1)],
        [("branch7x7_1", inner, 1), ("branch7x7_2", inner, row), ("branch7x7_3", 192, column)],
        [(f"branch7x7dbl_{i}", *size) for i, size in enumerate(sizes, 1)],
        ["average", ("branch_pool", 192, 1)],
    )


def block_e(pooling: str) -> Sequence[Steps]:
    def both(name: str) -> Sequence[Conv]:
        return (f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))

    return (
        [("branch1x1", 320, 1)],
        [("branch3x3_1", 384, 1), both("branch3x3_2")],
        [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), both("branch3x3dbl_3")],
        [pooling, ("branch_pool", 192, 1)],
    )


BLOCK_B = (
    [("branch3x3", 384, 3, 2)],
    [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)],
    ["maximum"],
)
BLOCK_D = (
    [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)],
    [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))]
    + [("branch7x7x3_4", 192, 3, 2)],
    ["maximum"],
)


class Inception(nn.Module):
    """Features [N,2048] and logits without bias [N,1008] of images [N,3,H,W] uint8; state_dict keys of the original."""

    STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "pool", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "pool")
    BLOCKS = {f"Mixed_5{letter}": block_a(pooled) for letter, pooled in zip("bcd", (32, 64, 64), strict=True)}
    BLOCKS |= {"Mixed_6a": BLOCK_B}
    BLOCKS |= {f"Mixed_6{letter}": block_c(inner) for letter, inner in zip("bcde", (128, 160, 160, 192), strict=True)}
    BLOCKS |= {"Mixed_7a": BLOCK_D, "Mixed_7b": block_e("average"), "Mixed_7c": block_e("maximum")}

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNormRelu(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNormRelu(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNormRelu(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNormRelu(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNormRelu(80, 192, 3)
        channels = 192
        for name, paths in self.BLOCKS.items():
            self.add_module(name, block := Branches(channels, paths))
            channels = block.outputs
        self.fc = nn.Linear(channels, 1008)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = (tensorflow_resize(images.float()) - 128) / 128
        for name in (*self.STEM, *self.BLOCKS):
            x = F.max_pool2d(x, 3, 2) if name == "pool" else self.get_submodule(name)(x)
        features = x.mean((2, 3))
        return features, features @ self.fc.weight.T


class Scripted(nn.Module):
    """A TorchScript network in place of `Inception`: it gives features, or features and logits."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.network = torch.jit.load(path, "cpu")
        # A release of the same network gives class probabilities unless it is asked for features.
        named = [argument.name for argument in self.network.forward.schema.arguments]
        self.options = {"return_features": True} if "return_features" in named else {}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        found = self.network(images, **self.options)
        return found if isinstance(found, tuple) else (found, None)


def is_torchscript(path: Path) -> bool:
    """Whether a file holds a network with its code, not weights alone."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def inception(path: str | Path) -> nn.Module:
    """The frozen network of a file: the FID Inception's state dict (.pth, .safetensors), or TorchScript (`Scripted`).

    ValueError for a file of another network.
    """
    path = Path(path)
    if is_torchscript(path):
        network = Scripted(path)
    else:
        network = Inception()
        try:
            state = read_state(path)
            network.load_state_dict({key: state[key] for key in state if not key.endswith("num_batches_tracked")})
        except RuntimeError as error:
            first = " ".join(str(error).split())[:200]
            raise ValueError(f"{path}: not the FID Inception ({first} ...)") from error
        for module in network.eval().modules():
            if isinstance(module, ConvNormRelu):
                module.fold()
    return network.eval().requires_grad_(False)
