"""Reader of recorded cases: what an original computed from weights, inputs and noise that follow from their names.

A case file records, for each tensor, a digest (eight numbers) and a sample (up to 64 entries). The arithmetic below is
part of the format: float64 throughout, from numpy's frozen RandomState, rounded to float32 once.
"""

import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod, sqrt
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy import ndarray
from safetensors import safe_open
from torch import Tensor

POWER_ITERATIONS = 8


def generator(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))


def normal64(name: str, shape: Sequence[int]) -> ndarray:
    return generator(name).standard_normal(tuple(shape))


def float32(array: ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64).astype(np.float32))


def normal(name: str, shape: Sequence[int]) -> Tensor:
    return float32(normal64(name, shape))


def uniform(name: str, shape: Sequence[int]) -> Tensor:
    return float32(generator(name).random_sample(tuple(shape)))


def integers(name: str, shape: Sequence[int], high: int) -> Tensor:
    return torch.from_numpy(generator(name).randint(0, high, tuple(shape)).astype(np.int64))


def enlarge(x: Tensor, cell_h: int, cell_w: int, h: int, w: int) -> Tensor:
    """Each entry of [..., gh, gw] becomes a cell of pixels; cropped to h x w."""
    return x.repeat_interleave(cell_h, -2).repeat_interleave(cell_w, -1)[..., :h, :w].clone()


def image(name: str, n: int, c: int, h: int, w: int) -> Tensor:
    """Smooth random images [n,c,h,w] in [-1, 1], multiples of 1 / 128."""
    coarse = torch.from_numpy(normal64(f"{name}.coarse", (n, c, -(-h // 8), -(-w // 8))))
    x = enlarge(coarse, 8, 8, h, w).numpy() + 0.3 * normal64(f"{name}.fine", (n, c, h, w))
    return float32(np.round(np.clip(x, -1.5, 1.5) / 1.5 * 127) / 128)


def labels(name: str, n: int, h: int, w: int, classes: int, block: int = 8) -> Tensor:
    """Label maps [n,1,h,w] of square blocks, with one rectangle per image."""
    maps = enlarge(integers(f"{name}.coarse", (n, 1, -(-h // block), -(-w // block)), classes), block, block, h, w)
    for i in range(n):
        y, x, k = (
            int(integers(f"{name}.{i}.{axis}", (1,), high))
            for axis, high in (("y", max(1, h // 2)), ("x", max(1, w // 2)), ("k", classes))
        )
        maps[i, :, y : y + max(1, h // 3), x : x + max(1, w // 4)] = k
    return maps


def instances(name: str, n: int, h: int, w: int) -> Tensor:
    """Instance ids [n,1,h,w], 4 x 4 cells."""
    return enlarge(integers(name, (n, 1, 4, 4), 6) * 1000 + 7, -(-h // 4), -(-w // 4), h, w)


INPUTS: dict[str, Callable[..., Tensor]] = {
    "image": image,
    "labels": labels,
    "instances": instances,
    "normal": normal,
    "uniform": uniform,
    "integers": integers,
}


def drawn(kind: str, name: str, shape: Sequence[int]) -> Tensor:
    """Noise of a kind: one of INPUTS, integersN below N, or keepP, uniform and to be compared with P."""
    if kind.startswith("integers"):
        return integers(name, shape, int(kind.removeprefix("integers")))
    return INPUTS["uniform" if kind.startswith("keep") else kind](name, shape)


def state_value(name: str, shape: Sequence[int], dtype: torch.dtype, gain: float) -> Tensor:
    """One state_dict entry, by the last part of its name and its rank."""
    leaf = name.rpartition(".")[2]
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    if leaf == "running_var":
        return float32(0.5 + generator(name).random_sample(tuple(shape)))
    n = normal64(name, shape)
    if leaf == "running_mean":
        return float32(0.2 * n)
    if len(shape) >= 2:
        return float32(gain / np.sqrt(prod(shape) // shape[0]) * n)
    if leaf.endswith(("bias", "beta")):
        return float32(0.1 * n)
    if leaf.endswith(("weight", "gamma", "scale")):
        return float32(1 + 0.2 * n)
    return float32(0.3 * n)


def power_iteration(name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Singular vectors (u, v) of the flattened weight that the original's spectral norm would have settled to."""
    w = weight.double().flatten(1).numpy()
    u = normal64(name, (w.shape[0],))
    u /= np.linalg.norm(u)
    for _ in range(POWER_ITERATIONS):
        v = w.T @ u
        v /= np.linalg.norm(v) + 1e-12
        u = w @ v
        u /= np.linalg.norm(u) + 1e-12
    return float32(u), float32(v)


def digest(name: str, x: Tensor) -> ndarray:
    """Sum, sum of |x|, l2 norm, max |x| and four projections on noise of unit variance / sqrt(numel), in float64."""
    a = x.detach().double().cpu().numpy().ravel()
    if a.size == 0:
        return np.zeros(8)
    projections = [a @ normal64(f"{name}.{k}", (a.size,)) / np.sqrt(a.size) for k in range(4)]
    return np.array([a.sum(), np.abs(a).sum(), np.sqrt((a * a).sum()), np.abs(a).max(), *projections])


def sample(name: str, x: Tensor, n: int = 64) -> ndarray:
    """All entries if there are at most n, else n of them at positions that follow from the name."""
    a = x.detach().float().cpu().flatten()
    return (a if len(a) <= n else a[integers(f"{name}.at", (n,), len(a))]).double().numpy()


@dataclass
class Case:
    """One case file."""

    device: ClassVar[torch.device] = torch.device("cpu")  # of inputs and noise

    path: Path
    movement: dict[str, float] = field(default_factory=dict)  # by name: how far rounding moves it here, relatively

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The metadata, parsed where it is JSON."""
        with safe_open(self.path, "pt") as file:
            texts = file.metadata()
        return {key: json.loads(text) if text[:1] in "[{" else text for key, text in texts.items()}

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        with safe_open(self.path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}

    @property
    def names(self) -> set[str]:
        """Names of what is recorded."""
        given = tuple(f"{kind}." for kind in ("in", "keep", "noise"))
        names = {name.removesuffix(".digest").removesuffix(".sample") for name in self.tensors}
        return {name for name in names if not name.startswith(given)}

    @property
    def trains(self) -> bool:
        """Whether the case is a trajectory of optimiser steps."""
        return any(name.startswith("traj.") for name in self.names)

    @property
    def options(self) -> dict[str, Any]:
        """The original's options; widths that were shrunk for the recording are under their plain names."""
        return {name.removeprefix("_"): value for name, value in self.meta["config"].items()}

    def keys(self, net: str) -> dict[str, tuple[list[int], torch.dtype]]:
        """state_dict keys of a network of the original, with shape and dtype."""
        return {key: (entry[:-1], getattr(torch, entry[-1])) for key, entry in self.meta["keys"][net].items()}

    def state(self, net: str) -> dict[str, Tensor]:
        """The state dict of a network at the start."""
        recipe, keys = self.meta["nets"][net], self.keys(net)
        state = {key: self.tensors[name] for key, name in recipe.get("keep", {}).items()}
        for key, (shape, dtype) in keys.items():
            if key not in state and not (key[-2:] in ("_u", "_v") and f"{key[:-2]}_orig" in keys):
                state[key] = state_value(f"{net}.{key}", shape, dtype, recipe["gains"].get(key, recipe["gain"]))
        for key, (shape, _) in keys.items():
            if key.endswith("_u") and key not in state:
                u, v = power_iteration(f"{net}.{key}", state[f"{key[:-2]}_orig"])
                state[key] = u.reshape(shape)
                if f"{key[:-2]}_v" in keys:
                    state[f"{key[:-2]}_v"] = v
        return state

    def inputs(self, prefix: str) -> dict[str, Tensor]:
        """Input tensors whose names start with `prefix`, which is cut off."""
        found = {}
        for name, entry in self.meta["inputs"].items():
            if name.startswith(prefix):
                explicit = entry["kind"] == "explicit"
                value = self.tensors[name] if explicit else INPUTS[entry["kind"]](name, *entry["args"])
                found[name.removeprefix(prefix)] = value.to(self.device)
        return found

    def noise(self, prefix: str) -> Iterator[Tensor]:
        """Noise whose names start with `prefix`, in draw order; of dropout (keepP) what is compared with P."""
        draws = [draw for draw in self.meta["noise"] if draw["name"].startswith(prefix)]
        return iter([drawn(draw["dist"], draw["name"], draw["shape"]).to(self.device) for draw in draws])

    def tolerance(self, name: str, least: float = 1e-4) -> float:
        """Relative tolerance of what is recorded under `name`: from how much rounding moves it in the original.

        Recordings say that by tensor (`sensitivity`), by group of names, or not at all. Where a value lies on a kink,
        of a relu say, they may not know of it: a driver then finds `movement`.
        """
        least = max(least, 3 * self.movement.get(name, 0.0))
        if "sensitivity" in self.meta:
            factor = 20 if name.startswith("traj.") else 10
            return max(least, factor * self.meta["sensitivity"].get(name, 0.0))
        said = self.meta["tolerances"].partition("tol per group:")[2].partition("float64-free")[0]
        groups = {group: float(value) for group, value in re.findall(r"([a-z.]+) (\d+(?:\.\d+)?(?:e-\d+)?)", said)}
        if known := [group for group in groups if f"{name}.".startswith(f"{group}.")]:
            return max(least, 3 * groups[max(known, key=len)])  # three times that, on another machine
        return max(least, 1e-3 if name.startswith(("grad.", "traj.")) else 1e-4)

    def error(self, name: str, value: Tensor) -> float:
        """Largest error of `value` against what is recorded under `name`, in units of the tolerance; inf for NaN."""
        if f"{name}.sample" not in self.tensors:
            want, got = self.tensors[name].double().flatten().numpy(), value.detach().double().cpu().flatten().numpy()
            return largest((got - want) / max(np.abs(want).max(), 1e-30)) / self.tolerance(name)
        want, got = self.tensors[f"{name}.sample"].double().numpy(), sample(name, value)
        of_sample = largest((got - want) / max(np.abs(want).max(), 1e-30))
        want, got = self.tensors[f"{name}.digest"].double().numpy(), digest(name, value)
        scale = np.array([want[1], want[1], want[2], want[3], *[want[2] / sqrt(max(1, value.numel()))] * 4])
        return max(of_sample, largest((got - want) / np.maximum(scale, 1e-30))) / self.tolerance(name)

    def update_error(self, name: str, value: Tensor, before: Tensor) -> float:
        """As `error`, of the sample of `value - before`: what training did, which is small next to the value.

        Adam divides a gradient by its own size, so that the rounding of a small one shows in full: where the recording
        says that, most entries are held to a tenth of the largest update.
        """
        after = self.tensors.get(f"{name}.sample", self.tensors.get(name)).double().flatten().numpy()
        want, got = after - sample(name, before), sample(name, value - before)
        scale = max(np.abs(want).max(), 1e-30)
        moved = 0.0
        if "sensitivity" in self.meta:  # relative to the value; what is not listed is below 2e-5
            moved = max(20 * self.meta["sensitivity"].get(name, 0.0), 2e-5) * np.abs(after).max() / scale
        least = max(5e-3, moved)
        errors = (got - want) / scale
        return max(largest(errors) / self.tolerance(name, least), float(np.median(np.abs(errors))) / 0.1)


def largest(errors: ndarray) -> float:
    """Largest magnitude; inf if there is a NaN."""
    worst = float(np.abs(errors).max(initial=0.0))
    return worst if worst == worst else float("inf")
