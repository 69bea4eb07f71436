"""SPADE layers, the residual blocks made of them, and the upsampling in front of those."""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map_only

from ..nn.spade import Layer, Modulator, apply, modulated, modulated_twice, upsampled
from ..ops import no_statistics
from ._change import Changed, change, difference, hooked, is_torchs, replace, takes_two

SLOPES = (0.2, 0.0, 0.1, 0.01)  # of the activations that a residual block may have


class _Parts(NamedTuple):
    """Names of what a SPADE layer consists of, as get_submodule takes them."""

    norm: str
    shared: str
    gamma: str
    beta: str


class SpadeLayer(Changed):
    """norm(x) * (1 + gamma) + beta through the tables of nn.SPADE."""

    _i2ifast_parts: _Parts
    _baked: Modulator | None = None

    def bake(self) -> None:
        """Lay the weights out once, for inference: see `nn.bake`."""
        _, *convolutions = [self.get_submodule(name) for name in self._i2ifast_parts]
        self._baked = Modulator(*convolutions, fixed=True)

    def _layer(self) -> Layer:
        norm, *convolutions = [self.get_submodule(name) for name in self._i2ifast_parts]
        return Layer(norm, self._baked or Modulator(*convolutions), isinstance(norm, nn.SyncBatchNorm))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs or len(args) != 2 or not all(map(_is_dense, args)) or hooked(*list(self.modules())[1:]):
            return super().forward(*args, **kwargs)
        x, segmap = args
        layer = self._layer()
        if layer.norm.training and not is_torchs(layer.norm):
            # Others' synchronisation is theirs to do.
            return apply(layer.norm(x), layer.by(segmap, tuple(x.shape[2:])), no_statistics(x))
        return modulated(x, segmap, layer, "none", False)


class _BlockParts(NamedTuple):
    """Names of what a residual block of SPADE layers consists of; a block whose shortcut is x has no norm_s, conv_s."""

    norm_0: str
    norm_1: str
    norm_s: str | None
    conv_0: str
    conv_1: str
    conv_s: str | None
    slope: float = 0.0


class SpadeBlock(Changed):
    """shortcut + conv_1(act(norm_1(conv_0(act(norm_0(x)))))) as nn.SPADEResnetBlock computes it."""

    _i2ifast_parts: _BlockParts

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        *names, slope = self._i2ifast_parts
        norm_0, norm_1, norm_s, conv_0, conv_1, conv_s = [name and self._modules[name] for name in names]
        norms = [norm for norm in (norm_0, norm_1, norm_s) if norm]
        upsample = bool(args) and isinstance(args[0], _Upsampled) and args[0].full is None
        x, *others = (args[0].of(), *args[1:]) if upsample else args or (None,)
        if kwargs or len(others) != 1 or not all(map(_is_dense, (x, *others))) or not all(map(_is_fusible, norms)):
            return super().forward(*args, **kwargs)
        (segmap,) = others
        if norm_s:
            h, shortcut = modulated_twice(x, segmap, norm_0._layer(), norm_s._layer(), slope, upsample)
            shortcut = conv_s(shortcut)
        else:
            h = modulated(x, segmap, norm_0._layer(), slope, upsample)
            shortcut = upsampled(x) if upsample else x
        h = conv_1(modulated(conv_0(h), segmap, norm_1._layer(), slope, False))
        if torch.is_grad_enabled() or conv_1._forward_hooks:
            return h + shortcut  # in this order it keeps the layout of the convolution's kernel
        return h.add_(shortcut)


class Upsample(Changed):
    """nn.Upsample that leaves the work to the residual block behind it, if that is what its output goes to.

    Not with gradients, whose graph needs the real map, nor with inference tensors, which do not tell of changes.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not _is_dense(x) or x.is_inference():
            return super().forward(x)
        return _Upsampled(x)


class _Upsampled(Tensor):
    """x upsampled x2 by nearest, made as soon as any function but a residual block asks for it."""

    @staticmethod
    def __new__(cls, x: Tensor) -> "_Upsampled":
        n, c, h, w = x.shape
        return Tensor._make_wrapper_subclass(cls, (n, c, 2 * h, 2 * w), dtype=x.dtype, device=x.device)

    def __init__(self, x: Tensor) -> None:
        self.x, self.version, self.full = x, x._version, None

    def of(self) -> Tensor:
        if self.x._version != self.version:
            raise RuntimeError("a map was changed in place after it went through nn.Upsample: restore() this network")
        return self.x

    def made(self) -> Tensor:
        if self.full is None:
            self.full = upsampled(self.of())
        return self.full

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        args, kwargs = tree_map_only(cls, cls.made, (args, kwargs or {}))
        return func(*args, **kwargs)

    __torch_dispatch__ = __torch_function__  # for calls from C++


def change_upsampling(module: nn.Module) -> int:
    """Change the upsamplings among the children of a module that has residual blocks among them; their number."""
    if not any(isinstance(child, SpadeBlock) for child in module.children()):
        return 0
    found = [
        m for m in module.children() if type(m) is nn.Upsample and m.mode == "nearest" and "forward" not in vars(m)
    ]
    found = [m for m in found if m.size is None and m.scale_factor in (2, (2, 2))]
    for each in found:
        change(each, Upsample)
    return len(found)


def _is_fusible(layer: nn.Module) -> bool:
    """Whether a changed SPADE layer would run its replacement, and with statistics that it may share."""
    if not isinstance(layer, SpadeLayer) or hooked(*layer.modules()):
        return False
    norm = layer.get_submodule(layer._i2ifast_parts.norm)
    return norm.training == layer.training and (not norm.training or is_torchs(norm))


def _is_dense(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point()


def assignments(module: nn.Module) -> Iterator[_Parts]:
    """Every way in which `module` could be a SPADE layer as far as classes and shapes tell."""
    norms, convolutions = [], {}
    for name, child in module.named_children():
        if isinstance(child, _NormBase) and not child.affine:
            norms.append(name)
        elif isinstance(child, nn.Conv2d):
            convolutions[name] = child
        elif isinstance(child, nn.Sequential) and len(child) and isinstance(child[0], nn.Conv2d):
            convolutions[f"{name}.{next(iter(child._modules))}"] = child[0]
    if len(norms) != 1 or len(convolutions) != 3 or not takes_two(module):
        return
    channels = module.get_submodule(norms[0]).num_features
    for names in itertools.permutations(convolutions, 3):
        shared, gamma, beta = (convolutions[name] for name in names)
        same = gamma.in_channels == beta.in_channels == shared.out_channels
        if same and gamma.out_channels == beta.out_channels == channels:
            yield _Parts(norms[0], *names)


def _inputs(channels: int, classes: int, g: torch.Generator) -> list[tuple[Tensor, ...]]:
    """Maps, one-hot and soft, of odd ratio to the size of x, larger and smaller: they tell one way of resizing from
    another."""
    x = torch.randn((2, channels, 8, 6), generator=g)
    labels = torch.randint(classes, (2, 7, 5), generator=g).repeat_interleave(3, 1).repeat_interleave(3, 2)
    one_hot = torch.zeros((2, classes, 21, 15)).scatter_(1, labels[:, None], 1.0)
    return [(x, one_hot), (x, torch.rand((2, classes, 5, 11), generator=g))]


def _unusual(module: nn.Module, parts: _Parts) -> str:
    """'' if the replacement has the layer's kind of norm and convolutions, else what it does not have."""
    norm, *convolutions = (module.get_submodule(name) for name in parts)
    if hooked(*list(module.modules())[1:]):
        return "there are hooks on its children"
    if isinstance(norm, nn.InstanceNorm2d) and norm.track_running_stats:
        return "its instance norm has running statistics"
    k = convolutions[0].kernel_size[0]
    for c in convolutions:
        plain = c.stride == (1, 1) and c.dilation == (1, 1) and c.groups == 1 and c.padding_mode == "zeros"
        if not plain or c.bias is None or k % 2 == 0 or c.kernel_size != (k, k) or c.padding != (k // 2, k // 2):
            return f"its convolutions are not of one odd kernel, stride 1, 'same' zero padding and a bias: {c}"
    return ""


def change_layer(module: nn.Module, assignments: list[_Parts]) -> str:
    """Change a layer by the first assignment that makes its formula that of SPADE; '' or the reason why none does."""
    reasons = []
    for parts in assignments:
        norm, shared = module.get_submodule(parts.norm), module.get_submodule(parts.shared)
        inputs = partial(_inputs, norm.num_features, shared.in_channels)
        reason = _unusual(module, parts) or difference(module, SpadeLayer, parts, inputs)
        if not reason:
            replace(module, SpadeLayer, parts)
            return ""
        reasons.append(reason)
    return reasons[0]


def change_block(module: nn.Module) -> bool:
    """Change a residual block of changed SPADE layers by the first assignment that its outputs prove."""
    if not takes_two(module):
        return False
    for parts in _block_assignments(module):
        layer = module._modules[parts.norm_0]
        _, shared, *_ = layer._i2ifast_parts
        channels, classes = module._modules[parts.conv_0].in_channels, layer.get_submodule(shared).in_channels
        if not difference(module, SpadeBlock, parts, partial(_inputs, channels, classes)):
            replace(module, SpadeBlock, parts)
            return True
    return False


def _block_assignments(module: nn.Module) -> Iterator[_BlockParts]:
    """Every way in which `module` could be a residual block as far as classes and shapes tell."""
    layers = {name: child._layer() for name, child in module.named_children() if isinstance(child, SpadeLayer)}
    convs = {name: child for name, child in module.named_children() if isinstance(child, nn.Conv2d)}
    if len(layers) not in (2, 3) or len(convs) != len(layers):
        return
    if len({(type(layer.norm), layer.norm.eps, layer.by.kernel) for layer in layers.values()}) > 1:
        return
    for norms, names in itertools.product(itertools.permutations(layers), itertools.permutations(convs)):
        n = [layers[name].norm.num_features for name in norms]
        c = [convs[name] for name in names]
        chained = n[0] == c[0].in_channels and n[1] == c[0].out_channels == c[1].in_channels
        if len(n) == 2:
            closed, rest = c[1].out_channels == n[0], (None,)
        else:
            closed, rest = n[2] == n[0] == c[2].in_channels and c[2].out_channels == c[1].out_channels, ()
        if chained and closed:
            for slope in SLOPES:
                yield _BlockParts(*norms, *rest, *names, *rest, slope)
