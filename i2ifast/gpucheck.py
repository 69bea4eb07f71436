"""Everything to be checked and measured on a GPU, in one command: `python -m i2ifast.gpucheck --out DIR`.

Stages: build, tests, sanitizer, bench, report, each within eight minutes. Runs from a plain checkout with what is
installed: a tool that is missing is named, and its stage is skipped. Without a CUDA device it ends after the build.
"""

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 470  # seconds a stage may take
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
TESTS = {  # side by side: most of the time goes into compiling Triton kernels
    "cuda": ["tests/test_cuda.py"],
    "triton": ["tests/test_triton.py", "tests/test_triton_code.py"],
    "ops_table": ["tests/test_ops.py", "-k", "modulate_table"],
    "ops_style": ["tests/test_ops.py", "-k", "modulate_style"],
    "ops_other": ["tests/test_ops.py", "-k", "not modulate_table and not modulate_style"],
}


class StageError(Exception):
    """A stage failed; the message says where to look."""


def _missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None


def _run(command: list[str | Path], log: Path, limit: float = LIMIT, **environment: str) -> str:
    """Output of a command, which goes to `log` too. Raises StageError if it fails or takes longer than `limit`."""
    with open(log, "w") as file:
        try:
            code = subprocess.run(
                [str(c) for c in command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=limit,
                env=os.environ | environment,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = f"{limit:.0f} s are over"
    text = log.read_text(errors="replace")
    if code:
        raise StageError(f"{code}, see {log}\n" + "\n".join(text.splitlines()[-15:]))
    return text


def build(out: Path) -> str:
    """The compiled libraries: by setup.py, and the CUDA library by nvcc itself where setup.py's tools are missing."""
    library = ROOT / "i2ifast" / "_C_cuda.so"
    library.unlink(missing_ok=True)
    done = []
    if absent := [m for m in ("setuptools", "pybind11", "ninja") if _missing(m)]:
        done.append(f"no CPU libraries ({', '.join(absent)} not installed)")
    else:
        _run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], out / "build.log")
        done.append("setup.py ran")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        return "; ".join([*done, "no CUDA library (nvcc not found)"])
    if not library.exists() and torch.version.cuda:
        package = Path(torch.__file__).parent
        major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
        flags = f"-O3 -std=c++17 -shared -cudart=static -arch=sm_{major}{minor} -Xcompiler -fPIC,-fvisibility=hidden"
        stable = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000ULL", "-isystem", package / "include"]
        libraries = ["-L", package / "lib", "-Xlinker", "--no-as-needed", "-ltorch_cuda", "-ltorch_cpu", "-lc10"]
        sources = [ROOT / "csrc" / "cuda.cpp", *sorted((ROOT / "kernels").glob("*.cu"))]
        _run([nvcc, *flags.split(), *stable, *sources, "-o", library, *libraries], out / "build_cuda.log")
    return "; ".join([*done, "CUDA library built" if library.exists() else "no CUDA library"])


def tests(out: Path) -> str:
    if _missing("pytest"):
        return "skipped: pytest is not installed"

    def run(part: str) -> str:
        command = [sys.executable, "-m", "pytest", "--tb=short", "-p", "no:cacheprovider", *TESTS[part]]
        last = _run(command, out / f"tests_{part}.log", I2IFAST_TEST_DEVICES="cpu,cuda").splitlines()[-1]
        return f"{part}: {last}"

    with ThreadPoolExecutor() as pool:
        return "; ".join(pool.map(run, TESTS))


@contextlib.contextmanager
def _prefer(backend: str) -> Iterator[None]:
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
    """Every case once, forward and backward, on every backend of the GPU: small inputs for the sanitizers."""
    from . import _backend
    from .testing import CASES, inputs

    for backend in ("triton", "cuda"):
        for case in CASES:
            stem = case.name.split("-")[0]
            if _backend.kernel(backend, stem, stem) is None:
                continue
            with _prefer(backend):
                _step(case.ours, inputs(case, (2, 24, 9, 10), torch.bfloat16, "cuda"))()
    torch.cuda.synchronize()


def sanitizer(out: Path) -> str:
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        return "skipped: compute-sanitizer not found"
    code = "from i2ifast.gpucheck import exercise; exercise()"
    _run([sys.executable, "-c", code], out / "exercise.log")  # compiles the Triton kernels outside of the sanitizer
    for name in TOOLS:
        command = [tool, "--tool", name, "--error-exitcode", "1", sys.executable, "-c", code]
        # A caching allocator hides accesses beyond a tensor.
        _run(command, out / f"{name}.log", LIMIT / len(TOOLS), PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    return f"{', '.join(TOOLS)}: no error"


def _step(function: Callable, tensors: dict[str, torch.Tensor]) -> Callable[[], None]:
    """A forward and backward of `function`; gradients of all floating-point tensors."""
    leaves = {k: t.detach().requires_grad_(t.is_floating_point()) for k, t in tensors.items()}
    wanted = [t for t in leaves.values() if t.requires_grad]

    def step() -> None:
        out = function(**leaves)
        outs = out if isinstance(out, tuple) else (out,)
        torch.autograd.grad(outs, wanted, [o.detach() for o in outs])

    return step


def _milliseconds(function: Callable[[], object], repeats: int = 20) -> float:
    """Median time of a call, after three for warming up."""
    for _ in range(3):
        function()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


def _copy_bandwidth() -> float:
    """Bytes read and written per millisecond."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / _milliseconds(lambda: target.copy_(source))


def measure(path: Path) -> None:
    """Forward and forward + backward of every case on bfloat16 channels_last images, into a JSON file.

    `passes` is the time in units of reading x once at the bandwidth of a copy measured in the same run.
    """
    from . import __version__, _backend
    from .testing import CASES, inputs

    bandwidth, rows = _copy_bandwidth(), []
    for shape in ((4, 64, 256, 256), (4, 512, 32, 32)):
        for case in CASES:
            tensors = inputs(case, shape, torch.bfloat16, "cuda")
            for name, t in tensors.items():
                tensors[name] = t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
            stem, image_bytes = case.name.split("-")[0], 2 * torch.Size(shape).numel()
            for backend in ("plain", "triton", "cuda"):
                if backend != "plain" and _backend.kernel(backend, stem, stem) is None:
                    continue
                function = case.plain if backend == "plain" else case.ours
                with _prefer(backend):
                    with torch.no_grad():
                        forward = _milliseconds(lambda: function(**tensors))  # noqa: B023, called at once
                    both = _milliseconds(_step(function, tensors))
                rows.append(
                    {"case": case.name, "shape": shape, "backend": backend, "forward_ms": forward, "step_ms": both}
                    | {
                        "forward_passes": forward * bandwidth / image_bytes,
                        "step_passes": both * bandwidth / image_bytes,
                    }
                )
    versions = {"i2ifast": __version__, "torch": torch.__version__, "cuda": torch.version.cuda}
    device = {"name": torch.cuda.get_device_name(), "copy_gb_per_s": bandwidth / 1e6}
    path.write_text(json.dumps({"device": device, "versions": versions, "dtype": "bfloat16", "rows": rows}, indent=1))


def bench(out: Path) -> str:
    device = torch.cuda.get_device_name().replace(" ", "-")
    torch_version = torch.__version__.split("+")[0]
    path = out.resolve() / f"{datetime.date.today()}-{device}-{torch_version}.json"
    code = "import sys, pathlib; from i2ifast.gpucheck import measure; measure(pathlib.Path(sys.argv[1]))"
    _run([sys.executable, "-c", code, path], out / "bench.log")
    return f"{len(json.loads(path.read_text())['rows'])} rows in {path.name}"


def report(out: Path) -> str:
    text = _run([sys.executable, "-m", "i2ifast"], out / "report.log")
    for path in sorted(out.glob("*.json")):
        result = json.loads(path.read_text())
        text += f"\n{path.stem}: copy {result['device']['copy_gb_per_s']:.0f} GB/s\n"
        text += f"{'case':44} {'shape':18} {'backend':8} {'forward':>16} {'with backward':>16}\n"
        for row in result["rows"]:
            cells = [f"{row[f'{k}_ms']:.3f} ms {row[f'{k}_passes']:5.1f}x" for k in ("forward", "step")]
            shape = "x".join(map(str, row["shape"]))
            text += f"{row['case']:44} {shape:18} {row['backend']:8} {cells[0]:>16} {cells[1]:>16}\n"
    (out / "report.log").write_text(text)
    return text


STAGES = {stage.__name__: stage for stage in (build, tests, sanitizer, bench, report)}


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
