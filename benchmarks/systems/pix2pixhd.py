"""pix2pixHD's global generator on label maps of Cityscapes."""

from typing import Any

import plain_pix2pixhd as plain
import torch
import torch.nn.functional as F
from torch import Tensor

from i2ifast.labels import instance_edges
from i2ifast.models import Batch

from . import Networks, Row


def dense(config: Any, batch: Batch) -> Tensor:
    """The one-hot map and the edges of instances."""
    classes = F.one_hot(batch["label"][:, 0], config.label_nc).permute(0, 3, 1, 2).float()
    seg = torch.cat([classes, instance_edges(batch["instance"]).float()], 1)
    return seg.contiguous(memory_format=torch.channels_last) if not batch["image"].is_contiguous() else seg.contiguous()


def step(nets: Networks, optimizers: dict[str, torch.optim.Optimizer], config: Any, batch: Batch) -> None:
    of_both = optimizers["G"], optimizers["D"]
    plain.train_step(nets["G"], nets["D"], of_both, dense(config, batch), batch["image"])


ROWS = [
    Row(
        system="pix2pixhd",
        preset="cityscapes_512",
        size=(256, 512),
        batch=1,
        networks=lambda config: {"G": plain.PlainGenerator(config), "D": plain.PlainDiscriminator(config)},
        translate=lambda nets, config, batch: nets["G"](dense(config, batch)),
        loss=lambda nets, config, batch: plain.losses(nets["G"], nets["D"], dense(config, batch), batch["image"])[0],
        step=step,
        small={"ngf": 8, "ndf": 8, "n_blocks_global": 2},
    )
]
