"""Cases of convolutions with predicted weights, positional normalisation, and styles that keep a share of x."""

import torch.nn.functional as F

from .. import ops
from ._case import Case, normal, plain_act, plain_norm, statistics_of


def _dynamic(layout: str) -> Case:
    """Weights in the order in which a convolution makes them, or with the channels adjacent."""

    def make(shape, g):
        n, c, h, w = shape
        if layout == "channels":
            weight = normal(g, n, h, w, 9, c).permute(0, 4, 3, 1, 2)
        else:
            weight = normal(g, n, c, 9, h, w)
        return {"x": normal(g, *shape), "weight": weight}

    def plain(x, weight):
        n, c, h, w = x.shape
        return (F.unfold(x, 3, padding=1).view(n, c, 9, h, w) * weight).sum(2)

    return Case(f"dynamic_conv-{layout}", make, ops.dynamic_conv, plain)


def _positional(act, maps: bool) -> Case:
    def make(shape, g):
        n, c, h, w = shape
        found = {"x": normal(g, *shape)}
        return found | {"gamma_beta": 0.5 * normal(g, n, 2 * c, h, w)} if maps else found

    def plain(x, gamma_beta=None):
        mean, var = x.mean(1, keepdim=True), x.var(1, correction=1, keepdim=True)
        xhat = (x - mean) / (var + 1e-5).sqrt()
        if gamma_beta is None:
            return plain_act(xhat, act)
        gamma, beta = gamma_beta.chunk(2, 1)
        return plain_act(xhat * (1 + gamma) + beta, act)

    def ours(x, gamma_beta=None):
        return ops.positional_norm(x, gamma_beta, act)

    return Case(f"positional_norm-{'maps' if maps else 'alone'}-{act}", make, ours, plain)


def _keep(kind: str) -> Case:
    def make(shape, g):
        return {"x": normal(g, *shape), "style": 0.5 * normal(g, shape[0], 2 * shape[1])}

    def plain(x, style):
        scale, shift = style[..., None, None].chunk(2, 1)
        return plain_act(plain_norm(x, kind) * scale + shift + 0.25 * x, 0.2)

    def ours(x, style):
        return ops.modulate_style(x, style, statistics_of(x, kind), 0.2, keep=0.25)

    return Case(f"modulate_style-{kind}-keep", make, ours, plain)


CASES = [
    *[_dynamic(layout) for layout in ("pixels", "channels")],
    *[_positional(act, maps) for act, maps in ((0.2, True), ("relu", False), ("none", True))],
    *[_keep(kind) for kind in ("instance", "batch", "none")],
]
