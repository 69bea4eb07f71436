"""What people look at while a run goes on: progress, loss log, image grids."""

import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from ._page import read_log, write_page

HOUR = 3600.0  # of steps that the remaining time is estimated from: lines of a log may lie minutes apart


class NonFiniteLoss(RuntimeError):
    """A loss term became NaN or infinite; the message names phase, term and step."""


class Losses:
    """Loss terms of the last steps, left on the device until `read`, so that no step waits for it."""

    def __init__(self) -> None:
        self.values: list[tuple[int, str, Tensor]] = []  # in order of execution

    def add(self, step: int, phase: str, terms: dict[str, Tensor]) -> None:
        self.values += [(step, f"{phase}/{name}", term.detach().float()) for name, term in terms.items()]

    def read(self) -> dict[str, float]:
        """Means over steps and processes since the last call, by "phase/term".

        All processes call it together. Raises NonFiniteLoss, in all of them, for the first term that is not finite.
        """
        if not self.values:
            return {}
        values = torch.stack([value for *_, value in self.values])
        if dist.is_initialized():
            dist.all_reduce(values)
            values /= dist.get_world_size()
        rows = [(step, name, value) for (step, name, _), value in zip(self.values, values.tolist(), strict=True)]
        self.values.clear()
        means: dict[str, list[float]] = {}
        for step, name, value in rows:
            if not np.isfinite(value):
                phase, term = name.split("/", 1)
                raise NonFiniteLoss(f"loss term {term!r} of phase {phase} is {value} at step {step}; not saved since")
            means.setdefault(name, []).append(value)
        return {name: float(np.mean(values)) for name, values in means.items()}


def peak_memory(device: torch.device) -> float:
    """Most memory taken so far, in MiB: of the device on CUDA, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def colours(labels: np.ndarray) -> np.ndarray:
    """A colour per label, [H,W] ints to [H,W,3] uint8: the label's bits spread over the channels, highest first."""
    rgb = np.zeros((*labels.shape, 3), np.int64)
    for bit in range(24):  # bit k of the label becomes bit 7 - k // 3 of channel k % 3
        rgb[..., bit % 3] |= ((labels >> bit) & 1) << (7 - bit // 3)
    return rgb.astype(np.uint8)


def to_uint8(images: Tensor) -> np.ndarray:
    """[N,C,H,W] in [-1, 1] to [N,H,W,C] uint8, rounded."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def to_images(images: Tensor) -> list[Image.Image]:
    """[N,3,H,W] or [N,1,H,W] in [-1, 1] to RGB or grey images."""
    return [Image.fromarray(pixels[..., 0] if images.size(1) == 1 else pixels) for pixels in to_uint8(images)]


def grid(columns: Sequence[Tensor]) -> Image.Image:
    """One row per sample of images [N,3,H,W] or [N,1,H,W] in [-1, 1], or of label maps [N,1,H,W] in colours."""
    shown = [
        to_uint8(column[:, :3].expand(-1, 3, -1, -1))
        if column.is_floating_point()
        else np.stack([colours(one) for one in column[:, 0].cpu().numpy()])
        for column in columns
    ]
    return Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in zip(*shown, strict=True)]))


def board(folder: Path, start: int) -> Any:
    """A writer for TensorBoard that takes back what was written after step `start`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(f"tensorboard is True, but there is none: pip install tensorboard ({error})") from error
    return SummaryWriter(str(folder), purge_step=start + 1)


class RunLog:
    """Progress on the terminal, log.jsonl, samples/ and index.html of one run folder. A context manager."""

    def __init__(
        self,
        folder: Path,
        run: dict[str, Any],
        steps: int,
        start: int,
        device: torch.device,
        tensorboard: bool = False,
    ) -> None:
        """`run` is for run.json: system, config, options. Records after step `start` are dropped: they come again.

        With `tensorboard` numbers and grids are in tensorboard/ too; ValueError where that is not installed.
        """
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(run, indent=2))
        self.folder, self.steps, self.device = folder, steps, device
        kept = [record for record in read_log(folder / "log.jsonl") if record["step"] <= start]
        self.file = open(folder / "log.jsonl", "w", buffering=1)  # a line is on disk when it is complete
        self.file.writelines(json.dumps(record) + "\n" for record in kept)
        self.console = Console(highlight=False)
        self.board = board(folder / "tensorboard", start) if tensorboard else None
        state = TextColumn("{task.fields[state]}")
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), *times, state)
        self.progress = Progress(*columns, console=self.console, speed_estimate_period=HOUR)
        self.task = self.progress.add_task("", total=steps, completed=start, state="")
        self.since, self.step = time.perf_counter(), start

    def __enter__(self) -> "RunLog":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()
        self.file.close()
        if self.board:
            self.board.close()

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def memory(self, sizes: dict[str, int], more: str) -> None:
        """A line about bytes, by what they are of."""
        self.say(f"memory in MiB: {', '.join(f'{n / 2**20:.4g} of {kind}' for kind, n in sizes.items())}; {more}")

    def log(self, step: int, epoch: int, losses: dict[str, float], images_per_step: int) -> None:
        """Record the means since the last call."""
        now = time.perf_counter()
        speed = (step - self.step) * images_per_step / (now - self.since)
        self.since, self.step = now, step
        memory = peak_memory(self.device)
        record = {"step": step, "epoch": epoch, "losses": losses, "images_per_second": speed, "peak_memory_mib": memory}
        self.file.write(json.dumps(record) + "\n")
        if self.board:
            for name, value in {**losses, "images per second": speed, "peak memory, MiB": memory}.items():
                self.board.add_scalar(name, value, step)
        state = f"{speed:.3g} images/s  {memory:.0f} MiB"
        self.progress.update(self.task, completed=step, state=state)
        terms = "  ".join(f"{name} {value:.4g}" for name, value in losses.items())
        self.say(f"step {step}/{self.steps}  epoch {epoch}  {state}  {terms}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block out of images per second."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start

    def samples(self, step: int, columns: Sequence[Tensor]) -> None:
        """Save a grid and bring the page up to date."""
        image = grid(columns)
        image.save(self.folder / "samples" / f"{step:08d}.png")
        if self.board:
            self.board.add_image("samples", np.asarray(image), step, dataformats="HWC")
        write_page(self.folder)
