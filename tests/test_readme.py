"""The README does what it says: every Python block runs, every command line is one that its program takes."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from i2ifast import models

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]
MODULES = [shlex.split(line, comments=True) for line in SHELL if line.startswith("python -m")]
TRAINED = {words[words.index("--out") + 1]: words[3] for words in MODULES if words[2] == "i2ifast.train"}  # out: system
MAKE = [shlex.split(line, comments=True) for line in SHELL if line.startswith("make")]


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_runs(code: str) -> None:
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    for name in ("y", "image"):
        assert name not in names or names[name].isfinite().all()


@pytest.mark.parametrize("words", MODULES, ids=lambda words: " ".join(words[2:4]))
def test_commands_take_their_options(words: list[str]) -> None:
    """The help, which the words before the options may shape, lists every option of the line."""
    _, _, module, *rest = words
    positional = [rest[0]] if rest and not rest[0].startswith("-") else []
    given = {word: value for word, value in zip(rest, rest[1:], strict=False) if word in ("--preset", "--system")}
    if "--weights" in rest and "--system" not in given:
        given = {"--system": TRAINED[rest[rest.index("--weights") + 1]]}  # which is not there to be read
    command = [sys.executable, "-m", module, *positional, *(word for pair in given.items() for word in pair), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    options = {word for word in rest if word.startswith("--")}
    assert options and all(re.search(rf"{option}\b", done.stdout) for option in options), options


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert MAKE and {words[1] for words in MAKE} <= targets


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", TEXT)
    assert links and all((ROOT / link).exists() for link in links)


def test_every_system_is_in_the_table() -> None:
    """Which `python benchmarks/report.py` makes."""
    table = (ROOT / "docs" / "systems.md").read_text()
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == models.names()
