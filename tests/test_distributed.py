"""Two gloo processes equal one with the whole batch: statistics, outputs, gradients and running buffers."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from i2ifast import labels
from i2ifast.nn import SPADE, SPADEResnetBlock
from i2ifast.ops import batch_statistics


def label_maps() -> Tensor:
    """Blocks in the first two maps, which tables pay for, and noise in the others, which they do not."""
    g = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 4, (2, 1, 4, 4), generator=g).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return torch.cat([blocks, torch.randint(0, 4, (2, 1, 16, 16), generator=g)])


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return SPADE("spadesyncbatch3x3", 6, 4, 8) if kind == "layer" else SPADEResnetBlock(6, 5, "spadesyncbatch3x3", 4, 8)


def step(net: nn.Module, x: Tensor, maps: Tensor, twice: bool) -> dict[str, Tensor]:
    """Forward and backward of a sum over samples; with `twice`, two forwards before the backward."""
    x = x.clone().requires_grad_()
    plan = labels.plan(maps, 4)
    y = net(x, plan)
    loss = (y**2).sum()
    if twice:
        loss = loss + net(x * 0.5 + 1, plan).sum()
    loss.backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **grads, **dict(net.named_buffers())}


def worker(rank: int, folder: Path, kind: str, split: int, twice: bool, x: Tensor) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", world_size=2, rank=rank)
    torch.set_num_threads(1)
    part = slice(0, split) if rank == 0 else slice(split, None)
    found = step(network(kind), x[part], label_maps()[part], twice)
    found["mean"] = batch_statistics(x[part], group=dist.group.WORLD.group_name)[0].mean
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("split", [2, 3, 4], ids=["even", "uneven", "empty"])
@pytest.mark.parametrize("kind, twice", [("layer", False), ("layer", True), ("block", False)])
def test_two_ranks_equal_one(kind, twice, split, tmp_path):
    x = 3 + 2 * torch.randn(4, 6, 16, 16, generator=torch.Generator().manual_seed(1))
    whole = step(network(kind), x, label_maps(), twice)
    mp.spawn(worker, (tmp_path, kind, split, twice, x), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    largest = max(value.abs().max().item() for value in whole.values())  # what round-off gradients are round-off of

    def close(ours: Tensor, theirs: Tensor, name: str, tolerance: float, scale: float = 1.0) -> None:
        assert (ours - theirs).abs().max() <= tolerance * (scale + theirs.abs().max()), name

    close(ranks[0]["mean"], batch_statistics(x)[0].mean, "mean", 1e-6)
    for name, theirs in whole.items():
        if name in ("y", "dx"):
            close(torch.cat([ranks[0][name], ranks[1][name]]), theirs, name, 1e-5)
        elif "running" in name or "tracked" in name:
            for rank in ranks:
                close(rank[name], theirs, name, 1e-6)
        else:
            close(ranks[0][name] + ranks[1][name], theirs, name, 1e-5, 0.1 * largest)
