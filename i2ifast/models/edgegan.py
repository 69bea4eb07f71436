"""EdgeGAN: sketches of objects to photographs, learned without pairs of the two, by a code shared with edge maps.

Gao, Liu, Xu, Wang, Liu, Zou. SketchyCOCO: Image Generation from Freehand Scene Sketches. CVPR 2020.

This is the paper's first stage. Its second, from the objects on the sketch of a background to a scene, is the system
pix2pix. Weights are those of TensorFlow: a variable <net>/<layer>/... is the parameter <layer>... of the network.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from math import floor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn.conv import convolve
from i2ifast.nn.losses import gradient_penalty, wasserstein

from . import _system
from ._blocks import reflecting
from ._originals import load_strictly
from ._system import Batch, Phase, RMSprop

STRIDE = 16  # of generators and discriminators
JUDGED = {"D": "joint", "D_patch2": "image", "D_patch3": "edge"}  # discriminator -> what it sees


@dataclass
class Config:
    """Options of the original, under its names."""

    num_classes: int = 14
    z_dim: int = 100
    gf_dim: int = 64
    df_dim: int = 64
    encoder_classifier_width_divisor: int = 1  # of the channels that encoder and classifier have in the original
    output_height: int = 64  # height and width of images
    image_dis_size: int = 128  # side that photographs are resized to for their discriminator
    edge_dis_size: int = 128
    lambda_gp: float = 10.0
    stage1_zl_loss: float = 10.0  # weight of the recovered code
    learning_rate: float = 2e-4

    # What the original calls by these names exists here in this one form.
    ONLY: ClassVar[dict[str, Any]] = {
        "G_norm": "instance", "D_norm": "instance", "E_norm": "instance", "if_resnet_g": False, "if_resnet_d": False,
        "if_resnet_e": True, "multiclasses": True, "use_image_discriminator": True, "use_edge_discriminator": True,
        "joint_dweight": 1.0, "image_dweight": 1.0, "edge_dweight": 1.0,
    }  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("output_height", "image_dis_size", "edge_dis_size"):
            if getattr(self, name) % STRIDE:
                raise ValueError(f"{name} {getattr(self, name)}: must be a multiple of {STRIDE}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of images."""
        return self.output_height, self.output_height

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values; ValueError for a network this system does not have."""
        for name, value in cls.ONLY.items():
            if options.get(name, value) != value:
                raise ValueError(f"{name} {options[name]!r}: only {value!r} is supported")
        return cls(**{field.name: options[field.name] for field in fields(cls) if field.name in options})


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "sketchycoco": dict(num_classes=14, output_height=64, image_dis_size=128, edge_dis_size=128),
    "tiny":        dict(num_classes=3,  output_height=32, image_dis_size=48,  edge_dis_size=48, z_dim=8, gf_dim=8,
                        df_dim=8, encoder_classifier_width_divisor=16),
}
# fmt: on


def instance_norm(x: Tensor) -> Tensor:
    """(x - mean) / (standard deviation + 1e-5) of every plane.

    The second derivative, which the penalty of critics takes, has the mean within the variance as a constant: that of
    TensorFlow 1, where the first derivative does not depend on it.
    """
    mean = x.mean((2, 3), keepdim=True)
    variance = (x - mean.detach()).square().mean((2, 3), keepdim=True)
    return (x - mean) / (variance.clamp(min=1e-20).sqrt() + 1e-5)


class Generator(nn.Module):
    """Code and class, [N, z_dim + num_classes], to images [N,3,H,W] in [-1, 1].

    The first norm takes the statistics of the batch at hand, in evaluation too.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        nf, self.side = config.gf_dim, config.output_height // STRIDE
        self.g_lin_0 = nn.Linear(config.z_dim + config.num_classes, 8 * nf * self.side**2)
        self.batch_norm = nn.BatchNorm2d(8 * nf, track_running_stats=False)
        for i, (fin, fout) in enumerate(pairwise([8 * nf, 4 * nf, 2 * nf, nf, 3]), 1):
            self.add_module(f"g_dconv_{i}", nn.ConvTranspose2d(fin, fout, 5, 2, 1))

    def forward(self, z: Tensor) -> Tensor:
        x = self.g_lin_0(z).unflatten(1, (self.side, self.side, -1)).permute(0, 3, 1, 2)
        x = F.relu(self.batch_norm(x))
        for i in range(1, 5):
            x = self.get_submodule(f"g_dconv_{i}")(x)[..., :-1, :-1]
            x = F.relu(instance_norm(x)) if i < 4 else torch.tanh(x)
        return x


class Discriminator(nn.Module):
    """Images [N,3,H,W] of `size` (H, W) to logits [N,1]."""

    def __init__(self, nf: int, size: tuple[int, int]) -> None:
        super().__init__()
        widths = [3, nf, 2 * nf, 4 * nf, 8 * nf]
        self.names = ("d_conv_0", "d_conv_1", "d_conv_3", "d_conv_4")
        for name, (fin, fout) in zip(self.names, pairwise(widths), strict=True):
            self.add_module(name, nn.Conv2d(fin, fout, 4, 2, 1, bias=False))
        self.d_linear_5 = nn.Linear(8 * nf * (size[0] // STRIDE) * (size[1] // STRIDE), 1)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = self.get_submodule(name)(x)
            x = F.leaky_relu(x if name == "d_conv_0" else instance_norm(x), 0.2)
        return self.d_linear_5(x.permute(0, 2, 3, 1).flatten(1))


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + norm(res2(relu(norm(res1(x)))))), then the mean of 2x2 pixels."""

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__()
        self.res1, self.res2 = reflecting(fin, fout, 3, bias=True), reflecting(fout, fout, 3, bias=True)
        self.shortcut = nn.Conv2d(fin, fout, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = instance_norm(self.res2(F.relu(instance_norm(self.res1(x)))))
        return F.avg_pool2d(F.relu(self.shortcut(x) + y), 2)


class Encoder(nn.Module):
    """Edge maps or sketches [N,3,H,W] to mean and logarithm of the deviation of their codes, [N,z_dim] each."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [width // config.encoder_classifier_width_divisor for width in (64, 128, 256, 512, 512)]
        self.e_resnet_64_0 = nn.Conv2d(3, widths[0], 4, 2, 1)
        self.names = ("e_resnet_128_1", "e_resnet_256_2", "e_resnet_512_3", "e_resnet_512_4")
        for name, (fin, fout) in zip(self.names, pairwise(widths), strict=True):
            self.add_module(name, ResidualBlock(fin, fout))
        self.FC8_mu, self.FC8_sigma = (nn.Linear(widths[-1], config.z_dim) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.e_resnet_64_0(x))
        for name in self.names:
            x = self.get_submodule(name)(x)
        x = x.mean((2, 3))
        return self.FC8_mu(x), self.FC8_sigma(x)


def leaking() -> nn.Sequential:
    return nn.Sequential(OrderedDict(prelu=nn.PReLU(init=0.2)))


def normalised(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """The layer's weight over its largest singular value, by one power iteration from its buffer u.

    Gradients go through the iteration, other than in `nn.spectral_norm`. u moves on when the layer is trained.
    """
    weight, u = layer.weight.flatten(1), layer.u.clone()
    v = F.normalize(u @ weight, dim=0)
    u = F.normalize(weight @ v, dim=0)
    if layer.training and layer.weight.requires_grad:
        layer.u.copy_(u.detach())
    return layer.weight / (u @ weight @ v)


class SpectralConv2d(nn.Conv2d):
    """A convolution of normalised weight that keeps the size, and its activation if there is one."""

    def __init__(self, fin: int, fout: int, kernel: int, act: bool = False) -> None:
        super().__init__(fin, fout, kernel, padding=kernel // 2)
        self.register_buffer("u", torch.randn(fout))
        self.prelu = nn.PReLU(init=0.2) if act else None

    def forward(self, x: Tensor) -> Tensor:
        y = convolve(x, normalised(self), self.bias)
        return y if self.prelu is None else self.prelu(y)


class SpectralLinear(nn.Linear):
    """A linear layer of normalised weight."""

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__(fin, fout)
        self.register_buffer("u", torch.randn(fout))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, normalised(self), self.bias)


class MaskedResidualUnit(nn.Module):
    """State h [N,fin,H,W] and image [N,3,H,W] to the next state [N,fout,H/2,W/2].

    Chen, Hays. SketchyGAN: Towards Diverse and Realistic Sketch to Image Synthesis. CVPR 2018.
    """

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__()
        self.norm_activation_in, self.norm_activation_merge_1 = leaking(), leaking()
        self.update_gate = SpectralConv2d(fin + 3, fin, 3)
        self.Conv = SpectralConv2d(3, fin, 3)
        self.Conv_1 = SpectralConv2d(fin, fout, 3, act=True)
        self.Conv_2 = SpectralConv2d(fout, fout, 3)
        self.Conv_3 = SpectralConv2d(fin, fout, 1)

    def forward(self, h: Tensor, image: Tensor) -> Tensor:
        gate = F.leaky_relu(self.update_gate(torch.cat([self.norm_activation_in(h), image], 1)), 0.2)
        low, high = gate.amin((2, 3), keepdim=True), gate.amax((2, 3), keepdim=True)
        merged = h + (gate - low) / (high - low) * self.Conv(image)
        y = self.Conv_2(self.Conv_1(self.norm_activation_merge_1(merged)))
        return F.avg_pool2d(y, 2) + self.Conv_3(F.avg_pool2d(h, 2))


class Classifier(nn.Module):
    """Photographs [N,3,H,W] to logits [N,num_classes]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [8, *(width // config.encoder_classifier_width_divisor for width in (128, 256, 512, 768))]
        self.Conv = SpectralConv2d(3, widths[0], 7, act=True)
        self.units = [f"mru_conv_unit_t_{i}_layer_0" for i in range(1, 5)]
        for name, (fin, fout) in zip(self.units, pairwise(widths), strict=True):
            self.add_module(name, MaskedResidualUnit(fin, fout))
        self.mru_conv_unit_last_norm = leaking()
        self.Conv_1 = SpectralConv2d(widths[-1], 1, 1)  # which the original has and does not use
        self.fully_connected = SpectralLinear(widths[-1], config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        h = self.Conv(images)
        for name in self.units:
            h = self.get_submodule(name)(h, images)
            images = F.avg_pool2d(images, 2)
        return self.fully_connected(self.mru_conv_unit_last_norm(h).mean((2, 3)))


@cache
def bicubic(size: int, resized: int) -> Tensor:
    """Weights [resized, size] of TensorFlow 1's bicubic resizing of a line, whose pixels are not centred.

    Keys' kernel with a = -0.75 at multiples of 1/1024.
    """
    weights = torch.zeros(resized, size, dtype=torch.float64)
    for i in range(resized):
        at = i * size / resized
        offset = round((at - floor(at)) * 1024) / 1024
        for tap in range(-1, 3):
            x = abs(tap - offset)
            near, far = (1.25 * x - 2.25) * x * x + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3
            weights[i, min(max(floor(at) + tap, 0), size - 1)] += near if x <= 1 else far
    return weights.float()


def resize(x: Tensor, side: int) -> Tensor:
    """Images [N,C,H,W] to [N,C,side,side]."""
    rows, columns = (bicubic(size, side).to(x) for size in x.shape[2:])
    return x if x.shape[2:] == (side, side) else rows @ x @ columns.t()


class System(_system.System):
    """Generators of edges and of photographs from one code, three critics, a classifier, and an encoder of edges.

    An iteration steps each critic, the classifier, the generators, the encoder, and the generators again. Edge maps and
    photographs of a batch (`sketch`, `image`, `domain`, the class) belong together; sketches are for translation only.
    TensorFlow's RMSprop starts from mean squares of 1, this one from 0: the first steps are larger here.
    """

    Config = Config
    PRESETS = PRESETS
    data = "sketches"
    ema = ("G2", "E")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        (h, w), nf = config.size, config.df_dim
        self.nets["G1"], self.nets["G2"] = Generator(config), Generator(config)
        self.nets["D"] = Discriminator(nf, (h, 2 * w))
        self.nets["D_patch2"] = Discriminator(nf, (config.image_dis_size, config.image_dis_size))
        self.nets["D_patch3"] = Discriminator(nf, (config.edge_dis_size, config.edge_dis_size))
        self.nets["D2"] = Classifier(config)
        self.nets["E"] = Encoder(config)
        rmsprop = RMSprop(config.learning_rate, alpha=0.9, eps=1e-10)
        generators = ("G1", "G2")
        self.phases = [
            *(Phase(net, (net,), self.critic_loss(net), rmsprop) for net in JUDGED),
            Phase("D2", ("D2",), self.classifier_loss, rmsprop),
            Phase("G", generators, self.generator_loss, rmsprop),
            Phase("E", ("E",), self.encoder_loss, rmsprop),
            Phase("G_again", generators, self.generator_loss, rmsprop, shares="G"),
        ]

    def init_weights(self) -> None:
        """Normal with deviation 0.02, biases zero, scales of the batch norms one, leaks 0.2."""
        for net in self.nets.values():
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.reset_parameters()
                elif isinstance(module, nn.PReLU):
                    nn.init.constant_(module.weight, 0.2)
                elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                    nn.init.normal_(module.weight, 0, 0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    @property
    def data_settings(self) -> dict[str, Any]:
        """Whole images, as they are."""
        return {"crop_size": self.config.output_height, "load_size": self.config.output_height, "flip": False}

    def prepare(self, batch: Batch) -> Batch:
        """Add `z`, a code for every sample, and `coded`, that with the class behind it."""
        z = self.randn((len(batch["domain"]), self.config.z_dim), batch["image"])
        return {**batch, "z": z, "coded": self.with_class(z, batch["domain"])}

    def with_class(self, z: Tensor, domain: Tensor) -> Tensor:
        return torch.cat([z, F.one_hot(domain, self.config.num_classes).to(z)], 1)

    def views(self, edge: Tensor, image: Tensor) -> dict[str, Tensor]:
        """What critics see: edges and photograph side by side, and each alone, resized."""
        config = self.config
        return {
            "joint": torch.cat([edge, image], 3),
            "image": resize(image, config.image_dis_size),
            "edge": resize(edge, config.edge_dis_size),
        }

    def critic_loss(self, net: str) -> Callable[[Batch], dict[str, Tensor]]:
        """The Wasserstein distance that critic `net` sees, and the penalty on its gradient between fake and real.

        That gradient is of the sum of the logit and its sigmoid, as in the original.
        """
        seen = JUDGED[net]

        def loss(batch: Batch) -> dict[str, Tensor]:
            if "fakes" not in batch:  # the generators are the same for all critics
                with torch.no_grad():
                    batch["fakes"] = self.views(*(self.nets[name](batch["coded"]) for name in ("G1", "G2")))
                    batch["reals"] = self.views(batch["sketch"], batch["image"])
            fake, real = batch["fakes"][seen], batch["reals"][seen]
            on_fake, on_real = self.nets[net](torch.cat([fake, real])).chunk(2)
            between = torch.lerp(real, fake, self.rand((len(real), 1, 1, 1), real)).requires_grad_()
            logits = self.nets[net](between)
            penalty = gradient_penalty(logits + torch.sigmoid(logits), between)
            distance = wasserstein(on_fake, real=False) + wasserstein(on_real, real=True)
            return {f"{seen}_d": distance, f"{seen}_gp": self.config.lambda_gp * penalty}

        return loss

    def classifier_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Focal loss of real photographs: cross entropy * (1 - probability)^2."""
        entropy = F.cross_entropy(self.nets["D2"](batch["image"]), batch["domain"], reduction="none")
        return {"class_d": ((1 - torch.exp(-entropy)).square() * entropy).mean()}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        views = self.views(*(self.nets[name](batch["coded"]) for name in ("G1", "G2")))
        terms = {f"{seen}_g": wasserstein(self.nets[net](views[seen]), real=True) for net, seen in JUDGED.items()}
        image = views["joint"][..., self.config.output_height :]
        return terms | {"class_g": 0.5 * F.cross_entropy(self.nets["D2"](image), batch["domain"])}

    def encode(self, images: Tensor) -> Tensor:
        """Codes drawn from their normal distributions, by one random number for the whole batch."""
        mu, log_deviation = self.nets["E"](images)
        return mu + self.randn((1,), mu) * torch.exp(log_deviation)

    def encoder_loss(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            edges = self.nets["G1"](batch["coded"])
        return {"z_l1": self.config.stage1_zl_loss * (batch["z"] - self.encode(edges)).abs().mean()}

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,H,W]}: photographs of class `domain` from `sketch`, of config.size."""
        if tuple(batch["sketch"].shape[2:]) != self.config.size:
            h, w = batch["sketch"].shape[2:]
            raise ValueError(f"sketch of {h}x{w} pixels: expected {self.config.output_height} on both sides")
        return {"fake": self.nets["G2"](self.with_class(self.encode(batch["sketch"]), batch["domain"]))}

    def load_original(self, path: str | Path) -> None:
        """Load an .npz of all variables of a checkpoint by their names, with / between the parts."""
        states: dict[str, dict[str, Tensor]] = {name: {} for name in self.nets}
        with np.load(path) as file:
            for variable in file.files:
                net, key = parameter_of(variable)
                if net in states:  # none of an optimizer, or the number of the step
                    states[net][key] = from_tensorflow(key, torch.from_numpy(file[variable]))
        for name, state in states.items():
            load_strictly(self.nets[name], state, Path(path))


LEAVES = {
    "Matrix": "weight", "w": "weight", "weights": "weight", "u": "u", "param": "weight", "gamma": "weight",
    "beta": "bias", "b": "bias", "bias": "bias", "biases": "bias",
}  # fmt: skip


def parameter_of(variable: str) -> tuple[str, str]:
    """The network and the state_dict key of a variable; another network's name for a variable of none."""
    net, *path = variable.split("/")
    if len(path) < 2 or path[-1] not in LEAVES:
        return "", variable
    *path, leaf = path
    if net in path:  # the vector of a spectral norm has its layer's name twice
        path = path[: path.index(net)]
    return net, ".".join([part for part in path if part not in ("conv2d", "deconv2d", "BatchNorm")] + [LEAVES[leaf]])


def from_tensorflow(key: str, value: Tensor) -> Tensor:
    """A variable as the parameter `key`."""
    if value.ndim == 4 and key.endswith("weight"):
        return value.permute(3, 2, 0, 1).contiguous()
    if value.ndim == 2 and key.endswith("weight"):
        return value.t().contiguous()
    return value.flatten()
