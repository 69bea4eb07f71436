"""CUDA sources, without a GPU: they compile for every target as the table says, and the library links and loads."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import machine_code
import pytest
import torch

ROOT = Path(__file__).parents[1]
KERNELS = sorted((ROOT / "kernels").glob("*.cu"))
NVCC = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not on the path")

# Registers on any target, and bits of accesses to global memory on sm_90, of bfloat16: the largest, all for the wide
# kernels, which move 16 bytes of an image at a time. A thread of `nchw x2` has two pixels of x, and eight of y.
# fmt: off
CODE = {
    #                    registers  loads       stores
    "nhwc":                 (120, "32 16",      "16"),
    "nhwc dx":              ( 96, "32 16",      "16"),
    "nhwc x2":              (128, "32 16",      "16"),
    "nhwc x2 dx":           ( 96, "32 16",      "16"),
    "nhwc wide":            (128, "128 32",     "128"),
    "nhwc wide dx":         (168, "128 32",     "128"),
    "nhwc wide x2":         (136, "128 32",     "128"),
    "nhwc wide x2 dx":      (136, "128 32",     "128"),
    "nchw":                 ( 48, "32 16",      "16"),
    "nchw dx":              ( 56, "32 16",      "16"),
    "nchw x2":              (104, "64 32 16",   "32"),
    "nchw x2 dx":           ( 96, "64 32 16",   "16"),
    "nchw wide":            (136, "128 32",     "128"),
    "nchw wide dx":         (136, "128 32",     "128"),
    "nchw wide x2":         (168, "128 32",     "64"),
    "nchw wide x2 dx":      (136, "128 64 32",  "32"),
    "segment_sums":         ( 96, "32 16",      "32"),
    "segment_sums wide":    (112, "128 32",     "128"),
    "add_partials":         ( 40, "32",         "32"),
    "row_sums":             ( 40, "32",         "32"),
    "offsets_of":           ( 24, "32",         "32"),
}
# fmt: on


def row_of(kernel: str) -> tuple[str, str]:
    """The table's name of a demangled kernel, and its element type."""
    found = re.search(r"::(\w+)(?:<(\w+), (\d+)(?:, (\w+), (\w+))?>)?\(", kernel)
    name, dtype, vector, upsample, dx = found.groups()
    parts = [name] + ["wide"] * (int(vector or 1) > 1) + ["x2"] * (upsample == "true") + ["dx"] * (dx == "true")
    return " ".join(parts), dtype or ""


def run(*command: str | Path) -> str:
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stderr[-4000:]}"
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[Path, tuple[Path, str]]:
    """Source -> (object file, what ptxas says)."""
    folder = tmp_path_factory.mktemp("cuda")
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90, 100)]
    flags = ["-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas", "-v"]
    found = {}
    for source in KERNELS:
        target = folder / f"{source.stem}.o"
        found[source] = target, run(NVCC, *flags, *targets, "-c", source, "-o", target)
    return found


def test_machine_code(compiled, tmp_path):
    """No spills, bounded registers, and accesses of 16 bytes."""
    pytest.importorskip("triton", reason="the disassembler comes with Triton, which is not installed")
    pattern = (
        r"entry function '(\S+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) reg"
    )
    seen = set()
    for source, (_, log) in compiled.items():
        kernels = re.findall(pattern, log, re.DOTALL)
        assert {target for _, target, *_ in kernels} == {"80", "90", "100"}, source
        names = dict(zip([k[0] for k in kernels], run("c++filt", *[k[0] for k in kernels]).splitlines(), strict=True))
        for kernel, target, stack, spills, registers in kernels:
            name, _ = row_of(names[kernel])
            assert int(spills) == int(stack) == 0, f"{names[kernel]} for sm_{target} spills"
            assert int(registers) <= CODE[name][0], f"{names[kernel]} for sm_{target} takes {registers} registers"
        run(NVCC, "-O3", "-std=c++17", "-cubin", "-arch=sm_90", source, "-o", tmp_path / "cubin")
        # Names have a hash of the compilation in them.
        listed = machine_code.read(tmp_path / "cubin")
        demangled = run("c++filt", *listed).splitlines()
        for full, code in zip(demangled, listed.values(), strict=True):
            name, dtype = row_of(full)
            seen.add(name)
            assert not code.divisions, f"{full} divides in 64 bits"
            if dtype != "float":
                for found, widths in zip((code.loads, code.stores), CODE[name][1:], strict=True):
                    wanted = list(map(int, widths.split()))
                    assert set(found) <= set(wanted) and max(found) == max(wanted), f"{full}: {found}, not {widths}"
    assert seen == CODE.keys()


def test_kernels_include_no_torch():
    for source in (*KERNELS, *(ROOT / "kernels").glob("*cuda.h")):
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)", source.read_text()), source


def test_library_links_and_registers(compiled, tmp_path):
    """Built against this torch, of any device, with stand-ins for the two functions of libtorch_cuda that it calls."""
    package = Path(torch.__file__).parent
    if not (package / "include/torch/csrc/stable").is_dir() or sys.platform != "linux":
        pytest.skip("this torch comes without headers")
    stub = tmp_path / "stub.c"
    stub.write_text(
        "int aoti_torch_get_current_cuda_stream(int device, void** stream) { return 1; }\n"
        "int torch_c10_cuda_check_msg(void) { return 1; }\n"
    )
    run("gcc", "-shared", "-fPIC", stub, "-o", tmp_path / "libtorch_cuda.so", "-Wl,-soname,libtorch_cuda.so")
    flags = ["-O1", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-DUSE_CUDA"]
    target = ["-DTORCH_TARGET_VERSION=0x020b000000000000ULL", "-isystem", package / "include"]
    run(NVCC, *flags, *target, "-c", ROOT / "csrc/cuda.cpp", "-o", tmp_path / "cuda.o")
    libraries = [
        "-L",
        package / "lib",
        "-L",
        tmp_path,
        "-Xlinker",
        "--no-as-needed",
        "-ltorch_cuda",
        "-ltorch_cpu",
        "-lc10",
    ]
    objects = [target for target, _ in compiled.values()]
    run(NVCC, "-shared", "-cudart=static", tmp_path / "cuda.o", *objects, "-o", tmp_path / "_C_cuda.so", *libraries)
    script = (
        "import ctypes, torch\n"
        f"torch.version.cuda or ctypes.CDLL('{tmp_path}/libtorch_cuda.so', ctypes.RTLD_GLOBAL)\n"
        f"torch.ops.load_library('{tmp_path}/_C_cuda.so')\n"
        "print(*sorted(n for n in torch._C._dispatch_get_all_op_names() if n.startswith('i2ifast_cuda::')))"
    )
    names = run(sys.executable, "-c", script).split()
    assert names == [f"i2ifast_cuda::modulate_table{suffix}" for suffix in ("", "_dx", "_sums")]


def test_cmake_builds_the_kernels_alone(tmp_path):
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not on the path")
    run("cmake", "-S", ROOT, "-B", tmp_path, "-DCMAKE_CUDA_ARCHITECTURES=90", f"-DCMAKE_CUDA_COMPILER={NVCC}")
    run("cmake", "--build", tmp_path)
    assert (tmp_path / "libi2ifast_kernels.a").exists()
