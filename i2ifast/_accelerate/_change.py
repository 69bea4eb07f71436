"""What every replacement shares: how a module of another's class is changed in place, and the trial that allows it."""

import copy
import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

TOLERANCE = 1e-4  # of the largest output, between a module and its replacement


class Changed:
    """Base of the mixins. Pickles as (mixin, original class): the class made of them has no importable name."""

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return _new, type(self).__bases__, *super().__reduce_ex__(protocol)[2:]


@functools.cache
def _subclass(mixin: type, original: type) -> type:
    return type(original.__name__, (mixin, original), {"__module__": original.__module__})


def _new(mixin: type, original: type) -> nn.Module:
    made = _subclass(mixin, original)
    return made.__new__(made)


def change(module: nn.Module, mixin: type) -> None:
    module.__class__ = _subclass(mixin, type(module))


def hooked(*modules: nn.Module) -> bool:
    """Whether someone listens to these modules, which then have to be called."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules)


def restored(module: nn.Module) -> None:
    module.__class__ = type(module).__bases__[1]
    for name in ("_i2ifast_parts", "_baked"):
        module.__dict__.pop(name, None)


def takes_two(module: nn.Module) -> bool:
    """Whether forward takes two arguments."""
    try:
        inspect.signature(module.forward).bind(None, None)
    except TypeError:
        return False
    return True


def is_map(x: Any) -> bool:
    """[N, C, H, W] of more than one pixel: torch has an error for one pixel, which has no variance."""
    return isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point() and x.size(2) * x.size(3) > 1


def is_torchs(norm: nn.Module) -> bool:
    """Whether it is a norm of torch's own, whose statistics we can take."""
    if type(norm) is nn.SyncBatchNorm:
        return norm.process_group in (None, torch.distributed.group.WORLD)
    return type(norm) in (nn.BatchNorm2d, nn.InstanceNorm2d)


@torch.no_grad()
def difference(
    module: nn.Module,
    mixin: type,
    parts: tuple,
    inputs: Callable[[torch.Generator], list[tuple[Tensor, ...]]],
    attributes: Sequence[str] = (),
) -> str:
    """Run a copy of a module with random parameters and its replacement on `inputs`: '' if they agree, else how they
    differ.

    `attributes` get one random value for each sample and channel of the first input before every run.
    """
    g = torch.Generator().manual_seed(0)
    try:
        # On the CPU in float32, where no convolution is of a lower precision.
        theirs = copy.deepcopy(module).cpu().float()
        for p in theirs.parameters():
            p.copy_(0.05 * torch.randn(p.shape, generator=g))
        for norm in theirs.modules():
            if isinstance(norm, _NormBase) and norm.running_mean is not None:
                norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=g))
                norm.running_var.copy_(0.5 + torch.rand(norm.running_var.shape, generator=g))
        ours = copy.deepcopy(theirs)
        ours._i2ifast_parts = parts
        change(ours, mixin)
        with torch.random.fork_rng(devices=[]):
            for training, given in itertools.product((False, True), inputs(g)):
                for name in attributes:
                    value = torch.randn(given[0].size(0) * given[0].size(1), generator=g)
                    setattr(theirs, name, value)
                    setattr(ours, name, value)
                expected, y = theirs.train(training)(*given), ours.train(training)(*given)
                if y.shape != expected.shape:
                    return f"its output has shape {list(expected.shape)}, not {list(y.shape)}"
                error = (y - expected).abs().max() / expected.abs().max().clamp(min=1)
                if not error <= TOLERANCE:  # nor if it is NaN
                    mode = "training" if training else "evaluation"
                    return f"it is not {mixin.__doc__.split(':')[0]}: relative difference {error:.1e} in {mode}"
        for (name, a), b in zip(theirs.named_buffers(), ours.buffers(), strict=True):
            if not torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE):
                return f"its training leaves another {name}"
    except Exception as error:  # others' code may raise anything
        return f"a trial run failed: {type(error).__name__}: {error}"
    return ""


def replace(module: nn.Module, mixin: type, parts: tuple) -> None:
    module._i2ifast_parts = parts
    change(module, mixin)
