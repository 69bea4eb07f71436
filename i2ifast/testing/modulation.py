"""Cases of the ops act(normalise(x) * scale + shift)."""

import torch.nn.functional as F

from .. import ops
from ._case import Case, blocky, normal, plain_act, plain_norm, statistics_of


def _table_inputs(scale: int, outputs: int):
    def make(shape, g):
        n, c, h, w = shape
        return {
            "x": normal(g, *shape),
            "table": 0.5 * normal(g, 9, 2 * c * outputs),
            "patches": blocky(g, n, h * scale, w * scale, 9),
        }

    return make


def _table(kind: str, act, act2=None, upsample=False) -> Case:
    def ours(x, table, patches):
        return ops.modulate_table(x, table, patches, statistics_of(x, kind), act, act2, upsample)

    def plain(x, table, patches):
        xhat = plain_norm(x, kind)
        xhat = xhat.repeat_interleave(2, 2).repeat_interleave(2, 3) if upsample else xhat
        maps = F.embedding(patches.long(), table).permute(0, 3, 1, 2).split(x.size(1), 1)
        ys = [plain_act(xhat * (1 + g) + b, a) for g, b, a in zip(maps[::2], maps[1::2], (act, act2), strict=False)]
        return ys[0] if act2 is None else tuple(ys)

    name = f"modulate_table-{kind}-{act}" + (f"-{act2}" if act2 is not None else "") + ("-upsample" if upsample else "")
    return Case(name, _table_inputs(2 if upsample else 1, 1 if act2 is None else 2), ours, plain)


def _dense(kind: str, act) -> Case:
    def make(shape, g):
        n, c, h, w = shape
        return {"x": normal(g, *shape), "gamma_beta": 0.5 * normal(g, n, 2 * c, h, w)}

    def plain(x, gamma_beta):
        gamma, beta = gamma_beta.chunk(2, 1)
        return plain_act(plain_norm(x, kind) * (1 + gamma) + beta, act)

    def ours(x, gamma_beta):
        return ops.modulate(x, gamma_beta, None, statistics_of(x, kind), act)

    return Case(f"modulate-{kind}-{act}", make, ours, plain)


def _dense_pair(kind: str) -> Case:
    def make(shape, g):
        n, c, h, w = shape
        maps = {name: 0.5 * normal(g, n, 2 * c, h, w) for name in ("gamma_beta", "gamma_beta2")}
        return {"x": normal(g, *shape), **maps}

    def plain(x, gamma_beta, gamma_beta2):
        xhat = plain_norm(x, kind)
        (gamma, beta), (gamma2, beta2) = gamma_beta.chunk(2, 1), gamma_beta2.chunk(2, 1)
        return F.leaky_relu(xhat * (1 + gamma) + beta, 0.2), xhat * (1 + gamma2) + beta2

    def ours(x, gamma_beta, gamma_beta2):
        return ops.modulate(x, gamma_beta, None, statistics_of(x, kind), 0.2, gamma_beta2, "none")

    return Case(f"modulate-{kind}-0.2-none", make, ours, plain)


def _style(kind: str, act) -> Case:
    def make(shape, g):
        style = 0.5 * normal(g, shape[0], 2 * shape[1])
        style[:, : shape[1]] += 1
        return {"x": normal(g, *shape), "style": style}

    def plain(x, style):
        scale, shift = style[..., None, None].chunk(2, 1)
        return plain_act(plain_norm(x, kind) * scale + shift, act)

    def ours(x, style):
        return ops.modulate_style(x, style, statistics_of(x, kind), act)

    return Case(f"modulate_style-{kind}-{act}", make, ours, plain)


CASES = [
    *[_table(kind, act) for kind, act in (("batch", 0.2), ("instance", "relu"), ("fixed", "none"), ("none", 0.2))],
    _table("batch", 0.2, "none"),
    _table("instance", 0.2, upsample=True),
    _table("batch", 0.2, "none", upsample=True),
    *[_dense(kind, act) for kind, act in (("batch", 0.2), ("instance", "none"), ("fixed", "relu"), ("none", 0.2))],
    _dense_pair("batch"),
    *[_style(kind, act) for kind, act in (("instance", "relu"), ("batch", 0.2), ("none", "none"), ("fixed", 0.2))],
]
