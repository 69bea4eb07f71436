"""What DRIT++ of two domains and of many share: options, two generator steps through one graph, files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _system
from ._config import Cropped
from ._drit import NZ
from ._originals import load_strictly, named, require
from ._shared_graph import through
from ._system import Adam

LEAST = 212  # pixels of a side that the discriminator of contents needs
CLIP = 5.0  # norm of its gradient
RECONSTRUCTION, REGULARISATION = 10.0, 0.01  # weights
GENERATORS, RANDOM = ("enc_c", "enc_a", "gen"), ("enc_c", "gen")  # what the two generator steps update


@dataclass
class Config(Cropped):
    """Options of the originals, under their names; no_ms is positive here, and the last two are constants there."""

    concat: bool = True  # attributes as maps beside the content; else feature-wise, for domains that differ in shape
    ms: bool = True  # mode seeking
    dis_scale: int = 3  # discriminators of images; 1 is a single, deeper one
    dis_spectral_norm: bool = False
    d_iter: int = 3  # iterations, in all but the last of which the discriminator of contents learns alone
    resize_size: int = 256
    crop_size: int = 216
    n_ep: int = 1200
    n_ep_decay: int = 600  # epochs before a line to zero
    lr: float = 1e-4
    lr_dcontent: float = 4e-5  # of the discriminator of contents
    base_channels: int = 64

    def __post_init__(self) -> None:
        for name in ("dis_scale", "d_iter", "base_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")

    def check_content(self) -> None:
        if self.crop_size < LEAST:
            raise ValueError(f"crop_size {self.crop_size}: the discriminator of contents needs at least {LEAST}")

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> Self:
        """From the original's option names and values; dis_norm is left out, for it has no effect there."""
        require(options, lr_policy="lambda")
        values = named(cls, options)
        return cls(**values | {"concat": bool(options.get("concat", 1)), "ms": not options.get("no_ms", False)})


class System(_system.System):
    """Encoders enc_c and enc_a and a generator gen, which two steps optimise that share the graph of one forward.

    A subclass makes that forward in `learning`, once for a batch, and leaves it there as `made`.
    """

    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        options = {"betas": (0.5, 0.999), "weight_decay": 1e-4}
        self.adam, self.adam_content = Adam(config.lr, **options), Adam(config.lr_dcontent, **options)

    def init_weights(self) -> None:
        """Normal weights of convolutions, of deviation 0.02; all else as PyTorch's layers and those here start."""
        for module in self.nets.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(getattr(module, "weight_orig", module.weight), 0, 0.02)

    def decay(self, epoch: int) -> float:
        config = self.config
        return max(0.0, 1 - max(0, epoch - 1 - config.n_ep_decay) / (config.n_ep - config.n_ep_decay + 1))

    def learnt_by(self, made: dict[str, Tensor], images: Sequence[Tensor], nets: Sequence[str]) -> dict[str, Tensor]:
        """`made`, with gradients for some networks only, and for the images."""
        return through(made, [*images, *(p for name in nets for p in self.nets[name].parameters())])

    def drawn(self, code: Tensor) -> Tensor:
        """Attributes [N,nz] of what the encoder makes of images: of a distribution, or as they are."""
        if not self.config.concat:
            return code
        mu, logvar = code.chunk(2, 1)
        return mu + self.randn(mu.shape, mu) * (logvar / 2).exp()

    def random_styles(self, count: int) -> Tensor:
        """Attributes [count,nz] of any domain."""
        return self.randn((count, NZ), next(self.nets["gen"].parameters()))

    def load_original(self, path: str | Path) -> None:
        """Load <epoch>.pth, or the newest one of a folder."""
        path = Path(path)
        file = max(path.glob("*.pth"), default=None) if path.is_dir() else path
        if file is None:
            raise ValueError(f"{path}: no <epoch>.pth in it")
        found = torch.load(file, map_location="cpu", weights_only=True)
        if missing := [name for name in self.nets if name not in found]:
            raise ValueError(f"{file} has no network {', '.join(missing)}")
        for name, net in self.nets.items():
            load_strictly(net, found[name], file)


def apart(fakes: Sequence[Tensor], z: Sequence[Tensor]) -> Tensor:
    """What mode seeking minimises, of two fakes of the same content and their attributes."""
    return 1 / (F.l1_loss(*fakes) / F.l1_loss(*z) + 1e-5)
