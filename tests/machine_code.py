"""What became of a GPU kernel: its resources, and how wide its accesses to global memory are. Needs no GPU."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

SECTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+)", re.MULTILINE)
INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_]*)((?:\.[A-Za-z0-9_]+)*)", re.MULTILINE
)


class Code(NamedTuple):
    """Machine code of one kernel."""

    registers: int
    stack: int  # bytes per thread, of spills too
    loads: tuple[int, ...]  # bits, of global memory, descending
    stores: tuple[int, ...]
    tensor_cores: bool
    calls: int  # of subroutines, such as divisions of 64 bits


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


def read(cubin: Path) -> dict[str, Code]:
    """The kernels of a cubin by their mangled names."""
    usage = output(tool("cuobjdump"), "--dump-resource-usage", cubin)
    _, *sections = SECTION.split(output(tool("nvdisasm"), "-c", cubin))
    found = {}
    for name, listing in zip(sections[::2], sections[1::2], strict=True):
        instructions = INSTRUCTION.findall(listing)

        def widths(of: str, instructions: list = instructions) -> tuple[int, ...]:
            return tuple(sorted({_bits(rest) for op, rest in instructions if op == of}, reverse=True))

        sizes = re.search(rf"Function {re.escape(name)}:\s*\n.*?REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
        registers, stack, local = map(int, sizes.groups())
        ops = [op for op, _ in instructions]
        tensor_cores = any(op.endswith("MMA") and op != "IMMA" for op in ops)
        calls = sum(op == "CALL" for op in ops)
        found[name] = Code(registers, stack + local, widths("LDG"), widths("STG"), tensor_cores, calls)
    return found
