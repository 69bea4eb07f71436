"""accelerate() on networks in the manner of published ones, with classes and names that i2ifast does not know."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm as torch_spectral_norm

from i2ifast import accelerate, restore
from i2ifast.nn import SPADE, bake
from i2ifast.nn import spectral_norm as fused_spectral_norm
from i2ifast.nn.conv import fits_conv2d


class Modulated(nn.Module):
    """A SPADE layer; `formula` stands for what others might have made of it."""

    def __init__(self, channels: int, classes: int, norm: nn.Module | None = None, formula: str = "spade", k: int = 3):
        super().__init__()
        self.plain_norm = norm or nn.BatchNorm2d(channels, affine=False)
        self.trunk = nn.Sequential(nn.Conv2d(classes, 16, k, padding=k // 2), nn.ReLU())
        self.to_gamma = nn.Conv2d(16, channels, k, padding=k // 2)
        self.to_beta = nn.Conv2d(16, channels, k, padding=k // 2)
        self.formula = formula

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        xhat = self.plain_norm(x)
        h = self.trunk(
            F.interpolate(condition, size=x.shape[2:], mode="bilinear" if self.formula == "bilinear" else "nearest")
        )
        gamma, beta = self.to_gamma(h), self.to_beta(h)
        if self.formula == "no one":
            return xhat * gamma + beta
        if self.formula == "shift first":
            return (xhat + beta) * (1 + gamma)
        return xhat * (1 + gamma) + beta


class FunctionalTrunk(nn.Module):
    """The same formula with beta registered first, the relu called as a function, and other names."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.add = nn.Conv2d(8, channels, 3, padding=1)
        self.scale = nn.Conv2d(8, channels, 3, padding=1)
        self.first = nn.Conv2d(classes, 8, 3, padding=1)
        self.whiten = nn.InstanceNorm2d(channels)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = F.relu(self.first(F.interpolate(labels, size=x.shape[2:])))
        return self.whiten(x) * (1 + self.scale(h)) + self.add(h)


class OthersBatchNorm(nn.BatchNorm2d):
    """Batch norm with statistics of its own making in training, as synchronised ones have."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if not self.training else 0.5 * super().forward(x)


class Block(nn.Module):
    def __init__(self, cin: int, cout: int, classes: int, wrap=torch_spectral_norm):
        super().__init__()
        self.a, self.b = Modulated(cin, classes), Modulated(cin, classes)
        self.conv_a = wrap(nn.Conv2d(cin, cin, 3, padding=1))
        self.conv_b = wrap(nn.Conv2d(cin, cout, 3, padding=1))
        self.skip = wrap(nn.Conv2d(cin, cout, 1, bias=False))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv_a(F.leaky_relu(self.a(x, condition), 0.2))
        return self.skip(x) + self.conv_b(F.leaky_relu(self.b(h, condition), 0.2))


class Painter(nn.Module):
    """A SPADE generator in small."""

    def __init__(self, classes: int = 5):
        super().__init__()
        self.start = nn.Conv2d(classes, 8, 3, padding=1)
        self.blocks = nn.ModuleList([Block(8, 8, classes), Block(8, 6, classes)])
        self.to_rgb = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, condition: Tensor) -> Tensor:
        x = self.start(F.interpolate(condition, size=(8, 6)))
        for block in self.blocks:
            x = F.interpolate(block(x, condition), scale_factor=2)
        return torch.tanh(self.to_rgb(x))


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return F.one_hot(labels, classes).permute(0, 3, 1, 2).float()


def painter() -> tuple[Painter, Tensor]:
    """A generator whose spectral norms have converged, so that float32 says something, and a label map."""
    torch.manual_seed(0)
    labels = torch.randint(5, (2, 8, 6)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    model, condition = Painter(), one_hot(labels, 5)
    with torch.no_grad():
        for _ in range(10):
            model(condition)
    return model, condition


def residual_net(affine: bool) -> nn.Sequential:
    """A pix2pixHD-like generator: one activation object for all places, blocks of nested sequences."""
    act = nn.ReLU(True)

    def norm(channels):
        return nn.InstanceNorm2d(channels, affine=affine)

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            convs = [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)]
            pad = nn.ReflectionPad2d
            self.body = nn.Sequential(pad(1), convs[0], norm(8), act, pad(1), convs[1], norm(8))

        def forward(self, x):
            return x + self.body(x)

    down = [
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        norm(8),
        act,
        nn.Conv2d(8, 8, 3, padding=1),
        norm(8),
        nn.LeakyReLU(0.2),
    ]
    up = [
        nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1),
        norm(8),
        act,
        nn.Conv2d(8, 3, 3, padding=1),
    ]
    model = nn.Sequential(*down, Residual(), *up, act)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


def run(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Output, gradients of everything, and the buffers afterwards."""
    model.zero_grad(set_to_none=True)
    inputs = [x.clone().requires_grad_(x.is_floating_point() and i == 0) for i, x in enumerate(inputs)]
    y = model(*inputs)
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).mean().backward()
    return [y.detach(), *(p.grad for p in model.parameters()), *model.buffers(), inputs[0].grad]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def snapshot(model: nn.Module) -> dict:
    """All that restore() has to bring back, by identity."""
    return {
        name: (
            type(m),
            list(vars(m)),
            *({k: id(v) for k, v in t.items()} for t in (m._parameters, m._buffers, m._modules)),
        )
        + tuple([(id(h), type(h)) for h in hooks.values()] for hooks in (m._forward_pre_hooks, m._forward_hooks))
        for name, m in model.named_modules(remove_duplicate=False)
    }


def changed(capsys) -> list[int]:
    """SPADE layers, pairs and spectral norms of the last summary; 3x3 convolutions have their own test."""
    return [int(word) for word in capsys.readouterr().out.splitlines()[0].split() if word.isdigit()][:3]


@pytest.mark.parametrize("training", [True, False])
def test_spade_generator(capsys, training):
    plain, condition = painter()
    plain.train(training)
    ours = copy.deepcopy(plain)
    keys, identities = list(ours.state_dict()), [id(p) for p in ours.parameters()]
    assert accelerate(ours) is ours
    assert changed(capsys) == [4, 0, 6]
    assert list(ours.state_dict()) == keys and [id(p) for p in ours.parameters()] == identities
    assert isinstance(ours.blocks[0].a, Modulated) and repr(ours) == repr(plain)
    for _ in range(2):
        assert_same(run_map(ours, condition), run_map(plain, condition))


def run_map(model: nn.Module, condition: Tensor) -> list[Tensor]:
    """As run(), with a condition that needs no gradient, so that layers run on tables."""
    model.zero_grad(set_to_none=True)
    y = model(condition)
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).mean().backward()
    return [y.detach(), *(p.grad for p in model.parameters()), *model.buffers()]


def test_restore_is_exact(capsys):
    model, condition = painter()
    model = nn.ModuleDict({"painter": model, "residual": residual_net(True)})
    before = snapshot(model)
    accelerate(model)
    assert changed(capsys) == [4, 4, 6]
    assert snapshot(model) != before
    model["painter"](condition)
    accelerate(model)
    assert changed(capsys) == [0, 0, 0]
    restore(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("affine", [True, False])
def test_sequential_pairs_share_one_activation(capsys, affine):
    torch.manual_seed(0)
    plain = residual_net(affine)
    ours = accelerate(copy.deepcopy(plain))
    assert changed(capsys) == [0, 4, 0]
    x = torch.randn(2, 3, 12, 10)
    for training in (True, False):
        assert_same(run(ours.train(training), x), run(plain.train(training), x))
    torch.testing.assert_close(ours[:3](x), plain[:3](x))


def test_hooks_on_a_pair_are_called(capsys):
    model = accelerate(nn.Sequential(nn.InstanceNorm2d(2), nn.ReLU()))
    seen = []
    handle = model[0].register_forward_hook(lambda m, i, o: seen.append(o))
    x = torch.randn(1, 2, 4, 4)
    expected = model(x)
    assert len(seen) == 1
    handle.remove()
    torch.testing.assert_close(model(x), expected)
    assert len(seen) == 1


def test_pairs_raise_as_torch_does(capsys):
    model = accelerate(nn.Sequential(nn.InstanceNorm2d(2), nn.ReLU()))
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        model(torch.randn(1, 2, 1, 1))


def norms() -> dict[str, nn.Module]:
    return {
        "batch": nn.BatchNorm2d(6, affine=False),
        "cumulative": nn.BatchNorm2d(6, affine=False, momentum=None),
        "no running": nn.BatchNorm2d(6, affine=False, track_running_stats=False),
        "sync": nn.SyncBatchNorm(6, affine=False),
        "instance": nn.InstanceNorm2d(6),
        "others'": OthersBatchNorm(6, affine=False),
    }


@pytest.mark.parametrize("kind", norms())
@pytest.mark.parametrize("segmap", ["labels", "soft"])
def test_every_norm_and_map(capsys, kind, segmap):
    torch.manual_seed(0)
    plain = Modulated(6, 4, norms()[kind], k=5 if kind == "batch" else 3)
    ours = accelerate(copy.deepcopy(plain))
    assert changed(capsys) == [1, 0, 0]
    x = torch.randn(2, 6, 9, 7)
    labels = torch.randint(4, (2, 6, 5)).repeat_interleave(3, 1).repeat_interleave(3, 2)
    soft = torch.rand(2, 4, 18, 15)
    condition = soft if segmap == "soft" else one_hot(labels, 4)
    for training in (True, True, False):
        assert_same(run(ours.train(training), x, condition), run(plain.train(training), x, condition))


def test_parts_are_told_apart_by_running_them(capsys):
    torch.manual_seed(0)
    plain = FunctionalTrunk(6, 4)
    ours = accelerate(copy.deepcopy(plain))
    assert changed(capsys) == [1, 0, 0]
    x, soft = torch.randn(2, 6, 9, 7), torch.rand(2, 4, 9, 7)
    assert_same(run(ours, x, soft), run(plain, x, soft))


def test_untrained_zeros_do_not_fool_the_trial(capsys):
    layer = FunctionalTrunk(6, 4)
    for p in layer.parameters():
        nn.init.zeros_(p)
    accelerate(layer)
    assert changed(capsys) == [1, 0, 0]
    plain = FunctionalTrunk(6, 4)
    layer.load_state_dict(plain.state_dict())
    x, soft = torch.randn(2, 6, 9, 7), torch.rand(2, 4, 9, 7)
    torch.testing.assert_close(layer(x, soft), plain(x, soft), rtol=1e-4, atol=1e-5)


class Failing(Modulated):
    def forward(self, x, condition):
        raise LookupError("no such thing")


def without_bias() -> Modulated:
    layer = Modulated(6, 4)
    layer.to_beta = nn.Conv2d(16, 6, 3, padding=1, bias=False)
    return layer


def hooked() -> Modulated:
    layer = Modulated(6, 4)
    torch_spectral_norm(layer.to_gamma)
    return layer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Modulated(6, 4, formula="no one"), "it is not norm(x) * (1 + gamma) + beta"),
        (lambda: Modulated(6, 4, formula="shift first"), "it is not norm(x) * (1 + gamma) + beta"),
        (lambda: Modulated(6, 4, formula="bilinear"), "it is not norm(x) * (1 + gamma) + beta"),
        (lambda: Modulated(6, 4, nn.InstanceNorm2d(6, track_running_stats=True)), "running statistics"),
        (lambda: Failing(6, 4), "LookupError: no such thing"),
        (without_bias, "its convolutions are not"),
        (hooked, "hooks on its children"),
    ],
)
def test_what_is_not_spade_is_left_and_reported(capsys, make, reason):
    layer = make()
    state = torch.get_rng_state()
    accelerate(nn.ModuleDict({"layer": layer}))
    summary = capsys.readouterr().out
    assert summary.startswith("accelerate: 0 SPADE layers") and "left layer: " in summary and reason in summary
    assert type(layer) in (Modulated, Failing)
    assert torch.equal(state, torch.get_rng_state())


def test_own_modules_are_left_alone(capsys):
    model = nn.ModuleList([SPADE("spadebatch3x3", 6, 4), fused_spectral_norm(nn.Linear(3, 2))])
    before = snapshot(model)
    accelerate(model)
    assert snapshot(model) == before
    assert changed(capsys) == [0, 0, 0]
    restore(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_are_accelerated_and_independent(capsys, duplicate):
    model, condition = painter()
    accelerate(model)
    model(condition)
    twin = duplicate(model)
    assert type(twin.blocks[0].a) is type(model.blocks[0].a)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(0.9)
    plain = Painter()
    plain.load_state_dict(twin.state_dict())
    assert_same(run_map(twin, condition), run_map(plain, condition))
    assert type(restore(twin).blocks[0].a) is Modulated


def test_calls_the_replacement_does_not_know(capsys):
    torch.manual_seed(0)
    plain = Modulated(6, 4, nn.InstanceNorm2d(6))
    ours = accelerate(copy.deepcopy(plain))
    x, soft = torch.randn(2, 6, 9, 7), torch.rand(2, 4, 9, 7)
    torch.testing.assert_close(ours(x, condition=soft), plain(x, soft))
    seen = []
    ours.trunk[0].register_forward_hook(lambda m, i, o: seen.append(o))
    torch.testing.assert_close(ours(x, soft), plain(x, soft))
    assert len(seen) == 1


def test_replicas_use_their_own_parts(capsys):
    """DataParallel copies a module's attributes and gives the copy other children."""
    torch.manual_seed(0)
    first, second = accelerate(Modulated(6, 4)), Modulated(6, 4)
    replica = first._replicate_for_data_parallel()
    replica._modules = second._modules
    x, soft = torch.randn(2, 6, 9, 7), torch.rand(2, 4, 9, 7)
    torch.testing.assert_close(replica.eval()(x, soft), second.eval()(x, soft), rtol=1e-4, atol=1e-5)


def test_autocast(capsys):
    plain, condition = painter()
    ours = accelerate(copy.deepcopy(plain)).eval()
    exact = plain.eval()(condition)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, theirs = ours(condition), plain(condition)
    assert (y - exact).abs().max() <= 2 * (theirs - exact).abs().max()


def test_convolutions(capsys):
    """3x3 and 4x4 convolutions change, others do not; a changed network bakes, and restores."""
    strided = nn.Conv2d(64, 64, 4, 2, 1), nn.ConvTranspose2d(64, 64, 4, 2, 1), nn.Conv2d(64, 64, 3, 2, 1)
    net = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1), *strided, nn.Conv2d(64, 64, 1))
    x = torch.randn(2, 16, 12, 10)
    with torch.no_grad():
        expected = net(x)
        accelerate(net)
        count = 4 if fits_conv2d(strided[0]) else 1
        assert f" {count} convolutions" in capsys.readouterr().out
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(bake(net)(x), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(restore(net)(x), expected)
    assert [type(m) for m in net] == [nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d, nn.Conv2d, nn.Conv2d]


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("pad", [nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad2d, None])
def test_upsampling_with_convolution(capsys, kernel, pad):
    torch.manual_seed(0)
    side = kernel // 2
    conv = nn.Conv2d(16, 64, kernel, padding=0 if pad else side)
    plain = nn.Sequential(nn.Upsample(scale_factor=2), *([pad(side)] if pad else []), conv, nn.ReLU())
    ours = accelerate(copy.deepcopy(plain))
    assert "1 upsamplings with convolution" in capsys.readouterr().out
    x = torch.randn(2, 16, 24, 20)
    for a, b in zip(run(ours, x), run(plain, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    ours[-2].register_forward_hook(lambda m, i, o: o + 1)
    torch.testing.assert_close(ours(x), F.relu(plain[:-1](x) + 1), rtol=1e-3, atol=1e-4)
