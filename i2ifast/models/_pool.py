"""A pool of images shown before, from which discriminators learn too."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ImagePool(nn.Module):
    """The last `size` images, more or less, that `query` was given; size 0 keeps none and gives back what it gets.

    Shrivastava et al. Learning from Simulated and Unsupervised Images through Adversarial Training. CVPR 2017.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 0:
            raise ValueError(f"pool size {size}: must be at least 0")
        self.size = size
        self.register_buffer("images", torch.empty(0))

    @torch.no_grad()
    def query(self, images: Tensor, rand: Callable[..., Tensor], randint: Callable[..., Tensor]) -> Tensor:
        """Each of `images` [N,C,H,W], or, once the pool is full and in half of the cases, one it takes the place of.

        `rand(shape, like)` and `randint(high, shape, like)` draw whether, and which: a system's own.
        """
        if not self.size:
            return images
        given, host = [], torch.empty(0)  # draws on the host: they decide what is copied
        for image in images.detach().split(1):
            if len(self.images) < self.size:
                self.images = torch.cat([self.images.to(image), image]) if len(self.images) else image.clone()
            elif rand((1,), host) > 0.5:
                at = int(randint(self.size, (1,), host))
                image, old = self.images[at : at + 1].clone(), image
                self.images[at] = old[0]
            given.append(image)
        return torch.cat(given)
