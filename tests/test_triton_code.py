"""Machine code of the Triton kernels for three architectures: registers, spills, instructions."""

import importlib
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

# Registers that a kernel may take: the largest of the targets below with some air. Many more halve the occupancy.
REGISTERS = {
    "bias_act._apply": 64,
    "bias_act._gradient": 96,
    "moments._chunks": 96,
    "moments._chan": 64,
    "modulate._apply": 64,
    "modulate._sums": 152,
    "modulate._dx": 80,
    "modulate_style._apply": 72,
    "modulate_style._sums": 128,
    "modulate_style._dx": 112,
    "modulate_table._apply": 64,
    "modulate_table._dtable": 80,
    "modulate_table._sums": 144,
    "modulate_table._dx": 96,
    "moments._chunks noise": 112,
    "modulate_table._apply noise": 72,
    "modulate_table._dtable noise": 88,
    "modulate_table._sums noise": 208,
    "modulate_table._dx noise": 104,
    "feature_matching._sums": 64,
    "feature_matching._gradients": 48,
    "dynamic_conv._sum": 96,
    "dynamic_conv._dweight": 40,
    "positional_norm._apply": 80,
    "positional_norm._gradients": 144,
    "modulate_table._apply scales": 64,
    "modulate_table._dtable scales": 80,
    "modulate_table._sums scales": 144,
    "modulate_table._dx scales": 96,
    "gather_sum._gather": 48,
    "panoptic_conv._gather": 40,
    "panoptic_conv._put": 64,
    "panoptic_conv._take": 64,
    "panoptic_conv._add": 48,
    "panoptic_upsample._copy": 40,
    "panoptic_upsample._sum": 64,
    "channel_pool._backward": 64,
    "channel_pool._pool": 64,
    "modulate_mix._dots": 64,
    "modulate_mix._mix": 72,
    "modulate_mix._sums": 128,
    "modulate_region._apply": 72,
    "modulate_region._dx": 120,
    "modulate_region._sums": 80,
    "region_moments._sums": 64,
    "spectral_weight._product": 48,
    "spectral_weight._normalise": 80,
    "spectral_weight._divide": 24,
    "spectral_weight._dot": 40,
    "spectral_weight._dweight": 80,
    "upfirdn2d._filter": 96,
    "_common._add_partials": 56,
}
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def _launches(channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, dict, dict]]:
    """Kernel name -> (kernel, arguments, options) of the launches that the functions of kernels/ make for bfloat16."""
    from triton.runtime.jit import JITFunction

    found = {}

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages") if k in kwargs}
        arguments = dict(zip(self.arg_names, args, strict=False)) | kwargs
        variant = "".join(f" {of}" for of in ("scales", "noise") if arguments.get(of) is not None)
        found[f"{self.__module__.rpartition('.')[2]}.{self.__name__}{variant}"] = (self, arguments, options)

    def kernel(stem: str, name: str = "") -> Callable:
        return getattr(importlib.import_module(f"i2ifast.kernels.{stem}"), name or stem)

    monkeypatch.setattr(JITFunction, "run", record)
    monkeypatch.setattr("i2ifast.kernels._common.PROGRAMS", 1)  # several tiles for a program, as large images have
    n, c, h, w = 2, 64, 32, 48
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, maps = (torch.zeros((n, k, h, w), dtype=torch.bfloat16).to(memory_format=layout) for k in (c, 2 * c))
    mean, rstd, style, means, table = (torch.zeros(s) for s in ((n, c), (n, c), (n, 2 * c), (2, n, c), (99, 2 * c)))
    weight, u, v, sigma = (torch.zeros(s) for s in ((256, 1152), 256, 1152, ()))
    patches, offsets, index = torch.zeros((n, h, w), dtype=torch.int32), torch.zeros(100).int(), torch.zeros(1000).int()
    normal = mean, rstd
    fir = torch.zeros((4, 4))
    kernel("bias_act")(x, u, 6, 0.0, 1.0, 1.0, x)
    kernel("bias_act", "bias_act_backward")(x, x, u, 6, 0.0, 1.0, 1.0, x, u)
    kernel("upfirdn2d")(x, fir, [2, 2], [1, 1], [2, 1, 2, 1], False, 4.0, x)
    kernel("moments")(x, True, mean, rstd)
    kernel("modulate")(x, maps, *normal, 0.2, x)
    kernel("modulate", "modulate_sums")(x, x, maps, *normal, 0.2, maps, means)
    kernel("modulate", "modulate_dx")(x, x, maps, *normal, means, 0.2, x)
    kernel("modulate_style")(x, style, *normal, 0.2, x)
    kernel("modulate_style", "modulate_style_sums")(x, x, style, *normal, 0.2, style)
    kernel("modulate_style", "modulate_style_dx")(x, x, style, *normal, means, 0.2, x)
    noisy, sums = (torch.zeros((n, h, w)), torch.zeros(c)), torch.zeros((5, n, c))
    kernel("moments")(x, True, mean, rstd, *noisy)
    signs, layers = torch.zeros(2 * x.numel(), dtype=torch.int8), [x, maps[:, :c]]
    kernel("feature_matching")(layers, layers, (1.0, 2.0), means[0, :, 0], signs)
    kernel("feature_matching", "feature_matching_backward")(means[0, :, 0], signs, (1.0, 2.0), layers)
    weight9 = torch.zeros((n, h, w, 9, c) if channels_last else (n, c, 9, h, w), dtype=torch.bfloat16)
    weight9 = weight9.permute(0, 4, 3, 1, 2) if channels_last else weight9
    kernel("dynamic_conv")(x, weight9, x)
    kernel("dynamic_conv", "dynamic_conv_dweight")(x, x, weight9)
    kernel("positional_norm")(x, maps, 1e-5, 0.2, x)
    kernel("positional_norm", "positional_norm_backward")(x, x, maps, 1e-5, 0.2, x, maps)
    scales = torch.zeros((n, h, w, 2))
    for extras, dscales, of in (
        ((None,) * 3, None, means),
        ((scales, None, None), scales, means),
        ((None, *noisy), None, sums),
    ):
        kernel("modulate_table")(x, table, patches, *extras, *normal, 0.2, None, False, x, None)
        kernel("modulate_table", "modulate_table_sums")(
            x, None, x, table, patches, *extras, None, None, *normal, 0.2, None, False, table, of
        )
        kernel("modulate_table", "modulate_table_dx")(
            x, None, x, table, patches, *extras, *normal, means, 0.2, None, False, x, dscales
        )
    kernel("gather_sum")(table, offsets, index, table)
    rows, wide = (
        torch.zeros((1000, c), dtype=torch.bfloat16),
        torch.zeros((n, c, h, w)).to(memory_format=torch.channels_last),
    )
    last, columns = x.contiguous(memory_format=torch.channels_last), torch.zeros((1000, 9 * c), dtype=torch.bfloat16)
    taps, large = torch.zeros((1000, 9)).int(), torch.zeros((n, c, 2 * h, 2 * w), dtype=torch.bfloat16)
    large, source = large.contiguous(memory_format=layout), torch.zeros((n, 2 * h, 2 * w), dtype=torch.int32)
    kernel("panoptic_conv", "panoptic_gather")(last, taps, columns)
    kernel("panoptic_conv", "panoptic_put")(last, rows, rows[0], index, taps)
    kernel("panoptic_conv", "panoptic_take")(last, index, taps, rows)
    kernel("panoptic_conv", "panoptic_add")(wide, columns, taps)
    kernel("panoptic_upsample")(x, source, large)
    kernel("panoptic_upsample", "panoptic_upsample_dx")(large, offsets, index, x)
    rows, weights, sums = (
        torch.zeros(99, 6 * c),
        torch.zeros(n, 16, h, w).to(memory_format=layout),
        torch.zeros(n, 16, 2 * c),
    )
    dots, of_pixels = torch.zeros(n, 32, h, w).to(memory_format=layout), torch.zeros(n, 2, h, w)
    kernel("region_moments")(x, patches, None, None, torch.zeros(99), *(torch.zeros(99, c) for _ in range(3)))
    kernel("modulate_region")(x, patches, of_pixels, rows[:, : 4 * c], 0.2, x)
    kernel("modulate_region", "modulate_region_sums")(
        x, x, patches, of_pixels, None, None, rows[:, : 4 * c], 0.2, table
    )
    kernel("modulate_region", "modulate_region_dx")(x, x, patches, of_pixels, rows, 0.2, x, of_pixels)
    kernel("channel_pool")(x, of_pixels.bfloat16(), patches)
    kernel("channel_pool", "channel_pool_backward")(of_pixels.bfloat16(), patches, x)
    kernel("modulate_mix")(x, weights, weights, sums, x)
    kernel("modulate_mix", "mix_sums")(x, x, weights, weights, sums)
    kernel("modulate_mix", "mix_dots")(x, x, sums, dots)
    kernel("spectral_weight")(weight, u, v, 1, 1e-12, weight, u, v, sigma)
    kernel("spectral_weight", "spectral_weight_backward")(weight, weight, u, v, sigma, weight)
    return found


def _compile(kernel: Any, arguments: dict, options: dict, capability: int) -> Any:
    """`kernel` specialised on its arguments as a launch does it: on None, 1, and divisibility by 16."""
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
        elif value is None or value == 1 or name.isupper():
            constants[path] = value
            return "constexpr"
        else:
            kind = "i32"
        if isinstance(value, Tensor) or value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return kind

    for i, (name, value) in enumerate(arguments.items()):
        signature[name] = specialise(name, value, (i,))
    return triton.compile(
        ASTSource(kernel, signature, constants, attributes), target=GPUTarget("cuda", capability, 32), options=options
    )


@pytest.mark.parametrize("capability, channels_last", [(80, True), (90, True), (100, True), (90, False)])
def test_machine_code(capability, channels_last, monkeypatch, tmp_path):
    """No spills, bounded registers and shared memory; channels_last images are read and written 16 bytes at a time."""
    import triton

    launches = _launches(channels_last, monkeypatch)
    assert launches.keys() == REGISTERS.keys()
    for name, launch in launches.items():
        compiled = _compile(*launch, capability)
        (tmp_path / "cubin").write_bytes(compiled.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(tmp_path / "cubin")]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        registers, stack, local = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK", "LOCAL"))
        assert stack == local == 0, f"{name} spills: {usage}"
        assert registers <= REGISTERS[name] or not channels_last, f"{name} takes {registers} registers"
        assert compiled.metadata.shared <= 4608, f"{name} takes {compiled.metadata.shared} bytes of shared memory"
        if channels_last:
            assert not re.search(r"(ld|st)\.global\S*\.b16 ", compiled.asm["ptx"]), f"{name} moves single elements"
