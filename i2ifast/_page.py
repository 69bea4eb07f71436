"""A run folder as one HTML page: loss curves, images, configuration. Self-contained: it opens from disk, offline."""

import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

POINTS = 400  # per curve: more are averaged, a screen shows no more
WIDTH, HEIGHT = 320, 110  # of a curve, in SVG units
NEWEST = 6  # images shown

STYLE = """
:root { color-scheme: light dark; --line: #2563eb; --soft: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1.2rem; }
figure { margin: 0; } figcaption { font-size: 13px; opacity: .75; }
svg { width: 100%; background: var(--soft); border-radius: 6px; }
polyline { fill: none; stroke: var(--line); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
img { max-width: 100%; image-rendering: auto; border-radius: 6px; margin-bottom: .2rem; }
table { border-collapse: collapse; } td { padding: .15rem 1.2rem .15rem 0; border-bottom: 1px solid var(--soft); }
"""


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a JSONL log; a last line cut short by a killed process is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def thin(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` points, each the mean of as many neighbours."""
    group = -(-len(points) // POINTS)
    parts = [points[i : i + group] for i in range(0, len(points), group)] if group else []
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def curve(title: str, points: list[tuple[int, float]]) -> str:
    """One figure with the curve through `points` of (step, value), scaled to fill its box."""
    shown = thin(points)
    (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*shown, strict=True))
    wide, tall = right - left or 1, high - low or 1
    path = " ".join(f"{(x - left) / wide * WIDTH:.1f},{4 + (high - y) / tall * (HEIGHT - 8):.1f}" for x, y in shown)
    caption = f"<b>{html.escape(title)}</b> {points[-1][1]:.4g} &nbsp; (range {low:.4g} to {high:.4g})"
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img">'
        f'<polyline points="{path}"/></svg><figcaption>{caption}</figcaption></figure>'
    )


def table(rows: Mapping[str, Any]) -> str:
    """Two columns, name and value."""
    cells = (f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
    return f"<table>{''.join(cells)}</table>"


def picture(path: Path) -> str:
    """A PNG file as an inline figure."""
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.stem)
    return f'<figure><img alt="{name}" src="data:image/png;base64,{data}"><figcaption>{name}</figcaption></figure>'


def write_page(folder: Path, facts: Mapping[str, Any] | None = None) -> Path:
    """Write `folder/index.html` from what a run left there: run.json, log.jsonl, samples/*.png; returns its path.

    `facts` are rows for the top of the page, such as measured speeds.
    """
    run = json.loads((folder / "run.json").read_text())
    records = read_log(folder / "log.jsonl")
    series: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record["losses"].items():
            series.setdefault(name, []).append((record["step"], value))
        series.setdefault("images per second", []).append((record["step"], record["images_per_second"]))
    progress = {key: records[-1][key] for key in ("step", "epoch", "peak_memory_mib")} if records else {}
    title = html.escape(f"{run['system']} · {folder.name}")
    body = [
        f"<h1>{title}</h1>",
        table({**progress, **(facts or {})}),
        f"<h2>Samples</h2><p>{html.escape(' | '.join(run['shown']))}</p>",
        *(picture(path) for path in sorted((folder / "samples").glob("*.png"), reverse=True)[:NEWEST]),
        '<h2>Losses</h2><div class="curves">',
        *(curve(name, points) for name, points in sorted(series.items())),
        "</div><h2>Configuration</h2>",
        table({**run["config"], **run["options"]}),
    ]
    page = folder / "index.html"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    page.write_text(head + "\n".join(body) + "</html>\n", encoding="utf-8")
    return page
