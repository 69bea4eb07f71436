"""Options of the training loop, for any system and any data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

AT_LEAST_ONE = ("steps", "batch_size", "accumulate", "log_every", "save_every", "keep")


@dataclass(frozen=True)
class Loop:
    """Options of the loop, for any system and any data."""

    steps: int
    """iterations in all, those before a resume included"""
    out: Path = Path("runs/train")
    """run folder: checkpoints, log.jsonl, samples, index.html"""
    batch_size: int = 1
    """images per process at a time"""
    accumulate: int = 1
    """batches per process and step, whose gradients are averaged; norms have statistics of each"""
    seed: int = 0
    """of weights, noise, order and crops"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """bf16 and fp16 are autocast with float32 weights, fp16 with scaled losses; auto takes bf16 on CUDA devices that
    have it, else fp32"""
    clip_grad: float | None = None
    """largest norm of the gradients of a phase; larger ones are scaled down to it"""
    checkpoint_activations: bool = False
    """keep what goes in and out of blocks, and compute the rest once more for gradients: less memory, more time"""
    shard: bool = False
    """split weights, gradients, averages and optimizer states between the processes; each computes with all weights,
    which are together from a phase's forward to its backward"""
    ema_decay: float | None = None
    """of the averaged weights that samples and translations use; by default the system's"""
    log_every: int = 50
    """steps between lines of the log"""
    save_every: int = 1000
    """steps between checkpoints, each with a sample grid"""
    keep: int = 2
    """newest checkpoints to keep; a damaged one is replaced by the one before"""
    best: str | None = None
    """loss term, as the log names it: the checkpoint with its lowest mean since the one before is kept as `best` too"""
    resume: bool = False
    """continue from the newest whole checkpoint in the run folder; start if there is none"""
    tensorboard: bool = False
    """write losses, speed and sample grids for TensorBoard too, in the run folder's tensorboard/"""

    def __post_init__(self) -> None:
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: must be at least 1")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}: must be in [0, 1)")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ValueError(f"clip_grad is {self.clip_grad}: must be greater than 0")

    def autocast(self, device: torch.device) -> torch.dtype | None:
        """The type to compute in, None for that of the weights: as told, or bfloat16 where the device has it."""
        if self.precision == "auto":
            native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if native else None
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
