"""EdgeGAN: sketches of objects to photographs, learned without pairs of the two, by a code shared with edge maps.

Gao, Liu, Xu, Wang, Liu, Zou. SketchyCOCO: Image Generation from Freehand Scene Sketches. CVPR 2020.

This is the paper's first stage, learned from edge maps of photographs in place of sketches. Its second, from objects on
the sketch of a background to a scene, is the system pix2pix.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn.losses import gradient_penalty, wasserstein

from . import _system
from ._edgegan import STRIDE, Classifier, Discriminator, Encoder, Generator, resize
from ._originals import load_strictly, named, require
from ._system import Batch, Phase, RMSprop

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
        require(options, **cls.ONLY)
        return cls(**named(cls, options))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "sketchycoco": dict(num_classes=14, output_height=64, image_dis_size=128, edge_dis_size=128),
    "tiny":        dict(num_classes=3,  output_height=32, image_dis_size=48,  edge_dis_size=48, z_dim=8, gf_dim=8,
                        df_dim=8, encoder_classifier_width_divisor=16),
}
# fmt: on


LEAVES = {
    "Matrix": "weight", "w": "weight", "weights": "weight", "u": "u", "param": "weight", "gamma": "weight",
    "beta": "bias", "b": "bias", "bias": "bias", "biases": "bias",
}  # fmt: skip


def parameter_of(variable: str) -> tuple[str, str]:
    """The network and the state_dict key of a variable; "" for the network of one that is no parameter."""
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
        (h, w), divisor = config.size, config.encoder_classifier_width_divisor
        for name in ("G1", "G2"):
            self.nets[name] = Generator(config.z_dim + config.num_classes, config.gf_dim, h)
        sizes = ((h, 2 * w), (config.image_dis_size,) * 2, (config.edge_dis_size,) * 2)
        for name, size in zip(JUDGED, sizes, strict=True):
            self.nets[name] = Discriminator(config.df_dim, size)
        self.nets["D2"] = Classifier(config.num_classes, divisor)
        self.nets["E"] = Encoder(config.z_dim, divisor)
        rmsprop = RMSprop(config.learning_rate, alpha=0.9, eps=1e-10)
        generators = ("G1", "G2")
        self.phases = [
            *(Phase(net, (net,), partial(self.critic_loss, net), rmsprop) for net in JUDGED),
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

    def critic_loss(self, net: str, batch: Batch) -> dict[str, Tensor]:
        """The Wasserstein distance that critic `net` sees, and the penalty on its gradient between fake and real.

        That gradient is of the sum of the logit and its sigmoid, as in the original.
        """
        if "fakes" not in batch:  # the generators are the same for all critics
            with torch.no_grad():
                batch["fakes"] = self.views(*(self.nets[name](batch["coded"]) for name in ("G1", "G2")))
                batch["reals"] = self.views(batch["sketch"], batch["image"])
        seen = JUDGED[net]
        fake, real = batch["fakes"][seen], batch["reals"][seen]
        on_fake, on_real = self.nets[net](torch.cat([fake, real])).chunk(2)
        between = torch.lerp(real, fake, self.rand((len(real), 1, 1, 1), real)).requires_grad_()
        logits = self.nets[net](between)
        penalty = gradient_penalty(logits + torch.sigmoid(logits), between)
        distance = wasserstein(on_fake, real=False) + wasserstein(on_real, real=True)
        return {f"{seen}_d": distance, f"{seen}_gp": self.config.lambda_gp * penalty}

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
