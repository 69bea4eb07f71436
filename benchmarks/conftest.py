"""How everything here is measured: contenders take turns on one input after another, and medians are compared.

Seconds are CPU time of all threads together on a CPU, which other load on the machine hardly changes, and wall time up
to the end of the last kernel on a GPU.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from i2ifast import _report

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TIMER = time.perf_counter if DEVICE.type == "cuda" else time.process_time


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--small", action="store_true", help="tiny shapes and networks: to try the benchmarks themselves")
    parser.addoption("--realdata", type=Path, help="folder with coco_stuff and cityscapes, to measure on real maps too")
    parser.addoption("--compile", action="store_true", help="torch.compile as a rival in ops and training too")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=TIMER))


def seconds(function: Callable[..., object], *args: Any) -> float:
    start = TIMER()
    finished(function)(*args)
    return TIMER() - start


def finished(function: Callable[..., object]) -> Callable[..., None]:
    """`function`, which returns when its kernels have ended."""

    def run(*args: Any) -> None:
        function(*args)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return run


def rate(amount: float, function: Callable[[], object]) -> float:
    """`amount` per second of `function`: the median of seven calls, after one to warm up."""
    return amount / statistics.median([seconds(function) for _ in range(8)][1:])


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """What the numbers depend on, and what the machine could do at best, measured in the same run."""
    source = torch.ones(1 << 26, device=DEVICE)
    target = torch.empty_like(source)
    x = torch.ones((1, 256, 64, 64), device=DEVICE).contiguous(memory_format=torch.channels_last)
    weight = torch.ones((256, 256, 3, 3), device=DEVICE).contiguous(memory_format=torch.channels_last)
    cpu = machine_info["cpu"]
    machine_info["i2ifast"] = {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else cpu.get("brand_raw", cpu["arch"]),
        "device_type": DEVICE.type,
        "cores": cpu["count"],
        "threads": torch.get_num_threads(),
        **dict(_report._versions()),
        **dict(_report._devices()),
        "bytes_per_second": rate(2 * source.nbytes, lambda: target.copy_(source)),
        "flops_per_second": rate(18 * 256 * x.numel(), lambda: F.conv2d(x, weight, padding=1)),
    }


@pytest.fixture
def device() -> torch.device:
    return DEVICE


@pytest.fixture
def small(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("small")


@pytest.fixture
def realdata(request: pytest.FixtureRequest) -> Path | None:
    return request.config.getoption("realdata")


@pytest.fixture
def compiling(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("compile")


@pytest.fixture
def compare(benchmark: Any) -> Callable[..., None]:
    """compare(contenders, inputs, **facts): time `contenders`, functions by name, on each of `inputs`.

    pytest-benchmark times the one named "ours". The medians of the others are in `seconds` of its extra_info, where
    `facts` are too.
    """

    def run(contenders: dict[str, Callable[[Any], object]], inputs: Sequence[Any], **facts: Any) -> None:
        for contender in contenders.values():  # compiles, lays weights out
            finished(contender)(inputs[0])
        times: dict[str, list[float]] = {name: [] for name in contenders if name != "ours"}
        turns = iter(inputs)

        def rivals() -> tuple[tuple, dict]:
            given = next(turns)
            for name in times:
                times[name].append(seconds(contenders[name], given))
            return (given,), {}

        benchmark.pedantic(finished(contenders["ours"]), setup=rivals, rounds=len(inputs))
        benchmark.extra_info.update(facts, seconds={name: statistics.median(t) for name, t in times.items()})

    return run
