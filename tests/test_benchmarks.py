"""Published tables come from recorded measurements alone."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def report() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "report.py"
    spec = importlib.util.spec_from_file_location("report", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorded(day: int, ours: float) -> dict[str, Any]:
    """What pytest-benchmark writes, as far as it is read: three rows, of which the second loses."""
    where = {"preset": "coco", "size": [256, 256], "batch": 1, "map": "procedural", "dtype": "float32"}
    generator = {
        **where,
        "what": "generator",
        "seconds": {"plain": 4.0, "channels_last": 2.5, "accelerate": 1.0, "baked": 0.5},
        "error": {"channels_last": 2e-6, "baked": 3e-6},
        "flops_published": 4e11,
        "flops": 1e11,
        "bytes": 1e9,
    }
    op = {"what": "op", "op": "linear", "shape": [1, 2, 3, 4], "pass": "both", "bytes": 5e6, "dtype": "float32"}
    op["seconds"] = {"plain": 0.0005, "channels_last": 0.0005}
    system = {"what": "system", "system": "cyclegan", "preset": "horse2zebra", "size": [256, 256], "batch": 1}
    system |= {"map": "real", "pass": "training", "seconds": {"plain": 0.004}, "error": {"ours": 1e-6}}
    system["memory"] = {"plain": 2**30, "ours": 2**29}
    device = {"device": "A CPU @ 2 GHz", "device_type": "cpu", "cores": 2, "threads": 1, "cpu": "x86_64", "python": "3"}
    device |= {"i2ifast": "0.1.0", "torch": "2.13.0+cpu", "triton": "not installed"}
    device |= {"bytes_per_second": 1e10, "flops_per_second": 1e12}
    return {
        "datetime": f"2026-01-0{day}T10:00:00",
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "machine_info": {"i2ifast": device, "node": "not to be kept"},
        "benchmarks": [
            {"extra_info": generator, "stats": {"median": ours, "data": [0.1]}},
            {"extra_info": op, "stats": {"median": 0.001}},
            {"extra_info": system, "stats": {"median": 0.002}},
        ],
    }


@pytest.fixture
def project(report: ModuleType, tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    return tmp_path


def write(folder: Path, measured: dict[str, Any]) -> list[str]:
    path = folder / "measured.json"
    path.write_text(json.dumps(measured))
    return [str(path)]


def test_tables_of_a_recorded_run(report: ModuleType, project: Path) -> None:
    report.main(write(project, recorded(1, 0.8)), project)
    text = (project / "docs" / "benchmarks.md").read_text()
    assert (
        "| coco | 256x256 | 1 | procedural | 4 s | 2.5 s |  | 1 s | 800 ms | 500 ms "
        "| 8.00x | 5.00x |  | 5.00x | 25% | 40% | 3e-06 | 2e-06 |"
    ) in text
    assert "| linear | 1x2x3x4 | forward + backward | 1 ms | 0.50x | 0.50x | 50% |" in text
    place = "| cyclegan | training | horse2zebra | 256x256 | 1 | real |"
    assert f"{place} 4 ms | 2 ms | 2.00x |  |  | 1.00 GiB | 0.50 GiB | 1e-06 |" in text
    assert "2026-01-01, commit 0123456789." in text and "torch 2.13.0+cpu" in text and "copy 10.0 GB/s" in text
    readme = (project / "README.md").read_text()
    assert "| generator | coco | 256x256 | 1 | procedural | 500 ms | 8.00x | 5.00x |  |" in readme
    assert "| training | 1 | 2.00x (cyclegan) | 2.00x | 2.00x (cyclegan) |" in readme
    systems = (project / "docs" / "systems.md").read_text()
    assert "| unpaired | a, traj |  | 2x | 50% |" in systems
    assert readme.startswith("before\n") and readme.endswith("after\n") and "old" not in readme
    (kept,) = (project / "benchmarks" / "results").iterdir()
    assert kept.name == "2026-01-01-A-CPU-2-GHz-2.13.0-0123456.json"
    assert "not to be kept" not in kept.read_text() and '"data"' not in kept.read_text()


def test_documents_are_of_the_newest_run_and_can_be_made_again(report: ModuleType, project: Path) -> None:
    report.main(write(project, recorded(2, 0.4)), project)
    report.main(write(project, recorded(1, 0.8)), project)
    text = (project / "docs" / "benchmarks.md").read_text()
    assert "400 ms" in text and "800 ms" not in text
    before = text, (project / "README.md").read_text()
    report.main([], project)
    assert before == ((project / "docs" / "benchmarks.md").read_text(), (project / "README.md").read_text())


def test_rows_stay_until_they_are_measured_again(report: ModuleType, project: Path) -> None:
    report.main(write(project, recorded(1, 0.8)), project)
    part = recorded(2, 0.4)
    part["commit_info"]["id"], part["benchmarks"] = "fedcba9876543210", part["benchmarks"][1:2]
    report.main(write(project, part), project)
    text = (project / "docs" / "benchmarks.md").read_text()
    assert text.count("| linear |") == 1 and text.count("2026-01-02, commit fedcba9876.") == 1
    assert text.count("| coco |") == 1 and text.count("2026-01-01, commit 0123456789.") == 2
    part["benchmarks"] = recorded(2, 0.4)["benchmarks"][2:]  # of the same commit and day
    report.main(write(project, part), project)
    text = (project / "docs" / "benchmarks.md").read_text()
    assert text.count("2026-01-02, commit fedcba9876.") == 2 and text.count("| cyclegan |") == 1


def test_a_readme_without_markers_is_left_alone(report: ModuleType, project: Path) -> None:
    (project / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="README.md: expected <!-- made"):
        report.main(write(project, recorded(1, 0.8)), project)
    assert (project / "README.md").read_text() == "mine"


@pytest.mark.parametrize(("seconds", "text"), [(12.34, "12.3 s"), (0.5, "500 ms"), (2.5e-5, "25 us"), (4e-7, "0.4 us")])
def test_units(report: ModuleType, seconds: float, text: str) -> None:
    assert report.time(seconds) == text
