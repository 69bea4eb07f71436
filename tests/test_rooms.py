"""Everything is in its room: imports point one way, and an op has all its parts."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from i2ifast import ops
from i2ifast.testing import CASES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "i2ifast"
STEMS = sorted(path.stem for path in (PACKAGE / "ops").glob("[!_]*.py"))
# What each room may import of ours, besides itself. Rooms that are not named may import all.
MAY = {
    "kernels": set(),
    "_backend": {"kernels", ""},  # "" is the package itself
    "ops": {"_backend", "kernels"},
    "labels": {"ops"},
    "nn": {"_backend", "ops", "labels"},
    "data": {"labels"},
    "metrics": {"nn", "ops"},
    "models": {"nn", "ops", "labels", "_backend"},
    "testing": {"ops"},
    "_report": {"_backend", "kernels", "ops", ""},
    "_accelerate": {"nn", "ops", "labels"},
}
# Ops that are tested in files of their own, since their inputs are not images.
OWN_TESTS = {"label_patches": "test_labels.py", "spectral_weight": "test_spectral.py"}


def imports(path: Path) -> Iterator[str]:
    """Absolute names of all that a file imports, also within functions."""
    folder = path.relative_to(ROOT).parent.parts
    if folder[0] == "kernels":
        folder = ("i2ifast", *folder)  # as installed
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*folder[: len(folder) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def room_of(name: str) -> str | None:
    """The room of an imported name; '' for names of the package itself, None for what is not ours."""
    first, _, rest = name.partition(".")
    if first != "i2ifast":
        return None
    room = rest.split(".")[0]
    return room if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").exists() or room == "kernels" else ""


def files(room: str) -> list[Path]:
    if room == "kernels":
        return sorted((ROOT / "kernels").glob("*.py"))
    single = PACKAGE / f"{room}.py"
    return [single] if single.exists() else sorted((PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize("room", MAY)
def test_imports_point_one_way(room: str) -> None:
    assert files(room)
    for path in files(room):
        rooms = {found for name in imports(path) if (found := room_of(name)) is not None}
        assert rooms <= MAY[room] | {room}, f"{path.relative_to(ROOT)} imports {sorted(rooms - MAY[room] - {room})}"


def test_the_parser_sees_relative_and_inner_imports() -> None:
    found = set(imports(PACKAGE / "_report.py"))
    assert {"i2ifast._backend", "i2ifast.kernels", "i2ifast.__version__", "pynvml"} <= found
    assert room_of("i2ifast.ops._op.define") == "ops" and room_of("i2ifast.__version__") == "" and not room_of("torch")


@pytest.mark.parametrize("stem", STEMS)
def test_an_op_has_all_its_parts(stem: str) -> None:
    """A public function of its name, a definition in PyTorch, tests against it, and its formula."""
    assert callable(getattr(ops, stem))
    tree = ast.parse((PACKAGE / "ops" / f"{stem}.py").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert ast.get_docstring(functions[stem])
    if stem in OWN_TESTS:
        assert stem in (ROOT / "tests" / OWN_TESTS[stem]).read_text()
    else:
        assert any(case.name.split("-")[0] == stem for case in CASES)
    assert re.search(rf"^## .*`{stem}`", (ROOT / "docs" / "math.md").read_text(), re.MULTILINE)


def test_kernels_have_an_op() -> None:
    """Files of kernels/ are named for an op, or for the module of ops/ by which several ops call them."""
    shared = {"__init__", "_common", "isa", "elements", "winograd"}
    assert (PACKAGE / "ops" / "_winograd.py").exists()
    owned = {path for path in (ROOT / "kernels").iterdir() if path.is_file() and path.stem not in shared}
    assert owned and all(any(path.stem in (stem, f"{stem}_cuda") for stem in STEMS) for path in owned), owned


SOURCES = [path for path in sorted((ROOT / "kernels").iterdir()) if path.suffix in (".cpp", ".h", ".cu")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_kernels_include_no_torch(path: Path) -> None:
    included = re.findall(r'#include\s*[<"]([^>"]+)', path.read_text())
    assert not [name for name in included if re.match(r"(torch|ATen|c10|pybind11|Python)\b", name)]


@pytest.mark.parametrize("path", [path for path in SOURCES if path.suffix == ".cpp"], ids=lambda path: path.name)
def test_kernels_of_several_instruction_sets_include_no_standard_header(path: Path) -> None:
    """Its inline functions, compiled once per set, would be merged into one, of any of the sets."""
    text = path.read_text()
    if "namespace ISA" in text:
        assert not [name for name in re.findall(r"#include\s*<([^>]+)", text) if name != "immintrin.h"]
    else:
        assert path.name == "label_patches.cpp"


def test_documents_name_tests_that_exist() -> None:
    named = re.findall(r"tests/(test_\w+\.py)::(\w+)", (ROOT / "docs" / "math.md").read_text())
    assert named
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"


def test_all_packages_are_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(listed) == folders | {"i2ifast.kernels"}
