"""CUDA sources, without a GPU: they compile for every target without spills, and the library links and loads."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
KERNELS = sorted((ROOT / "kernels").glob("*.cu"))
NVCC = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not on the path")

# Registers that the 16-byte channels_last kernels may take on sm_90: so many that three blocks of 128 threads fit.
MOST_REGISTERS = 168


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


def test_no_spills(compiled):
    pattern = (
        r"entry function '(\S+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) reg"
    )
    for source, (_, log) in compiled.items():
        kernels = re.findall(pattern, log, re.DOTALL)
        assert {target for _, target, *_ in kernels} == {"80", "90", "100"}, source
        for name, target, stack, spills, registers in kernels:
            assert int(spills) == int(stack) == 0, f"{name} for sm_{target} spills"
            assert "nhwc" not in name or target != "90" or int(registers) <= MOST_REGISTERS, (
                f"{name}: {registers} registers"
            )


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
