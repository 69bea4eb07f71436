"""Builds the compiled libraries when a compiler, torch's headers and ninja are there; installs the pure-Python library
when not.

torch is neither imported nor a build requirement: an isolated build would fetch another torch. Its headers are read
from the environment that the library is installed into. Everything torch-facing uses the stable ABI of torch >= 2.11,
so one build serves later versions, and CPU and CUDA builds of torch.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent  # ninja runs here: source names, which error messages show, are relative to it
ISA_FLAGS = {
    "base": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mprefer-vector-width=512",
}
CUDA_ARCHITECTURES = os.environ.get("I2IFAST_CUDA_ARCHITECTURES", "80;90;100").split(";")


# GCC joins sums over a list of rows two by two, and then no longer vectorises them.
NO_JAM = "-fno-loop-unroll-and-jam"


def accepts(cxx: str, flag: str) -> bool:
    command = [*shlex.split(cxx), "-Werror", flag, "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(command, capture_output=True).returncode == 0


def ninja_file(target: Path, build: Path, torch: Path, nvcc: str | None) -> str:
    """The build as ninja rules: kernels per instruction set, one library per device, the label module."""
    import pybind11

    cxx = os.environ.get("CXX", "g++")
    common = "-O3 -std=c++17 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -Wall -Wno-unknown-pragmas"
    common += f" {NO_JAM}" * accepts(cxx, NO_JAM)
    stable = f"-DTORCH_TARGET_VERSION=0x020b000000000000ULL -isystem {torch}/include"
    lines = [
        f"builddir = {build}",
        f"rule cxx\n  command = {cxx} -MMD -MF $out.d {common} $flags -c $in -o $out\n  depfile = $out.d",
        f"rule link\n  command = {cxx} -shared $in -o $out $flags",
    ]

    def objects(sources: list[Path], rule: str, flags: str) -> list[str]:
        made = []
        for source in sources:
            per_isa = rule == "cxx" and "namespace ISA" in source.read_text() and source.parent.name == "kernels"
            isas = (ISA_FLAGS if platform.machine() in ("x86_64", "AMD64") else ["base"]) if per_isa else [""]
            for isa in isas:
                source = source.relative_to(ROOT) if source.is_absolute() else source
                made.append(f"{build}/{source.parent.name}-{source.stem}{isa and '-' + isa}.{rule}.o")
                extra = f"-DISA={isa} {ISA_FLAGS[isa]}" if isa else ""
                lines.append(f"build {made[-1]}: {rule} {source}\n  flags = {flags} {extra}")
        return made

    kernels = sorted((ROOT / "kernels").glob("*.cpp"))
    module = ROOT / "csrc" / "labels_module.cpp"
    cpu = [s for s in sorted((ROOT / "csrc").glob("*.cpp")) if s.name not in ("cuda.cpp", module.name)]
    link = f"-L{torch}/lib -ltorch_cpu -lc10 -Wl,--no-as-needed"
    lines.append(f"build {target}/_C.so: link {' '.join(objects(cpu + kernels, 'cxx', stable))}\n  flags = {link}")
    torch_free = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_path('include')}"
    needed = [k for k in kernels if k.name.startswith("label")]
    lines.append(
        f"build {target}/_labels{sysconfig.get_config_var('EXT_SUFFIX')}: link "
        + " ".join(objects([module], "cxx", torch_free) + [f"{build}/kernels-{k.stem}.cxx.o" for k in needed])
    )
    if nvcc and (ROOT / "csrc" / "cuda.cpp").exists():
        archs = " ".join(f"-gencode arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHITECTURES)
        lines.append(
            f"rule nvcc\n  command = {nvcc} -O3 -std=c++17 -Xcompiler -fPIC,-fvisibility=hidden {archs} $flags "
            "-MMD -MF $out.d -c $in -o $out\n  depfile = $out.d"
        )
        # Only the name of libtorch_cuda is needed at link time: a CPU build of torch does not ship it.
        lines.append(f"rule stub\n  command = echo | {cxx} -shared -x c - -o $out -Wl,-soname,libtorch_cuda.so")
        lines.append(f"rule culink\n  command = {nvcc} -shared -cudart=static $in -o $out $flags")
        stub = f"{build}/libtorch_cuda.so"
        sources = [ROOT / "csrc" / "cuda.cpp", *sorted((ROOT / "kernels").glob("*.cu"))]
        made = objects(sources, "nvcc", f"{stable} -DUSE_CUDA")
        lines.append(
            f"build {stub}: stub\nbuild {target}/_C_cuda.so: culink {' '.join(made)} | {stub}\n"
            f"  flags = -L{torch}/lib -L{build} -Xlinker --no-as-needed -ltorch_cuda -ltorch_cpu -lc10"
        )
    return "\n".join(lines) + "\n"


def _seen_from_root(path: Path) -> Path:
    """As ninja sees it: relative where that is possible, so that a copy of the project is not built anew."""
    path = path.resolve()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


class Build(build_ext):
    def run(self) -> None:
        target = _seen_from_root(ROOT / "i2ifast" if self.inplace else Path(self.build_lib) / "i2ifast")
        build = _seen_from_root(Path(self.build_temp))
        torch = Path(sysconfig.get_path("platlib")) / "torch"
        try:
            if not (torch / "include" / "torch" / "csrc" / "stable").is_dir():
                raise RuntimeError("no torch >= 2.11 with headers in this environment")
            if shutil.which(os.environ.get("CXX", "g++")) is None:
                raise RuntimeError("no C++ compiler (g++, or CXX)")
            for folder in (build, target):
                (ROOT / folder).mkdir(parents=True, exist_ok=True)
            rules = build / "build.ninja"
            (ROOT / rules).write_text(ninja_file(target, build, torch, shutil.which("nvcc")))
            # Each library on its own: one that does not build takes no other with it.
            result = subprocess.run([sys.executable, "-m", "ninja", "--quiet", "-k", "0", "-f", str(rules)], cwd=ROOT)
            if result.returncode:
                raise RuntimeError("some libraries did not build (see above)")
        except (RuntimeError, ImportError, OSError) as reason:
            print(f"i2ifast: installing without some compiled libraries: {reason}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        return []


setup(ext_modules=[Extension("i2ifast._C", [])], cmdclass={"build_ext": Build})
