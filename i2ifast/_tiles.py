"""Images beyond memory in tiles that overlap."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .models import Batch

GRID = 64  # tiles begin at multiples of it: every generator's stride divides it, so that its grid is that of the whole


def check(tile: int, overlap: int) -> None:
    """Raise ValueError for tiles that do not lie on the grid or do not cover an image."""
    for name, value in (("tile", tile), ("overlap", overlap)):
        if value % GRID or value < 0:
            raise ValueError(f"{name} is {value}: must be a multiple of {GRID}")
    if overlap >= tile:
        raise ValueError(f"overlap is {overlap}: must be less than tile, {tile}")


def pieces(size: int, tile: int, overlap: int) -> list[tuple[slice, Tensor]]:
    """Where pieces of `size` pixels lie, at most `tile` of them each, and the weights of their pixels.

    Weights fall linearly where pieces overlap, by `overlap` pixels or more, and add up to 1.
    """
    last = max(0, -((tile - size) // GRID) * GRID)
    starts = [*range(0, last, tile - overlap), last]
    places = [slice(start, min(start + tile, size)) for start in starts]
    weights = torch.zeros(len(places), size)
    for row, place in zip(weights, places, strict=True):
        inside = torch.arange(place.stop - place.start)
        row[place] = torch.minimum(inside + 1, inside.flip(0) + 1).clamp(max=overlap + 1).float()
    weights /= weights.sum(0)
    return [(place, row[place]) for row, place in zip(weights, places, strict=True)]


def tiled(translate: Callable[[Batch], Tensor], batch: Batch, names: Sequence[str], tile: int, overlap: int) -> Tensor:
    """What `translate` makes of a batch, tile by tile, blended linearly where tiles overlap; on the host.

    Of the entries in `names` each tile gets its part, of all others the whole. All tiles draw the same random numbers:
    a random style is one style. What a network knows of a whole image it knows of one tile only: label plans,
    statistics of instance norms and attention are the tile's own, so that tiles may differ in tone where those matter.
    """
    height, width = batch[names[0]].shape[-2:]
    state, on_cuda = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    whole: Tensor | None = None
    for rows, down in pieces(height, tile, overlap):
        for columns, across in pieces(width, tile, overlap):
            torch.set_rng_state(state)
            torch.cuda.set_rng_state_all(on_cuda)
            part = {name: batch[name][..., rows, columns] for name in names if name in batch}
            fake = translate({**batch, **part}).float().cpu()
            if whole is None:
                whole = fake.new_zeros(*fake.shape[:2], height, width)
            whole[..., rows, columns] += fake * (down[:, None] * across)
    return whole
