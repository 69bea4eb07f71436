"""The report: every kernel has a row, a forced backend shows, and the command prints it."""

import runpy

import pytest
import torch

from i2ifast import _backend, use_backend
from i2ifast._report import INSTRUCTION_SETS, kernel_names, report

BUILT = pytest.mark.skipif(bool(_backend.missing["cpu"]), reason=_backend.missing["cpu"])


def rows(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}


def test_every_backend_and_kernel_has_a_row():
    found = rows(report())
    assert found["torch"][0] == torch.__version__
    for backend, reason in _backend.missing.items():
        assert found[backend][:2] == (reason or "ready").split()[:2]
    names = kernel_names()
    assert {"moments", "modulate_table", "spectral_weight"} <= set(names)
    for stem, kernels in names.items():
        for name in kernels:
            expected = _backend.choose(stem, name, torch.empty(1, 1, 1, 1))
            assert found[name][0] == expected, name


def test_kernels_are_counted_to_the_longest_stem():
    names = kernel_names()
    assert all(kernels for kernels in names.values())
    assert not any(name.startswith("modulate_table") for name in names["modulate"])
    every = [name for kernels in names.values() for name in kernels]
    assert len(every) == len(set(every))


@BUILT
def test_the_reference_is_shown_with_its_reason():
    with use_backend("reference"):
        assert rows(report())["moments"] == ["reference", "(forced)"]
    missing = _backend.missing["cpu"]
    try:
        _backend.missing["cpu"] = "it was not built"
        assert "reference (cpu: it was not built)" in report()
    finally:
        _backend.missing["cpu"] = missing


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_forced_backend_that_cannot_run_is_shown_not_raised():
    with use_backend("cuda"):
        assert "the forced backend 'cuda' cannot run: " in report()


@BUILT
def test_the_instruction_set_is_one_of_those_built():
    assert INSTRUCTION_SETS[torch.ops.i2ifast_cpu.instruction_set()] in report()


def test_the_command_prints_it(capsys):
    runpy.run_module("i2ifast", run_name="__main__")
    assert capsys.readouterr().out == report() + "\n"
