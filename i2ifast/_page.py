"""A run folder as one HTML page: losses, scores, images, configuration. Self-contained: it opens from disk, offline."""

import base64
import html
import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

POINTS = 400  # per curve: more are averaged, a screen shows no more
WIDTH, HEIGHT = 320, 150  # of a figure, in SVG units
IMAGES = 8  # shown: the newest, and others at equal distances from the first on
COLOURS = ("#2563eb", "#e8590c", "#2b8a3e", "#c2255c", "#7048e8", "#0c8599", "#b08900", "#868e96")

STYLE = """
:root { color-scheme: light dark; --soft: #8883; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1160px; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: .5rem; } h2 { margin-top: 2.5rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1.6rem 1.2rem; }
figure { margin: 0; } figcaption, .axis { font-size: 13px; }
.axis { opacity: .7; display: flex; justify-content: space-between; }
figcaption span { white-space: nowrap; margin-right: .9rem; }
svg { display: block; width: 100%; height: 150px; background: var(--soft); border-radius: 6px; }
polyline { fill: none; stroke-width: 1.6; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
img { max-width: 100%; border-radius: 6px; }
.newest { margin-bottom: 1rem; } .newest img { min-width: min(100%, 640px); }
table { border-collapse: collapse; } td { padding: .15rem 1.2rem .15rem 0; border-bottom: 1px solid var(--soft); }
"""

Points = list[tuple[int, float]]  # (step, value)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a JSONL log; a last line cut short by a killed process is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def thin(points: Points) -> list[tuple[float, float]]:
    """At most `POINTS` points, each the mean of as many neighbours."""
    group = -(-len(points) // POINTS)
    parts = [points[i : i + group] for i in range(0, len(points), group)] if group else []
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def figure(title: str, curves: Mapping[str, Points]) -> str:
    """Curves in one box that they fill together, with the values and steps at its borders and the last values."""
    shown = {name: thin(points) for name, points in curves.items()}
    (left, right), (low, high) = (
        (min(axis), max(axis)) for axis in zip(*(point for points in shown.values() for point in points), strict=True)
    )
    wide, tall = right - left or 1, high - low or 1
    lines, legend = [], []
    for i, (name, points) in enumerate(shown.items()):
        colour = COLOURS[i % len(COLOURS)]
        places = ((WIDTH * (x - left) / wide, 4 + (HEIGHT - 8) * (high - y) / tall) for x, y in points)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(f'<polyline style="stroke:{colour}" points="{path}"/>')
        legend.append(f'<span><b style="color:{colour}">{html.escape(name)}</b> {curves[name][-1][1]:.4g}</span>')
    steps = [step for points in curves.values() for step, _ in points]
    return (
        f"<figure><b>{html.escape(title)}</b>"
        f'<div class="axis"><span>{low:.4g} to {high:.4g}</span><span>step {min(steps)} to {max(steps)}</span></div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img">{"".join(lines)}</svg>'
        f"<figcaption>{' '.join(legend)}</figcaption></figure>"
    )


def figures(series: Mapping[str, Points]) -> str:
    """Series named "phase/term" in a figure per phase, others in one each."""
    grouped: dict[str, dict[str, Points]] = {}
    for name, points in sorted(series.items()):
        group, _, term = name.rpartition("/")
        grouped.setdefault(group or name, {})[term] = points
    return f'<div class="figures">{"".join(figure(title, curves) for title, curves in grouped.items())}</div>'


def collect(records: list[dict[str, Any]], key: str) -> dict[str, Points]:
    """The finite numbers that records have under `key`, itself a dict by name."""
    series: dict[str, Points] = {}
    for record in records:
        for name, value in record.get(key, {}).items():
            if isfinite(value):
                series.setdefault(name, []).append((record["step"], value))
    return series


def table(rows: Mapping[str, Any]) -> str:
    """Two columns, name and value."""
    cells = (f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
    return f"<table>{''.join(cells)}</table>"


def picture(path: Path) -> str:
    """A sample grid, whose file is named for its step, as an inline figure."""
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(f"step {int(path.stem)}" if path.stem.isdecimal() else path.stem)
    return f'<figure><img alt="{name}" src="data:image/png;base64,{data}"><figcaption>{name}</figcaption></figure>'


def spread(paths: list[Path]) -> list[Path]:
    """`IMAGES` of the paths, newest first: the last one, the first one, and others at equal distances."""
    count = min(IMAGES, len(paths))
    return [paths[round(i * (len(paths) - 1) / max(1, count - 1))] for i in reversed(range(count))]


def write_page(folder: Path, facts: Mapping[str, Any] | None = None) -> Path:
    """Write `folder/index.html` from what a run left there; returns its path.

    That is run.json, log.jsonl, samples/*.png and, if they are there, scores: {"step": ..., "scores": {name: value}}
    in lines of scores.jsonl or of the log. `facts` are added to the table at the top.
    """
    run = json.loads((folder / "run.json").read_text())
    records = read_log(folder / "log.jsonl")
    speed = [(record["step"], record["images_per_second"]) for record in records]
    scores = collect(records + read_log(folder / "scores.jsonl"), "scores")
    newest, *earlier = spread(sorted((folder / "samples").glob("*.png"))) or [None]
    progress = {key: records[-1][key] for key in ("step", "epoch", "peak_memory_mib")} if records else {}
    title = html.escape(f"{run['system']} · {folder.name}")
    body = [f"<h1>{title}</h1>", table({**progress, **(facts or {})})]
    if newest is not None:
        shown = f"<h2>Samples</h2><p>{html.escape(' | '.join(run['shown']))}</p>"
        small = f'<div class="figures">{"".join(map(picture, earlier))}</div>'
        body += [shown, f'<div class="newest">{picture(newest)}</div>', small]
    if scores:
        body += ["<h2>Scores</h2>", figures(scores)]
    if records:
        body += ["<h2>Losses</h2>", figures(collect(records, "losses"))]
        body += ["<h2>Speed</h2>", figures({"images per second": speed})]
    body += ["<h2>Configuration</h2>", table({**run["config"], **run["options"]})]
    page = folder / "index.html"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    page.write_text(head + "\n".join(body) + "</html>\n", encoding="utf-8")
    return page
