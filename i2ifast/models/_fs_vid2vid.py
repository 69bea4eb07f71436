"""The generator of few-shot vid2vid: weights made from references, flows to other frames."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2ifast.nn import BatchNormAct, UpsampleConv2d, resample2d, spectral_norm
from i2ifast.nn.conv import Conv2d
from i2ifast.nn.instance import instance_norm_act
from i2ifast.nn.label_conv import resized
from i2ifast.nn.spade import Layer, ResnetBlock, Table, modulated, modulated_twice, upsampled
from i2ifast.ops import modulate

from ._blocks import numbered

if TYPE_CHECKING:
    from .fs_vid2vid import Config

Frame = tuple[Tensor, Tensor]  # label map and image

SLOPE = 0.2
LARGEST = 1024  # number of channels
EPS = 0.1  # of instance norms


class InstanceNorm(nn.InstanceNorm2d):
    """An affine instance norm with the generous EPS of all in this system, and its leaky relu."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, EPS, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm_act(x, self.weight, self.bias, SLOPE, self.eps)


def norm_act(norm: str, channels: int) -> nn.Module:
    """The affine norm of a config text such as spectralsyncbatch, and its leaky relu."""
    return BatchNormAct(channels, SLOPE, synchronise="sync" in norm) if "batch" in norm else InstanceNorm(channels)


def convolution(norm: str, conv: nn.Conv2d) -> nn.Conv2d:
    return spectral_norm(conv) if "spectral" in norm else conv


def widths(width: int, steps: int) -> list[int]:
    """Channels at full resolution, at half, ..."""
    return [min(LARGEST, width << i) for i in range(steps + 1)]


def encoder_layer(norm: str, fin: int, fout: int, stride: int = 1) -> nn.Sequential:
    conv = convolution(norm, Conv2d(fin, fout, 3, stride, 1))
    return nn.Sequential(OrderedDict(conv=conv, bn=norm_act(norm, fout)))


def picked(refs: Tensor, index: Tensor) -> Tensor:
    """Of K references each [N, K, ...] the one that is meant, [N, ...]."""
    return refs[torch.arange(len(index), device=index.device), index]


def each_its_own(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution of x [N, C, H, W] with a weight [N, O, C], and a bias [N, O], of every sample's own: rows
    [N, H * W, O]."""
    rows = x.movedim(1, -1).flatten(1, 2)  # a view, however x lies in memory
    return rows @ weight.mT if bias is None else torch.baddbmm(bias[:, None], rows, weight.mT)


def as_map(rows: Tensor, like: Tensor) -> Tensor:
    """Rows [N, H * W, C] as [N, C, H, W]."""
    return rows.unflatten(1, like.shape[2:]).movedim(-1, 1)


def spread(rows: Tensor, small: Tensor, size: tuple[int, int]) -> Table | Tensor:
    """Rows of (gamma, beta) of the pixels of a small map, resized by nearest: as a table where that enlarges them."""
    (n, (h, w)), (height, width) = (len(small), small.shape[2:]), size
    if (h, w) == (height, width) or height % h or width % w:
        return resized(as_map(rows, small), size)
    pixels = torch.arange(n * h * w, dtype=torch.int32, device=rows.device).view(n, h, 1, w, 1)
    patches = pixels.expand(n, h, height // h, w, width // w).reshape(n, height, width)
    return Table(rows.flatten(0, 1), patches, None)


class SPADE(nn.Module):
    """norm(x) * (1 + gamma) + beta with (gamma, beta) a 1x1 convolution of a map, then the same of more maps.

    The weights of the first map are generated where `generated`. `hidden`: channels of the maps.
    """

    def __init__(self, norm: str, hidden: Sequence[int], generated: bool, channels: int) -> None:
        super().__init__()
        batch, self.synchronise = "batch" in norm, "sync" in norm
        self.norm = nn.BatchNorm2d(channels, affine=False) if batch else nn.InstanceNorm2d(channels, EPS)
        for i, fin in list(enumerate(hidden))[1 if generated else 0 :]:
            for kind in ("gamma", "beta"):
                self.add_module(f"mlp_{kind}{i + 1 if i else ''}", nn.Conv2d(fin, channels, 1))

    def own(self, x: Tensor, size: tuple[int, int], suffix: str = "") -> Tensor:
        """(gamma, beta) of a map by weights that the layer has."""
        gamma, beta = (self.get_submodule(f"mlp_{kind}{suffix}") for kind in ("gamma", "beta"))
        weight, bias = torch.cat([gamma.weight, beta.weight]), torch.cat([gamma.bias, beta.bias])
        return resized(F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1), size)

    def layer(self, weight: Tensor | None) -> Layer:
        """Norm and first modulation, with the weight generated for it, if there is one. What is 1x1 is done before the
        map is resized, on fewer pixels."""

        def generated(x: Tensor, size: tuple[int, int]) -> Table | Tensor:
            return spread(each_its_own(x, weight), x, size)

        return Layer(self.norm, self.own if weight is None else generated, self.synchronise)

    def more(self, x: Tensor, maps: Sequence[Tensor | None], act: str | float) -> Tensor:
        """act(the modulations of the second map, the third, ...), of what the first has made; a map may be None."""
        given = [(i, each) for i, each in enumerate(maps, 2) if each is not None]
        for i, each in given:
            x = modulate(x, self.own(each, x.shape[2:], str(i)), act=act if i == given[-1][0] else "none")
        return x


class SPADEBlock(ResnetBlock):
    """y = shortcut + conv_1(lrelu(bn_1(conv_0(lrelu(bn_0(x)))))); shortcut = x, or conv_s(bn_s(x))."""

    layers: ClassVar[str] = "bn"

    def __init__(self, fin: int, fout: int, norm: str, hidden: Sequence[int], generated: bool) -> None:
        layer = partial(SPADE, norm, hidden, generated)
        super().__init__(fin, min(fin, fout), fout, Conv2d, layer, "spectral" in norm)

    def forward(
        self, x: Tensor, maps: Sequence[Tensor | None], weights: Sequence[Tensor | None], upsample: bool
    ) -> Tensor:
        """x, first upsampled x2 by nearest with `upsample`; weights: those generated for bn_0, bn_1 and bn_s."""
        label, *others = maps
        act = SLOPE if all(each is None for each in others) else "none"  # else it is behind the others
        first, second = self.bn_0.layer(weights[0]), self.bn_1.layer(weights[1])
        if self.learned_shortcut:
            h, shortcut = modulated_twice(x, label, first, self.bn_s.layer(weights[2]), act, upsample)
            shortcut = self.conv_s(self.bn_s.more(shortcut, others, "none"))
        else:
            h = modulated(x, label, first, act, upsample)
            shortcut = upsampled(x) if upsample else x
        h = self.conv_0(self.bn_0.more(h, others, SLOPE))
        h = self.bn_1.more(modulated(h, label, second, act, False), others, SLOPE)
        return shortcut + self.conv_1(h)


class LabelEmbedder(nn.Module):
    """Maps [N, fin, H, W] -> their features at full resolution, at half, ..., from the coarsest ones up.

    With `unet` features of the way down join those of the way up. The last `generated` convolutions of the way up are
    1x1 with weights from outside; their outputs stay as small as the map that they begin with, for whoever takes them
    resizes by nearest anyway.
    """

    def __init__(self, fin: int, channels: Sequence[int], unet: bool, generated: int = 0) -> None:
        super().__init__()
        self.steps, self.unet, self.generated = len(channels) - 1, unet, generated
        self.conv_first = nn.Sequential(Conv2d(fin, channels[0], 3, padding=1), nn.LeakyReLU(SLOPE))
        for i, (a, b) in enumerate(pairwise(channels)):
            self.add_module(f"down_{i}", nn.Sequential(Conv2d(a, b, 3, 2, 1), nn.LeakyReLU(SLOPE)))
        for i in reversed(range(generated, self.steps)):
            joined = 2 if unet and i < self.steps - 1 else 1
            conv = UpsampleConv2d(joined * channels[i + 1], channels[i], 3, padding=1)
            self.add_module(f"up_{i}", numbered({1: conv, 2: nn.LeakyReLU(SLOPE)}))

    def forward(self, x: Tensor, weights: Sequence[tuple[Tensor, Tensor | None]] = ()) -> list[Tensor]:
        down = [self.conv_first(x)]
        for i in range(self.steps):
            down.append(self.get_submodule(f"down_{i}")(down[-1]))
        up = down[-1:]
        for i in reversed(range(self.steps)):
            x = torch.cat([up[-1], down[i + 1]], 1) if self.unet and i < self.steps - 1 else up[-1]
            if i < self.generated:
                up.append(F.leaky_relu(as_map(each_its_own(x, *weights[i]), x), SLOPE))
            else:
                up.append(self.get_submodule(f"up_{i}")(x))
        return up[::-1]


class FlowBlock(ResnetBlock):
    """x + conv_1(lrelu(bn_1(conv_0(lrelu(bn_0(x))))))"""

    layers: ClassVar[str] = "bn"

    def __init__(self, channels: int, norm: str) -> None:
        layer = partial(norm_act, norm)
        super().__init__(channels, channels, channels, Conv2d, layer, "spectral" in norm)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_1(self.bn_1(self.conv_0(self.bn_0(x))))


class FlowGenerator(nn.Module):
    """Label map, and another frame -> flow [N, 2, H, W] in pixels to that, and mask [N, 1, H, W], 1 where it fails."""

    def __init__(self, config: "Config") -> None:
        super().__init__()
        norm, self.multiplier = config.norm_F, config.flow_multiplier
        channels = widths(config.nff, config.n_downsample_F)

        def layer(conv: nn.Conv2d) -> nn.Sequential:
            return nn.Sequential(convolution(norm, conv), norm_act(norm, conv.out_channels))

        fin = 2 * config.semantic_nc + config.output_nc
        down = [layer(Conv2d(fin, channels[0], 3, padding=1, bias=False))]
        down += [layer(Conv2d(a, b, 3, 2, 1, bias=False)) for a, b in pairwise(channels)]
        up = [layer(UpsampleConv2d(b, a, 3, padding=1, bias=False)) for b, a in pairwise(channels[::-1])]
        # The norms hold their activations: layers keep the numbers that they have in the original.
        self.down_flow = numbered({2 * i: each for i, each in enumerate(down)})
        self.res_flow = nn.Sequential(*(FlowBlock(channels[-1], norm) for _ in range(config.n_blocks_F)))
        self.up_flow = numbered({3 * i + 1: each for i, each in enumerate(up)})
        self.conv_flow = nn.Sequential(nn.Conv2d(channels[0], 2, 3, padding=1))
        self.conv_mask = nn.Sequential(nn.Conv2d(channels[0], 1, 3, padding=1), nn.Sigmoid())

    def forward(self, label: Tensor, other_label: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        x = self.up_flow(self.res_flow(self.down_flow(torch.cat([label, other_label, other], 1))))
        return self.conv_flow(x) * self.multiplier, self.conv_mask(x)


class Weights(NamedTuple):
    """What references say about a level."""

    embed: tuple[Tensor, Tensor | None]  # weight [N, C, 2C] and bias of the label embedding
    spade: tuple[Tensor, Tensor, Tensor]  # [N, 2C, C'] for gamma and beta of bn_0, bn_1, bn_s


class Reference(NamedTuple):
    """What references say about a video; with several of them, about a frame."""

    x: Tensor  # what the decoder begins with
    weights: list[Weights]
    index: Tensor  # [N], the reference that a frame is most like


class Warped(NamedTuple):
    """Another frame, warped to a new one."""

    image: Tensor
    flow: Tensor
    mask: Tensor  # 1 where the warped image is not to be taken


class Generated(NamedTuple):
    image: Tensor
    raw: Tensor | None  # without what was warped
    index: Tensor
    warped: tuple[Warped | None, Warped | None]  # from the reference, from the frame before


class Generator(nn.Module):
    """Label map, and references with their label maps, to a frame; also from the frame before, where there is one.

    Features of a reference's image, mixed over its pixels by those of its label map, say by fully connected networks
    what the weights of the finest levels are: of the embedding of the label map, and of the SPADE layers.
    """

    def __init__(self, config: "Config") -> None:
        super().__init__()
        self.config, norm = config, config.norm_G.replace("spade", "")
        self.channels = channels = widths(config.ngf, config.n_downsample_G)
        self.steps, self.adaptive = config.n_downsample_G, config.n_adaptive_layers
        for kind, fin in (("img", config.output_nc), ("label", config.semantic_nc)):
            self.add_module(f"ref_{kind}_first", encoder_layer(norm, fin, channels[0]))
            for i, (a, b) in enumerate(pairwise(channels)):
                self.add_module(f"ref_{kind}_down_{i}", encoder_layer(norm, a, b, 2))
                self.add_module(f"ref_{kind}_up_{i}", encoder_layer(norm, b, a))
        for kind in ("key", "query") if config.n_shot > 1 else ():
            self.add_module(f"atn_{kind}_first", encoder_layer(norm, config.semantic_nc, channels[0]))
            for i, (a, b) in enumerate(pairwise(channels[: config.n_downsample_A + 1])):
                self.add_module(f"atn_{kind}_{i}", encoder_layer(norm, a, b, 2))
        for i, (a, b) in enumerate(pairwise(channels[: self.adaptive + 1])):
            rows = {"0": 2 * (a + 1), "1": (a + 1) * (2 if a == b else 1), "s": 2 * (a + 1), "e": a + 1}
            for part, outputs in rows.items():
                sizes = [b] * (config.n_fc_layers + 1)
                layers: list[nn.Module] = [spectral_norm(nn.Linear(*pair)) for pair in pairwise([*sizes, outputs])]
                acted = [m for layer in layers for m in (layer, nn.LeakyReLU(SLOPE))][:-1]
                self.add_module(f"fc_spade_{part}_{i}", nn.Sequential(*acted))
        self.label_embedding = LabelEmbedder(config.semantic_nc, channels, False, self.adaptive)
        for i in reversed(range(self.steps + 1)):
            fin = channels[min(i + 1, self.steps)]
            hidden = [channels[i]] * (3 if config.spade_combine and i < config.n_sc_layers else 1)
            self.add_module(f"up_{i}", SPADEBlock(fin, channels[i], config.norm_G, hidden, i < self.adaptive))
        self.conv_img = nn.Conv2d(channels[0], config.output_nc, 3, padding=1)
        if config.warp_ref:
            self.flow_network_ref = FlowGenerator(config)
            if config.spade_combine:
                self.img_ref_embedding = LabelEmbedder(config.output_nc + 1, channels, True)
        if config.temporal:
            shared = config.warp_ref and not config.sep_flow_prev
            self.flow_network_temp = self.flow_network_ref if shared else FlowGenerator(config)
            if config.spade_combine:
                shared = config.warp_ref and not config.sep_warp_embed
                embedder = None if shared else LabelEmbedder(config.output_nc + 1, channels, True)
                self.img_prev_embedding = embedder or self.img_ref_embedding

    def _run(self, name: str, x: Tensor) -> Tensor:
        return self.get_submodule(name)(x)

    def attention(self, label: Tensor, label_refs: Tensor) -> Tensor:
        """How much a pixel of the label map is like those of references: [N, K * pixels, pixels], in columns of sum 1.

        label_refs [N, K, C, H, W]; pixels are those of level n_downsample_A.
        """
        of = {"query": label, "key": label_refs.flatten(0, 1)}
        for kind, x in of.items():
            x = self._run(f"atn_{kind}_first", x)
            for i in range(self.config.n_downsample_A):
                x = self._run(f"atn_{kind}_{i}", x)
            of[kind] = x.flatten(2)
        keys = of["key"].mT.unflatten(0, label_refs.shape[:2]).flatten(1, 2)
        return torch.softmax(keys @ of["query"], 1)

    def refer(self, label_refs: Tensor, img_refs: Tensor, label: Tensor) -> Reference:
        """label_refs, img_refs [N, K, C, H, W]. Of several, the label map [N, C, H, W] decides."""
        n, k = label_refs.shape[:2]
        image, layout = img_refs.flatten(0, 1), label_refs.flatten(0, 1)
        image, layout = self._run("ref_img_first", image), self._run("ref_label_first", layout)
        index = torch.zeros(n, dtype=torch.long, device=label.device)
        for i in range(self.steps):
            image, layout = self._run(f"ref_img_down_{i}", image), self._run(f"ref_label_down_{i}", layout)
            if k > 1 and i == self.config.n_downsample_A - 1:
                attention = self.attention(label, label_refs)
                both = torch.cat([image, layout], 1).unflatten(0, (n, k))  # [N, K, 2C, h, w]
                both = (both.flatten(3).transpose(1, 2).flatten(2) @ attention).unflatten(2, image.shape[2:])
                image, layout = both.chunk(2, 1)
                index = attention.unflatten(1, (k, -1)).sum((2, 3)).argmax(1)
        x, weights = image, []
        for i in reversed(range(self.steps)):
            # Up in name only: they stay as small. Nothing reads what is made for level 0.
            if i < self.adaptive:
                weights.append(self.weights(i, image, layout))
            image, layout = self._run(f"ref_img_up_{i}", image), self._run(f"ref_label_up_{i}", layout)
        return Reference(x, weights[::-1], index)

    def weights(self, level: int, image: Tensor, layout: Tensor) -> Weights:
        """From features of references one level coarser."""
        fine, coarse = self.channels[level : level + 2]
        mixed = image.flatten(2) @ torch.softmax(layout, 1).flatten(2).mT  # [N, channels of image, of label map]
        made = {part: self._run(f"fc_spade_{part}_{level}", mixed).flatten(1) for part in "01se"}
        # As in the original, what were to be biases of gamma and beta is never used, and the embedding's last entries
        # are dropped. What is left has the length of a bias, or none.
        embed = made["e"][:, :-fine]
        weight, bias = embed[:, : fine * coarse], embed[:, fine * coarse :]
        spade = []
        for part, channels in (("0", coarse), ("1", fine), ("s", coarse)):
            halves = made[part].unflatten(1, (2, -1))[:, :, : channels * fine]
            spade.append(halves.reshape(len(halves), 2 * channels, fine))
        return Weights((weight.unflatten(1, (fine, coarse)), bias if bias.numel() else None), tuple(spade))

    def warp(self, name: str, label: Tensor, other: Frame) -> Warped:
        flow, mask = self.get_submodule(f"flow_network_{name}")(label, *other)
        return Warped(resample2d(other[1], flow), flow, mask)

    def embedded(self, name: str, warped: Warped | None) -> list[Tensor | None]:
        """Maps of a warped image for the finest levels."""
        count = self.config.n_sc_layers
        if warped is None:
            return [None] * count
        embedder: LabelEmbedder = self.get_submodule(f"img_{name}_embedding")
        return embedder(torch.cat([warped.image, warped.mask], 1))[:count]

    def forward(
        self,
        label: Tensor,
        label_refs: Tensor,
        img_refs: Tensor,
        before: Frame | None = None,
        reference: Reference | None = None,
    ) -> Generated:
        """label [N, C, H, W], references [N, K, C, H, W], `reference` what `refer` made of them, if it is known."""
        config = self.config
        reference = reference or self.refer(label_refs, img_refs, label)
        shown = picked(label_refs, reference.index), picked(img_refs, reference.index)
        warped = (
            self.warp("ref", label, shown) if config.warp_ref else None,
            self.warp("temp", label, before) if before is not None else None,
        )
        maps = [[x] for x in self.label_embedding(label, [level.embed for level in reference.weights])]
        if config.spade_combine:
            embedded = (self.embedded(name, each) for name, each in zip(("ref", "prev"), warped, strict=True))
            for at, *more in zip(maps, *embedded, strict=False):
                at += more
        image, raw = reference.x, None
        for i in reversed(range(self.steps + 1)):
            weights = reference.weights[i].spade if i < self.adaptive else (None,) * 3
            block, upsample = self.get_submodule(f"up_{i}"), i < self.steps
            if config.spade_combine and config.add_raw_output_loss and i < config.n_sc_layers:
                raw = block(image if raw is None else raw, maps[i][:1], weights, upsample)
            image = block(image, maps[i], weights, upsample)
        image, raw = self.colours(image), None if raw is None else self.colours(raw)
        if not config.spade_combine:
            raw = image
            for each in warped:
                image = image if each is None else torch.lerp(each.image, image, each.mask)
        return Generated(image, raw, reference.index, warped)

    def colours(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv_img(F.leaky_relu(x, SLOPE)))
