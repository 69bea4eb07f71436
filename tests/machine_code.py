"""What became of a GPU kernel: its resources, and how wide its accesses to global memory are. Needs no GPU."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

SECTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+)", re.MULTILINE)
INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_]*)((?:\.[A-Za-z0-9_]+)*)", re.MULTILINE
)
DIVISION = re.compile(r"CALL\S* `\(\S*(?:div|rem)_[su]64")


class Code(NamedTuple):
    """Machine code of one kernel."""

    loads: tuple[int, ...]  # bits, of global memory, descending
    stores: tuple[int, ...]
    tensor_cores: bool
    divisions: int  # of 64 bits, which are calls of a hundred instructions


def tool(name: str) -> str:
    """A tool that comes with Triton, of an age with its ptxas."""
    import triton

    return getattr(triton.knobs.nvidia, name).path


def output(*command: str | Path) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stderr[-4000:]}"
    return result.stdout + result.stderr


def _bits(modifiers: str) -> int:
    found = re.search(r"\.[US]?(8|16|64|128|256)\b", modifiers)
    return int(found[1]) if found else 32


def resources(cubin: Path, kernel: str = "") -> tuple[int, int]:
    """Registers, and bytes of stack and local memory, of a kernel: by its mangled name if there are several."""
    usage = output(tool("cuobjdump"), "--dump-resource-usage", cubin)
    found = re.search(rf"Function {re.escape(kernel)}.*\n.*?REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def read(cubin: Path) -> dict[str, Code]:
    """The kernels of a cubin by their mangled names."""
    _, *sections = SECTION.split(output(tool("nvdisasm"), "-c", cubin))
    found = {}
    for name, listing in zip(sections[::2], sections[1::2], strict=True):
        instructions = INSTRUCTION.findall(listing)

        def widths(of: str, instructions: list = instructions) -> tuple[int, ...]:
            return tuple(sorted({_bits(rest) for op, rest in instructions if op == of}, reverse=True))

        tensor_cores = any(op.endswith("MMA") for op, _ in instructions)
        divisions = len(DIVISION.findall(listing))
        found[name] = Code(widths("LDG"), widths("STG"), tensor_cores, divisions)
    return found
