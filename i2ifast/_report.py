"""What runs where on this machine: versions, devices, and the backend of every kernel."""

import importlib.metadata
import inspect
import pkgutil
import platform

import torch

from . import _backend, kernels, ops

# As enum class Isa of kernels/isa.h.
INSTRUCTION_SETS = ("base", "avx2", "avx512")


def report() -> str:
    """Plain text: versions, devices, backends, and what runs each kernel on CPU and CUDA tensors."""
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    rows = [("kernel", *(f"{device.type} tensors" for device in devices))]
    for stem, names in kernel_names().items():
        rows += [(name, *(_runs(stem, name, device) for device in devices)) for name in names]
    backends = [(name, reason or "ready") for name, reason in _backend.missing.items()]
    return "\n\n".join(_columns(part) for part in (_versions(), _devices(), backends, rows))


def kernel_names() -> dict[str, list[str]]:
    """Op stem -> names of the kernels that any backend has for it; the op's own name where none has."""
    stems = [m.name for m in pkgutil.iter_modules(ops.__path__) if not m.name.startswith("_")]
    registered = (n.partition("::") for n in torch._C._dispatch_get_all_op_names())
    names = {name for library, _, name in registered if library in ("i2ifast_cpu", "i2ifast_cuda")}
    if not _backend.missing["triton"]:
        for module in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}."):
            loaded = importlib.import_module(module.name)
            names |= {n for n, f in vars(loaded).items() if inspect.isfunction(f) and f.__module__ == module.name}
    found: dict[str, list[str]] = {stem: [] for stem in stems}
    for name in sorted(names):
        owners = [stem for stem in stems if name == stem or name.startswith(f"{stem}_")]
        if owners:
            found[max(owners, key=len)].append(name)
    return {stem: kernels_of or [stem] for stem, kernels_of in found.items()}


def _runs(stem: str, name: str, device: torch.device) -> str:
    x = torch.empty((1, 1, 1, 1), device=device)
    try:
        backend = _backend.choose(stem, name, x)
    except RuntimeError as error:
        return str(error)
    if backend != "reference":
        return backend
    candidates = ("cpu",) if device.type == "cpu" else ("triton", "cuda")
    reasons = [f"{b}: {reason}" for b in candidates if (reason := _backend.why_not(b, stem, name, x))]
    return f"reference ({'; '.join(reasons) or 'forced'})"


def _versions() -> list[tuple[str, str]]:
    def of(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    from . import __version__

    return [
        ("i2ifast", __version__),
        ("python", platform.python_version()),
        ("torch", f"{torch.__version__} (CUDA {torch.version.cuda})" if torch.version.cuda else torch.__version__),
        ("triton", of("triton")),
    ]


def _devices() -> list[tuple[str, str]]:
    cpu = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if not _backend.missing["cpu"]:
        cpu += f", kernels for {INSTRUCTION_SETS[torch.ops.i2ifast_cpu.instruction_set()]}"
    return [("cpu", cpu), *((f"cuda:{i}", _gpu(i)) for i in range(torch.cuda.device_count()))]


def _gpu(index: int) -> str:
    """Name, compute capability and memory by torch; driver, power limit and clock by NVML (nvidia-ml-py)."""
    p = torch.cuda.get_device_properties(index)
    memory = f"{p.total_memory / 2**30:.0f} GiB"
    facts = f"{p.name}, sm_{p.major}{p.minor}, {memory}, {p.multi_processor_count} multiprocessors"
    try:
        import pynvml
    except ImportError:
        return f"{facts} (driver, power and clock: install nvidia-ml-py)"
    try:
        pynvml.nvmlInit()
        # By UUID: NVML knows nothing of CUDA_VISIBLE_DEVICES.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{p.uuid}")
        driver = pynvml.nvmlSystemGetDriverVersion()
        watts = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
        clock = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)
        return f"{facts}, driver {driver}, {watts:.0f} W, {clock} MHz"
    except pynvml.NVMLError as error:
        return f"{facts} (NVML: {error})"


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
