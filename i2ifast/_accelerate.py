"""Faster forwards for networks whose classes others wrote: what is known is found by structure and changed in place.

A changed module gets a subclass of its class, made of that class and one of the mixins below. It stays the same object,
with the same parameters, buffers and children, so references, state_dict keys and DataParallel replicas stay valid.
"""

import copy
import functools
import inspect
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.spectral_norm import SpectralNorm as TorchSpectralNorm

from .nn._norm import statistics_of
from .nn.conv import Conv2d, is_3x3
from .nn.instance import instance_norm_act
from .nn.spade import SPADE, Modulator, apply
from .nn.spectral import SpectralNorm, adopt, release
from .ops import no_statistics

TOLERANCE = 1e-4  # of the largest output, between a layer and its replacement


def accelerate(model: nn.Module) -> nn.Module:
    """Make `model` faster in place, print what was changed and what was left and why, and return it.

    - SPADE layers: a module with a norm without affine parameters, three convolutions and `forward(x, segmap)`.
      Structure does not prove a formula: the layer is changed only if a copy of it with random parameters and its
      replacement agree on random inputs, in training and in evaluation.
    - InstanceNorm2d (affine or not, without running statistics) followed by ReLU or LeakyReLU in an nn.Sequential.
    - Hooks of torch.nn.utils.spectral_norm.
    - 3x3 convolutions with stride 1 and zero padding 1.

    Outputs and gradients are the same up to summation order. A layer called in a way that its replacement does not know
    (keyword arguments, hooks on its children) runs its own forward. The model can be copied, pickled (loading it takes
    i2ifast) and run by DataParallel and DistributedDataParallel; `restore` it before scripting, tracing or export.
    """
    layers, pairs, norms, convolutions, left = 0, 0, 0, 0, []
    for name, module in model.named_modules():
        if isinstance(module, SPADE | _Changed | torch.jit.ScriptModule) or "forward" in vars(module):
            continue
        if assignments := list(_assignments(module)):
            reason = _change_spade(module, assignments)
            layers += not reason
            left += [f"{name or type(module).__name__}: {reason}"] if reason else []
        elif type(module).forward is nn.Sequential.forward and (count := _count_pairs(module)):
            _change(module, _InstanceNormActs)
            pairs += count
        elif type(module) is nn.Conv2d and is_3x3(module):
            _change(module, _Conv2d)
            convolutions += 1
        for hook in module._forward_pre_hooks.values():
            if type(hook) is TorchSpectralNorm:
                adopt(module, hook)
                hook._accelerated = True
                norms += 1
    print(
        f"accelerate: {layers} SPADE layers, {pairs} instance norms with activation, {norms} spectral norms, ", end=""
    )
    print(f"{convolutions} 3x3 convolutions")
    print(*(f"  left {line}\n" for line in left), sep="", end="")
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undo `accelerate` in place and return the model."""
    for module in model.modules():
        if isinstance(module, _Changed):
            module.__class__ = type(module).__bases__[1]
            module.__dict__.pop("_i2ifast_parts", None)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm) and hook.__dict__.pop("_accelerated", False):
                release(module, hook)
    return model


class _Changed:
    """Base of the mixins. Pickles as (mixin, original class): the class made of them has no importable name."""

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return _new, type(self).__bases__, *super().__reduce_ex__(protocol)[2:]


@functools.cache
def _subclass(mixin: type, original: type) -> type:
    return type(original.__name__, (mixin, original), {"__module__": original.__module__})


def _new(mixin: type, original: type) -> nn.Module:
    made = _subclass(mixin, original)
    return made.__new__(made)


def _change(module: nn.Module, mixin: type) -> None:
    module.__class__ = _subclass(mixin, type(module))


def _hooked(*modules: nn.Module) -> bool:
    """Whether someone listens to these modules, which then have to be called."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules)


class _InstanceNormActs(_Changed):
    """A Sequential that runs instance norms and the activations behind them as one. The pairs are found as it runs."""

    def forward(self, x: Any) -> Any:
        modules = list(self._modules.values())
        while modules:
            module = modules.pop(0)
            act = modules[0] if modules else None
            if _is_pair(module, act) and _is_map(x) and not _hooked(module, act):
                x = instance_norm_act(x, module.weight, module.bias, _slope(modules.pop(0)), module.eps)
            else:
                x = module(x)
        return x


def _is_map(x: Any) -> bool:
    """[N, C, H, W] of more than one pixel: torch has an error for one pixel, which has no variance."""
    return isinstance(x, Tensor) and x.dim() == 4 and x.size(2) * x.size(3) > 1


def _is_pair(norm: nn.Module, act: nn.Module | None) -> bool:
    known = type(norm) is nn.InstanceNorm2d and not norm.track_running_stats
    return known and type(act) in (nn.ReLU, nn.LeakyReLU)


def _count_pairs(modules: nn.Sequential) -> int:
    return sum(_is_pair(a, b) for a, b in itertools.pairwise(modules))


def _slope(act: nn.ReLU | nn.LeakyReLU) -> float:
    return act.negative_slope if isinstance(act, nn.LeakyReLU) else 0.0


class _Parts(NamedTuple):
    """Names of what a SPADE layer consists of, as get_submodule takes them."""

    norm: str
    shared: str
    gamma: str
    beta: str


class _Conv2d(_Changed):
    """3x3 convolutions through ops.conv3x3."""

    _conv_forward = Conv2d._conv_forward


class _SpadeLayer(_Changed):
    """norm(x) * (1 + gamma) + beta through the tables of nn.SPADE."""

    _i2ifast_parts: _Parts
    _baked: Modulator | None = None

    def bake(self) -> None:
        """Lay the weights out once, for inference: see `nn.bake`."""
        _, *convolutions = [self.get_submodule(name) for name in self._i2ifast_parts]
        self._baked = Modulator(*convolutions, fixed=True)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        parts = [self.get_submodule(name) for name in self._i2ifast_parts]
        if kwargs or len(args) != 2 or not all(map(_is_dense, args)) or _hooked(*list(self.modules())[1:]):
            return super().forward(*args, **kwargs)
        x, segmap = args
        norm, shared, gamma, beta = parts
        by = (self._baked or Modulator(shared, gamma, beta))(segmap, tuple(x.shape[2:]))
        if norm.training and not _is_torchs(norm):
            # Others' synchronisation is theirs to do.
            return apply(norm(x), by, no_statistics(x))
        (statistics,) = statistics_of(x, [norm], synchronise=isinstance(norm, nn.SyncBatchNorm))
        return apply(x, by, statistics)


def _is_dense(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point()


def _is_torchs(norm: nn.Module) -> bool:
    if type(norm) is nn.SyncBatchNorm:
        return norm.process_group in (None, torch.distributed.group.WORLD)
    return type(norm) in (nn.BatchNorm2d, nn.InstanceNorm2d)


def _assignments(module: nn.Module) -> Iterator[_Parts]:
    """Every way in which `module` could be a SPADE layer as far as classes and shapes tell."""
    norms, convolutions = [], {}
    for name, child in module.named_children():
        if isinstance(child, _NormBase) and not child.affine:
            norms.append(name)
        elif isinstance(child, nn.Conv2d):
            convolutions[name] = child
        elif isinstance(child, nn.Sequential) and len(child) and isinstance(child[0], nn.Conv2d):
            convolutions[f"{name}.{next(iter(child._modules))}"] = child[0]
    if len(norms) != 1 or len(convolutions) != 3 or not _takes_two(module):
        return
    channels = module.get_submodule(norms[0]).num_features
    for names in itertools.permutations(convolutions, 3):
        shared, gamma, beta = (convolutions[name] for name in names)
        same = gamma.in_channels == beta.in_channels == shared.out_channels
        if same and gamma.out_channels == beta.out_channels == channels:
            yield _Parts(norms[0], *names)


def _takes_two(module: nn.Module) -> bool:
    """Whether forward takes two arguments."""
    try:
        inspect.signature(module.forward).bind(None, None)
    except TypeError:
        return False
    return True


def _unusual(module: nn.Module, parts: _Parts) -> str:
    """'' if the replacement has the layer's kind of norm and convolutions, else what it does not have."""
    norm, *convolutions = (module.get_submodule(name) for name in parts)
    if _hooked(*list(module.modules())[1:]):
        return "there are hooks on its children"
    if isinstance(norm, nn.InstanceNorm2d) and norm.track_running_stats:
        return "its instance norm has running statistics"
    k = convolutions[0].kernel_size[0]
    for c in convolutions:
        plain = c.stride == (1, 1) and c.dilation == (1, 1) and c.groups == 1 and c.padding_mode == "zeros"
        if not plain or c.bias is None or k % 2 == 0 or c.kernel_size != (k, k) or c.padding != (k // 2, k // 2):
            return f"its convolutions are not of one odd kernel, stride 1, 'same' zero padding and a bias: {c}"
    return ""


def _change_spade(module: nn.Module, assignments: list[_Parts]) -> str:
    """Change a layer by the first assignment that makes its formula that of SPADE; '' or the reason why none does."""
    reasons = []
    for parts in assignments:
        reason = _unusual(module, parts) or _difference(module, parts)
        if not reason:
            module._i2ifast_parts = parts
            _change(module, _SpadeLayer)
            return ""
        reasons.append(reason)
    return reasons[0]


@torch.no_grad()
def _difference(module: nn.Module, parts: _Parts) -> str:
    """Run a copy of the layer with random parameters and its replacement: '' if they agree, else how they differ."""
    g = torch.Generator().manual_seed(0)
    try:
        # On the CPU in float32, where no convolution is of a lower precision.
        theirs = copy.deepcopy(module).cpu().float()
        for p in theirs.parameters():
            p.copy_(0.05 * torch.randn(p.shape, generator=g))
        norm = theirs.get_submodule(parts.norm)
        if norm.running_mean is not None:
            norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=g))
            norm.running_var.copy_(0.5 + torch.rand(norm.running_var.shape, generator=g))
        ours = copy.deepcopy(theirs)
        ours._i2ifast_parts = parts
        _change(ours, _SpadeLayer)
        channels, classes = norm.num_features, theirs.get_submodule(parts.shared).in_channels
        x = torch.randn((2, channels, 8, 6), generator=g)
        # Sizes of odd ratio to that of x, larger and smaller, tell one way of resizing from another.
        labels = torch.randint(classes, (2, 7, 5), generator=g).repeat_interleave(3, 1).repeat_interleave(3, 2)
        one_hot = torch.zeros((2, classes, 21, 15)).scatter_(1, labels[:, None], 1.0)
        soft = torch.rand((2, classes, 5, 11), generator=g)
        with torch.random.fork_rng(devices=[]):
            for training, segmap in itertools.product((False, True), (one_hot, soft)):
                expected, y = theirs.train(training)(x, segmap), ours.train(training)(x, segmap)
                if y.shape != expected.shape:
                    return f"its output has shape {list(expected.shape)}, not {list(y.shape)}"
                error = (y - expected).abs().max() / expected.abs().max().clamp(min=1)
                if not error <= TOLERANCE:  # nor if it is NaN
                    mode = "training" if training else "evaluation"
                    return f"it is not norm(x) * (1 + gamma) + beta: relative difference {error:.1e} in {mode}"
        for (name, a), b in zip(theirs.named_buffers(), ours.buffers(), strict=True):
            if not torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE):
                return f"its training leaves another {name}"
    except Exception as error:  # others' code may raise anything
        return f"a trial run failed: {type(error).__name__}: {error}"
    return ""
