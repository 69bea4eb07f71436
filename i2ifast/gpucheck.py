"""Everything to be checked and measured on a GPU, in one command: `python -m i2ifast.gpucheck --out DIR`.

Stages: build, tests, sanitizer, bench, models, report, each within eight minutes. Runs from a plain checkout with what
is installed: a tool that is missing is named, and its part is skipped. A part that fails takes no other with it, and
what was measured before a limit is kept. Without a CUDA device it ends after the build.
"""

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 470  # seconds a stage may take
MEASURING = 400  # seconds after which nothing more is measured
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


class Part(NamedTuple):
    """Tests that run beside the others: most of the time goes into compiling Triton kernels."""

    arguments: tuple[str, ...]  # of pytest
    processes: int = 1  # where pytest-xdist is installed
    needs: tuple[str, ...] = ()


TESTS = {
    "ops": Part(("tests/test_ops.py", "-k", "test_against_float64"), 6),
    "device": Part(("tests/test_cuda.py",), 3),
    "golden": Part(("tests/test_golden.py", "--device", "cuda", "-k", "test_case"), 3, ("safetensors",)),
    "machine_code": Part(("tests/test_triton_code.py",), 1, ("triton",)),
}


class StageError(Exception):
    """A stage failed; the message says where to look."""


def _missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None


def _run(command: list[str | Path], log: Path, limit: float = LIMIT, **environment: str) -> str:
    """Output of a command, which goes to `log` too. Raises StageError if it fails or takes longer than `limit`."""
    with open(log, "w") as file:
        process = subprocess.Popen(
            [str(c) for c in command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        )  # fmt: skip
        try:
            code: int | str = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that it started
            process.wait()
            code = f"{limit:.0f} s are over"
    text = log.read_text(errors="replace")
    if code:
        raise StageError(f"{code}, see {log}\n" + "\n".join(text.splitlines()[-15:]))
    return text


def _side_by_side(run: Callable[[str], str], names: Iterable[str]) -> str:
    """A line for each of `names`; raises StageError with all of them if one failed."""

    def line(name: str) -> tuple[bool, str]:
        try:
            return True, f"  {name}: {run(name)}"
        except StageError as error:
            return False, f"  {name}: FAILED: {error}"

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(line, names))
    text = "\n".join(("", *(text for _, text in results)))
    if not all(fine for fine, _ in results):
        raise StageError(text)
    return text


def build(out: Path) -> str:
    """The compiled libraries: by setup.py, and the CUDA library by nvcc itself where setup.py's tools are missing.

    If nothing can build the CUDA library here, one that was there before stays.
    """
    library = ROOT / "i2ifast" / "_C_cuda.so"
    before = library.with_suffix(".before")
    if library.exists():
        library.replace(before)
    try:
        done = _build(out, library)
    except StageError as error:
        done = f"FAILED: {error}"
    if library.exists():
        before.unlink(missing_ok=True)
    elif before.exists():
        before.replace(library)
        return f"{done}; the CUDA library of an earlier build stays"
    if done.startswith("FAILED"):
        raise StageError(done.removeprefix("FAILED: "))
    return f"{done}; {'CUDA library built' if library.exists() else 'no CUDA library'}"


def _build(out: Path, library: Path) -> str:
    done = []
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    if absent := [m for m in ("setuptools", "pybind11", "ninja") if _missing(m)]:
        done.append(f"no CPU libraries ({', '.join(absent)} not installed)")
    else:
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        _run(command, out / "build.log", I2IFAST_CUDA_ARCHITECTURES=f"{major}{minor}")
        done.append("setup.py ran")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        done.append("nvcc not found")
    elif not library.exists() and torch.version.cuda:
        package = Path(torch.__file__).parent
        flags = f"-O3 -std=c++17 -shared -cudart=static -arch=sm_{major}{minor} -Xcompiler -fPIC,-fvisibility=hidden"
        stable = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000ULL", "-isystem", package / "include"]
        libraries = ["-L", package / "lib", "-Xlinker", "--no-as-needed", "-ltorch_cuda", "-ltorch_cpu", "-lc10"]
        sources = [ROOT / "csrc" / "cuda.cpp", *sorted((ROOT / "kernels").glob("*.cu"))]
        _run([nvcc, *flags.split(), *stable, *sources, "-o", library, *libraries], out / "build_cuda.log")
    return "; ".join(done)


def tests(out: Path) -> str:
    if _missing("pytest"):
        return "skipped: pytest is not installed"

    def run(name: str) -> str:
        part = TESTS[name]
        if absent := [module for module in part.needs if _missing(module)]:
            return f"skipped: {', '.join(absent)} not installed"
        command = [sys.executable, "-m", "pytest", "--tb=short", "-p", "no:cacheprovider", *part.arguments]
        if part.processes > 1 and not _missing("xdist"):
            command += ["-n", str(part.processes)]
        return _run(command, out / f"tests_{name}.log", I2IFAST_TEST_DEVICES="cuda").splitlines()[-1]

    return _side_by_side(run, TESTS)


@contextlib.contextmanager
def prefer(backend: str) -> Iterator[None]:
    """Triton, or CUDA C++ where there is a kernel. Forcing CUDA C++ would refuse the ops that have none."""
    from . import _backend

    before = dict(_backend.prefer_cuda)
    _backend.prefer_cuda.update(dict.fromkeys(("modulate_table", "modulate_table_dx"), lambda x: backend == "cuda"))
    try:
        yield
    finally:
        _backend.prefer_cuda.clear()
        _backend.prefer_cuda.update(before)


def exercise() -> None:
    """A case of every op, forward and backward, on every backend of the GPU: small inputs for the sanitizers."""
    from . import _backend
    from ._gpumeasure import step
    from .testing import CASES, inputs

    for backend in ("triton", "cuda"):
        stems = set()
        for case in CASES:
            stem, shape = case.name.split("-")[0], (2, 24, 9, 10)
            if _backend.kernel(backend, stem, stem) is None or (stem in stems and stem != "modulate_table"):
                continue
            stems.add(stem)
            with prefer(backend):
                step(case.ours, inputs(case, shape, torch.bfloat16, "cuda"))()
    torch.cuda.synchronize()


def sanitizer(out: Path) -> str:
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        return "skipped: compute-sanitizer not found"
    start, code = time.monotonic(), "from i2ifast.gpucheck import exercise; exercise()"
    _run([sys.executable, "-c", code], out / "exercise.log")  # compiles the Triton kernels outside of the sanitizer
    left = LIMIT - (time.monotonic() - start)

    def run(name: str) -> str:
        command = [tool, "--tool", name, "--error-exitcode", "1", sys.executable, "-c", code]
        # A caching allocator hides accesses beyond a tensor.
        return _run(command, out / f"{name}.log", left, PYTORCH_NO_CUDA_MEMORY_CACHING="1").splitlines()[-1]

    return _side_by_side(run, TOOLS)


def _measured(what: str, out: Path) -> str:
    """Rows of a function of `_gpumeasure`, in a process with a limit; those made before a failure count too."""
    device = torch.cuda.get_device_name().replace(" ", "-")
    path = out.resolve() / f"{datetime.date.today()}-{device}-{torch.__version__.split('+')[0]}-{what}.json"
    path.unlink(missing_ok=True)
    code = (
        "import sys, pathlib; from i2ifast import _gpumeasure as m; getattr(m, sys.argv[1])(pathlib.Path(sys.argv[2]))"
    )
    failure = None
    try:
        _run([sys.executable, "-c", code, what, path], out / f"{what}.log", PYTHONPATH=f"{ROOT}:{ROOT / 'benchmarks'}")
    except StageError as error:
        failure = error
    rows = len(json.loads(path.read_text())["rows"]) if path.exists() else 0
    text = f"{rows} rows in {path.name}"
    if failure is not None:
        raise StageError(f"{text}, then {failure}")
    return text


def bench(out: Path) -> str:
    """Every op."""
    return _measured("operations", out)


def models(out: Path) -> str:
    """Whole networks, and their training."""
    return _measured("networks", out)


def report(out: Path) -> str:
    """What runs each kernel goes to a file; the rows to that and to the terminal."""
    from ._gpumeasure import table

    known = _run([sys.executable, "-m", "i2ifast"], out / "report.log")
    tables = "\n".join(table(path) for path in sorted(out.glob("*.json")))
    (out / "report.log").write_text(known + tables)
    return tables or known


STAGES = {stage.__name__: stage for stage in (build, tests, sanitizer, bench, models, report)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m i2ifast.gpucheck", description=__doc__)
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder of logs and results")
    args = parser.parse_args()
    stages = args.stages.split(",")
    if unknown := [name for name in stages if name not in STAGES]:
        parser.error(f"unknown stage {unknown[0]!r}: expected some of {', '.join(STAGES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in STAGES:
        if name != "build" and not torch.cuda.is_available():
            print("no CUDA device: nothing more to check")
            break
        if name in stages:
            try:
                print(f"{name}: {STAGES[name](args.out)}", flush=True)
            except StageError as error:
                failed = True
                print(f"{name}: FAILED: {error}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
