"""INIT: two domains of images with boxes of their objects, which have styles of their own in training.

Shen, Huang, Shi, Xue, Huang. Towards Instance-level Image-to-Image Translation. CVPR 2019.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import munit
from ._munit import MsImageDis
from ._system import Adam, Batch, Phase
from .munit import AdaINGen

# What is encoded, from coarse to fine, and whose styles of the other domain its content may take: an object may look
# like the whole of an image, but what is known of an object does not make an image.
STYLES = {
    "image": ("drawn",),
    "background": ("image", "background"),
    "object": ("image", "background", "object"),
}


@dataclass
class Config(munit.Config):
    """Options of MUNIT for images and their backgrounds, and such of objects, whose names have an `o`."""

    crop_image_height: int = 360
    crop_image_width: int = 360
    recon_x_cyc_w: float = 10.0
    object_size: int = 120  # side in pixels that objects are resized to
    gan_o_w: float = 1.0
    recon_o_w: float = 10.0
    recon_s_o_w: float = 1.0
    recon_c_o_w: float = 1.0
    recon_o_cyc_w: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.object_size < 32 or self.object_size % (1 << self.gen_n_downsample):
            raise ValueError(
                f"object_size {self.object_size}: must be at least 32, and a multiple of {1 << self.gen_n_downsample}"
            )
        self.check_side("object_size", self.object_size)


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "init": dict(crop_image_height=360, crop_image_width=360, object_size=120),
    "tiny": dict(crop_image_height=64,  crop_image_width=64,  object_size=32,
                 gen_dim=8, gen_mlp_dim=16, gen_n_res=1, dis_dim=8, dis_num_scales=2, dis_n_layer=3),
}
# fmt: on


class Part(NamedTuple):
    """Images [M,C,H,W] of one of the keys of STYLES, what they are encoded as, and whose each is."""

    images: Tensor
    content: Tensor
    style: Tensor
    owner: Tensor  # [M] numbers of samples


def background(images: Tensor, boxes: Tensor) -> Tensor:
    """Images [N,C,H,W] with 0 inside of their boxes [N,K,4]."""
    (left, right), (top, bottom) = ((boxes[..., i, None], boxes[..., i + 2, None]) for i in range(2))
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    down = ((rows >= top) & (rows < bottom)).to(images)  # [N,K,H]
    across = ((columns >= left) & (columns < right)).to(images)
    inside = torch.einsum("nkh,nkw->nhw", down, across) > 0
    return images.masked_fill(inside[:, None], 0)


def objects(images: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """What is inside of the boxes [N,K,4], resized to [M,C,size,size], and the numbers [M] of the images it is from.

    A box is x0, y0, x1, y1 in pixels, the last ones behind it; one without area is none.
    """
    owner, number = torch.nonzero((boxes[..., 2:] > boxes[..., :2]).all(-1), as_tuple=True)
    corners = boxes[owner, number].to(images)
    sides = corners.new_tensor([images.size(3), images.size(2)])
    low, high = corners[:, :2] / sides, corners[:, 2:] / sides
    steps = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) / size
    x, y = (2 * torch.lerp(low, high, steps[:, None, None]) - 1).permute(2, 1, 0)  # [M,size] each
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[..., None]), -1)
    return F.grid_sample(images[owner], grid, padding_mode="border", align_corners=False), owner


class System(munit.System):
    """MUNIT of images and of their backgrounds, another one of objects; one generator step, one discriminator step.

    A batch has `a` and `b`, and boxes_a and boxes_b [N,K,4] of their objects: x0, y0, x1, y1 in pixels, those without
    area being none. Where it has no boxes, one is drawn for every image. Everything is restored from its content and
    style, and from what it became in each style of the other domain that STYLES allows; discriminators judge images and
    objects. Objects are for training only: images are translated as a whole.

    The paper's nets are not public. Here images and backgrounds share theirs, objects have their own.
    """

    Config = Config
    PRESETS = PRESETS

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        channels = {"a": config.input_dim_a, "b": config.input_dim_b}
        self.nets.update({f"gen_o_{side}": AdaINGen(config, count) for side, count in channels.items()})
        self.nets.update({f"dis_o_{side}": MsImageDis(config, count) for side, count in channels.items()})
        adam = Adam(config.lr, (config.beta1, config.beta2), weight_decay=config.weight_decay)
        generators, judges = (tuple(name for name in self.nets if name.startswith(kind)) for kind in ("gen", "dis"))
        self.phases = [
            Phase("gen", generators, self.generator_loss, adam),
            Phase("dis", judges, self.discriminator_loss, adam),
        ]

    def drawn_boxes(self, images: Tensor) -> Tensor:
        """One box for every image, a quarter to a half as wide and as high, [N,1,4]."""
        side, place = self.rand((2, len(images), 1, 2), images)
        side = (1 + side) / 4
        low = place * (1 - side)
        return torch.cat([low, low + side], -1) * images.new_tensor([images.size(3), images.size(2)] * 2)

    def weight(self, of: str, part: str) -> float:
        """The weight of a term: "gan", "recon", "recon_s", "recon_c" or "cyc"."""
        config, o = self.config, "o_" if part == "object" else ""
        if of in ("recon", "cyc"):
            return getattr(config, f"recon_{o or 'x_'}{'cyc_' if of == 'cyc' else ''}w")
        return getattr(config, f"{of}_{o}w")

    def net(self, part: str, side: str) -> AdaINGen:
        return self.nets[f"gen_o_{side}" if part == "object" else f"gen_{side}"]

    def parts(self, images: Tensor, boxes: Tensor, side: str) -> dict[str, Part]:
        """An image, its background and its objects, if there are any, encoded."""
        both = torch.cat([images, background(images, boxes)])
        found, owner = objects(images, boxes, self.config.object_size)
        whole, every = torch.arange(len(images), device=images.device), self.net("image", side).encode(both)
        pairs = zip(both.chunk(2), *(code.chunk(2) for code in every), strict=True)
        parts = {name: Part(*pair, whole) for name, pair in zip(("image", "background"), pairs, strict=True)}
        if len(owner):
            parts["object"] = Part(found, *self.net("object", side).encode(found), owner)
        return parts

    def foreign(self, part: str, own: Part, other: dict[str, Part], drawn: Tensor) -> Iterator[Tensor]:
        """The styles [M,S,1,1] of the other domain that `own` takes: of the partners of its images, of any object."""
        for name in STYLES[part]:
            if name == "drawn":
                yield drawn
            elif name == "object" and name in other:
                style = other[name].style
                yield style[self.randint(len(style), (len(own.owner),), style)]
            elif name in other:
                yield other[name].style[own.owner]

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Leaves fakes, with real ones, for the discriminators."""
        drawn = dict(zip("ab", self.styles(batch["a"]), strict=True))
        parts = {}
        for side in "ab":
            boxes = batch.get(f"boxes_{side}")
            boxes = self.drawn_boxes(batch[side]) if boxes is None else boxes
            parts[side] = self.parts(batch[side], boxes, side)
        terms, batch["shown"] = {}, {}
        for side, other in ("ab", "ba"):
            for name, own in parts[side].items():
                styles = list(self.foreign(name, own, parts[other], drawn[other]))
                found, fake = self.there_and_back(name, side, other, own, styles)
                if name != "background":
                    judge = f"dis_o_{other}" if name == "object" else f"dis_{other}"
                    found["gan"] = sum(self.gan(scale, True) for scale in self.nets[judge](fake))
                    real = parts[other].get(name)
                    if real is not None:
                        batch["shown"][judge] = fake.detach(), real.images
                terms |= {
                    f"gen_{of}_{name}_{side}": self.weight(of, name) * term
                    for of, term in found.items()
                    if self.weight(of, name)
                }
                if "VGG" in self.fixed and name == "image":
                    terms[f"gen_vgg_{side}"] = self.config.vgg_w * self.perceptual(fake, own.images)
        return terms

    def there_and_back(
        self, name: str, side: str, other: str, own: Part, styles: list[Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """A part restored from its codes, and from those of what it became in styles of the other domain: the terms,
        and what it became."""
        here, there, count = self.net(name, side), self.net(name, other), len(styles)
        content, style = own.content.repeat(count, 1, 1, 1), torch.cat(styles)
        fake = there.decode(content, style)
        content_again, style_again = there.encode(fake)
        # Decoded together: as it is encoded, and there and back.
        contents, own_styles = torch.cat([own.content, content_again]), own.style.repeat(count + 1, 1, 1, 1)
        restored = (here.decode(contents, own_styles) - own.images.repeat(count + 1, 1, 1, 1)).abs()
        terms = {
            "recon": restored[: len(own.images)].mean(),
            "recon_s": F.l1_loss(style_again, style),
            "recon_c": F.l1_loss(content_again, content),
            "cyc": restored[len(own.images) :].mean(),
        }
        return terms, fake

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        terms = {}
        for judge, (fake, real) in batch["shown"].items():
            weight = self.config.gan_o_w if judge.startswith("dis_o") else self.config.gan_w
            logits = (scale.split([len(fake), len(real)]) for scale in self.nets[judge](torch.cat([fake, real])))
            terms[judge] = weight * sum(self.gan(f, False) + self.gan(r, True) for f, r in logits)
        return terms
