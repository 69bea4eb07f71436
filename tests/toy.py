"""A system in miniature and its data, for tests of the loop."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast import _checkpoint
from i2ifast.models import Adam, Batch, Phase, System, every
from i2ifast.models._pool import ImagePool
from i2ifast.nn import BatchNormAct, spectral_norm
from i2ifast.train import Loop, Samples, train

HEADER = {"system": "toy", "config": {"width": 6}}
PER_EPOCH = 7  # batches of an epoch


class Toy(System):
    """A GAN in miniature: a generator with noise and (synchronised) batch norm, a discriminator with spectral norm, and
    a lazy third phase. Without `norm` its loss is a mean over images."""

    def __init__(self, norm: bool = True, noise: float = 0.1, nan_at: int | None = None) -> None:
        super().__init__()
        middle = BatchNormAct(6, "none") if norm else nn.Identity()
        first = nn.Conv2d(1, 6, 3, padding=1, bias=not norm)
        self.nets["G"] = nn.Sequential(first, middle, nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            first = nn.Conv2d(4, 6, 3, padding=1)
            first = spectral_norm(first) if norm else first
        self.nets["D"] = nn.Sequential(first, nn.LeakyReLU(0.2), nn.Conv2d(6, 1, 3, padding=1))
        self.nets["D"].register_parameter("unused", nn.Parameter(torch.ones(3)))
        adam = Adam(1e-2, (0.5, 0.9))
        self.phases = [
            Phase("G", ("G",), self.generator_loss, adam),
            Phase("D", ("D",), self.discriminator_loss, adam),
            Phase("D_reg", ("D",), self.regularisation, adam, when=every(3)),
        ]
        self.noise, self.nan_at, self.calls = noise, nan_at, 0

    def init_weights(self) -> None:
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0, 0.3)

    def decay(self, epoch: int) -> float:
        return 1 / epoch

    def prepare(self, batch: Batch) -> Batch:
        x = batch["label"].float()
        return batch | {"x": x + self.noise * self.randn(x.shape, x), "pair": torch.cat([x, batch["image"]], 1)}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        batch["fake"] = self.nets["G"](batch["x"])
        score = self.nets["D"](torch.cat([batch["x"], batch["fake"]], 1))
        return {"gan": -score.mean(), "l1": F.l1_loss(batch["fake"], batch["image"])}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        self.calls += 1
        fake = F.relu(1 + self.nets["D"](torch.cat([batch["x"], batch["fake"].detach()], 1))).mean()
        fake = fake * float("nan") if self.calls == self.nan_at else fake
        return {"fake": fake, "real": F.relu(1 - self.nets["D"](batch["pair"])).mean()}

    def regularisation(self, batch: Batch) -> dict[str, Tensor]:
        return {"small": self.nets["D"](batch["pair"]).square().mean()}

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        return {"fake": self.nets["G"](batch["label"].float()).tanh()}


class Remembering(Toy):
    """It learns from a pool of images seen before, too."""

    def __init__(self, size: int = 5, **options: Any) -> None:
        super().__init__(**options)
        self.pool = ImagePool(size)

    def prepare(self, batch: Batch) -> Batch:
        return super().prepare(batch | {"image": self.pool.query(batch["image"], self.rand, self.randint)})


def batches(size: int, rank: int = 0, world: int = 1) -> Callable[[int, int], Iterator[Batch]]:
    """Epochs of `PER_EPOCH` global batches of `size * world` images; process `rank` gets every `world`-th image."""

    def epoch_batches(epoch: int, start: int) -> Iterator[Batch]:
        for position in range(start, PER_EPOCH):
            rng = np.random.default_rng([epoch, position])
            label = torch.from_numpy(rng.integers(0, 5, (size * world, 1, 8, 8)))[rank::world]
            image = torch.from_numpy(rng.uniform(-1, 1, (size * world, 3, 8, 8)).astype(np.float32))[rank::world]
            yield {"label": label, "image": image, "path": ["x.png"] * size}

    return epoch_batches


SAMPLES = Samples(next(batches(2)(0, 0)), ("label", "fake", "image"))


def run(out: Path, steps: int, system: System | None = None, **options) -> dict[str, Tensor]:
    """Train a toy and return the tensors of its newest checkpoint."""
    loop = Loop(steps, out, **{"batch_size": 2, "log_every": 2, "save_every": 4, **options})
    train(system or Toy(), batches(2), loop, torch.device("cpu"), HEADER, SAMPLES)
    return newest(out)[0]


def newest(folder: Path) -> tuple[dict[str, Tensor], dict]:
    return _checkpoint.read(_checkpoint.manifests(folder)[0])


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
