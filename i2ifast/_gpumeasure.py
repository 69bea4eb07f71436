"""What `gpucheck` measures on a GPU: rows that are written as they come, so that a limit loses none of them.

Beside every row stands what a user would run otherwise: separate PyTorch operations, and those compiled.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Any]
DEVICE = "cuda"
SHAPES = ((4, 64, 256, 256), (4, 512, 32, 32))
GENERATORS = (("coco", 1), ("coco", 8), ("cityscapes", 1))  # preset, batch
TRAINED = (("coco", 4),)


def step(function: Callable, tensors: dict[str, Tensor]) -> Callable[[], None]:
    """A forward and backward of `function`; gradients of all floating-point tensors."""
    leaves = {k: t.detach().requires_grad_(t.is_floating_point()) for k, t in tensors.items()}
    wanted = [t for t in leaves.values() if t.requires_grad]

    def run() -> None:
        out = function(**leaves)
        outs = out if isinstance(out, tuple) else (out,)
        torch.autograd.grad(outs, wanted, [o.detach() for o in outs])

    return run


def milliseconds(function: Callable[[], object], repeats: int = 20) -> float:
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


def copy_bandwidth() -> float:
    """Bytes read and written per millisecond."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source))


class Results:
    """A file of rows, written anew with each, and the time that is left to make them."""

    def __init__(self, path: Path) -> None:
        from . import __version__
        from .gpucheck import MEASURING

        self.path, self.end = path, time.monotonic() + MEASURING
        self.bandwidth = copy_bandwidth()
        versions = {"i2ifast": __version__, "torch": torch.__version__, "cuda": torch.version.cuda}
        device = {"name": torch.cuda.get_device_name(), "copy_gb_per_s": self.bandwidth / 1e6}
        self.content = {"device": device, "versions": versions, "dtype": "bfloat16", "rows": []}

    def add(self, row: Row) -> None:
        self.content["rows"].append(row)
        self.path.write_text(json.dumps(self.content, indent=1))

    @contextmanager
    def only_this(self, **facts: Any) -> Iterator[None]:
        """An error of what is measured in the block becomes a row."""
        try:
            yield
        except Exception as error:  # of compilers and kernels too
            self.add(facts | {"error": f"{type(error).__name__}: {error}".partition("\n")[0][:200]})

    @property
    def over(self) -> bool:
        return time.monotonic() > self.end


def operations(path: Path) -> None:
    """Forward, and forward + backward, of every case on bfloat16 channels_last images.

    `passes` is the time in units of reading x once at the bandwidth of a copy measured in the same run.
    """
    from . import _backend
    from .gpucheck import prefer
    from .testing import CASES, inputs

    results = Results(path)
    for backend in ("plain", "triton", "cuda", "compile"):  # what takes longest comes last
        for shape in SHAPES:
            for case in CASES:
                stem, image_bytes = case.name.split("-")[0], 2 * torch.Size(shape).numel()
                ours = backend in ("triton", "cuda")
                if results.over or ours and _backend.kernel(backend, stem, stem) is None:
                    continue
                row = {"case": case.name, "shape": shape, "backend": backend}
                with results.only_this(**row), prefer(backend):
                    tensors = inputs(case, shape, torch.bfloat16, DEVICE)
                    for name, t in tensors.items():
                        tensors[name] = t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
                    function = case.ours if ours else case.plain
                    if backend == "compile":
                        torch.compiler.reset()
                        function = torch.compile(function, dynamic=False)
                    with torch.no_grad():
                        row["forward_ms"] = milliseconds(lambda: function(**tensors))  # noqa: B023, called at once
                    row["step_ms"] = milliseconds(step(function, tensors))
                    scale = results.bandwidth / image_bytes
                    passes = {f"{of}_passes": row[f"{of}_ms"] * scale for of in ("forward", "step")}
                    results.add(row | passes)


def networks(path: Path, small: bool = False) -> None:
    """SPADE at full width with label plans made beforehand: images from maps, and iterations of training."""
    import maps  # of benchmarks/, as what follows
    import test_models as bench
    from plain_spade import PlainGenerator

    from . import labels
    from .models import spade

    results, device, last = Results(path), torch.device(DEVICE), torch.channels_last

    def measure(what: str, preset: str, n: int, way: str, make: Callable[[], Callable[[], object]]) -> None:
        row = {"what": what, "preset": preset, "batch": n, "way": way}
        if not results.over:
            with results.only_this(**row), torch.autocast(DEVICE, torch.bfloat16):
                results.add(row | {"ms": milliseconds(make(), 10)})

    def given(preset: str, n: int) -> tuple[spade.Config, dict[str, Any]]:
        config = bench.config_of(preset, small)
        (batch,) = maps.batches("procedural", config, config.size, n, 1)
        plan = labels.plan(batch["label"], config.num_classes, instances=batch["instance"])
        return config, bench.move(batch | {"plan": plan}, device)

    def generator(way: str, config: spade.Config, batch: dict[str, Any]) -> Callable[[], object]:
        net = (spade.SPADEGenerator if way == "ours" else PlainGenerator)(config).eval().to(device, memory_format=last)
        seg = batch["plan"] if way == "ours" else bench.dense(config, batch, last)
        if way == "compile":
            net = torch.compile(net, dynamic=False, mode="max-autotune-no-cudagraphs")
        return torch.no_grad()(lambda: net(seg))

    def training(way: str, config: spade.Config, batch: dict[str, Any]) -> Callable[[], object]:
        train = bench.trainer(way, config, device).step
        return lambda: train(batch)

    for way in ("ours", "channels_last", "compile"):
        for preset, n in GENERATORS:
            config, batch = given(preset, n)
            measure("generator", preset, n, way, lambda: generator(way, config, batch))  # noqa: B023
        for preset, n in TRAINED:
            config, batch = given(preset, n)
            measure("training step", preset, n, way, lambda: training(way, config, batch))  # noqa: B023


def table(path: Path) -> str:
    """The rows of a file, one line for what is compared: milliseconds, and units of reading x once."""
    result = json.loads(path.read_text())
    found: dict[tuple, dict[str, Row]] = {}
    for row in result["rows"]:
        key = ("case", "shape") if "case" in row else ("what", "preset", "batch")
        place = tuple("x".join(map(str, v)) if isinstance(v, list) else str(v) for v in (row[k] for k in key))
        found.setdefault(place, {})[row.get("backend") or row["way"]] = row
    ways = list(dict.fromkeys(way for rows in found.values() for way in rows))
    lines = [
        f"{path.stem}: copy {result['device']['copy_gb_per_s']:.0f} GB/s; ms (passes over x), forward | and backward"
    ]
    lines.append(f"{'':46}" + "".join(f"{way:>30}" for way in ways))
    for place, rows in found.items():
        lines.append(f"{' '.join(place):46}" + "".join(f"{_cell(rows.get(way)):>30}" for way in ways))
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if "error" in row:
        return row["error"][:28]
    if "ms" in row:
        return f"{row['ms']:.2f}"
    return " | ".join(f"{row[f'{k}_ms']:.3f} ({row[f'{k}_passes']:.1f})" for k in ("forward", "step"))
