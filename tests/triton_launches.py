"""Every launch that the functions of kernels/*.py make, recorded instead of run: kernels with their arguments."""

import ast
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

KERNELS = Path(__file__).parents[1] / "kernels"
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
VARIANTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "float32": lambda given: given.get("PRECISION") == "ieee",
    "scales": lambda given: given.get("scales") is not None,
    "noise": lambda given: given.get("noise") is not None,
    "pair": lambda given: bool(given.get("PAIR")),
    "x2": lambda given: given.get("CHILDREN") == 4,
    "adjoint": lambda given: bool(given.get("ADJOINT")),
    "transposed": lambda given: bool(given.get("TRANSPOSED")),
}


class Launch(NamedTuple):
    """A kernel, its arguments by name, and the compiler's options."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]


def written() -> set[str]:
    """`<stem>.<kernel>` of everything that the files of kernels/ launch: what they index with a grid and call."""
    found = set()
    for file in KERNELS.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                found.add(f"{file.stem}.{ast.unparse(node.func.value)}")
    return found


@contextmanager
def _recording() -> Iterator[dict[str, Launch]]:
    from triton.runtime.jit import JITFunction

    found = {}

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages") if k in kwargs}
        given = dict(zip(self.arg_names, args, strict=False)) | kwargs
        variant = "".join(f" {name}" for name, has in VARIANTS.items() if has(given))
        found[f"{self.__module__.rpartition('.')[2]}.{self.__name__}{variant}"] = Launch(self, given, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", record)
        patch.setattr("i2ifast.kernels._common.PROGRAMS", 1)  # several tiles for a program, as large images have
        yield found


def _kernel(stem: str, name: str = "") -> Callable:
    return getattr(importlib.import_module(f"i2ifast.kernels.{stem}"), name or stem)


def launches(channels_last: bool) -> dict[str, Launch]:
    """By `<stem>.<kernel>` and variant, for bfloat16 images of 64 channels."""
    n, c, h, w = 2, 64, 32, 48
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def image(channels: int = c, scale: int = 1, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.zeros((n, channels, h * scale, w * scale), dtype=dtype).contiguous(memory_format=layout)

    x, maps = image(), image(2 * c)
    mean, rstd, means, style = (torch.zeros(s) for s in ((n, c), (n, c), (2, n, c), (n, 2 * c)))
    offsets, index = torch.zeros(100).int(), torch.zeros(1000).int()
    with _recording() as found:
        _of_modulation(x, maps, mean, rstd, means, style)
        for scale in (1, 2):
            for outputs in (1, 2):
                _of_table(image, scale, outputs, mean, rstd, means)
        _of_regions(image, offsets, index)
        _of_panoptic(image, offsets, index)
        _of_local(image, maps)
        _of_weights(offsets, index)
    return found


def _of_modulation(x: Tensor, maps: Tensor, mean: Tensor, rstd: Tensor, means: Tensor, style: Tensor) -> None:
    bias = torch.zeros(x.size(1))
    _kernel("bias_act")(x, bias, 6, 0.0, 1.0, 1.0, x)
    _kernel("bias_act", "bias_act_backward")(x, x, bias, 6, 0.0, 1.0, 1.0, x, bias)
    _kernel("moments")(x, True, mean, rstd)
    _kernel("moments")(x, True, mean, rstd, torch.zeros((len(x), *x.shape[2:])), bias)
    _kernel("modulate")(x, maps, mean, rstd, 0.2, x)
    _kernel("modulate", "modulate_sums")(x, x, maps, mean, rstd, 0.2, maps, means)
    _kernel("modulate", "modulate_dx")(x, x, maps, mean, rstd, means, 0.2, x)
    _kernel("modulate_style")(x, style, mean, rstd, 0.2, x)
    _kernel("modulate_style", "modulate_style_sums")(x, x, style, mean, rstd, 0.2, style)
    _kernel("modulate_style", "modulate_style_dx")(x, x, style, mean, rstd, means, 0.2, x)


def _of_table(image: Callable, scale: int, outputs: int, mean: Tensor, rstd: Tensor, means: Tensor) -> None:
    x, y = image(), image(scale=scale)
    n, c, h, w = y.shape
    table, patches = torch.zeros((99, 2 * c * outputs)), torch.zeros((n, h, w), dtype=torch.int32)
    y2, slope2 = (y, 0.2) if outputs == 2 else (None, None)
    scales, noisy = torch.zeros((n, h, w, 2 * outputs)), (torch.zeros((n, h, w)), torch.zeros(c))
    extras = [((None,) * 3, None, means)]
    if (scale, outputs) == (1, 1):
        extras += [((scales, None, None), scales, means), ((None, *noisy), None, torch.zeros((5, n, c)))]
    for given, dscales, sums in extras:
        of_x = x, table, patches, *given
        _kernel("modulate_table")(*of_x, mean, rstd, 0.2, slope2, scale == 2, y, y2)
        _kernel("modulate_table", "modulate_table_sums")(
            y, y2, *of_x, None, None, mean, rstd, 0.2, slope2, scale == 2, table, sums
        )
        _kernel("modulate_table", "modulate_table_dx")(
            y, y2, *of_x, mean, rstd, means, 0.2, slope2, scale == 2, x, dscales
        )


def _of_regions(image: Callable, offsets: Tensor, index: Tensor) -> None:
    x = image()
    n, c, h, w = x.shape
    ids, rows, of_pixels = torch.zeros((n, h, w), dtype=torch.int32), torch.zeros(99, 6 * c), torch.zeros(n, 2, h, w)
    _kernel("region_moments")(x, ids, None, None, torch.zeros(99), *(torch.zeros(99, c) for _ in range(3)))
    _kernel("modulate_region")(x, ids, of_pixels, rows[:, : 4 * c], 0.2, x)
    _kernel("modulate_region", "modulate_region_sums")(
        x, x, ids, of_pixels, None, None, rows[:, : 4 * c], 0.2, torch.zeros(99, 2 * c)
    )
    _kernel("modulate_region", "modulate_region_dx")(x, x, ids, of_pixels, rows, 0.2, x, of_pixels)
    _kernel("channel_pool")(x, of_pixels.bfloat16(), ids)
    _kernel("channel_pool", "channel_pool_backward")(of_pixels.bfloat16(), ids, x)
    weights, table = image(16, dtype=torch.float32), torch.zeros(n, 16, 2 * c)
    for images in (x, x.float()):
        _kernel("modulate_mix")(images, weights, weights, table, images)
        _kernel("modulate_mix", "mix_sums")(images, images, weights, weights, table)
        _kernel("modulate_mix", "mix_dots")(images, images, table, image(32, dtype=torch.float32))


def _of_panoptic(image: Callable, offsets: Tensor, index: Tensor) -> None:
    x, large = image(), image(scale=2)
    n, c, h, w = x.shape
    last, wide = (t.contiguous(memory_format=torch.channels_last) for t in (x, x.float()))
    rows, columns = torch.zeros((1000, c), dtype=torch.bfloat16), torch.zeros((1000, 9 * c), dtype=torch.bfloat16)
    taps, source = torch.zeros((1000, 9)).int(), torch.zeros((n, 2 * h, 2 * w), dtype=torch.int32)
    _kernel("panoptic_conv", "panoptic_gather")(last, taps, columns)
    _kernel("panoptic_conv", "panoptic_put")(last, rows, rows[0], index, taps)
    _kernel("panoptic_conv", "panoptic_take")(last, index, taps, rows)
    _kernel("panoptic_conv", "panoptic_add")(wide, columns, taps)
    _kernel("panoptic_upsample")(x, source, large)
    _kernel("panoptic_upsample", "panoptic_upsample_dx")(large, offsets, index, x)


def _of_local(image: Callable, maps: Tensor) -> None:
    x = image()
    n, c, h, w = x.shape
    weight = torch.zeros((n, c, 9, h, w), dtype=torch.bfloat16)
    if not x.is_contiguous():
        weight = weight.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)
    _kernel("dynamic_conv")(x, weight, x)
    _kernel("dynamic_conv", "dynamic_conv_dx")(x, weight, x)
    _kernel("dynamic_conv", "dynamic_conv_dweight")(x, x, weight)
    _kernel("positional_norm")(x, maps, 1e-5, 0.2, x)
    _kernel("positional_norm", "positional_norm_backward")(x, x, maps, 1e-5, 0.2, x, maps)
    _kernel("upfirdn2d")(x, torch.zeros((4, 4)), [2, 2], [1, 1], [2, 1, 2, 1], False, 4.0, image(scale=2))


def _of_weights(offsets: Tensor, index: Tensor) -> None:
    rows = torch.zeros((99, 128))
    _kernel("gather_sum")(rows, offsets, index, rows)
    layers, signs, of_samples = (
        [torch.zeros((2, 9999, 16), dtype=torch.bfloat16)] * 2,
        torch.zeros(1).char(),
        rows[0, :2],
    )
    _kernel("feature_matching")(layers, layers, (1.0, 2.0), of_samples, signs)
    _kernel("feature_matching", "feature_matching_backward")(of_samples, signs, (1.0, 2.0), layers)
    weight, u, v, sigma = (torch.zeros(s) for s in ((256, 1152), 256, 1152, ()))
    _kernel("spectral_weight")(weight, u, v, 1, 1e-12, weight, u, v, sigma)
    _kernel("spectral_weight", "spectral_weight_backward")(weight, weight, u, v, sigma, weight)


def compiled(launch: Launch, capability: int) -> Any:
    """The kernel specialised on its arguments as a launch does it: on None, 1, and divisibility by 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}

    def specialise(name: str, value: Any, path: tuple[int, ...]) -> Any:
        """The type of an argument, or of each of a tuple's; constants and divisibility are noted under `path`."""
        if isinstance(value, tuple):
            return tuple(specialise(name, item, (*path, i)) for i, item in enumerate(value))
        if isinstance(value, Tensor):
            kind = POINTERS[value.dtype]
        elif isinstance(value, float):
            return "fp32"
        elif value is None or name.isupper() or value == 1:
            constants[path] = value
            return "constexpr"
        else:
            kind = "i32"
        if isinstance(value, Tensor) or value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return kind

    for i, (name, value) in enumerate(launch.arguments.items()):
        signature[name] = specialise(name, value, (i,))
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
