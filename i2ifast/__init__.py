"""i2ifast makes image-to-image translation fast: fused ops, drop-in modules, published systems, one training loop."""

from pathlib import Path as _Path

__version__ = "0.1.0"

# Run from a checkout without installing: the kernels package lies beside this one.
_root = _Path(__file__).resolve().parent
if not (_root / "kernels").exists() and (_root.parent / "kernels" / "__init__.py").exists():
    __path__.append(str(_root.parent))

from . import labels, nn, ops  # noqa: E402
from ._accelerate import accelerate, restore  # noqa: E402
from ._backend import use_backend  # noqa: E402
from ._report import report  # noqa: E402

__all__ = ["__version__", "accelerate", "labels", "nn", "ops", "pipeline", "report", "restore", "use_backend"]


def __getattr__(name: str) -> object:
    """`pipeline`, when it is asked for: nothing else here needs Pillow and safetensors."""
    if name == "pipeline":
        from ._pipeline import pipeline

        return pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
