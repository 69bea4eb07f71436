"""Folders to batches: kinds of data, a deterministic resumable loader, procedural data."""

import importlib
import pkgutil
from types import ModuleType

from . import kinds as _kinds


def kinds() -> list[str]:
    """Names that `kind` takes."""
    return sorted(module.name for module in pkgutil.iter_modules(_kinds.__path__))


def kind(name: str) -> ModuleType:
    """The module of a kind of data, see `i2ifast.data.kinds`; ValueError for a name that does not exist."""
    if name not in kinds():
        raise ValueError(f"no kind of data {name!r}; there are {', '.join(kinds())}")
    return importlib.import_module(f"{_kinds.__name__}.{name}")
