"""Cases of norms over whole samples."""

import math

import torch

from .. import ops
from ._case import Case, normal, plain_act


def _mixed(act, outside: bool) -> Case:
    def make(shape, g):
        return {"x": normal(g, *shape), "mix": 0.5 * normal(g, shape[0], 3 * shape[1])}

    def plain(x, mix):
        def normalised(dims, outside):
            # An unbiased variance of one value is 0 here, not NaN.
            count = math.prod(x.shape[dim] for dim in dims)
            std, mean = torch.std_mean(x, dims, correction=min(1, max(0, count - 1)), keepdim=True)
            return (x - mean) / (std + 1e-5 if outside else (std.square() + 1e-5).sqrt())

        instance, layer, shift = mix[..., None, None].chunk(3, 1)
        y = instance * normalised((2, 3), False) + layer * normalised((1, 2, 3), outside) + shift
        return plain_act(y, act)

    def ours(x, mix):
        return ops.modulate_mixed(x, mix, act, outside=outside)

    return Case(f"modulate_mixed-instance-layer-{'outside' if outside else 'inside'}-{act}", make, ours, plain)


CASES = [_mixed("relu", False), _mixed("none", False), _mixed(0.2, True)]
