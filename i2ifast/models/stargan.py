"""StarGAN: one generator for all domains, classes or sets of attributes, told which one to translate to.

Choi, Choi, Kim, Ha, Kim, Choo. StarGAN: Unified Generative Adversarial Networks for Multi-Domain Image-to-Image
Translation. CVPR 2018.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import TrackedInstanceNormAct
from i2ifast.nn.conv import Conv2d
from i2ifast.nn.losses import gradient_penalty, wasserstein

from . import _system
from ._blocks import numbered, pad_to, reset
from ._originals import load_strictly, named
from ._system import Adam, Batch, Phase, every

STRIDE = 4  # pixels of an image to one of the generator's smallest map


@dataclass
class Config:
    """Options of the original, under its names."""

    dataset: Literal["CelebA", "RaFD"] = "CelebA"  # attributes, each there or not, or classes, one of which applies
    c_dim: int = 5
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
        if self.dataset not in ("CelebA", "RaFD"):
            raise ValueError(f"dataset {self.dataset!r}: expected CelebA (attributes) or RaFD (classes)")
        smallest = 1 << max(self.d_repeat_num, 2)
        if self.image_size % smallest:
            raise ValueError(f"image_size {self.image_size}: must be a multiple of {smallest}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of training images."""
        return self.image_size, self.image_size

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values."""
        return cls(**named(cls, options))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "celeba":     dict(dataset="CelebA", c_dim=5, image_size=128),
    "celeba_256": dict(dataset="CelebA", c_dim=5, image_size=256),
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
    """Images [N,3,H,W] and labels [N,c_dim] to images in [-1, 1].

    Its norms keep running averages, as the original's files do. The original never evaluates with them, and without
    `running` neither does this.
    """

    def __init__(self, config: Config, running: bool = False) -> None:
        super().__init__()
        dim = config.g_conv_dim
        layers: dict[int, nn.Module] = {0: nn.Conv2d(3 + config.c_dim, dim, 7, 1, 3, bias=False)}
        layers[1] = norm(dim, running=running)
        number = 3
        for _ in range(2):
            layers[number] = nn.Conv2d(dim, 2 * dim, 4, 2, 1, bias=False)
            layers[number + 1] = norm(2 * dim, running=running)
            dim, number = 2 * dim, number + 3
        for _ in range(config.g_repeat_num):
            layers[number] = ResidualBlock(dim, running)
            number += 1
        for _ in range(2):
            layers[number] = nn.ConvTranspose2d(dim, dim // 2, 4, 2, 1, bias=False)
            layers[number + 1] = norm(dim // 2, running=running)
            dim, number = dim // 2, number + 3
        layers |= {number: nn.Conv2d(dim, 3, 7, 1, 3, bias=False), number + 1: nn.Tanh()}
        self.main = numbered(layers)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        maps = labels[..., None, None].expand(-1, -1, *images.shape[2:])
        return self.main(torch.cat([images, maps], 1))


class Discriminator(nn.Module):
    """Images [N,3,image_size,image_size] to logits of patches, real or fake, and of the c_dim labels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [3, *(config.d_conv_dim << i for i in range(config.d_repeat_num))]
        layers: dict[int, nn.Module] = {}
        for i, (fin, fout) in enumerate(pairwise(widths)):
            layers |= {2 * i: nn.Conv2d(fin, fout, 4, 2, 1), 2 * i + 1: nn.LeakyReLU(0.01)}
        self.main = numbered(layers)
        self.conv1 = nn.Conv2d(widths[-1], 1, 3, 1, 1, bias=False)
        side = config.image_size >> config.d_repeat_num
        self.conv2 = nn.Conv2d(widths[-1], config.c_dim, side, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.main(images)
        return self.conv1(x), self.conv2(x).flatten(1)


class System(_system.System):
    """A discriminator step in each iteration, a generator step in every n_critic-th.

    A batch has `domain`: class numbers [N] int64, or attributes [N,c_dim] that are 0 or 1. Images are translated to the
    domains of the batch in another order.
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
        self.phases = [
            Phase("D", ("D",), self.discriminator_loss, Adam(config.d_lr, betas)),
            Phase("G", ("G",), self.generator_loss, Adam(config.g_lr, betas), when=critic),
        ]

    @property
    def data_settings(self) -> dict[str, Any]:
        """Images without references, of any domains for attributes."""
        classes = self.config.c_dim if self.config.dataset == "RaFD" else None
        return {"crop_size": self.config.image_size, "num_domains": classes, "num_references": 0}

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

    def labels(self, domain: Tensor) -> Tensor:
        """Class numbers [N] or attributes [N,c_dim] as float32 [N,c_dim]."""
        count = self.config.c_dim
        if domain.ndim == 2:
            if domain.size(1) != count:
                raise ValueError(f"{domain.size(1)} attributes: the system has {count}")
            return domain.float()
        return F.one_hot(domain, count).float()

    def prepare(self, batch: Batch) -> Batch:
        """The batch with its `label` [N,c_dim] and the permutation of it to translate to, `target`."""
        label = self.labels(batch["domain"])
        return batch | {"label": label, "target": label[self.randperm(len(label), label)]}

    def classification(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of a batch's labels: of attributes the sum, of classes the softmax; mean of samples."""
        if self.config.dataset == "RaFD":
            return F.cross_entropy(logits, labels.argmax(1))
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(labels)

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        real = batch["image"]
        with torch.no_grad():
            fake = self.nets["G"](real, batch["target"])
        source, classes = self.nets["D"](torch.cat([real, fake]))
        of_real, of_fake = source.chunk(2)
        alpha = self.rand((len(real), 1, 1, 1), real)
        between = fake.lerp(real, alpha).requires_grad_()
        penalty = gradient_penalty(self.nets["D"](between)[0], between)
        return {
            "real": wasserstein(of_real, True),
            "fake": wasserstein(of_fake, False),
            "cls": self.config.lambda_cls * self.classification(classes.chunk(2)[0], batch["label"]),
            "gp": self.config.lambda_gp * penalty,
        }

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        real, generator = batch["image"], self.nets["G"]
        fake = generator(real, batch["target"])
        source, classes = self.nets["D"](fake)
        return {
            "fake": wasserstein(source, True),
            "rec": self.config.lambda_rec * F.l1_loss(generator(fake, batch["label"]), real),
            "cls": self.config.lambda_cls * self.classification(classes, batch["target"]),
        }

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": images of any size in the domains `reference_domain`}: class numbers [N] or attributes [N,c_dim].

        Without it, in the next class to theirs; of attributes, with the value of each given to the next.
        """
        if "reference_domain" in batch:
            labels = self.labels(batch["reference_domain"])
        else:
            labels = self.labels(batch["domain"]).roll(1, 1)
        h, w = batch["image"].shape[-2:]
        return {"fake": self.nets["G"](pad_to(batch["image"], STRIDE), labels)[..., :h, :w]}

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
