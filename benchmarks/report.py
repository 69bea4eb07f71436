"""From measurements to docs/benchmarks.md, docs/systems.md and the table in README.md: nothing there is by hand.

    python benchmarks/report.py [FILE.json ...]

FILE.json is pytest-benchmark's output: its medians go to results/<date>-<device>-<torch>-<commit>.json, which is
committed. The documents have every row as it was measured last, with the facts of that run.
"""

import inspect
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
BEGIN, END = "<!-- made by benchmarks/report.py -->", "<!-- end -->"
PASSES = {"forward": "forward", "both": "forward + backward"}
ABOUT = ("what", "op", "layer", "system", "preset", "size", "shape", "batch", "map", "pass", "dtype")
RIVALS = ("plain", "channels_last", "compile")  # in README.md
OURS = ("ours", "baked")

Row = dict[str, Any]
Result = dict[str, Any]  # {"date", "commit", "dirty", "device": facts, "rows": [Row]}


def slim(measured: dict[str, Any]) -> Result:
    """What is kept of pytest-benchmark's JSON: facts, and per row the medians of all contenders."""
    rows = [
        bench["extra_info"] | {"seconds": bench["extra_info"]["seconds"] | {"ours": bench["stats"]["median"]}}
        for bench in measured["benchmarks"]
    ]
    commit = measured["commit_info"]
    return {
        "date": measured["datetime"][:10],
        "time": measured["datetime"],
        "commit": commit["id"],
        "dirty": commit["dirty"],
        "device": measured["machine_info"]["i2ifast"],
        "rows": rows,
    }


def file_name(result: Result) -> str:
    device = re.sub(r"\W+", "-", result["device"]["device"]).strip("-")
    version = result["device"]["torch"].split("+")[0].split()[0]
    return f"{result['date']}-{device}-{version}-{result['commit'][:7]}.json"


def what_of(row: Row) -> str:
    """What a row is about: all of it but what was measured."""
    return json.dumps([row.get(name) for name in ABOUT])


def newest(results: Iterable[Result]) -> list[Result]:
    """By device, the last one first, each with the rows that no later one of its device has too."""
    kept, seen = [], set()
    for result in sorted(results, key=lambda r: r.get("time", r["date"]), reverse=True):
        device = result["device"]["device"]
        rows = [row for row in result["rows"] if (device, what_of(row)) not in seen]
        seen |= {(device, what_of(row)) for row in rows}
        if rows:
            kept.append(result | {"rows": rows})
    return sorted(kept, key=lambda result: result["device"]["device"])


def time(seconds: float) -> str:
    """Three digits, in a unit that suits."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1 or unit == "us":
            return f"{seconds * scale:.3g} {unit}"
    raise AssertionError


def ratio(row: Row, of: str, to: str) -> str:
    """How many times faster `of` is than `to`."""
    seconds = row["seconds"]
    return f"{seconds[to] / seconds[of]:.2f}x" if of in seconds and to in seconds else ""


def table(head: list[str], lines: Iterable[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def place(row: Row) -> list[str]:
    height, width = row["size"]
    return [row["preset"], f"{height}x{width}", str(row["batch"]), row["map"]]


def fastest(row: Row, names: Iterable[str]) -> str:
    return min((name for name in names if name in row["seconds"]), key=row["seconds"].get)


def gain(row: Row) -> float:
    """How many times faster a system is here than plain PyTorch in the better memory layout."""
    seconds = row["seconds"]
    return seconds[fastest(row, RIVALS[:2])] / seconds[fastest(row, OURS)]


def memory_share(row: Row) -> float | None:
    """Of plain PyTorch's peak memory, where that was measured."""
    memory = row.get("memory")
    return memory["ours"] / memory["plain"] if memory else None


def share_of_roofline(row: Row, name: str, device: dict[str, Any]) -> str:
    """The least time for the row's operations and bytes, at the rates measured in the same run, over the time taken."""
    least = row["flops"] / device["flops_per_second"] + row["bytes"] / device["bytes_per_second"]
    return f"{least / row['seconds'][name]:.0%}"


def generators(rows: list[Row], device: dict[str, Any]) -> str:
    head = ["preset", "size", "batch", "map", "plain", "channels_last", "compile", "accelerate", "ours", "baked"]
    head += ["baked vs plain", "vs channels_last", "vs compile", "ours vs plain", "operations", "roofline"]
    head += ["error of baked", "of channels_last"]
    lines = [
        place(row)
        + [time(row["seconds"][name]) if name in row["seconds"] else "" for name in head[4:10]]
        + [ratio(row, "baked", rival) for rival in head[4:7]]
        + [ratio(row, "ours", "plain"), f"{row['flops'] / row['flops_published']:.0%}"]
        + [share_of_roofline(row, "baked", device)]
        + [f"{row['error'][name]:.0e}" for name in ("baked", "channels_last")]
        for row in rows
    ]
    return table(head, lines)


def steps(rows: list[Row], device: dict[str, Any]) -> str:
    names = ["plain", "channels_last", "compile", "accelerate", "ours"]
    names = [name for name in names if any(name in row["seconds"] for row in rows)]
    head = ["preset", "size", "batch", "map", *names, *(f"ours vs {name}" for name in names[:-1])]
    head += ["memory of plain", "of channels_last", "of ours", "error of ours", "of channels_last"]

    def memory(row: Row, name: str) -> str:
        return f"{row['memory'][name] / 2**30:.2f} GiB" if name in row["memory"] else ""

    lines = [
        place(row)
        + [time(row["seconds"][name]) if name in row["seconds"] else "" for name in names]
        + [ratio(row, "ours", name) for name in names[:-1]]
        + [memory(row, name) for name in ("plain", "channels_last", "ours")]
        + [f"{row['error'][name]:.0e}" for name in ("ours", "channels_last")]
        for row in rows
    ]
    return table(head, lines)


def systems(rows: list[Row], device: dict[str, Any]) -> str:
    names = ["plain", "channels_last", "compile", "ours", "baked"]
    names = [name for name in names if any(name in row["seconds"] for row in rows)]
    head = ["system", "pass", "preset", "size", "batch", "images", *names, "best vs plain", "vs channels_last"]
    head += ["vs compile", "memory of plain", "of ours", "error of ours"]

    def line(row: Row) -> list[str]:
        best = fastest(row, OURS)
        times = [time(row["seconds"][name]) if name in row["seconds"] else "" for name in names]
        ratios = [ratio(row, best, rival) for rival in RIVALS]
        memory = [f"{row['memory'][name] / 2**30:.2f} GiB" if row.get("memory") else "" for name in ("plain", "ours")]
        return [row["system"], row["pass"], *place(row), *times, *ratios, *memory, f"{row['error']['ours']:.0e}"]

    return table(head, map(line, rows))


def operators(rows: list[Row], device: dict[str, Any]) -> str:
    rivals = ["plain", "channels_last", "torch_norm", "torch_norm_channels_last", "compile"]
    rivals = [name for name in rivals if any(name in row["seconds"] for row in rows)]
    head = ["op", "shape", "pass", "ours", *(f"vs {name}" for name in rivals), "of copy bandwidth"]

    def line(row: Row) -> list[str]:
        speed = row["bytes"] / row["seconds"]["ours"] / device["bytes_per_second"]
        ratios = [ratio(row, "ours", name) for name in rivals]
        what = [row["op"], "x".join(map(str, row["shape"])), PASSES[row["pass"]]]
        return [*what, time(row["seconds"]["ours"]), *ratios, f"{speed:.0%}"]

    return table(head, map(line, rows))


def layers(rows: list[Row], device: dict[str, Any]) -> str:
    rivals = ["plain", "channels_last", "original", "compile"]
    rivals = [name for name in rivals if any(name in row["seconds"] for row in rows)]
    head = ["layer", "shape", "pass", "ours", *(f"vs {name}" for name in rivals)]
    lines = [
        [row["layer"], "x".join(map(str, row["shape"])), PASSES[row["pass"]], time(row["seconds"]["ours"])]
        + [ratio(row, "ours", name) for name in rivals]
        for row in rows
    ]
    return table(head, lines)


GENERATOR_LEGEND = """\
The full-width SPADE generator; making the one-hot map, or the plan, is included. `plain` is the published formulation
in eager PyTorch, `compile` is torch.compile with freezing on channels_last, `accelerate` is the plain network after
`i2ifast.accelerate`, `baked` is ours after `i2ifast.nn.bake`. Operations: what exact tables leave of the published
network's floating-point operations. Roofline: those operations at the rate of torch's 3x3 convolution of 256 channels,
and one read and one write of x per SPADE layer at the copy bandwidth, over the time of `baked`; a convolution with
fewer operations than the definition's can beat it. Error: the largest difference from plain, of its largest value."""

STEP_LEGEND = """\
One iteration of generator (hinge and feature matching) and discriminator, with Adam. Memory: the peak over two
iterations in a process of its own, beyond what the imports take. Error: of the generator's gradients, the norm of the
difference from plain over the norm."""

SYSTEM_LEGEND = """\
Systems at their published widths against the same systems in eager PyTorch (`benchmarks/plain`): their norms,
convolutions, modulations and resampling are torch's own functions there, label maps are one-hot, optimizers are as
torch has them by default. Training is an iteration in which every phase has its turn, without perceptual networks.
`baked` is ours after `i2ifast.nn.bake`. Memory: the peak over two iterations in a process of its own, beyond what the
imports take. Error: of the images (inference), or of the gradients of the first phase (training)."""

OP_LEGEND = """\
`plain` is the op's formula in eager PyTorch, `channels_last` the same on channels_last images, as ours runs,
`torch_norm` the same with torch's group_norm (instance) or batch_norm for the normalisation. Bandwidth: the fewest
bytes that the op can move, over the time, in units of a copy's."""

LAYER_LEGEND = """\
`plain` is the layer in eager PyTorch, `channels_last` the same on channels_last images, as ours runs, `original` the
way the original computes it where that is another one."""

SECTIONS: dict[str, tuple[str, Callable[[list[Row], dict[str, Any]], str], str]] = {
    "generator": ("Label maps to images", generators, GENERATOR_LEGEND),
    "training step": ("Training", steps, STEP_LEGEND),
    "system": ("Systems", systems, SYSTEM_LEGEND),
    "layer": ("Layers", layers, LAYER_LEGEND),
    "op": ("Ops", operators, OP_LEGEND),
}


def provenance(result: Result) -> str:
    device = result["device"]
    unit = "CPU time of all threads together" if device["device_type"] == "cpu" else "wall time"
    facts = [f"{name} {device[name]}" for name in ("i2ifast", "torch", "triton", "python")]
    facts += [f"{device['cores']} cores, {device['threads']} threads"]
    facts += [str(value) for key, value in device.items() if key == "cpu" or key.startswith("cuda:")]
    facts += [f"copy {device['bytes_per_second'] / 1e9:.1f} GB/s"]
    facts += [f"convolution {device['flops_per_second'] / 1e9:.0f} GFLOP/s"]
    commit = result["commit"][:10] + (" with changes" if result["dirty"] else "")
    about = f"Times are medians of {unit}; `2x` is twice as fast as the rival named."
    return f"{result['date']}, commit {commit}. {about} {'; '.join(facts)}."


def document(results: list[Result]) -> str:
    parts = ["# Benchmarks", "Made by `make bench` (`benchmarks/report.py`); every row that was measured is here."]
    for device, of_device in groupby(results, lambda result: result["device"]["device"]):
        parts.append(f"## {device}")
        runs = list(of_device)
        for what, (title, make, legend) in SECTIONS.items():
            tables = []
            for result in runs:
                if rows := [row for row in result["rows"] if row["what"] == what]:
                    tables += [provenance(result), make(rows, result["device"])]
            parts += [f"### {title}", legend, *tables] if tables else []
    return "\n\n".join(parts) + "\n"


def headline(results: list[Result]) -> str:
    """The full-width networks against what a user would otherwise run, by device."""
    parts = []
    for result in results:
        lines = [
            [row["what"], *place(row), time(row["seconds"][best]), *(ratio(row, best, name) for name in RIVALS)]
            for row in result["rows"]
            for best in [{"generator": "baked", "training step": "ours"}.get(row["what"])]
            if best
        ]
        if lines:
            head = ["", "preset", "size", "batch", "map", "i2ifast", *(f"faster than {name}" for name in RIVALS)]
            parts += [f"{result['device']['device']}, {provenance(result)}", table(head, lines)]
    if gains := summary(of_systems(results)):
        parts += ["Systems against plain PyTorch in the better of its memory layouts, all in docs/systems.md:", gains]
    return "\n\n".join(parts)


def of_systems(results: list[Result]) -> list[Row]:
    return [row for result in results for row in result["rows"] if row["what"] == "system"]


def summary(rows: list[Row]) -> str:
    """What all systems gain, of each its lowest row."""
    lines = []
    for which in ("inference", "training"):
        lowest: dict[str, float] = {}
        for row in rows:
            if row["pass"] == which:
                lowest[row["system"]] = min(gain(row), lowest.get(row["system"], math.inf))
        gains = sorted(lowest.items(), key=lambda item: item[1])
        if gains:
            ends = [f"{gains[at][1]:.2f}x ({gains[at][0]})" for at in (0, -1)]
            lines.append([which, str(len(gains)), ends[0], f"{statistics.median(lowest.values()):.2f}x", ends[1]])
    return table(["systems", "measured", "lowest", "median", "highest"], lines) if lines else ""


def zoo(results: list[Result]) -> str:
    """All systems: what they are, whether recorded cases of the original hold them, how fast they were measured."""
    from i2ifast import models

    rows = of_systems(results)

    def speed(name: str, which: str) -> str:
        gains = [gain(row) for row in rows if (row["system"], row["pass"]) == (name, which)]
        return f"{min(gains):.2g}x" if gains else ""

    def memory(name: str) -> str:
        shares = [share for row in rows if row["system"] == name and (share := memory_share(row)) is not None]
        return f"{max(shares):.0%}" if shares else ""

    def line(name: str) -> list[str]:
        system = models.system(name)
        first, _, rest = inspect.getmodule(system).__doc__.partition("\n")
        title, _, what = first.partition(": ")
        papers = [" ".join(part.split()) for part in rest.split("\n\n") if re.search(r"\b(19|20)\d\d\.", part)]
        paper = papers[-1] if papers else ""
        cases = sorted(path.stem for path in (ROOT / "tests" / "golden" / name).glob("*.safetensors"))
        speeds = [speed(name, which) for which in ("inference", "training")]
        about = f"{title}: {what} {paper}"
        return [f"`{name}`", about, system.data, ", ".join(cases) or "none", *speeds, memory(name)]

    head = ["system", "what it does", "data", "recorded cases of the original", "inference", "training", "memory"]
    about = (
        "Made by `benchmarks/report.py`. Recorded cases are outputs, losses, gradients and training steps of the"
        " original implementation that tests hold the system to. Speeds are those of [benchmarks](benchmarks.md),"
        " against the plain formulation in the better of PyTorch's memory layouts; the lowest where there are several."
        " Memory is the peak of training, in shares of plain PyTorch's."
    )
    return "\n\n".join(["# Systems", about, table(head, map(line, models.names()))]) + "\n"


def between_markers(text: str, inside: str, path: Path) -> str:
    """`text` of the file `path` with `inside` between its two markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{path}: expected {BEGIN} and, behind it, {END}")
    return f"{before}{begin}\n\n{inside}\n\n{end}{after}"


def main(files: list[str], root: Path = ROOT) -> None:
    folder = root / "benchmarks" / "results"
    for name in files:
        result = slim(json.loads(Path(name).read_text()))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / file_name(result)
        if path.exists():  # another part of what there is to measure
            again = set(map(what_of, result["rows"]))
            result["rows"] += [row for row in json.loads(path.read_text())["rows"] if what_of(row) not in again]
        path.write_text(json.dumps(result, indent=1) + "\n")
    results = newest(json.loads(path.read_text()) for path in sorted(folder.glob("*.json")))
    if not results:
        sys.exit(f"{folder}: no results")
    (root / "docs" / "benchmarks.md").write_text(document(results))
    (root / "docs" / "systems.md").write_text(zoo(results))
    readme = root / "README.md"
    readme.write_text(between_markers(readme.read_text(), headline(results), readme))


if __name__ == "__main__":
    main(sys.argv[1:])
