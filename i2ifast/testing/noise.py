"""Cases of modulation with noise that is added to x before it is normalised."""

import torch
import torch.nn.functional as F

from .. import ops
from ._case import Case, blocky, normal, plain_act, plain_norm, statistics_of


def _noisy_table(kind: str, act, upsample=False) -> Case:
    scale = 2 if upsample else 1

    def make(shape, g):
        n, c, h, w = shape
        h, w = h * scale, w * scale
        return {
            "x": normal(g, *shape),
            "table": 0.5 * normal(g, 9, 2 * c),
            "patches": blocky(g, n, h, w, 9),
            "strength": 1 + 0.5 * normal(g, c).tanh(),  # near 0 it leaves the conditions of x
            "sixteenths": torch.randint(-16, 17, (n, h, w), generator=g, dtype=torch.int32),  # noise has no gradient
        }

    def ours(x, table, patches, strength, sixteenths):
        noise = {"noise": sixteenths.to(x.dtype) / 16, "strength": strength}
        statistics = ops.batch_statistics(x, **noise)[0] if kind == "batch" else statistics_of(x, kind)
        return ops.modulate_table(x, table, patches, statistics, act, upsample=upsample, **noise)

    def plain(x, table, patches, strength, sixteenths):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if upsample else x
        x = x + (sixteenths.to(x.dtype) / 16)[:, None] * strength[:, None, None]
        gamma, beta = F.embedding(patches.long(), table).permute(0, 3, 1, 2).chunk(2, 1)
        return plain_act(plain_norm(x, kind) * (1 + gamma) + beta, act)

    return Case(f"modulate_table-{kind}-{act}-noise" + ("-upsample" if upsample else ""), make, ours, plain)


CASES = [
    _noisy_table("batch", 0.2),
    _noisy_table("fixed", "none"),
    _noisy_table("none", 0.2),
    _noisy_table("batch", 0.2, upsample=True),
]
