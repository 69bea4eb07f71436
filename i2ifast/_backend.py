"""Which implementation runs an op: the library handle, compiled libraries, and the one visible chooser.

Backends are `reference` (differentiable PyTorch, any device and dtype), `cpu` (C++), `triton` and `cuda` (CUDA C++).
"""

import contextlib
import importlib
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")

lib = torch.library.Library("i2ifast", "DEF")

_forced = os.environ.get("I2IFAST_BACKEND", "auto")
if _forced not in BACKENDS:
    raise ValueError(f"I2IFAST_BACKEND={_forced!r}: expected one of {', '.join(BACKENDS)}")


def _load(name: str) -> str:
    """Load the compiled library `name`; '' on success, else the reason why it is not there."""
    import i2ifast

    if name == "_C_cuda" and torch.version.cuda is None:
        return "this torch has no CUDA"
    folders = [*i2ifast.__path__, str(Path(sysconfig.get_path("platlib")) / "i2ifast")]
    for path in (Path(folder) / f"{name}.so" for folder in folders):
        if path.exists():
            try:
                torch.ops.load_library(str(path))
            except OSError as error:
                return f"{path.name} does not load: {error}"
            return ""
    return f"{name}.so was not built (no compiler when i2ifast was installed)"


def _triton() -> str:
    """'' if Triton kernels can run here, else the reason."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton is not installed ({error})"
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    return "no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, for tests)"


# Backend -> why it cannot run ('' if it can).
missing = {"reference": "", "cpu": _load("_C"), "triton": _triton(), "cuda": _load("_C_cuda")}


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend for every op inside the block; `auto` gives the choice back.

    Raises ValueError for an unknown name; an op that cannot run on the forced backend raises RuntimeError saying why.
    """
    global _forced
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(BACKENDS)}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def kernel(backend: str, stem: str, name: str) -> Callable | None:
    """The function of `backend` for kernel `name` of op `stem`, or None where that backend has none."""
    if missing[backend]:
        return None
    if backend == "triton":
        try:
            return getattr(importlib.import_module(f"i2ifast.kernels.{stem}"), name, None)
        except ModuleNotFoundError:
            return None
    return getattr(getattr(torch.ops, f"i2ifast_{backend}"), name, None)


def why_not(backend: str, stem: str, name: str, x: Tensor) -> str:
    """'' if `backend` can run kernel `name` on tensors like `x`, else the reason."""
    if missing[backend]:
        return missing[backend]
    if kernel(backend, stem, name) is None:
        return f"it has no kernel {name}"
    if x.dtype is torch.float64:
        return "float64 runs on the reference"
    if backend == "cpu" and x.dtype is torch.float16:
        return "the CPU computes float16 by upcast, in the reference"
    interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if x.device.type != ("cpu" if backend == "cpu" or interpreted else "cuda"):
        return f"the tensors are on {x.device.type}"
    return ""


def fast() -> bool:
    """Whether routes through other libraries' kernels may be taken: everywhere but on the forced reference."""
    return _forced != "reference"


# CUDA C++ kernels that measure faster than Triton: kernel -> whether to take it for this x.
prefer_cuda: dict[str, Callable[[Tensor], bool]] = {}


def choose(stem: str, name: str, x: Tensor) -> str:
    """The backend that runs kernel `name` of op `stem` on tensors like `x`."""
    if _forced != "auto":
        if _forced == "reference" or x.dtype is torch.float64:
            return "reference"
        if reason := why_not(_forced, stem, name, x):
            raise RuntimeError(f"i2ifast::{name}: the forced backend {_forced!r} cannot run: {reason}")
        return _forced
    if x.device.type == "cpu":
        order = ("cpu",)
    else:
        order = ("cuda", "triton") if prefer_cuda.get(name, lambda x: False)(x) else ("triton", "cuda")
    return next((b for b in order if not why_not(b, stem, name, x)), "reference")
