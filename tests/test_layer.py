"""Norms over whole samples, conditional norms and the deviation within a batch: published formulas, keys, starts."""

import pytest
import torch
import torch.nn.functional as F
from plain import gradients, normal
from torch import Tensor, nn

from i2ifast.nn import ILN, AdaILN, ConditionalNorm, LayerNorm, minibatch_std

X = normal(2, 6, 5, 4, dtype=torch.float64)


def normalised(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (x - x.mean(dims, keepdim=True)) / (x.var(dims, keepdim=True) + 1e-5).sqrt()


class PlainILN(nn.Module):
    """As published, around the parameters of ours."""

    def __init__(self, ours: AdaILN) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor, *vectors: Tensor) -> Tensor:
        ours = self.ours
        if ours.softmax:
            instance, layer = ours.rho.softmax(2)[..., None, None].unbind(2)
        else:
            instance, layer = ours.rho, 1 - ours.rho
        gamma, beta = [v[..., None, None] for v in vectors] or (ours.gamma, ours.beta)
        return (instance * normalised(x, (2, 3)) + layer * normalised(x, (1, 2, 3))) * gamma + beta


def assert_same(ours: nn.Module, plain: nn.Module, x: Tensor, *inputs: Tensor) -> None:
    found, expected = gradients(ours, x, *inputs), gradients(plain, x, *inputs)
    for (name, a), (_, b) in zip(found.items(), expected.items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("kind", [ILN, AdaILN])
def test_iln(kind, softmax):
    """Also with rho outside of [0, 1], which the forward takes as it is."""
    ours = kind(6, softmax=softmax).double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    vectors = () if kind is ILN else (normal(2, 6, seed=2).double(), normal(2, 6, seed=3).double())
    assert_same(ours, PlainILN(ours), X, *vectors)


def test_iln_starts_as_published():
    assert [(k, tuple(v.shape)) for k, v in ILN(3).state_dict().items()] == [
        ("rho", (1, 3, 1, 1)),
        ("gamma", (1, 3, 1, 1)),
        ("beta", (1, 3, 1, 1)),
    ]
    assert not ILN(3).rho.any() and (AdaILN(3).rho == 0.9).all()
    assert AdaILN(2, softmax=True).rho.allclose(torch.tensor([[[3.2, 1.0]] * 2]))
    norm = ILN(2, softmax=True)
    nn.init.zeros_(norm.gamma), nn.init.ones_(norm.rho)
    norm.reset_parameters()
    assert norm.rho.allclose(torch.tensor([[[1.0, 3.2]] * 2])) and (norm.gamma == 1).all()


def test_clip_rho():
    norm = AdaILN(3)
    norm.rho.data[0, :, 0, 0] = torch.tensor([-0.5, 0.3, 1.5])
    norm.clip_rho()
    assert norm.rho.flatten().allclose(torch.tensor([0.0, 0.3, 1.0]))


@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm(affine):
    class Plain(nn.Module):
        def __init__(self, ours: LayerNorm) -> None:
            super().__init__()
            self.ours = ours

        def forward(self, x: Tensor) -> Tensor:
            mean, std = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
            y = (x - mean) / (std + 1e-5)
            return y * self.ours.gamma.view(-1, 1, 1) + self.ours.beta.view(-1, 1, 1) if affine else y

    ours = LayerNorm(6, affine=affine).double()
    assert list(ours.state_dict()) == (["gamma", "beta"] if affine else [])
    assert_same(ours, Plain(ours), X)


@pytest.mark.parametrize("kind", ["batch", "instance"])
def test_conditional_norm(kind):
    ours = ConditionalNorm(6, 5, kind, act=0.2).double()
    labels, norm = torch.tensor([3, 1]), nn.BatchNorm2d if kind == "batch" else nn.InstanceNorm2d

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.embed = norm(6, affine=False).double(), ours.embed

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            scale, shift = self.embed(labels)[..., None, None].chunk(2, 1)
            return F.leaky_relu(self.norm(x) * scale + shift, 0.2)

    assert (ours.embed.weight[:, 6:] == 0).all() and ours.embed.weight[:, :6].mean().item() == pytest.approx(1, abs=0.1)
    nn.init.normal_(ours.embed.weight)
    assert_same(ours, Plain(), X, labels)
    with pytest.raises(ValueError, match="kind 'group': expected one of batch, instance"):
        ConditionalNorm(6, 5, "group")


@pytest.mark.parametrize(("n", "size", "channels"), [(8, 4, 1), (3, 4, 2), (6, 2, 3)])
def test_minibatch_std(n, size, channels):
    """Sample i is in a group with those at a distance of N / size."""
    x = normal(n, 6, 2, 3, dtype=torch.float64)
    y = minibatch_std(x, size, channels)
    assert y.shape == (n, 6 + channels, 2, 3) and torch.equal(y[:, :6], x)
    groups = n // min(size, n)
    for i in range(n):
        members = x[i % groups :: groups]
        deviation = (members.var(0, correction=0) + 1e-8).sqrt()
        for k, part in enumerate(deviation.chunk(channels)):
            torch.testing.assert_close(y[i, 6 + k], part.mean().expand(2, 3))


def test_minibatch_std_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match="6 samples of 6 channels: expected multiples of group_size 4 and of 1"):
        minibatch_std(normal(6, 6, 2, 2))
