"""accelerate() on norms of samples, by style, by features and by class, in the manner of published ones."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_accelerate import assert_same, one_hot, run
from torch import Tensor, nn

from i2ifast import accelerate, restore


class SampleNorm(nn.Module):
    """As MUNIT's decoder has it, with a formula for one sample and one for more."""

    def __init__(self, channels: int = 6, inside: bool = False):
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.rand(channels)), nn.Parameter(torch.randn(channels))
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1) if len(x) > 1 else x.view(1, -1)
        mean, std = (t.view(-1, 1, 1, 1) for t in (flat.mean(1), flat.std(1)))
        y = (x - mean) / ((std.square() + 1e-5).sqrt() if self.inside else std + 1e-5)
        return y * self.scale.view(1, -1, 1, 1) + self.offset.view(1, -1, 1, 1)


class Mixed(nn.Module):
    """As U-GAT-IT and, with a softmax, NICE-GAN have it."""

    def __init__(self, softmax: bool, own: bool, channels: int = 6, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.rho = nn.Parameter(torch.rand((1, channels, 2) if softmax else (1, channels, 1, 1)))
        if own:
            self.b, self.g = (nn.Parameter(torch.randn(1, channels, 1, 1)) for _ in "bg")

    def forward(self, x: Tensor, *by: Tensor) -> Tensor:
        def normalised(dims):
            return (x - x.mean(dims, keepdim=True)) / torch.sqrt(x.var(dims, keepdim=True) + self.eps)

        if self.rho.dim() == 3:
            a, b = (t[None, :, None, None] for t in self.rho.softmax(2)[0].unbind(1))
        else:
            a, b = self.rho, 1 - self.rho
        gamma, beta = (t[..., None, None] for t in by) if by else (self.g, self.b)
        return (a * normalised((2, 3)) + b * normalised((1, 2, 3))) * gamma + beta


class OfStyle(nn.Module):
    def __init__(self, flipped: bool = False, one: float = 1.0):
        super().__init__()
        self.normalise, self.predict = nn.InstanceNorm2d(6), nn.Linear(5, 12)
        self.flipped, self.one = flipped, one

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        gamma, beta = self.predict(s).view(len(x), 12, 1, 1).chunk(2, 1)[:: -1 if self.flipped else 1]
        return (self.one + gamma) * self.normalise(x) + beta


class Assigned(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = self.bias = None
        self.register_buffer("running_mean", torch.zeros(6))
        self.register_buffer("running_var", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        n, c = x.shape[:2]
        mean, var = self.running_mean.repeat(n), self.running_var.repeat(n)
        flat = x.contiguous().view(1, n * c, *x.shape[2:])
        return F.batch_norm(flat, mean, var, self.weight, self.bias, True, 0.1, 1e-5).view(x.shape)


class OfFeatures(nn.Module):
    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d):
        super().__init__()
        self.add = nn.Conv2d(4, 6, 3, padding=1)
        self.multiply = nn.Conv2d(4, 6, 3, padding=1)
        self.norm = norm(6, affine=False)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return self.norm(x) * (1 + self.multiply(features)) + self.add(features)


class OfClass(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift, self.factor = (nn.Parameter(torch.randn(3, 6)) for _ in "ab")

    def forward(self, x: Tensor, seg: Tensor, dist: Tensor | None = None) -> Tensor:
        classes = F.interpolate(seg, size=x.shape[2:]).argmax(1)
        factor, shift = (F.embedding(classes, t).permute(0, 3, 1, 2) for t in (self.factor, self.shift))
        return x * factor + shift


X = torch.randn(2, 6, 8, 10, generator=torch.Generator().manual_seed(5))
VECTORS = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(6))
LABELS = one_hot(torch.randint(3, (2, 16, 20), generator=torch.Generator().manual_seed(7)), 3)
OTHERS = {
    "layer": (SampleNorm, (X,)),
    "layer of one": (SampleNorm, (X[:1],)),
    "iln": (lambda: Mixed(False, True), (X,)),
    "adailn": (lambda: Mixed(False, False), (X, *VECTORS)),
    "iln by softmax": (lambda: Mixed(True, True, eps=1e-3), (X,)),
    "adailn by softmax": (lambda: Mixed(True, False), (X, *VECTORS)),
    "style": (OfStyle, (X, torch.ones(2, 5))),
    "style, beta first": (lambda: OfStyle(True), (X, torch.ones(2, 5))),
    "features": (OfFeatures, (X, X[:, :4])),
    "features, instance": (lambda: OfFeatures(nn.InstanceNorm2d), (X, X[:, :4])),
    "classes": (OfClass, (X, LABELS)),
    "soft classes": (OfClass, (X, LABELS + 0.1 * torch.rand(LABELS.shape))),
}


def other_norms(capsys) -> int:
    return int(capsys.readouterr().out.split(" other norms")[0].split()[-1])


@pytest.mark.parametrize("name", OTHERS)
def test_other_norms(capsys, name):
    torch.manual_seed(0)
    make, given = OTHERS[name]
    plain = make()
    ours = accelerate(copy.deepcopy(plain))
    assert other_norms(capsys) == 1 and list(ours.state_dict()) == list(plain.state_dict())
    for training in (True, False):
        assert_same(run(ours.train(training), *given), run(plain.train(training), *given))
    assert type(restore(ours)) is type(plain)


def test_assigned_norms(capsys):
    plain = Assigned()
    ours = accelerate(copy.deepcopy(plain))
    assert other_norms(capsys) == 1 and ours.weight is None
    with pytest.raises(AssertionError):
        ours(X)
    for model in (ours, plain):
        model.weight, model.bias = VECTORS[0].flatten(), VECTORS[1].flatten()
    assert_same(run(ours, X), run(plain, X))


@pytest.mark.parametrize("make", [lambda: SampleNorm(inside=True), lambda: OfStyle(one=0.0)])
def test_other_formulas_of_norms_are_left(capsys, make):
    model = accelerate(make())
    assert other_norms(capsys) == 0 and type(model).__bases__ == (nn.Module,)
