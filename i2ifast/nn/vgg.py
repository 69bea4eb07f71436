"""Features of a pretrained VGG (Simonyan, Zisserman, ICLR 2015), from a local file, for perceptual losses."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _backend
from .conv import Conv2d

STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # convolutions between poolings


def imagenet(images: Tensor) -> Tensor:
    """RGB images in [0, 1] as torchvision's networks take them."""
    mean, std = (images.new_tensor(t)[:, None, None] for t in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (images - mean) / std


def caffe(images: Tensor) -> Tensor:
    """RGB images in [0, 1] as the first release takes them: BGR, 0..255, less the mean of ImageNet."""
    return (images.flip(1) - images.new_tensor([0.40760392, 0.45795686, 0.48501961])[:, None, None]) * 255


def positions_of(depth: int) -> dict[int, str]:
    """Index of a convolution among torchvision's `features` -> its name."""
    found, index = {}, 0
    for stage, count in enumerate(STAGES[depth], 1):
        for i in range(1, count + 1):
            found[index] = f"conv{stage}_{i}"
            index += 2
        index += 1
    return found


def read_state(path: str | Path) -> dict[str, Tensor]:
    """A state dict of a .safetensors or a torch file."""
    path = Path(path)
    if path.suffix != ".safetensors":
        return torch.load(path, "cpu", weights_only=True)
    from safetensors.torch import load_file  # here, so that ops and layers are there without it

    return load_file(path)


class VGG(nn.Module):
    """The named layers of a VGG16 or VGG19: relu<stage>_<i>, the activation of conv<stage>_<i>, or pool<stage>.

    path: the state dict of torchvision (`features.<index>.weight`, ...), of a network made of slices of that
    (`slice<k>.<index>.weight`), or by names (`conv1_1.weight`), which are this module's own keys. Widths and depth are
    those of the file. `preprocess` is applied to images first, for example `caffe` to images in [0, 1]; `pool` divides
    sides by its second argument, 2.
    """

    def __init__(
        self,
        path: str | Path,
        layers: Sequence[str] = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"),
        preprocess: Callable[[Tensor], Tensor] | None = None,
        pool: Callable[[Tensor, int], Tensor] = F.max_pool2d,
    ) -> None:
        super().__init__()
        self.layers, self.preprocess, self.pool = tuple(layers), preprocess, pool
        state = read_state(path)
        if any(key.startswith(("features.", "slice")) for key in state):
            state = {key.partition(".")[2]: v for key, v in state.items() if key.startswith(("features.", "slice"))}
            names = positions_of(19 if "16.weight" in state else 16)
            state = {
                f"{names[int(i)]}.{leaf}": v for (i, _, leaf), v in ((k.partition("."), v) for k, v in state.items())
            }
        found = sorted(key.removesuffix(".weight") for key in state if re.fullmatch(r"conv\d_\d\.weight", key))
        for name in found:
            weight = state[f"{name}.weight"]
            conv = FrozenConv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            conv.load_state_dict({"weight": weight, "bias": state[f"{name}.bias"]})
            self.add_module(name, conv)
        self.order = [f"relu{name[4:]}" for name in found]
        for stage in range(1, 6):
            last = max((i for i, name in enumerate(self.order) if name.startswith(f"relu{stage}_")), default=-1)
            if last >= 0:
                self.order.insert(last + 1, f"pool{stage}")
        if missing := [name for name in self.layers if name not in self.order]:
            raise ValueError(f"{path} has no layers {', '.join(missing)}; there are {', '.join(self.order)}")
        self.order = self.order[: 1 + max(map(self.order.index, self.layers))]
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = images if self.preprocess is None else self.preprocess(images)
        features = {}
        for name in self.order:
            if name.startswith("pool"):
                x = self.pool(x, 2)
            else:
                x = F.relu(self.get_submodule(f"conv{name[4:]}")(x), inplace=True)
            features[name] = x
        return [features[name] for name in self.layers]


class FrozenConv2d(Conv2d):
    """A convolution of a network that others trained: where the reference is asked for, torch's own."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        faster = super()._conv_forward if _backend.fast() else partial(nn.Conv2d._conv_forward, self)
        return faster(x, weight, bias)


class VGG19(nn.Module):
    """Features relu1_1, relu2_1, relu3_1, relu4_1, relu5_1 of VGG19, frozen; `slice<k>.<layer>` as state_dict keys.

    path: the state dict of torchvision's vgg19 (`features.<layer>.weight`, ...) or one with this module's own keys, as
    .safetensors or a torch file. Widths are those of the file. Images go in as they are, in [-1, 1].
    """

    CONVS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28)
    POOLS = (4, 9, 18, 27)
    SLICES = (0, 2, 7, 12, 21, 30)  # slice k holds layers SLICES[k - 1] .. SLICES[k] - 1

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        state = read_state(path)
        state = {key.partition(".")[2]: v for key, v in state.items() if key.startswith(("features.", "slice"))}
        missing = [f"{i}.{leaf}" for i in self.CONVS for leaf in ("weight", "bias") if f"{i}.{leaf}" not in state]
        if missing:
            raise ValueError(f"{path} is no VGG19: no layers {', '.join(missing)}")
        for k, (start, stop) in enumerate(zip(self.SLICES, self.SLICES[1:], strict=False), 1):
            self.add_module(f"slice{k}", nn.Sequential())
            for i in range(start, stop):
                self.get_submodule(f"slice{k}").add_module(str(i), self._layer(i, state))
        self.requires_grad_(False)

    def _layer(self, i: int, state: dict[str, Tensor]) -> nn.Module:
        if i in self.POOLS:
            return nn.MaxPool2d(2)
        if i not in self.CONVS:
            return nn.ReLU(inplace=True)
        weight = state[f"{i}.weight"]
        conv = FrozenConv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        conv.load_state_dict({"weight": weight, "bias": state[f"{i}.bias"]})
        return conv

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        for layers in self.children():
            images = layers(images)
            features.append(images)
        return features


class VGG16(nn.Module):
    """relu5_3 of VGG16 for images in [-1, 1], frozen, without the pooling in front of conv5_1, as MUNIT uses it.

    path: the state dict of torchvision's vgg16 (`features.<layer>.weight`, ...) or one with this module's own keys, as
    .safetensors or a torch file. Widths are those of the file; its first convolution takes BGR in 0..255 minus MEAN.
    """

    BLOCKS = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}  # torchvision's numbers
    MEAN = (103.939, 116.779, 123.680)

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        state = read_state(path)
        for block, layers in self.BLOCKS.items():
            for i, layer in enumerate(layers, 1):
                name = f"conv{block}_{i}"
                key = name if f"{name}.weight" in state else f"features.{layer}"
                if f"{key}.weight" not in state:
                    raise ValueError(f"{path} is no VGG16: no layer {name} or features.{layer}")
                weight = state[f"{key}.weight"]
                conv = FrozenConv2d(weight.shape[1], weight.shape[0], 3, padding=1)
                conv.load_state_dict({"weight": weight, "bias": state[f"{key}.bias"]})
                self.add_module(name, conv)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x = (images.flip(1) + 1) * 127.5 - images.new_tensor(self.MEAN).view(1, 3, 1, 1)
        for name, conv in self.named_children():
            x = F.max_pool2d(x, 2) if name in ("conv2_1", "conv3_1", "conv4_1") else x
            x = F.relu(conv(x))
        return x
