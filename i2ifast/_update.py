"""From a loss to new weights: scaled for float16, clipped, and never by gradients that are not finite."""

from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ._nonfinite import Place, Watch
from ._state import State
from .models import Phase


class Updater:
    """Backward and optimizer step of the phases of `state`, without waiting for the device."""

    def __init__(self, state: State, clip_grad: float | None, watch: Watch) -> None:
        self.state, self.clip_grad, self.watch = state, clip_grad, watch

    def backward(self, place: Place, phase: Phase, loss: Tensor) -> None:
        """Add the gradients of `loss` to those of the phase."""
        self.watch.add(place, phase, loss.detach())
        self.state.scalers[phase.name].scale(loss).backward()

    def step(self, place: Place, phase: Phase) -> dict[str, Tensor]:
        """The optimizer's step. With scaled losses it may be skipped, which is no failure: returns, by network, 1 if it
        was taken, else 0.
        """
        optimizer, scaler = self.state.optimizers[phase.name], self.state.scalers[phase.name]
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        limit = min((each for each in (self.clip_grad, phase.clip) if each is not None), default=None)
        if limit is not None:
            scaler.unscale_(optimizer)
        norm = get_total_norm([p.grad for p in parameters])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of the parts in all processes
        if limit is not None:
            clip_grads_with_norm_(parameters, limit, norm)
        if self.state.scaled:
            scaler.step(optimizer)
            scaler.update()
            return dict.fromkeys(phase.nets, norm.isfinite().float())
        optimizer.found_inf = self.watch.add(place, phase, norm)  # fused optimizers skip the step on a 1
        optimizer.step()
        return {}
