"""What users hand over, names of files, PIL images, NumPy arrays or tensors, as entries of a batch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .data._items import Settings
from .data.kinds.labels import UNKNOWN
from .data.pixels import DEEP, read_map, read_photo, to_tensor

MAPS = ("label", "instance", "label_ref", "mask")  # entries with integers per pixel; all others are pictures
Input = str | Path | Image.Image | np.ndarray | Tensor | int


def many(value: Input | Sequence[Input]) -> list[Input] | None:
    """A list of inputs, which a tensor with one dimension more is too; None for a single input."""
    batched = isinstance(value, Tensor) and value.ndim == 4
    return list(value) if batched or isinstance(value, list | tuple) else None


def entry(name: str, value: Input, settings: Settings) -> Tensor:
    """An input as entry `name` of an item; numbers, as of a domain, stay numbers. ValueError for what it cannot be."""
    if isinstance(value, int):
        return torch.tensor(value)
    return _map(name, value, settings) if name in MAPS else _picture(name, value, settings)


def _map(name: str, value: Input, settings: Settings) -> Tensor:
    """[1,H,W]: integers, of a mask 0 and 1 in float32."""
    if isinstance(value, str | Path):
        value = read_map(value)
    if isinstance(value, Image.Image):
        if len(value.getbands()) > 1 or value.mode == "F":
            raise ValueError(f"{name} is an image of mode {value.mode}: expected one integer per pixel")
        value = np.array(value)
    values = torch.as_tensor(value)
    shape = tuple(values.shape)
    if values.is_floating_point() or len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1):
        raise ValueError(f"{name} is {values.dtype} of shape {shape}: expected integers [H,W] or [1,H,W]")
    values = values.long().reshape(1, *shape[-2:])
    if name == "mask":
        return (values > 0).float()
    if name != "instance" and settings.contain_dontcare_label:
        values = values.masked_fill(values == UNKNOWN, settings.label_nc)
    return values


def _picture(name: str, value: Input, settings: Settings) -> Tensor:
    """[C,H,W] float32 in [-1, 1]; tensors of other dimensions, such as vectors of a style, are left as they are."""
    channels = getattr(settings, {"a": "input_nc", "b": "output_nc"}.get(name, ""), 3)
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise ValueError(f"{name} is a tensor of {value.dtype}: expected floating point in [-1, 1]")
        if value.ndim == 3 and len(value) != channels:
            raise ValueError(f"{name} is a tensor of shape {tuple(value.shape)}: expected [{channels},H,W]")
        if value.ndim == 3 and value.numel() and (most := float(value.abs().max())) > 1 + 1e-3:
            raise ValueError(f"{name} is a tensor with values up to {most:.4g}: they must be in [-1, 1]")
        return value.float()
    if isinstance(value, str | Path):
        return to_tensor(read_photo(value, channels))
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim not in (2, 3) or value.shape[2:] not in ((), (1,), (3,), (4,)):
            raise ValueError(f"{name} is an array of {value.dtype} of shape {value.shape}: expected uint8 [H,W,3]")
        value = Image.fromarray(value[..., 0] if value.shape[2:] == (1,) else value)
    if value.mode in DEEP:
        raise ValueError(f"{name} is an image of mode {value.mode}: expected 8 bits per channel")
    return to_tensor(value.convert({1: "L", 3: "RGB"}[channels]))
