"""Layers as users hold them, against their plain formulation and that of the original, forward and with backward.

A file of `layers/` holds LAYERS: what `make` returns runs on real-like inputs of the shapes named.
"""

import importlib
import pkgutil
from pathlib import Path

import pytest
import torch
from layers import Layer
from passes import both, forward, in_layout

ROUNDS = 7
FOLDER = Path(__file__).with_name("layers")
NAMES = [module.name for module in pkgutil.iter_modules([str(FOLDER)])]
LAYERS = [layer for name in NAMES for layer in importlib.import_module(f"layers.{name}").LAYERS]
ROWS = [(layer, shape) for layer in LAYERS for shape in layer.shapes]


def identify(value: object) -> str:
    return value.name if isinstance(value, Layer) else "x".join(map(str, value))


@pytest.mark.parametrize("passes", [forward, both], ids=["forward", "both"])
@pytest.mark.parametrize(("layer", "shape"), ROWS, ids=identify)
def test_layer(compare, device, small, compiling, layer, shape, passes) -> None:
    if small:
        shape = (shape[0], max(1, shape[1] // 8), *(max(8, size // 8) for size in shape[2:]))
    made = layer.make(shape, torch.Generator().manual_seed(0))
    given = {name: t.to(device) for name, t in made.inputs.items()}
    last = in_layout(given, torch.channels_last)
    functions = {name: f.to(device) if hasattr(f, "to") else f for name, f in made.functions.items()}
    contenders = {name: passes(f, last if name == "ours" else given) for name, f in functions.items()}
    contenders["channels_last"] = passes(functions["plain"], last)
    if compiling:
        contenders["compile"] = passes(torch.compile(functions["plain"], dynamic=False), last)
    compare(contenders, [None] * ROUNDS, what="layer", layer=layer.name, shape=shape, **{"pass": passes.__name__})
