"""Norms of samples, by style, features and class: layers of MUNIT, U-GAT-IT, NICE-GAN, StarGAN v2, TSIT and CLADE."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..nn.clade import class_table
from ..nn.conv import convolve
from ..nn.spade import Layer, apply, modulated
from ..ops import instance_statistics, modulate_mixed, modulate_style, no_statistics
from ._change import Changed, hooked, is_map, is_torchs

EPS = 1e-5  # of layers that do not say theirs
Inputs = Callable[[torch.Generator], list[tuple[Tensor, ...]]]


class Candidate(NamedTuple):
    """A replacement that a module might allow, and inputs to try it on."""

    mixin: type[Changed]
    parts: tuple
    inputs: Inputs
    attributes: tuple[str, ...] = ()  # those that others set, for one value per sample and channel, before a forward


class SampleNorm(Changed):
    """(x - mean) / (std + eps) * gamma + beta over whole samples."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs or len(args) != 1 or not is_map(args[0]):
            return super().forward(*args, **kwargs)
        *names, eps = self._i2ifast_parts
        gamma, beta = (getattr(self, name) for name in names)
        mix = torch.cat([torch.zeros_like(gamma), gamma, beta]).expand(args[0].size(0), -1)
        return modulate_mixed(args[0], mix, "none", eps, outside=True)


class MixedNorm(Changed):
    """(rho * instance(x) + (1 - rho) * layer(x)) * gamma + beta, rho as it is or by a softmax, gamma and beta own or
    given."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        rho, *names, eps = self._i2ifast_parts
        if kwargs or len(args) != (1 if names else 3) or not is_map(args[0]):
            return super().forward(*args, **kwargs)
        x, *given = args
        gamma, beta = (t.flatten(1) for t in given or [getattr(self, name) for name in names])
        rho = getattr(self, rho)
        instance, layer = rho[0].softmax(1).unbind(1) if rho.dim() == 3 else (rho.flatten(), 1 - rho.flatten())
        mix = [t.expand(x.size(0), -1) for t in (gamma * instance, gamma * layer, beta)]
        return modulate_mixed(x, torch.cat(mix, 1), "none", eps)


class StyleNorm(Changed):
    """norm(x) * (1 + gamma) + beta, (gamma, beta) a linear function of a style vector."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        names, gamma_first = self._i2ifast_parts
        norm, linear = (self._modules[name] for name in names)
        if kwargs or len(args) != 2 or not is_map(args[0]) or hooked(norm):
            return super().forward(*args, **kwargs)
        x, style = args
        gamma, beta = linear(style).chunk(2, 1) if gamma_first else linear(style).chunk(2, 1)[::-1]
        return modulate_style(x, torch.cat([1 + gamma, beta], 1), instance_statistics(x, norm.eps))


class AssignedNorm(Changed):
    """instance(x) * weight + bias, which another network has assigned: [N * C]."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        (eps,) = self._i2ifast_parts
        if kwargs or len(args) != 1 or not is_map(args[0]) or self.weight is None or self.bias is None:
            return super().forward(*args, **kwargs)
        (x,) = args
        style = torch.cat([t.view(x.size(0), -1) for t in (self.weight, self.bias)], 1)
        return modulate_style(x, style, instance_statistics(x, eps))


class FeatureNorm(Changed):
    """norm(x) * (1 + gamma) + beta, gamma and beta convolutions of features as large as x."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        norm, *convolutions = (self._modules[name] for name in self._i2ifast_parts)
        known = is_torchs(norm) or not norm.training
        same = len(args) == 2 and all(map(is_map, args)) and args[0].shape[2:] == args[1].shape[2:]
        if kwargs or not same or not known or hooked(norm, *convolutions):
            return super().forward(*args, **kwargs)
        x, features = args
        weight, bias = (torch.cat([getattr(conv, name) for conv in convolutions]) for name in ("weight", "bias"))

        def by(features: Tensor, size: tuple[int, int]) -> Tensor:
            return convolve(features, weight, bias)

        return modulated(x, features, Layer(norm, by, isinstance(norm, nn.SyncBatchNorm)), "none", False)


class ClassNorm(Changed):
    """x * weight[k] + bias[k], k being the class of the pixel."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        x, seg, *rest = (*args, None, None)[: max(2, len(args))]
        if kwargs or not is_map(x) or not is_map(seg) or any(t is not None for t in rest):
            return super().forward(*args, **kwargs)
        weight, bias = (getattr(self, name) for name in self._i2ifast_parts)
        return apply(x, class_table(weight, bias, seg, tuple(x.shape[2:])), no_statistics(x))


def candidates(module: nn.Module) -> Iterator[Candidate]:
    """What `module` could be as far as its parameters and children tell; none for classes of torch itself."""
    if type(module).__module__.startswith("torch."):
        return
    shapes = {name: tuple(p.shape) for name, p in module._parameters.items() if p is not None}
    children = dict(module.named_children())
    eps = getattr(module, "eps", EPS)
    if children:
        yield from _of_children(children, shapes)
    elif not shapes:
        yield from _assigned(module, eps)
    else:
        yield from _of_parameters(shapes, eps)


def _of_parameters(shapes: dict[str, tuple[int, ...]], eps: float) -> Iterator[Candidate]:
    ranks = sorted(map(len, shapes.values()))
    if ranks == [1, 1] and len(set(shapes.values())) == 1:
        for names in itertools.permutations(shapes):
            yield Candidate(SampleNorm, (*names, eps), partial(_maps, *shapes[names[0]]))
    if ranks == [2, 2] and len(set(shapes.values())) == 1:
        (classes, channels), *_ = shapes.values()
        for names in itertools.permutations(shapes):
            yield Candidate(ClassNorm, names, partial(_labelled, channels, classes))
    for rho, shape in shapes.items():
        if len(shape) not in (3, 4) or shape[0] != 1 or shape[2:] not in ((2,), (1, 1)):
            continue
        others, channels = [name for name in shapes if name != rho], shape[1]
        if not others:
            yield Candidate(MixedNorm, (rho, eps), partial(_styled, channels))
        elif len(others) == 2 and all(shapes[name] == (1, channels, 1, 1) for name in others):
            for names in itertools.permutations(others):
                yield Candidate(MixedNorm, (rho, *names, eps), partial(_maps, channels))


def _of_children(children: dict[str, nn.Module], shapes: dict[str, tuple[int, ...]]) -> Iterator[Candidate]:
    norms = [name for name, m in children.items() if type(m).__name__.find("Norm") >= 0 and not getattr(m, "affine", 1)]
    others = [name for name in children if name not in norms]
    if shapes or len(norms) != 1:
        return
    norm = children[norms[0]]
    if len(others) == 1 and type(norm) is nn.InstanceNorm2d and not norm.track_running_stats:
        linear = children[others[0]]
        if type(linear) is nn.Linear and linear.out_features == 2 * norm.num_features:
            for gamma_first in (True, False):
                inputs = partial(_by_vector, norm.num_features, linear.in_features)
                yield Candidate(StyleNorm, ((norms[0], others[0]), gamma_first), inputs)
    if len(others) == 2 and all(isinstance(children[name], nn.Conv2d) for name in others):
        convs = [children[name] for name in others]
        k = convs[0].kernel_size[0]
        geometry = {(c.kernel_size, c.stride, c.padding, c.dilation, c.groups, c.padding_mode) for c in convs}
        plain = geometry == {((k, k), (1, 1), (k // 2, k // 2), (1, 1), 1, "zeros")} and k % 2 == 1
        if plain and all(c.out_channels == norm.num_features and c.bias is not None for c in convs):
            for names in itertools.permutations(others):
                inputs = partial(_featured, norm.num_features, convs[0].in_channels)
                yield Candidate(FeatureNorm, (*norms, *names), inputs)


def _assigned(module: nn.Module, eps: float) -> Iterator[Candidate]:
    buffers = {name: b.numel() for name, b in module._buffers.items() if b is not None and b.dim() == 1}
    if len(set(buffers.values())) == 1 and all(hasattr(module, name) for name in ("weight", "bias")):
        yield Candidate(AssignedNorm, (eps,), partial(_maps, next(iter(buffers.values()))), ("weight", "bias"))


def _map(g: torch.Generator, n: int, channels: int) -> Tensor:
    return 0.3 + 1.5 * torch.randn((n, channels, 6, 5), generator=g)


def _maps(channels: int, g: torch.Generator) -> list[tuple[Tensor, ...]]:
    """Two samples, one, and two with so little variance that it shows where eps is added."""
    return [(_map(g, 2, channels),), (_map(g, 1, channels),), (0.002 * _map(g, 2, channels),)]


def _styled(channels: int, g: torch.Generator) -> list[tuple[Tensor, ...]]:
    return [(x, *torch.randn((2, x.size(0), channels), generator=g)) for (x,) in _maps(channels, g)]


def _by_vector(channels: int, length: int, g: torch.Generator) -> list[tuple[Tensor, ...]]:
    return [(x, torch.randn((x.size(0), length), generator=g)) for (x,) in _maps(channels, g)]


def _featured(channels: int, of_features: int, g: torch.Generator) -> list[tuple[Tensor, ...]]:
    return [(x, _map(g, x.size(0), of_features)) for (x,) in _maps(channels, g)]


def _labelled(channels: int, classes: int, g: torch.Generator) -> list[tuple[Tensor, ...]]:
    x = _map(g, 2, channels)
    one_hot = torch.zeros((2, classes, 12, 10)).scatter_(1, torch.randint(classes, (2, 1, 12, 10), generator=g), 1.0)
    return [(x, one_hot), (x, torch.rand((2, classes, 6, 5), generator=g))]
