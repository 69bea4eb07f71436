"""The page of a run: what it shows, that it needs nothing but itself, and that a browser renders it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy import run

from i2ifast._page import COLOURS, IMAGES, POINTS, figures, spread, thin, write_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    run(tmp_path, 6)
    page = (tmp_path / "index.html").read_text()
    assert page.count("<polyline") == 6 and page.count("<svg") == 4 and page.count("data:image/png;base64,") == 2
    for reference in re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')>\s]+)", page):
        assert reference.startswith("data:image/png;base64,")
    assert "http" not in page and "<script" not in page and "@import" not in page
    assert "width" in page and "batch_size" in page


def test_curves_are_thinned_by_means() -> None:
    points = [(step, float(step)) for step in range(10 * POINTS)]
    assert len(thin(points)) == POINTS and thin(points)[0] == (4.5, 4.5)
    assert thin([]) == []


def test_terms_of_a_phase_share_a_figure() -> None:
    points = [(1, 1.0), (2, 3.0)]
    made = figures({"G/l1": points, "G/gan": [(1, -1.0)], "D/real": points, "fid": points})
    titles = re.findall(r"<figure><b>(\w+)</b>", made)
    assert titles == ["D", "G", "fid"]
    assert "-1 to 3" in made and "step 1 to 2" in made
    first, second = (re.search(rf'color:(#\w+)">{name}<', made)[1] for name in ("gan", "l1"))
    assert (first, second) == COLOURS[:2]


def test_samples_are_the_newest_and_some_since_the_first() -> None:
    paths = [Path(f"{i:08d}.png") for i in range(100)]
    shown = spread(paths)
    assert shown[0] is paths[-1] and shown[-1] is paths[0] and len(shown) == IMAGES == len(set(shown))
    assert spread(paths[:3]) == paths[2::-1] and spread(paths[:1]) == paths[:1] and spread([]) == []


def run_folder(folder: Path, steps: int = 40) -> Path:
    """A run with two phases, scores and sample grids, some of whose names would break a page."""
    rng = np.random.default_rng(0)
    (folder / "samples").mkdir()
    facts = {
        "system": "spade <b>",
        "config": {"ngf": 64},
        "options": {"lr": "<1e-4 & more>"},
        "shown": ["label", "fake"],
    }
    (folder / "run.json").write_text(json.dumps(facts))
    terms = {"G/GAN": 1.0, "G/GAN_Feat": 6.0, "G/VGG": 9.0, "D/D_Fake": 0.6, "D/D_real": 0.7}
    with open(folder / "log.jsonl", "w") as log:
        for step in range(50, 50 * steps + 1, 50):
            losses = {k: v * (1 + np.exp(-step / 500)) + rng.normal() / 10 for k, v in terms.items()}
            record = {"step": step, "epoch": 1, "losses": losses, "images_per_second": 4 + rng.random()}
            log.write(json.dumps(record | {"peak_memory_mib": 900.0}) + "\n")
    with open(folder / "scores.jsonl", "w") as file:
        for step in (500, 1000, 2000):
            scores = {"fid": 20000 / step, "psnr": float("nan") if step == 500 else step / 100}
            file.write(json.dumps({"step": step, "scores": scores}) + "\n")
    for step in range(500, 2001, 500):
        pixels = rng.integers(0, 255, (64, 192, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "samples" / f"{step:08d}.png")
    return folder


def test_page_of_a_run_with_scores(tmp_path: Path) -> None:
    page = write_page(run_folder(tmp_path), {"note": "a < b"}).read_text()
    assert re.findall(r"<figure><b>([\w ]+)</b>", page) == ["fid", "psnr", "D", "G", "images per second"]
    assert page.index("step 2000") < page.index("step 1500") < page.index("step 500")
    assert "spade &lt;b&gt;" in page and "&lt;1e-4 &amp; more&gt;" in page and "a &lt; b" in page
    assert "nan" not in re.sub('base64,[^"]+', "", page)


def test_page_of_a_run_without_records(tmp_path: Path) -> None:
    facts = {"system": "spade", "config": {}, "options": {}, "shown": []}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    page = write_page(tmp_path).read_text()
    assert "<h1>" in page and "<figure" not in page


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_a_browser_renders_it(tmp_path: Path) -> None:
    """With the network off: all curves have an extent, all images are decoded, and nothing was asked of anybody."""
    page = write_page(run_folder(tmp_path))
    check = """<script>
    addEventListener("load", () => {
        const boxes = [...document.querySelectorAll("polyline")].map(e => e.getBoundingClientRect());
        const widths = [...document.images].map(e => e.naturalWidth * (e.complete && e.width > 0));
        const asked = performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:"));
        document.title = JSON.stringify({
            curves: boxes.filter(b => b.width > 200 && b.height > 5).length, images: widths, asked: asked.length,
            overflow: document.documentElement.scrollWidth - innerWidth});
    });</script>"""
    checked = tmp_path / "checked.html"
    checked.write_text(page.read_text().replace("</html>", check + "</html>"))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,1600"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--virtual-time-budget=2000", f"--screenshot={tmp_path / 'page.png'}"]

    def browse(*more: str) -> str:
        command = [BROWSER, *flags, *more, checked.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    found = json.loads(re.search(r"<title>(\{.*?\})</title>", browse("--dump-dom"))[1])
    assert found == {"curves": 8, "images": [192] * 4, "asked": 0, "overflow": found["overflow"]}
    assert found["overflow"] <= 0
    browse()
    with Image.open(tmp_path / "page.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(image.width * image.height)}
    assert tuple(bytes.fromhex(COLOURS[0][1:])) in colours and len(colours) > 1000  # a curve, and the noise of samples
