"""Cases of modulation by a table whose entries are scaled at every pixel."""

import torch.nn.functional as F

from .. import ops
from ._case import Case, blocky, normal, plain_act, plain_norm, statistics_of


def _scaled(kind: str, act, act2=None, upsample=False) -> Case:
    scale, outputs = (2 if upsample else 1), (1 if act2 is None else 2)

    def make(shape, g):
        n, c, h, w = shape
        return {
            "x": normal(g, *shape),
            "table": 0.5 * normal(g, 9, 2 * c * outputs),
            "patches": blocky(g, n, h * scale, w * scale, 9),
            "scales": 1 + 0.1 * normal(g, n, 2 * outputs, h * scale, w * scale),
        }

    def ours(x, table, patches, scales):
        return ops.modulate_table(x, table, patches, statistics_of(x, kind), act, act2, upsample, None, scales)

    def plain(x, table, patches, scales):
        xhat = plain_norm(x, kind)
        xhat = xhat.repeat_interleave(2, 2).repeat_interleave(2, 3) if upsample else xhat
        maps = F.embedding(patches.long(), table).permute(0, 3, 1, 2).split(x.size(1), 1)
        factors = scales.split(1, 1)
        ys = [
            plain_act(xhat * ((1 + maps[k]) * factors[k]) + maps[k + 1] * factors[k + 1], a)
            for k, a in ((0, act), (2, act2))
            if a is not None
        ]
        return ys[0] if act2 is None else tuple(ys)

    name = f"modulate_table-{kind}-{act}" + (f"-{act2}" if act2 is not None else "")
    return Case(f"{name}-scaled" + ("-upsample" if upsample else ""), make, ours, plain)


CASES = [
    _scaled("batch", 0.2),
    _scaled("fixed", "none"),
    _scaled("instance", "relu", upsample=True),
    _scaled("batch", 0.2, "none", upsample=True),
]
