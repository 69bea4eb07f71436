"""Networks, camera and differentiable renderers of controllable 3D image synthesis.

Liao, Schwarz, Mescheder, Geiger. Towards Unsupervised Learning of Generative Models for 3D Controllable Image
Synthesis. CVPR 2020. A pose is [R | t], [..., 3, 4]; y points down, and so do rows of an image.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import BatchNormAct
from i2ifast.nn.conv import Conv2d, ConvTranspose2d, convolve
from i2ifast.nn.instance import instance_statistics
from i2ifast.ops import modulate_style
from i2ifast.ops.spectral_weight import spectral_weight

NEAR, FAR, RADIUS = 0.1, 4.0, 2.0
SOFTNESS = 1e-2  # of the edges of quads, in squared units of length
SHARPNESS = 0.1  # of the choice between the faces of a cuboid that lie behind each other
EDGE = 1e-3  # that lengths of edges are taken longer by
SLANT = 1e-6  # that is added to how far rays go into a face per unit of depth
POINT = 3  # numbers of a point in front of its features: its place


def mlp(widths: list[int], slope: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fin, fout in pairwise(widths):
        layers += [nn.Linear(fin, fout), nn.LeakyReLU(slope)]
    return nn.Sequential(*layers[:-1])


def rotation(x: Tensor) -> Tensor:
    """[N, 6] to rotations [N, 3, 3], whose columns are made orthogonal from two vectors, entry by entry in turn."""
    first, second = x.view(-1, 3, 2).unbind(2)
    a = F.normalize(first, dim=1)
    c = F.normalize(torch.linalg.cross(a, second, dim=1), dim=1)
    return torch.stack([a, torch.linalg.cross(c, a, dim=1), c], 2)


def camera(u: Tensor, v: Tensor) -> Tensor:
    """Poses [N, 3, 4] of cameras on a sphere that look at its centre; u in [0, 1) is around it, v from its top."""
    down, around = 1 - 2 * v, 2 * math.pi * u
    across = (1 - down.square()).sqrt()
    z = torch.stack([across * around.cos(), down, across * around.sin()], 1)
    x = F.normalize(torch.linalg.cross(z.new_tensor([[0.0, 1.0, 0.0]]).expand_as(z), z, dim=1), dim=1)
    place = z.new_tensor([[0.0], [0.0], [RADIUS]]).expand(len(z), -1, -1)
    return torch.cat([torch.stack([x, torch.linalg.cross(z, x, dim=1), z], 1), place], 2)


def seen(pose: Tensor, view: Tensor) -> Tensor:
    """Poses [N, 3, 4] as cameras [N, 3, 4] see them."""
    turn = view[:, :, :3]
    return torch.cat([turn @ pose[:, :, :3], turn @ pose[:, :, 3:] + view[:, :, 3:]], 2)


def placed(points: Tensor, pose: Tensor) -> Tensor:
    """Points [N, ..., 3] of objects in the coordinates of the camera."""
    flat = points.flatten(1, -2)
    return (flat @ pose[:, :, :3].mT + pose[:, None, :, 3]).view_as(points)


def projected(points: Tensor, size: int) -> Tensor:
    """Points [..., 3] of the camera to pixels (u, v) [..., 2] of an image of `size`, of a view 1 wide at depth 1."""
    return size * (points[..., :2] / points[..., 2:] + 0.5)


def rays(size: int, like: Tensor, at: float = 0.5) -> Tensor:
    """[size, size, 3]: where pixels lie at depth 1: their centres, or other places `at` of them."""
    line = (torch.arange(size, device=like.device, dtype=like.dtype) + at) / size - 0.5
    v, u = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([u, v, torch.ones_like(u)], 2)


def splat(points: Tensor, features: Tensor, pose: Tensor, size: int) -> Tensor:
    """Sum over points of exp(-d^2 / sigma^2) * feature, d in pixels: [N, C, size, size], without occlusion.

    points [N, K, 3], features [N, K, C]. A Gaussian is a product of one along rows and one along columns.
    """
    where = placed(points, pose)
    sigma = size / (16 if points.size(1) == 1 else 32)
    line = torch.arange(size, device=points.device, dtype=points.dtype)
    rows, columns = (torch.exp(-((projected(where, size)[..., axis, None] - line) / sigma).square()) for axis in (1, 0))
    weighted = (where[..., 2:] > NEAR) * features
    return torch.einsum("nkc,nkv,nku->ncvu", weighted, rows, columns)


class Faces:
    """What pixels see of the six faces of cuboids: along their axes 0, 1, 2, of each the negative one first."""

    def __init__(self, scale: Tensor, pose: Tensor, size: int) -> None:
        r, turn, place = rays(size, scale), pose[:, :, :3], pose[:, :, 3]
        towards = r.flatten(0, 1) @ turn  # of rays, along the axes of objects: [N, pixels, 3]
        centre = (turn * place[:, :, None]).sum(1)
        alphas, depths, insides, places = [], [], [], []
        for axis in range(3):
            others = [i for i in range(3) if i != axis]
            half = scale[:, None, others]
            longer = 2 * half.flip(2) / (2 * half.flip(2) + EDGE)
            for side in (-1, 1):
                # Rays that enter meet a face a little early, those that leave a little late.
                depth = (centre[:, axis] + side * scale[:, axis])[:, None] / (towards[..., axis] - side * SLANT)
                at = (depth[..., None] * towards - centre[:, None])[..., others]
                beyond = at.abs() - half
                inside = (beyond <= 0).all(2)
                over, within = beyond.clamp(min=0), (-beyond * longer).amin(2).clamp(min=0)
                corner = (over > 0).all(2, keepdim=True)
                outer = torch.where(corner, over, over * longer).square().sum(2)
                logits = torch.where(inside, FAR * within.square(), -outer) / SOFTNESS
                alphas.append(torch.sigmoid(logits) * (depth > NEAR))
                depths.append(depth)
                insides.append(inside & (depth > NEAR))
                places.append(at / half)
        shape = (-1, 6, size, size)
        self.alpha, self.depth = (torch.stack(t, 1).view(shape) for t in (alphas, depths))
        self.inside = torch.stack(insides, 1).view(shape)
        self.places = torch.stack(places, 1).view(*self.alpha.shape, 2)

    def cover(self) -> Tensor:
        """How much of a pixel there is of the object, [N, 1, H, W] in [0, 1]."""
        return 1 - (1 - self.alpha).prod(1, keepdim=True)

    def nearest(self) -> Tensor:
        """Depth of the nearest face as a share of the farthest, which is where there is none: [N, 1, H, W]."""
        far = torch.full_like(self.depth, FAR)
        return torch.where(self.inside, self.depth, far).amin(1, keepdim=True) / FAR

    def painted(self, textures: Tensor) -> Tensor:
        """Colours of textures [N, 6, C, h, w], mixed by depth where faces overlap: [N, C, H, W]."""
        near = torch.where(self.depth > NEAR, 1 / self.depth.clamp(min=NEAR), 0)
        weights = self.alpha * ((near - near.amax(1, keepdim=True)) / SHARPNESS).exp()
        weights = weights / (weights.sum(1, keepdim=True) + 0.1 * (-near.amax(1, keepdim=True) / SHARPNESS).exp())
        places = self.places.flatten(0, 1).clamp(-1, 1)
        colours = F.grid_sample(textures.flatten(0, 1), places, align_corners=True).unflatten(0, (-1, 6))
        return (weights[:, :, None] * colours).sum(1)


def areas(scale: Tensor, pose: Tensor, size: int) -> Tensor:
    """[N]: how large cuboids are in the image, in images: half the sum over faces of the mean over edges of
    |u_i v_j - v_i u_j|, which is no area but what the original takes for one."""
    square = scale.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    corners = scale.new_empty(6, 4, 3)
    for axis in range(3):
        for side in range(2):
            corners[2 * axis + side, :, [i for i in range(3) if i != axis]] = square
            corners[2 * axis + side, :, axis] = 2 * side - 1
    uv = projected(placed(corners * scale[:, None, None], pose), size)
    ahead = uv.roll(-1, 2)
    crossed = (uv[..., 0] * ahead[..., 1] - uv[..., 1] * ahead[..., 0]).abs()
    return crossed.mean(2).sum(1) / 2 / size**2


class Generator3D(nn.Module):
    """z [N, C] to poses, scales and features of n_prim objects: the first half of z says where, the second what."""

    def __init__(self, z_dim: int, n_prim: int, numbers: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.mlp_tr = mlp([z_dim // 2, *hidden, n_prim * 12], 0.2)
        self.mlp_feat = mlp([z_dim // 2, *hidden, n_prim * numbers], 0.2)
        self.n_prim = n_prim

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Poses [N n_prim, 3, 4], scales [N n_prim, 3], features [N n_prim, numbers]."""
        where, what = z.chunk(2, 1)
        numbers = self.mlp_tr(where).view(-1, 12)
        pose = torch.cat([rotation(numbers[:, :6]), torch.tanh(numbers[:, 6:9])[:, :, None]], 2)
        features = self.mlp_feat(what)
        return pose, 0.5 * torch.sigmoid(numbers[:, 9:]) + 0.1, features.view(len(z) * self.n_prim, -1)


class Normalised(nn.Module):
    """AdaIN by a style (shift, scale). Its buffers, which the original neither reads nor changes, are in its files."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        shift, scale = style.chunk(2, 1)
        return modulate_style(x, torch.cat([scale, shift], 1), instance_statistics(x, 1e-5))


class ResnetBlock(nn.Module):
    """x + 0.1 * two of (leaky relu, convolution, AdaIN)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("conv_0", "conv_1"):
            self.add_module(name, nn.ModuleList([Conv2d(channels, channels, 3, padding=1), Normalised(channels)]))
        self.numbers = 4 * channels  # of its style

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        y = x
        for (conv, norm), part in zip(self.children(), style.chunk(2, 1), strict=True):
            y = norm(conv(F.leaky_relu(y, 0.2)), part)
        return x + 0.1 * y


class Generator2D(nn.Module):
    """Rendered features [N n_prim, C, H, W] and z [N, z_dim] to tanh of (colours, alpha, depth) [N n_prim, 5, H, W]."""

    def __init__(self, channels: int, z_dim: int, n_prim: int, nfilter: int, hidden: int) -> None:
        super().__init__()
        inner, last = 2 * nfilter, max(nfilter // 2, 128)
        act = nn.LeakyReLU(0.2)
        self.conv_img_in = Conv2d(channels, nfilter, 3, padding=1)
        self.resnet = nn.ModuleList(
            [
                ResnetBlock(nfilter),
                Conv2d(nfilter, inner, 4, 2, 1), BatchNormAct(inner, 0.2), nn.Identity(),
                ResnetBlock(inner),
                ResnetBlock(inner),
                ConvTranspose2d(inner, last, 4, 2, 1), BatchNormAct(last, 0.2), nn.Identity(),
                ResnetBlock(last),
            ]
        )  # fmt: skip
        self.conv_img, self.act = Conv2d(last, 5, 3, padding=1), act
        numbers = [block.numbers for block in self.resnet if isinstance(block, ResnetBlock)]
        self.mlp, self.numbers = nn.Module(), numbers
        self.mlp.model = mlp([z_dim, hidden, hidden, n_prim * sum(numbers)], 0.0)

    def forward(self, features: Tensor, z: Tensor) -> Tensor:
        styles = iter(self.mlp.model(z).view(len(features), -1).split(self.numbers, 1))
        x = self.conv_img_in(features)
        for layer in self.resnet:
            x = layer(x, next(styles)) if isinstance(layer, ResnetBlock) else layer(x)
        return torch.tanh(self.conv_img(self.act(x)))


class Spectral(nn.Module):
    """A convolution that keeps the size, or a linear layer, of weight_bar / its largest singular value, which every
    forward estimates anew."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.convolves = isinstance(layer, nn.Conv2d)
        self.bias, self.weight_bar = layer.bias, layer.weight
        rows, columns = layer.weight.flatten(1).shape
        self.register_buffer("weight_u", F.normalize(torch.randn(rows), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(columns), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        weight, u, v, _ = spectral_weight(self.weight_bar, self.weight_u, self.weight_v, 1, 1e-12)
        self.weight_u.copy_(u)
        self.weight_v.copy_(v)
        return (convolve if self.convolves else F.linear)(x, weight, self.bias)


def named(module: nn.Module) -> nn.ModuleDict:
    """A layer under the second name that it has in the original."""
    return nn.ModuleDict({"module": module})


class DiscriminatorBlock(nn.Module):
    """Two convolutions beside a shortcut; half as large with `down`. Layers have two names each in state dicts."""

    def __init__(self, fin: int, fout: int, down: bool, first: bool = False) -> None:
        super().__init__()
        self.down, self.first = down, first
        self.conv1 = Spectral(nn.Conv2d(fin, fout, 3, padding=1))
        self.conv2 = Spectral(nn.Conv2d(fout, fout, 3, padding=1))
        at = (0, 2) if first else (1, 3)
        self.model = nn.ModuleDict({str(i): named(conv) for i, conv in zip(at, (self.conv1, self.conv2), strict=True)})
        if down:
            short = Spectral(nn.Conv2d(fin, fout, 1))
            # Where the two names have different values, the later one counts.
            names = {"bypass_conv": short, "bypass": nn.ModuleDict({str(int(first)): named(short)})}
            for name in names if first else reversed(names):
                self.add_module(name, names[name])

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if not self.down:
            return x + y
        # A convolution of 1 pixel and a mean change places.
        return F.avg_pool2d(y, 2) + self.bypass_conv(F.avg_pool2d(x, 2))


class Discriminator(nn.Module):
    """Images [N, 3, H, W] to logits [N, nlabels], one for each kind of image."""

    def __init__(self, channels: int, nlabels: int) -> None:
        super().__init__()
        blocks = [DiscriminatorBlock(3, channels, True, first=True)]
        blocks += [DiscriminatorBlock(channels, channels, down) for down in (True, True, False)]
        self.model = nn.Sequential(*blocks)
        self.fc = named(Spectral(nn.Linear(channels, nlabels)))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc["module"](F.relu(self.model(images)).mean((2, 3)))
