"""One table of cases for tests and benchmarks: every op, how to make its inputs, and its plain PyTorch formulation.

Every file of this folder holds the CASES of some ops.
"""

import importlib
import pkgutil

import torch

from ._case import SHAPES, Case, Tensors, blocky, normal

__all__ = ["CASES", "SHAPES", "Case", "Tensors", "blocky", "inputs", "normal"]

CASES: list[Case] = [
    case
    for module in pkgutil.iter_modules(__path__)
    if not module.name.startswith("_")
    for case in importlib.import_module(f"{__name__}.{module.name}").CASES
]


def inputs(
    case: Case, shape: tuple[int, int, int, int], dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> Tensors:
    """Inputs of a case: floating-point tensors in `dtype`, exactly representable in it."""
    made = case.make(shape, torch.Generator().manual_seed(seed))
    return {k: (v.to(dtype) if v.is_floating_point() else v).to(device) for k, v in made.items()}
