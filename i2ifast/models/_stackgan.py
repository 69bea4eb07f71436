"""What both versions of StackGAN share: conditions from embeddings, parts of their discriminators, their use."""

from typing import Any

import torch
from torch import Tensor, nn

from i2ifast.nn import BatchNormAct
from i2ifast.nn.conv import Conv2d

from . import _system
from ._losses import kl_divergence
from ._system import Batch


class CANet(nn.Module):
    """Embeddings [N,text_dim] to mean and logarithm of the variance of conditions, [N,dim] each.

    `relu` is the activation behind its linear layer; that of a GLU has twice the `features`.
    """

    def __init__(self, text_dim: int, features: int, relu: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(text_dim, features)
        self.relu = relu

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.relu(self.fc(embedding)).chunk(2, 1)
        return mu, logvar


class VectorNormAct(BatchNormAct):
    """BatchNormAct of vectors [N,C], for a BatchNorm1d: to the kernels they are the pixels of one channels_last map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.t()[None, ..., None])[0, ..., 0].t()


def conditions(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    return mu + eps * (0.5 * logvar).exp()


def convolved(fin: int, fout: int, act: str | float) -> list[nn.Module]:
    """A 3x3 convolution and its norm, which has the activation: that leaves the number of a layer free."""
    return [Conv2d(fin, fout, 3, padding=1, bias=False), BatchNormAct(fout, act), nn.Identity()]


def halved(fin: int, fout: int) -> list[nn.Module]:
    """A 4x4 convolution of stride 2, its norm with the activation, and a free number."""
    return [Conv2d(fin, fout, 4, 2, 1, bias=False), BatchNormAct(fout, 0.2), nn.Identity()]


def down16(ndf: int) -> list[nn.Module]:
    """Images to maps of 8 ndf channels and a sixteenth of their size."""
    first = [nn.Conv2d(3, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    return [*first, *halved(ndf, 2 * ndf), *halved(2 * ndf, 4 * ndf), *halved(4 * ndf, 8 * ndf)]


def kl_term(mu: Tensor, logvar: Tensor, weight: float) -> dict[str, Tensor]:
    """A mean over conditions, where others sum over them."""
    return {"kl": weight * kl_divergence(mu, logvar, "mean")}


class TextSystem(_system.System):
    """Images of embeddings: `embedding` [N,text_dim] of a batch beside `image`."""

    data = "embeddings"

    @property
    def data_settings(self) -> dict[str, Any]:
        """Resized to 76 / 64 of the crop."""
        side = self.config.size[0]
        return {"crop_size": side, "load_size": side * 76 // 64}

    def images(self, z: Tensor, embedding: Tensor | None) -> Tensor:
        """[N,3,H,W] of noise [N,z_dim] and embeddings [N,text_dim]; conditions are drawn."""
        raise NotImplementedError

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,H,W]} of `embedding` [N,text_dim], or, unconditionally, as many as there are of `image`.

        `latent` [N,z_dim] is drawn where it is not given.
        """
        embedding = batch.get("embedding")
        n = len(next(batch[name] for name in ("embedding", "latent", "image") if name in batch))
        z = batch["latent"] if "latent" in batch else self.randn((n, self.config.z_dim), next(self.nets.parameters()))
        return {"fake": self.images(z, embedding)}

    @torch.no_grad()
    def interpolate(self, first: Tensor, last: Tensor, points: int = 5) -> Tensor:
        """Images [points,3,H,W] on the line between two embeddings [text_dim], both included, of the same noise."""
        at = torch.linspace(0, 1, points, device=first.device, dtype=first.dtype)[:, None]
        z = self.randn((1, self.config.z_dim), first).expand(points, -1)
        return self.images(z, first.lerp(last, at))
