"""Matching, warping and tiles, against their definitions."""

import pytest
import torch
import torch.nn.functional as F
from plain import normal

from i2ifast.nn import SelfAttention
from i2ifast.nn.correspondence import at_positions, attend, fused_attention, match_features, positions
from i2ifast.nn.warp import flow_warp, merge_tiles, split_tiles, warp_and_blend


@pytest.fixture(params=[False, True], ids=["whole", "chunks"])
def chunks(request, monkeypatch):
    if request.param:
        monkeypatch.setattr("i2ifast.nn.correspondence.CHUNK", 60)
        monkeypatch.setattr("i2ifast.nn.correspondence.KEPT", 60)


@pytest.mark.usefixtures("chunks")
def test_attention_over_both_axes_of_one_matrix():
    query, key, value, back = (normal(2, n, c, seed=i) for i, (n, c) in enumerate(((9, 5), (7, 5), (7, 3), (9, 4))))
    leaves = [t.requires_grad_() for t in (query, key, value, back)]
    f = 3 * query @ key.transpose(1, 2)
    expected = torch.softmax(f, 2) @ value, torch.softmax(f, 1).transpose(1, 2) @ back
    found = attend(query, key, value, 3.0), attend(key, query, back, 3.0)
    with torch.no_grad():
        found += attend(query, key, value, 3.0), attend(key, query, back, 3.0)
        found += fused_attention(query, key, value, 3.0), fused_attention(key, query, back, 3.0)
    for ours, theirs in zip(found, expected * 3, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    found = found[:2]
    gradients = [torch.autograd.grad(sum(t.square().sum() for t in pair), leaves) for pair in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_attention_holds_no_matrix(monkeypatch):
    """With gradients too: what is kept for the backward is a fraction of it."""
    monkeypatch.setattr("i2ifast.nn.correspondence.CHUNK", 1 << 12)
    monkeypatch.setattr("i2ifast.nn.correspondence.KEPT", 1 << 12)
    query, key, value = (normal(1, 256, c, seed=c).requires_grad_() for c in (8, 9, 3))
    kept = 0

    def keep(t: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        attend(query, key[..., :8], value).sum()
    assert kept < 256 * 256 / 4


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("pono", [True, False])
def test_matches_are_correlations(kernel, pono):
    x = normal(2, 4, 5, 6) + 3
    found = match_features(x, kernel, pono)
    windows = F.unfold(x, kernel, padding=kernel // 2).transpose(1, 2)
    assert found.shape == windows.shape
    centred = windows - windows.mean(2 if pono else 1, keepdim=True)
    torch.testing.assert_close(found, centred / centred.norm(dim=2, keepdim=True))
    torch.testing.assert_close(at_positions(positions(x), (5, 6)), x)


def test_constant_features_match_nothing():
    assert not match_features(torch.ones(1, 4, 3, 3), 1).any()


@pytest.mark.parametrize("spectral", [True, False])
def test_self_attention(spectral):
    torch.manual_seed(0)
    net, x = SelfAttention(16, spectral).eval(), normal(2, 16, 6, 8)
    assert torch.equal(net(x), x)  # gamma is 0 at first
    torch.nn.init.constant_(net.gamma, 0.5)
    theta, phi, g = net.theta(x), F.max_pool2d(net.phi(x), 2), F.max_pool2d(net.g(x), 2)
    beta = torch.softmax(torch.einsum("nchw,ncp->nhwp", theta, phi.flatten(2)), -1)
    expected = x + 0.5 * net.o(torch.einsum("nhwp,ncp->nchw", beta, g.flatten(2)))
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    assert {name.split(".")[0] for name in net.state_dict()} == {"gamma", "theta", "phi", "g", "o"}


def test_flow_moves_by_pixels_and_stops_at_the_border():
    image = normal(1, 2, 5, 7)
    flow = torch.zeros(1, 2, 5, 7)
    torch.testing.assert_close(flow_warp(image, flow), image, rtol=1e-5, atol=1e-5)
    flow[:, 0], flow[:, 1] = 2, -1
    rows, columns = (torch.arange(5) - 1).clamp(0, 4), (torch.arange(7) + 2).clamp(0, 6)
    expected = image[:, :, rows][..., columns]
    torch.testing.assert_close(flow_warp(image, flow), expected, rtol=1e-5, atol=1e-5)
    weight = torch.full((1, 1, 5, 7), 0.25)
    blended = warp_and_blend(torch.ones_like(image), image, flow, weight)
    torch.testing.assert_close(blended, 0.25 + 0.75 * expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(flow_warp(image[..., :1, :1], flow[..., :1, :1]), image[..., :1, :1])


@pytest.mark.parametrize("size, stride", [(6, 4), (5, 5), (8, 1)])
def test_tiles_merge_to_the_image_that_they_are_of(size, stride):
    x = normal(2, 3, 17, 13)
    tiles = split_tiles(x, size, stride)
    torch.testing.assert_close(merge_tiles(tiles, (17, 13), stride), x)
    with pytest.raises(ValueError, match=f"{tiles.size(1)} tiles, expected"):
        merge_tiles(tiles, (40, 13), stride)
    with pytest.raises(ValueError, match="tiles of 9 every 10 over 17: expected 0 < stride <= size <= length"):
        split_tiles(x, 9, 10)
