"""Every op of the table of cases, forward and with backward, at sizes that matter."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from passes import Outputs, both, forward, in_layout
from torch import Tensor

from i2ifast import testing
from i2ifast.testing import CASES, Case, Tensors, modulation

SHAPES = [(1, 64, 256, 256), (1, 128, 128, 128), (4, 256, 64, 64)]
ROUNDS = 9


def made(case: Case, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> Tensors:
    """Inputs of a case; a tenth of the pixels have a table row of their own, as in label maps."""
    tensors = testing.inputs(case, shape, dtype, str(device))
    if "table" in tensors:
        g = torch.Generator().manual_seed(0)
        n, h, w = tensors["patches"].shape
        rows = n * h * w // 10
        tensors["table"] = (0.5 * testing.normal(g, rows, tensors["table"].size(1))).to(device, dtype)
        tensors["patches"] = testing.blocky(g, n, h, w, rows).to(device)
    return tensors


def torch_norm(x: Tensor, kind: str) -> Tensor:
    """What `testing` spells out, by torch's own normalisation."""
    if kind == "instance":
        return F.group_norm(x, x.size(1))
    return F.batch_norm(x, None, None, training=True)


def fewest_bytes(tensors: Tensors, outs: Outputs, statistics: bool, backward: bool) -> int:
    """Every input is read and every output written once; what statistics are taken of is read twice.

    Backward reads inputs and gradients of outputs, and writes gradients; with statistics it reads x and the gradients
    of outputs twice.
    """
    given = sum(t.nbytes for t in tensors.values())
    made = sum(t.nbytes for t in (outs if isinstance(outs, tuple) else (outs,)))
    again = tensors["x"].nbytes if statistics else 0
    total = given + made + again
    if backward:
        grads = sum(t.nbytes for t in tensors.values() if t.is_floating_point())
        total += given + made + grads + (again + made if statistics else 0)
    return total


@pytest.mark.parametrize("passes", [forward, both], ids=["forward", "both"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_op(compare, device, small, compiling, case, shape, passes) -> None:
    if small:
        shape = (shape[0], shape[1] // 16, shape[2] // 8, shape[3] // 8)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    given = made(case, shape, dtype, device)
    last = in_layout(given, torch.channels_last)
    contenders = {"plain": passes(case.plain, given), "channels_last": passes(case.plain, last)}
    op, _, options = case.name.partition("-")
    statistics = op.startswith("modulate") and options.startswith(("instance", "batch"))
    if statistics:

        def by_torch(**tensors: Tensor) -> Outputs:
            with patch.object(modulation, "plain_norm", torch_norm):
                return case.plain(**tensors)

        contenders["torch_norm"] = passes(by_torch, given)
        contenders["torch_norm_channels_last"] = passes(by_torch, last)
    if compiling:
        contenders["compile"] = passes(torch.compile(case.plain, dynamic=False), last)
    contenders["ours"] = passes(case.ours, last)
    amount = fewest_bytes(given, forward(case.ours, last)(None), statistics, passes is both)
    facts = {"op": case.name, "shape": shape, "pass": passes.__name__, "dtype": str(dtype), "bytes": amount}
    compare(contenders, [None] * ROUNDS, what="op", **facts)
