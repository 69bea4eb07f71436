"""From nothing to translated street scenes in minutes on a CPU: make data, train, translate held-out maps, show a page.

python -m i2ifast.demo --out demo
"""

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from . import labels, train, translate
from ._page import write_page
from .data import procedural
from .data.kinds.labels import Inputs
from .models import Batch, System
from .nn import bake

SIZE = (64, 128)  # height and width, those of preset tiny
REPEATS = 9  # of a timing


def plain(system: System, file: Path) -> Callable[[Batch], Tensor]:
    """The system's generator as published, by `PlainGenerator(config)` of `file`, with the system's weights."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    generator = module.PlainGenerator(system.config).eval()
    generator.load_state_dict(system.nets["G"].state_dict())

    @torch.no_grad()
    def run(batch: Batch) -> Tensor:
        classes = F.one_hot(batch["label"][:, 0], system.config.num_classes).permute(0, 3, 1, 2).float()
        return generator(torch.cat([classes, labels.instance_edges(batch["instance"]).float()], 1))

    return run


def images_per_second(run: Callable[[Batch], object], batch: Batch) -> float:
    """Median over repeated calls, after one to warm up."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    return len(batch["label"]) / median(times[1:])


def demo(out: Path = Path("demo"), steps: int = 400, plain_generator: Path | None = None) -> None:
    """Train the tiny SPADE on procedural street scenes and translate held-out label maps.

    Args:
        out: folder for all of it; open out/run/index.html
        steps: training iterations
        plain_generator: Python file with a PlainGenerator to compare speed with
    """
    data, run, translated = out / "data", out / "run", out / "translated"
    procedural.write(data, count=200, size=SIZE)
    where = ["--data", str(data), "--out", str(run), "--resume"]
    config = ["--config.label-nc", str(len(procedural.CLASSES)), "--config.lr", "0.001"]
    how = ["--steps", str(steps), "--batch-size", "4", "--save-every", "200", "--ema-decay", "0.99"]
    with train.processes() as device:
        if train.run(train.parse(["spade", "--preset", "tiny", *where, *how, *config]), device) < steps:
            return
    maps = {"labels": data / "val_label", "instances": data / "val_inst"}
    translate.main(["--weights", str(run), "--out", str(translated)] + [f"--{k}={v}" for k, v in maps.items()])

    system = translate.load(run)
    batch = next(Inputs(**maps).batches(system, 4))
    published = plain(system, plain_generator) if plain_generator else None
    system.nets["G"] = bake(system.nets["G"])
    speeds = {"i2ifast, images per second": images_per_second(system.translate, batch)}
    if published:
        speeds["plain PyTorch, images per second"] = images_per_second(published, batch)
    facts = {name: f"{speed:.1f}" for name, speed in speeds.items()}
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    print(f"see {write_page(run, facts)}")


if __name__ == "__main__":
    tyro.cli(demo)
