"""StarGAN: one generator for all domains, classes or sets of attributes, told which one to translate to.

Choi, Choi, Kim, Ha, Kim, Choo. StarGAN: Unified Generative Adversarial Networks for Multi-Domain Image-to-Image
Translation. CVPR 2018.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import TrackedInstanceNormAct
from i2ifast.nn.conv import Conv2d, ConvTranspose2d
from i2ifast.nn.losses import gradient_penalty, wasserstein

from . import _system
from ._blocks import numbered, pad_to, reset, tiled
from ._originals import load_strictly, named
from ._system import Adam, Batch, Phase, every

CELEBA_CROP = 178  # side of the middle of its photographs
STRIDE = 4  # pixels of an image to one of the generator's smallest map


@dataclass
class Config:
    """Options of the original, under its names."""

    dataset: Literal["CelebA", "RaFD", "Both"] = "CelebA"  # attributes, each there or not; classes, of which one is
    c_dim: int = 5
    c2_dim: int = 8  # classes, where attributes and classes are learned from two data sets
    selected_attrs: tuple[str, ...] = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")  # c_dim of CelebA's
    image_size: int = 128
    g_conv_dim: int = 64
    d_conv_dim: int = 64
    g_repeat_num: int = 6
    d_repeat_num: int = 6
    lambda_cls: float = 1.0
    lambda_rec: float = 10.0
    lambda_gp: float = 10.0
    n_critic: int = 5  # steps of the discriminator to one of the generator
    g_lr: float = 1e-4
    d_lr: float = 1e-4
    beta1: float = 0.5
    beta2: float = 0.999
    num_iters: int = 200000
    num_iters_decay: int = 100000  # in the last of them learning rates fall, see `System.rate`
    lr_update_step: int = 1000

    def __post_init__(self) -> None:
        if self.dataset not in ("CelebA", "RaFD", "Both"):
            raise ValueError(f"dataset {self.dataset!r}: expected CelebA (attributes), RaFD (classes) or Both")
        smallest = 1 << max(self.d_repeat_num, 2)
        if self.image_size % smallest:
            raise ValueError(f"image_size {self.image_size}: must be a multiple of {smallest}")

    @property
    def sets(self) -> dict[str, tuple[int, int]]:
        """The data sets, and which labels are theirs: the first and the one behind the last."""
        if self.dataset == "Both":
            return {"CelebA": (0, self.c_dim), "RaFD": (self.c_dim, self.c_dim + self.c2_dim)}
        return {self.dataset: (0, self.c_dim)}

    @property
    def num_labels(self) -> int:
        """Of all data sets."""
        return max(last for _, last in self.sets.values())

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of training images."""
        return self.image_size, self.image_size

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values."""
        values = named(cls, options)
        return cls(**values | {"selected_attrs": tuple(values.get("selected_attrs", cls.selected_attrs))})


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "celeba":     dict(dataset="CelebA", c_dim=5, image_size=128),
    "celeba_256": dict(dataset="CelebA", c_dim=5, image_size=256),
    "both":       dict(dataset="Both",   c_dim=5, image_size=128, c2_dim=8),
    "rafd":       dict(dataset="RaFD",   c_dim=8, image_size=128),
    "tiny":       dict(dataset="RaFD",   c_dim=3, image_size=32, g_conv_dim=4, d_conv_dim=4, g_repeat_num=1,
                       d_repeat_num=3, n_critic=1),
}
# fmt: on


def norm(channels: int, act: str | float = "relu", running: bool = False) -> TrackedInstanceNormAct:
    return TrackedInstanceNormAct(channels, act, affine=True, running=running)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, running: bool) -> None:
        super().__init__()
        first, second = (Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        norms = norm(channels, running=running), norm(channels, "none", running)
        self.main = numbered({0: first, 1: norms[0], 3: second, 4: norms[1]})

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


class Generator(nn.Module):
    """Images [N,3,H,W] and labels [N,C] to images in [-1, 1]; of two data sets, labels and a mask of which they are.

    Its norms keep running averages, as the original's files do. The original never evaluates with them, and without
    `running` neither does this.
    """

    def __init__(self, config: Config, running: bool = False) -> None:
        super().__init__()
        dim = config.g_conv_dim
        given = config.num_labels + (len(config.sets) if len(config.sets) > 1 else 0)
        layers: dict[int, nn.Module] = {0: nn.Conv2d(3 + given, dim, 7, 1, 3, bias=False)}
        layers[1] = norm(dim, running=running)
        number = 3
        for _ in range(2):
            layers[number] = Conv2d(dim, 2 * dim, 4, 2, 1, bias=False)
            layers[number + 1] = norm(2 * dim, running=running)
            dim, number = 2 * dim, number + 3
        for _ in range(config.g_repeat_num):
            layers[number] = ResidualBlock(dim, running)
            number += 1
        for _ in range(2):
            layers[number] = ConvTranspose2d(dim, dim // 2, 4, 2, 1, bias=False)
            layers[number + 1] = norm(dim // 2, running=running)
            dim, number = dim // 2, number + 3
        layers |= {number: nn.Conv2d(dim, 3, 7, 1, 3, bias=False), number + 1: nn.Tanh()}
        self.main = numbered(layers)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.main(torch.cat([images, tiled(labels, images)], 1))


class Discriminator(nn.Module):
    """Images [N,3,image_size,image_size] to logits of patches, real or fake, and of all labels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [3, *(config.d_conv_dim << i for i in range(config.d_repeat_num))]
        layers: dict[int, nn.Module] = {}
        for i, (fin, fout) in enumerate(pairwise(widths)):
            layers |= {2 * i: Conv2d(fin, fout, 4, 2, 1), 2 * i + 1: nn.LeakyReLU(0.01)}
        self.main = numbered(layers)
        self.conv1 = nn.Conv2d(widths[-1], 1, 3, 1, 1, bias=False)
        side = config.image_size >> config.d_repeat_num
        self.conv2 = nn.Conv2d(widths[-1], config.num_labels, side, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.main(images)
        return self.conv1(x), self.conv2(x).flatten(1)


class System(_system.System):
    """A discriminator step in each iteration, a generator step in every n_critic-th; both for each of two data sets.

    A batch has `domain`, class numbers [N] int64, or `attributes` [N,c_dim] that are 0 or 1, which may be in `domain`
    too. Images are translated to the domains of the batch in another order. With Both, classes are `reference_domain`,
    of the images `reference`: each set is translated within its own labels, and the generator is told which set it is.
    """

    Config = Config
    PRESETS = PRESETS
    data = "domains"
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["G"], self.nets["D"] = Generator(config), Discriminator(config)
        betas = config.beta1, config.beta2
        critic = every(config.n_critic, first=config.n_critic - 1)
        self.phases = []
        for i, of in enumerate(config.sets):
            end, shares = (f"_{of}", "DG") if i else ("", ("", ""))
            losses = partial(self.discriminator_loss, of=of), partial(self.generator_loss, of=of)
            self.phases += [
                Phase(f"D{end}", ("D",), losses[0], Adam(config.d_lr, betas), shares=shares[0]),
                Phase(f"G{end}", ("G",), losses[1], Adam(config.g_lr, betas), when=critic, shares=shares[1]),
            ]

    @property
    def data_settings(self) -> dict[str, Any]:
        """Images without references, of any domains for attributes; those of CelebA are cut to their middles first."""
        config = self.config
        settings = {"crop_size": config.image_size, "num_domains": None, "num_references": 0}
        if config.dataset == "RaFD":
            return settings | {"num_domains": config.c_dim, "selected_attrs": ()}
        settings |= {"preprocess_mode": "crop_and_resize", "load_size": CELEBA_CROP}
        return settings | ({"num_domains": config.c2_dim} if config.dataset == "Both" else {})

    def init_weights(self) -> None:
        """As PyTorch's layers do."""
        reset(self.nets)

    def rate(self, step: int) -> float:
        """Before the last num_iters_decay iterations 1; then in every lr_update_step-th one 1 / num_iters_decay less.

        Next to no decay at all, 0.999 at the end: the original takes off in an update what one iteration should.
        """
        config = self.config
        first = max(0, config.num_iters - config.num_iters_decay)
        updates = step // config.lr_update_step - first // config.lr_update_step  # behind iterations counted from 1
        return 1 - max(0, updates) / max(1, config.num_iters_decay)

    def labels(self, domain: Tensor, of: str | None = None) -> Tensor:
        """Class numbers [N] or attributes [N,C] of a data set, by default the only one, as float32 [N,C]."""
        first, last = self.config.sets[of or self.config.dataset]
        if domain.ndim == 2:
            if domain.size(1) != last - first:
                raise ValueError(f"{domain.size(1)} attributes: the system has {last - first}")
            return domain.float()
        return F.one_hot(domain, last - first).float()

    def condition(self, labels: Tensor, of: str) -> Tensor:
        """What the generator is told [N,C]: labels of a data set; of two, zeros for the other's, and a mask of sets."""
        if len(self.config.sets) == 1:
            return labels
        first, last = self.config.sets[of]
        mask = labels.new_tensor([float(name == of) for name in self.config.sets]).expand(len(labels), -1)
        return torch.cat([F.pad(labels, (first, self.config.num_labels - last)), mask], 1)

    def prepare(self, batch: Batch) -> Batch:
        """The batch with, for every data set, its `real` images, their `label` [N,C] and the permutation of it to
        translate to, `target`."""
        sets = {}
        for of in self.config.sets:
            image, domain = "image", "attributes" if "attributes" in batch else "domain"
            if self.config.dataset == "Both" and of == "RaFD":
                image, domain = "reference", "reference_domain"
            label = self.labels(batch[domain], of)
            target = label[self.randperm(len(label), label)]
            sets[of] = {"real": batch[image], "label": label, "target": target}
        return batch | {"sets": sets}

    def classification(self, logits: Tensor, labels: Tensor, of: str | None = None) -> Tensor:
        """Cross entropy of a data set's labels: of attributes the sum, of classes the softmax; mean of samples."""
        of = of or self.config.dataset
        logits = logits[:, slice(*self.config.sets[of])]
        if of == "RaFD":
            return F.cross_entropy(logits, labels.argmax(1))
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(labels)

    def discriminator_loss(self, batch: Batch, of: str) -> dict[str, Tensor]:
        given = batch["sets"][of]
        real = given["real"]
        with torch.no_grad():
            fake = self.nets["G"](real, self.condition(given["target"], of))
        source, classes = self.nets["D"](torch.cat([real, fake]))
        of_real, of_fake = source.chunk(2)
        alpha = self.rand((len(real), 1, 1, 1), real)
        between = fake.lerp(real, alpha).requires_grad_()
        penalty = gradient_penalty(self.nets["D"](between)[0], between)
        return {
            "real": wasserstein(of_real, True),
            "fake": wasserstein(of_fake, False),
            "cls": self.config.lambda_cls * self.classification(classes.chunk(2)[0], given["label"], of),
            "gp": self.config.lambda_gp * penalty,
        }

    def generator_loss(self, batch: Batch, of: str) -> dict[str, Tensor]:
        given, generator = batch["sets"][of], self.nets["G"]
        fake = generator(given["real"], self.condition(given["target"], of))
        source, classes = self.nets["D"](fake)
        again = generator(fake, self.condition(given["label"], of))
        return {
            "fake": wasserstein(source, True),
            "rec": self.config.lambda_rec * F.l1_loss(again, given["real"]),
            "cls": self.config.lambda_cls * self.classification(classes, given["target"], of),
        }

    def wanted(self, batch: Batch) -> Tensor:
        """What the generator is told to translate to, see `translate`."""
        of_attributes, *_, of_classes = *self.config.sets, *self.config.sets  # the same, if there is one
        if "reference_attributes" in batch:
            return self.condition(self.labels(batch["reference_attributes"], of_attributes), of_attributes)
        if "reference_domain" in batch:
            return self.condition(self.labels(batch["reference_domain"], of_classes), of_classes)
        own = self.labels(batch["attributes" if "attributes" in batch else "domain"], of_attributes)
        return self.condition(own.roll(1, 1), of_attributes)

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": images of any size in the domains `reference_domain`: class numbers [N] or attributes [N,c_dim]}.

        Attributes may be `reference_attributes`; so they are with Both. Without either, in the next class to theirs; of
        attributes, with the value of each given to the next.
        """
        h, w = batch["image"].shape[-2:]
        return {"fake": self.nets["G"](pad_to(batch["image"], STRIDE), self.wanted(batch))[..., :h, :w]}

    def load_original(self, path: str | Path) -> None:
        """Load the newest <iteration>-G.ckpt and <iteration>-D.ckpt (may be absent) of a folder, or one such file."""
        path = Path(path)
        files = [path]
        if path.is_dir():
            found = {int(file.stem.partition("-")[0]): file for file in path.glob("*-G.ckpt")}
            if not found:
                raise ValueError(f"{path}: no <iteration>-G.ckpt in it")
            newest = found[max(found)]
            files = [newest, *path.glob(newest.name.replace("-G", "-D"))]
        for file in files:
            name = file.stem.rpartition("-")[2]
            if name not in self.nets:
                raise ValueError(f"{file}: expected a file name <iteration>-G.ckpt or <iteration>-D.ckpt")
            load_strictly(self.nets[name], torch.load(file, map_location="cpu", weights_only=True), file)
