"""Weights of which every process keeps a part, with its gradients, averages and optimizer state: FSDP2, for phases."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


class Sharded(nn.Module):
    """Networks that are whole for the length of a forward and its backward; in between every process has its part.

    The forward is whatever is to be computed, and its hooks are the only ones: a network may run as often as one likes,
    by any of its methods, or in a gradient of a gradient, and its gradients are averaged over the processes once, when
    the backward is through. All processes reach the same parameters. Buffers are whole everywhere.
    """

    def __init__(self, nets: nn.ModuleDict) -> None:
        """`nets` have the same weights in every process, contiguous. ValueError for what cannot be split."""
        from torch.distributed.fsdp import fully_shard  # a second to import, for this alone

        super().__init__()
        self.nets = nets
        if whole := [name for name, parameter in nets.named_parameters() if not parameter.ndim]:
            raise ValueError(f"shard: {', '.join(whole)} have no dimension to split: train without --shard")
        device = next(nets.parameters()).device.type
        mesh = dist.init_device_mesh(device, (dist.get_world_size(),))
        fully_shard(self, mesh=mesh, reshard_after_forward=False)

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()


@contextmanager
def whole(networks: Sequence[Sharded]) -> Iterator[None]:
    """Context: networks are whole, and no gradients are averaged. All processes enter and leave it together."""
    for each in networks:
        each.unshard()
    try:
        yield
    finally:
        for each in networks:
            each.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, which shares its memory; all of it where it is not split."""
    return tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor


def gathered(tensor: Tensor) -> Tensor:
    """All of a tensor that is split, on the CPU of the first process, nothing on others. All call it together."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    full = tensor.detach().full_tensor()
    return full.cpu() if dist.get_rank() == 0 else full.new_empty(0)


def split_as(like: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, which every process has whole, split as those of the same name in `like` are."""
    return {name: part(tensor, like.get(name)) for name, tensor in tensors.items()}


def part(tensor: Tensor, like: Tensor | None) -> Tensor:
    """A tensor, which every process has whole, split as `like` is."""
    if not hasattr(like, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
