"""Controllable 3D synthesis: scenes of objects that can be moved, turned and left out, from images alone.

Liao, Schwarz, Mescheder, Geiger. Towards Unsupervised Learning of Generative Models for 3D Controllable Image
Synthesis. CVPR 2020.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn.losses import cross_entropy, input_gradient

from . import _system
from ._controllable3d import (
    FAR,
    POINT,
    Discriminator,
    Faces,
    Generator2D,
    Generator3D,
    areas,
    camera,
    placed,
    projected,
    rays,
    seen,
    splat,
)
from ._originals import load_strictly
from ._system import Batch, Phase, RMSprop

VISIBLE = 0.4  # alpha beyond which a pixel of an object has to be found again in its other view
OFFSET = 0.3  # of depths within an object from its centre's, as a share of the farthest


@dataclass
class Config:
    """Options of the original, under its names; its lists of options of primitives are single ones here."""

    render_type: Literal["point", "cuboid"] = "point"
    n_points: int = 32  # of an object of points
    texsize: int = 7  # pixels per side of each of the faces of a cuboid
    n_channel: int = 3
    n_prim: int = 3  # objects of a scene
    z_dim: int = 128
    img_size: int = 64
    param_transforms: str = "rot_30_1"  # rot_<degrees>_1 about the vertical, or trans_<length>_1 along the floor
    nfilter: int = 128  # of the 2D generator
    hidden_3d: tuple[int, ...] = (128, 256, 512)
    hidden_2d: int = 256
    nlabels: int = 1
    DISC_SIZE: int = 128
    loss_compact: float = 0.03
    loss_consistency: float = 0.1
    loss_reg: float = 10.0
    lr: float = 1e-4

    def __post_init__(self) -> None:
        if self.render_type not in ("point", "cuboid"):
            raise ValueError(f"render_type {self.render_type!r}: expected one of point, cuboid")
        if self.img_size % 8 or self.img_size < 16:
            raise ValueError(f"img_size {self.img_size}: expected a multiple of 8 of at least 16")
        kind, *numbers = self.param_transforms.split("_")
        if not kind.startswith(("rot", "trans")) or not numbers:
            raise ValueError(
                f"param_transforms {self.param_transforms!r}: expected rot_<degrees>_1 or trans_<length>_1"
            )

    @property
    def numbers(self) -> int:
        """Of an object, that the generator makes besides its pose."""
        points = self.render_type == "point"
        return self.n_points * (POINT + self.n_channel) if points else 6 * self.texsize**2 * self.n_channel

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values."""
        options = options | options.get("primitive_kwargs", {})
        kind = "point" if options.get("render_type", "point") == "point" else "cuboid"
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in options.items() if name in known} | {"render_type": kind})


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "point":  dict(),
    "cuboid": dict(render_type="cuboid", n_channel=8),
    "tiny":   dict(n_points=8, n_prim=2, z_dim=8, img_size=32, nfilter=8, hidden_3d=(16, 16), hidden_2d=16,
                   DISC_SIZE=8),
}
# fmt: on


class Scene(NamedTuple):
    """Objects [M = N n_prim, ...] of N scenes, and as they are drawn."""

    view: Tensor  # [M, 3, 4], poses as the camera sees them
    features: Tensor  # [M, C, H, W], rendered
    cover: Tensor  # [M, 1, H, W] in [0, 1]
    nearest: Tensor  # [M, 1, H, W], depth in [0, 1]
    area: Tensor  # [M]


class Layers(NamedTuple):
    """Objects as the 2D generator draws them."""

    rgb: Tensor  # [M, 3, H, W] in [-1, 1]
    alpha: Tensor  # [M, 1, H, W] in [0, 1]
    depth: Tensor  # [M, 1, H, W] in [0, 1], about

    @property
    def solid(self) -> Tensor:
        """Depth where there is something, else that of the background, 1."""
        return torch.where(self.alpha > 0.5, self.depth, 1.0)

    @property
    def on_black(self) -> Tensor:
        """[M, 3, H, W] in [0, 1]."""
        return (self.rgb + 1) / 2 * self.alpha

    @property
    def single(self) -> Tensor:
        """[M, 4, H, W]: objects alone on white, and their depth."""
        return torch.cat([self.rgb * self.alpha + 1 - self.alpha, self.solid], 1)


class Sampled(NamedTuple):
    """A batch of scenes, and the same ones with their objects moved."""

    scenes: tuple[Scene, Scene]
    layers: tuple[Layers, Layers]
    images: Tensor  # [N, 2, 4, H, W], with depth


class System(_system.System):
    """Discriminator with R1 on real images, then generator: 3D objects, a renderer, and a 2D network that refines it.

    Backgrounds are white: those of the original are rendered by a rasteriser of its own. No gradient of the
    consistency term goes to the 3D generator. `translate` makes as many images as there are, or those of `latent`, seen
    from the camera `view` [N,3,4], with `keep` [N,n_prim] objects, turned by `turn` [N,n_prim] radians about the
    vertical and moved by `move` [N,n_prim,3].
    """

    Config = Config
    PRESETS = PRESETS
    data = "images"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        nets = {
            "generator_3d": Generator3D(config.z_dim, config.n_prim, config.numbers, config.hidden_3d),
            "generator_2d": Generator2D(
                config.n_channel, config.z_dim, config.n_prim, config.nfilter, config.hidden_2d
            ),
        }
        self.nets["G"] = nn.ModuleDict(nets)
        self.nets["D"] = Discriminator(config.DISC_SIZE, config.nlabels)
        optimizer = RMSprop(config.lr, 0.99, 1e-8)
        self.phases = [
            Phase("D", ("D",), self.discriminator_loss, optimizer),
            Phase("G", ("G",), self.generator_loss, optimizer),
        ]

    @property
    def data_settings(self) -> dict[str, Any]:
        """Images of the size that is rendered."""
        size = self.config.img_size
        return {"crop_size": size, "load_size": size, "preprocess_mode": "scale_shortside_and_crop"}

    def init_weights(self) -> None:
        """Xavier's normal weights, of gain 0.02 in the 2D generator; biases zero."""
        for name, net in (*self.nets["G"].items(), ("D", self.nets["D"])):
            for key, parameter in net.named_parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_normal_(parameter, 0.02 if name == "generator_2d" else 1.0)
                elif key.endswith("bias"):
                    nn.init.zeros_(parameter)
                else:
                    nn.init.ones_(parameter)

    def moved(self, pose: Tensor, turn: Tensor, move: Tensor) -> Tensor:
        """Poses [M,3,4] turned by `turn` [M] radians about the vertical through each, and moved by `move` [M,3]."""
        zero, one = torch.zeros_like(turn), torch.ones_like(turn)
        rows = [turn.cos(), zero, turn.sin(), zero, one, zero, -turn.sin(), zero, turn.cos()]
        around = torch.stack(rows, 1).view(-1, 3, 3)
        return torch.cat([around @ pose[:, :, :3], pose[:, :, 3:] + move[:, :, None]], 2)

    def transformed(self, pose: Tensor) -> Tensor:
        """Poses [M,3,4] turned or moved at random, up to what param_transforms says."""
        kind, amount, *_ = self.config.param_transforms.split("_")
        drawn = 2 * self.rand((len(pose), 3), pose) - 1
        drawn = float(amount) * torch.cat([drawn[:, :1], torch.zeros_like(drawn[:, :1]), drawn[:, 2:]], 1)
        if kind.startswith("rot"):
            return self.moved(pose, drawn[:, 0] * (math.pi / 180), torch.zeros_like(drawn))
        return self.moved(pose, torch.zeros_like(drawn[:, 0]), drawn)

    def viewpoints(self, n: int, like: Tensor) -> Tensor:
        """Cameras [n,3,4] from above, all around."""
        u, v = self.rand((2, n), like)
        return camera(u, 0.15 + (0.371 - 0.15) * v)

    def render(self, pose: Tensor, scale: Tensor, numbers: Tensor, view: Tensor) -> Scene:
        """Objects [M] as seen by the camera of each [M,3,4]."""
        config, pose = self.config, seen(pose, view)
        faces = Faces(scale, pose, config.img_size)
        if config.render_type == "point":
            places, features = numbers.split([config.n_points * POINT, config.n_points * config.n_channel], 1)
            places = (2 * torch.sigmoid(places) - 1).view(-1, config.n_points, POINT) * scale[:, None]
            drawn = splat(places, features.view(-1, config.n_points, config.n_channel), pose, config.img_size)
        else:
            drawn = faces.painted(numbers.view(-1, 6, config.n_channel, config.texsize, config.texsize))
        return Scene(pose, drawn, faces.cover(), faces.nearest(), areas(scale, pose, config.img_size))

    def draw(self, scene: Scene, z: Tensor) -> Layers:
        """What the 2D generator makes of rendered objects."""
        rgb, alpha, depth = self.nets["G"]["generator_2d"](scene.features, z).split([3, 1, 1], 1)
        centre = scene.view[:, 2, 3].view(-1, 1, 1, 1) / FAR
        return Layers(rgb, (alpha + 1) / 2 * scene.cover, centre + OFFSET * depth)

    def composed(self, layers: Layers, scene: Scene, keep: Tensor) -> Tensor:
        """[N,4,H,W]: objects over each other and over white, the nearest in front, and their depth.

        `keep` [M,1,1,1] is 0 for objects that are left out; as in the original, the depth does not know.
        """

        def of_scenes(x: Tensor) -> Tensor:
            return x.unflatten(0, (-1, self.config.n_prim))

        order = of_scenes(scene.nearest).argsort(1)
        alpha = of_scenes(layers.alpha * keep).gather(1, order)
        rgb = of_scenes(layers.rgb).gather(1, order.expand(-1, -1, 3, -1, -1))
        passed = torch.cumprod(1 - alpha, 1)
        weights = alpha * torch.cat([torch.ones_like(alpha[:, :1]), passed[:, :-1]], 1)
        return torch.cat([(weights * rgb).sum(1) + passed[:, -1], of_scenes(layers.solid).amin(1)], 1)

    def sample(self, z: Tensor, view: Tensor, keep: Tensor) -> Sampled:
        """Scenes of z [N,z_dim] from cameras [N,3,4], and with objects moved; keep [M,1,1,1]: which are left in."""
        pose, scale, numbers = self.nets["G"]["generator_3d"](z)
        view = view.repeat_interleave(self.config.n_prim, 0)
        scenes = tuple(self.render(each, scale, numbers, view) for each in (pose, self.transformed(pose)))
        layers = tuple(self.draw(scene, z) for scene in scenes)
        pairs = zip(layers, scenes, strict=True)
        return Sampled(scenes, layers, torch.stack([self.composed(*pair, keep) for pair in pairs], 1))

    def sampled(self, n: int) -> tuple[Tensor, Sampled]:
        """Latents of n scenes and what is made of them, with about half of the objects left out."""
        like = self.nets["G"]["generator_2d"].conv_img.weight
        z = self.randn((n, self.config.z_dim), like)
        keep = (self.rand((n * self.config.n_prim, 1, 1, 1), like) > 0.5).to(like.dtype)
        return z, self.sample(z, self.viewpoints(n, like), keep)

    def compactness(self, sampled: Sampled) -> Tensor:
        """Mean area of objects, small ones counted as a tenth of the image."""
        return torch.cat([scene.area for scene in sampled.scenes]).clamp(min=0.1).mean()

    def redrawn(self, sampled: Sampled, z: Tensor) -> Sampled:
        """Rendered objects, cut off from the 3D generator, drawn once more: what only the 2D generator learns from."""
        scenes = tuple(Scene(*(part.detach() for part in scene)) for scene in sampled.scenes)
        return Sampled(scenes, tuple(self.draw(scene, z) for scene in scenes), sampled.images)

    def consistency(self, sampled: Sampled) -> Tensor:
        """How much objects differ, in depth and five times in colour, from where their moved selves say they are."""
        views = list(zip(sampled.layers, sampled.scenes, strict=True))
        return self.disagreement(*views[0], *views[1]) + self.disagreement(*views[1], *views[0])

    def disagreement(self, layers: Layers, scene: Scene, other_layers: Layers, other_scene: Scene) -> Tensor:
        """Of objects with their other selves, at the pixels where they are visible: mean |depth| + 5 mean |colour|.

        Colours are in [0, 1] on black, depths are distances. As in the original a pixel is taken to lie at its corner,
        half a pixel off from where it is rendered.
        """
        size, turn = self.config.img_size, scene.view[:, :, :3]
        points = FAR * layers.depth.movedim(1, 3) * rays(size, layers.depth, at=0)
        own = ((points - scene.view[:, None, None, :, 3]).flatten(1, 2) @ turn).view_as(points)
        there = placed(own, other_scene.view)
        # Behind the camera nothing is found; a depth of 0 would have no place.
        depth = there[..., 2:].clamp(min=1e-3)
        grid = 2 * projected(torch.cat([there[..., :2], depth], 3), size) / (size - 1) - 1
        other = torch.cat([other_layers.on_black, FAR * other_layers.depth], 1)
        again = F.grid_sample(other, grid, padding_mode="border", align_corners=True)
        apart = (again - torch.cat([layers.on_black, depth.movedim(3, 1)], 1)).abs() * (layers.alpha > VISIBLE)
        return apart[:, 3:].mean() + 5 * apart[:, :3].mean()

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        real = batch["image"].detach().requires_grad_()
        with torch.no_grad():
            fake = self.sampled(len(real))[1].images[:, 0, :3]
        on_real = self.nets["D"](real)[:, :1]
        penalty = input_gradient(on_real, real).square().sum(1).mean()
        on_fake = self.nets["D"](fake)[:, :1]
        return {
            "D_real": cross_entropy(on_real, True),
            "D_fake": cross_entropy(on_fake, False),
            "R1": self.config.loss_reg * penalty,
        }

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        config, n = self.config, len(batch["image"])
        z, sampled = self.sampled(n)
        return {
            "G": cross_entropy(self.nets["D"](sampled.images[:, 0, :3])[:, :1], True),
            "compactness": config.loss_compact * self.compactness(sampled),
            "consistency": config.loss_consistency * self.consistency(self.redrawn(sampled, z)),
        }

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,img_size,img_size]} of `latent` [N,z_dim], or of as many as there are images."""
        like, config = self.nets["G"]["generator_2d"].conv_img.weight, self.config
        z = batch.get("latent")
        z = self.randn((len(batch["image"]), config.z_dim), like) if z is None else z
        view, keep, turn, move = (batch.get(name) for name in ("view", "keep", "turn", "move"))
        view = self.viewpoints(len(z), like) if view is None else view
        pose, scale, numbers = self.nets["G"]["generator_3d"](z)
        turn = torch.zeros_like(pose[:, 0, 3]) if turn is None else turn.flatten()
        pose = self.moved(pose, turn, torch.zeros_like(pose[:, :, 3]) if move is None else move.flatten(0, 1))
        scene = self.render(pose, scale, numbers, view.repeat_interleave(config.n_prim, 0))
        keep = torch.ones_like(turn) if keep is None else keep.flatten()
        return {"fake": self.composed(self.draw(scene, z), scene, keep.view(-1, 1, 1, 1))[:, :3]}

    def load_original(self, path: str | Path) -> None:
        """Load a checkpoint file of the original: state dicts `generator` and, if it is there, `discriminator`."""
        path = Path(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        if "generator" not in found:
            raise ValueError(f"{path} has no network generator")
        load_strictly(self.nets["G"], found["generator"], path)
        if "discriminator" in found:
            load_strictly(self.nets["D"], found["discriminator"], path)
