"""The numbers of the CUDA kernels without a GPU: kernels/modulate_table.cu built for the CPU, against the reference."""

import ctypes
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from i2ifast.ops._modulate_table import reference_dx, reference_forward, reference_sums

ROOT = Path(__file__).parents[1]
SEGMENT = 64  # kSegment of modulate_table_cuda.h
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Rounding of the stored result, and of a sum in another order.
STORED = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
SUMMED = 1e-5

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc, whose headers it needs, is not on the path")


class ModulateTable(ctypes.Structure):
    """As the struct of this name in modulate_table_cuda.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        *((name, ctypes.c_bool) for name in ("channels_last", "upsample", "per_sample")),
        ("outputs", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("n", "c", "h", "w", "rows")),
        ("slope", ctypes.c_float * 2),
        *((name, ctypes.c_void_p) for name in ("x", "table", "mean", "rstd", "patches")),
        ("dy", ctypes.c_void_p * 2),
        ("y", ctypes.c_void_p * 2),
        *((name, ctypes.c_void_p) for name in ("means", "dx")),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("cuda_on_cpu")
    source = (ROOT / "kernels/modulate_table.cu").read_text()
    source = re.sub(r"(\w+|\([^;]*?\))<<<(.*?), 0, stream>>>\(", r"launch_on_cpu(\2, \1, ", source)
    source = source.replace("cudaGetLastError()", "cudaSuccess").replace("#pragma unroll", "//")
    # C linkage: unmangled names for ctypes.
    contract = '#include "modulate_table_cuda.h"'
    source = source.replace(contract, f'#include "{ROOT}/tests/cuda_on_cpu.h"\nextern "C" {{\n{contract}\n}}')
    (folder / "kernels.cpp").write_text(source)
    flags = ["-O1", "-std=c++17", "-shared", "-Xcompiler", "-fPIC,-w", "-I", ROOT / "kernels"]
    command = ["nvcc", *flags, folder / "kernels.cpp", "-o", folder / "kernels.so"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return ctypes.CDLL(str(folder / "kernels.so"))


def pointer(t: Tensor) -> ctypes.c_void_p:
    assert t.data_ptr() % 16 == 0
    return ctypes.c_void_p(t.data_ptr())


def poisoned(t: Tensor) -> Tensor:
    return torch.full_like(t, float("nan"))


def assert_close(found: Tensor, exact: Tensor, tolerance: float) -> None:
    assert (found.double() - exact).abs().max() <= tolerance * exact.abs().max()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize(
    "shape",
    [(2, 8, 5, 6), (3, 5, 1, 1), (1, 33, 9, 7), (2, 1, 4, 3), (2, 16, 8, 12), (1, 3, 2, 9), (5, 24, 7, 1)],
    ids=str,
)
def test_modulate_table(library, shape, rows, dtype):
    options = [[False, True]] * 4
    for channels_last, per_sample, pair, upsample in itertools.product(*options):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        draw = torch.Generator().manual_seed(0)
        n, c, h, w = shape
        groups, outputs, scale = (n if per_sample else 1), (2 if pair else 1), (2 if upsample else 1)

        def normal(*size: int, draw: torch.Generator = draw) -> Tensor:
            return torch.randn(size, generator=draw)

        x = normal(*shape).to(dtype).contiguous(memory_format=layout)
        dys = [normal(n, c, h * scale, w * scale).to(dtype).contiguous(memory_format=layout) for _ in range(outputs)]
        table, mean, rstd, means = (
            normal(rows, 2 * c * outputs),
            normal(groups, c),
            normal(groups, c),
            normal(2, groups, c),
        )
        patches = torch.randint(rows, (n, h * scale, w * scale), generator=draw, dtype=torch.int32)
        ys, dx = [poisoned(dy) for dy in dys], poisoned(x)
        slopes = (0.2, 0.0 if pair else None)

        p = ModulateTable(TYPES[dtype], not ys[0].is_contiguous(), upsample, groups > 1, outputs, n, c, h, w, rows)
        p.slope[:] = 0.2, 0.0
        for name, t in (("x", x), ("table", table), ("mean", mean), ("rstd", rstd), ("means", means), ("dx", dx)):
            setattr(p, name, pointer(t))
        p.patches = pointer(patches)
        for k in range(outputs):
            p.dy[k], p.y[k] = pointer(dys[k]).value, pointer(ys[k]).value
        library.modulate_table_forward(ctypes.byref(p), None)
        library.modulate_table_dx(ctypes.byref(p), None)

        exact = [x.double(), table.double(), patches, *[None] * 3, mean.double(), rstd.double()]
        wide = [dy.double() for dy in dys]
        for y, truth in zip(ys, reference_forward(*exact, *slopes, upsample), strict=False):
            assert_close(y, truth, STORED[dtype])
        exact_dx, _ = reference_dx(wide, *exact, means.double(), slopes, upsample)
        assert_close(dx, exact_dx, STORED[dtype])

        # Sums read channels_last images.
        dense = [t.contiguous(memory_format=torch.channels_last) for t in (x, *dys)]
        p.x = pointer(dense[0])
        for k in range(outputs):
            p.dy[k] = pointer(dense[1 + k]).value
        ordered = torch.sort(patches.flatten(), stable=True)
        values, order = ordered.values, ordered.indices.int()
        offsets = torch.full((rows + 1,), -1, dtype=torch.int32)
        pixels, width = patches.numel(), table.size(1)
        library.segment_offsets(pointer(values), ctypes.c_int64(pixels), ctypes.c_int64(rows), pointer(offsets), None)
        assert torch.equal(offsets, torch.searchsorted(values, torch.arange(rows + 1).int(), out_int32=True))
        dtable, partials = poisoned(table), poisoned(normal(1 + pixels // SEGMENT, width))
        segments = library.modulate_table_segments
        segments(ctypes.byref(p), pointer(order), pointer(offsets), pointer(partials), pointer(dtable), None)
        exact_dtable, exact_sums = reference_sums(wide, *exact, slopes, upsample)
        assert_close(dtable, exact_dtable, SUMMED)
        sums = poisoned(normal(groups, 2, c))
        if groups > 1:
            segments(ctypes.byref(p), None, None, pointer(partials), pointer(sums), None)
        else:
            library.modulate_table_row_sums(ctypes.byref(p), pointer(dtable), ctypes.c_int64(1), pointer(sums), None)
        assert_close(sums.transpose(0, 1), exact_sums, SUMMED)
