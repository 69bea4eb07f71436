"""The check of a GPU, as far as a machine without one can tell: limits, failures, reports, and that it measures."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from i2ifast import _gpumeasure, gpucheck

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_a_limit_ends_a_command_and_what_it_started(tmp_path: Path) -> None:
    script = "import subprocess; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    start = time.monotonic()
    with pytest.raises(gpucheck.StageError, match=r"1 s are over.*\s+begun"):
        gpucheck._run([sys.executable, "-c", script], tmp_path / "log", 1.0)
    assert time.monotonic() - start < 20


def test_one_failure_hides_no_other_line(tmp_path: Path) -> None:
    def run(name: str) -> str:
        return gpucheck._run([sys.executable, "-c", f"print('{name}'); assert '{name}' != 'b'"], tmp_path / name)

    with pytest.raises(gpucheck.StageError, match=r"(?s)a: a.*b: FAILED: 1, see.*AssertionError.*c: c"):
        gpucheck._side_by_side(run, "abc")


def test_a_build_that_fails_leaves_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "i2ifast" / "_C_cuda.so"
    library.parent.mkdir()
    library.write_text("before")

    def fail(*args: object, **options: object) -> str:
        raise gpucheck.StageError("no compiler")

    monkeypatch.setattr(gpucheck, "ROOT", tmp_path)
    monkeypatch.setattr(gpucheck, "_run", fail)
    assert gpucheck.build(tmp_path) == "FAILED: no compiler; the CUDA library of an earlier build stays"
    assert library.read_text() == "before"
    library.unlink()
    with pytest.raises(gpucheck.StageError, match="^no compiler$"):
        gpucheck.build(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_ends_after_the_build(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(gpucheck.STAGES, "build", lambda out: "built")
    monkeypatch.setattr(sys, "argv", ["gpucheck", "--out", str(tmp_path)])
    assert gpucheck.main() == 0
    assert capsys.readouterr().out == "build: built\nno CUDA device: nothing more to check\n"


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that measures runs once, on the CPU."""

    def once(function, repeats: int = 1) -> float:
        function()
        return 1.0

    monkeypatch.setattr(_gpumeasure, "DEVICE", "cpu")
    monkeypatch.setattr(_gpumeasure, "milliseconds", once)
    monkeypatch.setattr(_gpumeasure, "copy_bandwidth", lambda: 4e9)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def test_operations(on_cpu, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(_gpumeasure, "SHAPES", ((1, 8, 6, 5),))
    _gpumeasure.operations(tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert not [row for row in rows if "error" in row]
    assert {row["backend"] for row in rows} == {"plain", "compile"}  # no kernel of a GPU runs here
    assert "modulate_table" in _gpumeasure.table(tmp_path / "rows.json")


def test_networks(on_cpu, monkeypatch, tmp_path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "test_models", raising=False)  # that of tests/
    monkeypatch.setattr(_gpumeasure, "GENERATORS", (("coco", 1),))
    monkeypatch.setattr(_gpumeasure, "TRAINED", (("coco", 1),))
    _gpumeasure.networks(tmp_path / "rows.json", small=True)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert not [row for row in rows if "error" in row]
    assert {row["way"] for row in rows} == {"ours", "channels_last", "compile"} and len(rows) == 6


def test_what_does_not_run_is_a_row(on_cpu, tmp_path) -> None:
    results = _gpumeasure.Results(tmp_path / "rows.json")
    with results.only_this(case="it", shape=[1], backend="compile"):
        raise RuntimeError("out of memory\nand more")
    assert "RuntimeError: out of memory" in _gpumeasure.table(tmp_path / "rows.json")
