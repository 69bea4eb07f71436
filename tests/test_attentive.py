"""Attentive normalisation: against its definition, a normalised copy per region; layouts and self-sampling."""

import pytest
import torch
from plain import normal
from torch import Tensor

from i2ifast.nn import AttentiveNorm, regional_norm
from i2ifast.nn.attentive import EPS, FORMS


def definition(v: Tensor, s: Tensor, form: str) -> Tensor:
    """Copies [N, K, C, H, W], one for each region."""
    x, s = v[:, None], s[:, :, None]
    count = s.sum((3, 4), keepdim=True) + EPS
    masked = x * s
    mean = (masked.mean if form == "released" else masked.sum)((3, 4), keepdim=True) / count
    squares = s * (x - mean) ** 2 if form == "weighted" else (masked - mean) ** 2
    std = (squares.sum((3, 4), keepdim=True) / count).sqrt()
    return ((x - mean) / (std + EPS) * s).sum(1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("form", FORMS)
def test_regional_norm_is_its_definition(form, layout):
    v, logits = normal(2, 9, 7, 5) + 3, normal(2, 4, 7, 5, seed=1)
    wide = [t.double().requires_grad_() for t in (v, logits)]
    truth = definition(wide[0], torch.softmax(wide[1], 1), form)
    ours = [t.contiguous(memory_format=layout).requires_grad_() for t in (v, logits)]
    y = regional_norm(ours[0], torch.softmax(ours[1], 1), form=form)
    up = normal(*y.shape, seed=2)
    found = [y, *torch.autograd.grad(y, ours, up)]
    expected = [truth, *torch.autograd.grad(truth, wide, up.double())]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-5 * b.abs().max().item())


def net_of(form: str) -> AttentiveNorm:
    torch.manual_seed(0)
    net = AttentiveNorm(16, 4, form=form)
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.add_(0.5 * normal(*parameter.shape, seed=i))
    return net


def test_layout_is_that_of_whole_maps_of_keys_and_queries():
    net, x, positions = net_of("paper"), normal(2, 16, 6, 5), torch.tensor([3, 3, 29, 0])
    key, query = net.key(x).flatten(2), net.query(x).flatten(2)
    sampled = torch.einsum("ncp,nck->nkp", query, key[:, :, positions])
    logits = net.semantic(x).flatten(2) + net.alpha.clamp(0, 1)[:, None] * sampled
    expected = torch.softmax(logits / 10, 1).view(2, 4, 6, 5)
    torch.testing.assert_close(net.layout(x, positions), expected)
    torch.testing.assert_close(net.layout(x), torch.softmax(net.semantic(x) / 10, 1))


@pytest.mark.parametrize("form", FORMS)
def test_self_sampling_is_off_at_test_time_but_in_the_released_form(form):
    net, x = net_of(form), normal(2, 16, 6, 5)
    torch.manual_seed(1)
    first = net(x)
    assert first.layout.shape == (2, 4, 6, 5) and first.output.shape == x.shape
    torch.manual_seed(1)
    assert torch.equal(net(x).layout, first.layout) and not torch.equal(net(x).layout, first.layout)
    net.eval()
    assert torch.equal(net(x).layout, net(x).layout) == (form != "released")


def test_fresh_layer_is_the_identity_and_refuses_what_it_cannot_do():
    x = normal(1, 16, 4, 4)
    assert torch.equal(AttentiveNorm(16)(x).output, x)
    with pytest.raises(ValueError, match="form='soft': expected one of released"):
        AttentiveNorm(16, form="soft")
    with pytest.raises(ValueError, match="channels=4: expected at least 8"):
        AttentiveNorm(4)


def test_compiles_in_one_graph():
    torch.compiler.reset()
    net, x, positions = net_of("paper"), normal(2, 16, 6, 5), torch.tensor([3, 3, 29, 0])
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=False)
    for ours, theirs in zip(compiled(x, positions), net(x, positions), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
