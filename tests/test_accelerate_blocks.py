"""accelerate() on residual blocks of SPADE layers and the upsampling in front of them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_accelerate import Modulated, OthersBatchNorm, assert_same, one_hot, run
from torch import Tensor, nn
from torch.nn.utils import spectral_norm as torch_spectral_norm

from i2ifast import accelerate
from i2ifast.nn import bake


class Residual(nn.Module):
    """A residual block in the manner of SPADE's."""

    def __init__(self, fin: int, fout: int, classes: int, slope: float = 0.2, norm=None):
        super().__init__()
        middle = min(fin, fout)
        self.slope = slope
        self.n0 = Modulated(fin, classes, norm and norm(fin))
        self.n1 = Modulated(middle, classes, norm and norm(middle))
        self.c0 = torch_spectral_norm(nn.Conv2d(fin, middle, 3, padding=1))
        self.c1 = torch_spectral_norm(nn.Conv2d(middle, fout, 3, padding=1))
        if fin != fout:
            self.ns = Modulated(fin, classes, norm and norm(fin))
            self.cs = torch_spectral_norm(nn.Conv2d(fin, fout, 1, bias=False))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.c0(F.leaky_relu(self.n0(x, condition), self.slope))
        h = self.c1(F.leaky_relu(self.n1(h, condition), self.slope))
        return h + (self.cs(self.ns(x, condition)) if hasattr(self, "cs") else x)


class Upsampling(nn.Module):
    """Blocks with nn.Upsample in front of them; `aside` lets a function read what is upsampled first."""

    def __init__(self, norm=None, slope: float = 0.2, aside: str = ""):
        super().__init__()
        self.first, self.second = Residual(6, 6, 4, slope, norm), Residual(6, 4, 4, slope, norm)
        self.up, self.aside = nn.Upsample(scale_factor=2), aside

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = self.up(self.first(x, condition))
        if self.aside == "read":
            x = x * 2 + x.mean()
        if self.aside == "in place":
            x.mul_(2)
        x = self.second(x, condition)
        return self.up(x)


def blocks_changed(capsys) -> tuple[int, int]:
    words = capsys.readouterr().out.splitlines()[0].replace(",", "").split()
    return int(words[words.index("residual") - 2]), int(words[words.index("upsamplings") - 1])


@pytest.mark.parametrize("norm", [None, lambda c: nn.InstanceNorm2d(c), lambda c: OthersBatchNorm(c, affine=False)])
@pytest.mark.parametrize("slope", [0.2, 0.0])
@pytest.mark.parametrize("aside", ["", "read", "in place"])
def test_residual_blocks(capsys, norm, slope, aside):
    torch.manual_seed(0)
    plain = Upsampling(norm, slope, aside)
    ours = accelerate(copy.deepcopy(plain))
    assert blocks_changed(capsys) == (2, 1)
    x, condition = torch.randn(2, 6, 4, 6), one_hot(torch.randint(4, (2, 8, 12)), 4)
    for training in (True, False):
        if aside != "in place":  # autograd forbids that
            assert_same(run(ours.train(training), x, condition), run(plain.train(training), x, condition))
        with torch.no_grad():
            y = ours(x, condition)
            torch.testing.assert_close(y + 0, plain(x, condition), rtol=1e-4, atol=1e-5)
            assert y.shape == (2, 4, 16, 24) and y.numpy().shape == y.shape
    with torch.inference_mode():
        torch.testing.assert_close(ours(x, condition), plain(x, condition), rtol=1e-4, atol=1e-5)
    ours, plain = bake(ours), plain.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(x, condition) + 0, plain(x, condition), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slope", [0.3, 1.0])
def test_other_residual_blocks_are_left(capsys, slope):
    torch.manual_seed(0)
    plain = Upsampling(None, slope)
    ours = accelerate(copy.deepcopy(plain))
    assert blocks_changed(capsys) == (0, 0)
    x, condition = torch.randn(2, 6, 4, 6), torch.rand(2, 4, 8, 12)
    assert_same(run(ours, x, condition), run(plain, x, condition))


def test_a_map_changed_after_its_upsampling_is_refused(capsys):
    model = accelerate(Upsampling())
    x = torch.randn(1, 6, 4, 6)
    with torch.no_grad():
        later = model.up(x)
        x.mul_(2)
        with pytest.raises(RuntimeError, match="restore"):
            later.sum()


def test_hooks_in_a_block_are_called(capsys):
    torch.manual_seed(0)
    plain = Upsampling()
    ours = accelerate(copy.deepcopy(plain)).eval()
    x, condition, seen = torch.randn(1, 6, 4, 6), torch.rand(1, 4, 8, 12), []
    ours.second.n1.register_forward_hook(lambda m, i, o: seen.append(o))
    ours.second.c1.register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    ours.second.c1.register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad():
        torch.testing.assert_close(ours(x, condition) + 0, plain.eval()(x, condition), rtol=1e-4, atol=1e-5)
    assert len(seen) == 3 and torch.equal(seen[1], seen[2])
