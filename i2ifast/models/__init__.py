"""Published systems, one module each: `names()` lists them, `system(name)` is the class, `build(name)` makes one."""

import importlib
import pkgutil
from dataclasses import fields
from typing import Any

from ._system import Adam, Batch, Phase, RMSprop, System, every

__all__ = ["Adam", "Batch", "Phase", "RMSprop", "System", "build", "every", "names", "system"]


def names() -> list[str]:
    """Names that `build` takes."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def system(name: str) -> type[System]:
    """The class of a system, with its Config and PRESETS; ValueError for a name that does not exist."""
    if name not in names():
        raise ValueError(f"no system {name!r}; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}").System


def build(name: str, preset: str | None = None, **overrides: Any) -> System:
    """The system `name` configured by a preset, then by overrides; weights are as its layers' constructors leave them.

    Raises ValueError for a name, preset or option that does not exist.
    """
    cls = system(name)
    if preset is not None and preset not in cls.PRESETS:
        raise ValueError(f"{name} has no preset {preset!r}; there are {', '.join(cls.PRESETS)}")
    options = {**(cls.PRESETS[preset] if preset else {}), **overrides}
    known = [field.name for field in fields(cls.Config)]
    if unknown := options.keys() - set(known):
        raise ValueError(f"{name} has no option {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return cls(cls.Config(**options))
