"""Spectral normalisation: Miyato et al., Spectral Normalization for Generative Adversarial Networks, ICLR 2018."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm as TorchSpectralNorm

from ..ops.spectral_weight import spectral_weight

M = TypeVar("M", bound=nn.Module)


class SpectralNorm(TorchSpectralNorm):
    """torch's hook, which normalises a module's weight before each forward, on `ops.spectral_weight`.

    It has no state of its own, so the two can take each other's place on a live module (`adopt`, `release`).
    """

    def compute_weight(self, module: nn.Module, do_power_iteration: bool) -> Tensor:
        weight, u, v = (getattr(module, self.name + suffix) for suffix in ("_orig", "_u", "_v"))
        iterations = self.n_power_iterations if do_power_iteration else 0
        weight, new_u, new_v, _ = spectral_weight(weight.movedim(self.dim, 0), u, v, iterations, self.eps)
        if iterations:
            # In place, for DataParallel; backward reads the op's own copies, so forwards may follow each other.
            u.copy_(new_u)
            v.copy_(new_v)
        return weight.movedim(0, self.dim)

    def remove(self, module: nn.Module) -> None:
        super().remove(module)
        self._stop_letting_go(module)

    def let_go(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Forward hook: in training, what backward needs of the normalised weight it keeps itself, until then."""
        kept = f"{self.name}_orig" if module.training else self.name
        setattr(module, self.name, getattr(module, kept).detach())

    def _stop_letting_go(self, module: nn.Module) -> None:
        hooks = module._forward_hooks
        for key in [k for k, hook in hooks.items() if hook == self.let_go]:
            del hooks[key]


def adopt(module: nn.Module, hook: TorchSpectralNorm) -> None:
    """Let `hook`, a hook of torch's spectral_norm on `module`, run on `ops.spectral_weight`."""
    hook.__class__ = SpectralNorm
    module.register_forward_hook(hook.let_go)


def release(module: nn.Module, hook: SpectralNorm) -> None:
    """Undo `adopt`."""
    hook._stop_letting_go(module)
    hook.__class__ = TorchSpectralNorm


def spectral_norm(module: M, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12) -> M:
    """torch.nn.utils.spectral_norm with the normalisation and its backward fused: the same numbers and state_dict.

    The parameter `name` becomes `name`_orig, with buffers `name`_u and `name`_v. In training every forward makes
    `n_power_iterations` and updates the buffers. In evaluation sigma comes from the stored ones, always anew: writes to
    `.data` leave no trace that would tell a kept weight is stale. Autocast does not lower the precision of any of it.
    Before the first forward, and after one in training, the attribute `name` shares its storage with the parameter:
    initialisation may write to it, and no second copy of the weight lasts from step to step. After one in evaluation it
    holds the normalised weight. It never has a graph: the module can be copied and pickled at any time.
    `torch.nn.utils.remove_spectral_norm` undoes it.
    """
    torch.nn.utils.spectral_norm(module, name, n_power_iterations, eps)
    hooks = module._forward_pre_hooks.values()
    adopt(module, next(h for h in hooks if isinstance(h, TorchSpectralNorm) and h.name == name))
    return module
