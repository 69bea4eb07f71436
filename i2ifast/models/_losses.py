"""Loss functions shared by systems, with the reductions of the originals."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

# An adversarial loss takes discriminator outputs of any shape and whether they should look real. `generator` says
# that the generator is trained: only hinge, which does not saturate for it, then differs.
GANLoss = Callable[[Tensor, bool, bool], Tensor]


def hinge(logits: Tensor, real: bool, generator: bool = False) -> Tensor:
    """Mean of relu(1 - logits) for real, relu(1 + logits) for fake; -logits for the generator."""
    if generator:
        return -logits.mean()
    return F.relu(1 - logits if real else 1 + logits).mean()


def least_squares(logits: Tensor, real: bool, generator: bool = False) -> Tensor:
    """Mean of (logits - target)^2 with target 1 for real, 0 for fake."""
    return (logits - float(real)).square().mean()


def cross_entropy(logits: Tensor, real: bool, generator: bool = False) -> Tensor:
    """Mean binary cross entropy of sigmoid(logits) with target 1 for real, 0 for fake."""
    return F.softplus(-logits if real else logits).mean()


def wasserstein(logits: Tensor, real: bool, generator: bool = False) -> Tensor:
    """Mean of -logits for real, logits for fake."""
    return -logits.mean() if real else logits.mean()


GAN_LOSSES: dict[str, GANLoss] = {
    "hinge": hinge,
    "ls": least_squares,
    "original": cross_entropy,
    "w": wasserstein,
}


def feature_matching(fake: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean absolute difference of features, summed over the layers of a scale and averaged over scales.

    `fake`, `real`: discriminator outputs [scale][layer]; the last layer, the logits, is left out. No gradient goes to
    `real`.
    """
    pairs = [pair for scales in zip(fake, real, strict=True) for pair in list(zip(*scales, strict=True))[:-1]]
    return torch.stack([F.l1_loss(f, r.detach()) for f, r in pairs]).sum() / len(fake)


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) = -1/2 sum(1 + logvar - mu^2 - exp(logvar)), over batch and dimensions."""
    return -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()


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
        path = Path(path)
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
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
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        conv.load_state_dict({"weight": weight, "bias": state[f"{i}.bias"]})
        return conv

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        for layers in self.children():
            images = layers(images)
            features.append(images)
        return features


def perceptual(vgg: VGG19, fake: Tensor, real: Tensor) -> Tensor:
    """Sum over the five features of weight * mean |vgg(fake) - vgg(real)|, weights 1/32, 1/16, 1/8, 1/4, 1."""
    with torch.no_grad():
        targets = vgg(real)
    weights = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)
    return torch.stack([w * F.l1_loss(f, t) for w, f, t in zip(weights, vgg(fake), targets, strict=True)]).sum()


class VGG16(nn.Module):
    """relu5_3 of VGG16 for images in [-1, 1], frozen, without the pooling in front of conv5_1, as MUNIT uses it.

    path: the state dict of torchvision's vgg16 (`features.<layer>.weight`, ...) or one with this module's own keys, as
    .safetensors or a torch file. Widths are those of the file; its first convolution takes BGR in 0..255 minus MEAN.
    """

    BLOCKS = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}  # torchvision's numbers
    MEAN = (103.939, 116.779, 123.680)

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        path = Path(path)
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        for block, layers in self.BLOCKS.items():
            for i, layer in enumerate(layers, 1):
                name = f"conv{block}_{i}"
                key = name if f"{name}.weight" in state else f"features.{layer}"
                if f"{key}.weight" not in state:
                    raise ValueError(f"{path} is no VGG16: no layer {name} or features.{layer}")
                weight = state[f"{key}.weight"]
                conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
                conv.load_state_dict({"weight": weight, "bias": state[f"{key}.bias"]})
                self.add_module(name, conv)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x = (images.flip(1) + 1) * 127.5 - images.new_tensor(self.MEAN).view(1, 3, 1, 1)
        for name, conv in self.named_children():
            x = F.max_pool2d(x, 2) if name in ("conv2_1", "conv3_1", "conv4_1") else x
            x = F.relu(conv(x))
        return x
