"""Layers conditioned on features: FADE, FAdaIN, positional norm, predicted convolutions, against plain PyTorch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from plain import blocks, gradients, normal, one_hot
from torch import Tensor, nn
from torch.nn.utils import spectral_norm as torch_spectral_norm

from i2ifast import labels, ops
from i2ifast.nn import (
    FADE,
    BatchNormAct,
    DepthsepCC,
    DepthsepCCBlock,
    FAdaIN,
    FADEResnetBlock,
    PositionalNorm2d,
    ReflectionSPADE,
    bake,
)

CLASSES = 4
X, FEATURES = normal(2, 6, 8, 12), normal(2, 6, 8, 12, seed=3)


class PlainFADE(nn.Module):
    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.param_free_norm = nn.BatchNorm2d(channels, affine=False)
        self.mlp_gamma = nn.Conv2d(features, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(features, channels, 3, padding=1)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return self.param_free_norm(x) * (1 + self.mlp_gamma(features)) + self.mlp_beta(features)


class PlainFADEBlock(nn.Module):
    def __init__(self, fin: int, fout: int) -> None:
        super().__init__()
        self.conv_0 = torch_spectral_norm(nn.Conv2d(fin, fin, 3, padding=1))
        self.conv_1 = torch_spectral_norm(nn.Conv2d(fin, fout, 3, padding=1))
        if fin != fout:
            self.conv_s = torch_spectral_norm(nn.Conv2d(fin, fout, 1, bias=False))
        self.norm_0, self.norm_1 = PlainFADE(fin, fin), PlainFADE(fin, fin)
        if fin != fout:
            self.norm_s = PlainFADE(fin, fin)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        shortcut = self.conv_s(self.norm_s(x, features)) if hasattr(self, "conv_s") else x
        h = self.conv_0(F.leaky_relu(self.norm_0(x, features), 0.2))
        return shortcut + self.conv_1(F.leaky_relu(self.norm_1(h, features), 0.2))


class PlainReflectionSPADE(nn.Module):
    def __init__(self, channels: int, label_nc: int, nhidden: int, pono: bool) -> None:
        super().__init__()
        self.param_free_norm = None if pono else nn.BatchNorm2d(channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(label_nc, nhidden, 3), nn.ReLU())
        self.mlp_gamma, self.mlp_beta = nn.Conv2d(nhidden, channels, 3), nn.Conv2d(nhidden, channels, 3)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        hidden = F.pad(self.mlp_shared(F.interpolate(segmap, size=x.shape[2:])), [1] * 4, mode="reflect")
        if self.param_free_norm is None:
            xhat = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()
        else:
            xhat = self.param_free_norm(x)
        return xhat * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


PAIRS = {
    "fade": (lambda: FADE("fadesyncbatch3x3", 6, 6), lambda: PlainFADE(6, 6)),
    "identity block": (lambda: FADEResnetBlock(6, 6, "spectralfadebatch3x3"), lambda: PlainFADEBlock(6, 6)),
    "block": (lambda: FADEResnetBlock(6, 4, "spectralfadesyncbatch3x3"), lambda: PlainFADEBlock(6, 4)),
    "positional": (
        lambda: ReflectionSPADE("spadesyncbatch3x3", 6, 6, PONO=True, nhidden=8),
        lambda: PlainReflectionSPADE(6, 6, 8, True),
    ),
    "reflection": (
        lambda: ReflectionSPADE("spadesyncbatch3x3", 6, 6, nhidden=8),
        lambda: PlainReflectionSPADE(6, 6, 8, False),
    ),
}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, exact in expected.items():
        torch.testing.assert_close(found[name], exact, rtol=1e-4, atol=1e-4 * (1 + exact.abs().max().item()), msg=name)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_state_dicts_and_numbers_are_plain_pytorchs(kind, layout):
    """Training forwards, gradients, buffers and evaluation agree; keys in the same order."""
    ours, plain = (make() for make in PAIRS[kind])
    assert list(ours.state_dict()) == list(plain.state_dict())
    ours.load_state_dict(plain.state_dict())
    x, features = (t.contiguous(memory_format=layout) for t in (X, FEATURES))
    for training in (True, True, False):
        ours.train(training), plain.train(training)
        assert_close(gradients(ours, x, features), gradients(plain, X, FEATURES))


@pytest.mark.parametrize("kind", ["fade", "identity block", "block"])
def test_upsampling_inside_is_upsampling_in_front(kind):
    ours = PAIRS[kind][0]()
    other, small = copy.deepcopy(ours), X[:, :, :4, :6]
    expected = gradients(other, F.interpolate(small, scale_factor=2), FEATURES)
    found = gradients(ours, small, FEATURES, upsample=True)
    expected["dx"] = F.avg_pool2d(expected["dx"], 2) * 4
    assert_close(found, expected)


@pytest.mark.parametrize("kind", ["fade", "identity block", "block"])
def test_baked_layers_give_the_same(kind):
    net = PAIRS[kind][0]()
    with torch.no_grad():
        for seed in range(3):
            net(normal(2, 6, 8, 12, seed=seed), FEATURES)
        expected = net.eval()(X, FEATURES)
        torch.testing.assert_close(bake(net)(X, FEATURES), expected, rtol=1e-4, atol=1e-5)


def test_features_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"features of size \[4, 6\] for x of size \[8, 12\]"):
        FADE("fadebatch3x3", 6, 6)(X, FEATURES[:, :, :4, :6])
    with pytest.raises(ValueError, match="config_text='fade3x3'"):
        FADE("fade3x3", 6, 6)


def plain_fadain(x: Tensor, style: Tensor, alpha: float) -> Tensor:
    def statistics(t: Tensor) -> tuple[Tensor, Tensor]:
        return t.mean((2, 3), keepdim=True), (t.var((2, 3), keepdim=True) + 1e-5).sqrt()

    (mean, std), (style_mean, style_std) = statistics(x), statistics(style)
    return alpha * ((x - mean) / std * style_std + style_mean) + (1 - alpha) * x


@pytest.mark.parametrize("alpha", [1.0, 0.75, 0.0])
@pytest.mark.parametrize("repeats", [1, 4])
def test_fadain(alpha, repeats):
    """Gradients to both maps; with `repeats` it is the style of the upsampled map."""
    x, style = (t.clone().requires_grad_() for t in (3 + 2 * X, 1 - FEATURES))
    y = FAdaIN(alpha)(x, style, repeats)
    expected = plain_fadain(F.interpolate(x, scale_factor=2) if repeats == 4 else x, style, alpha)
    dy = normal(*y.shape, seed=5)
    found = [y, *torch.autograd.grad(y, [x, style], dy)]
    expected = expected[:, :, ::2, ::2] if repeats == 4 else expected
    for ours, theirs in zip(found, [expected, *torch.autograd.grad(expected, [x, style], dy)], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_positional_norm_of_a_large_mean():
    x = (1e4 + 1e-2 * normal(2, 32, 5, 7, dtype=torch.float64)).float()
    exact = PositionalNorm2d()(x.double())
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(
            PositionalNorm2d()(x.contiguous(memory_format=layout)).double(), exact, rtol=2e-2, atol=2e-2
        )


def test_positional_norm_keeps_a_nan_in_its_pixel():
    x = X.clone()
    x[0, 1, 2, 3] = float("nan")
    clean, dirty = ops.positional_norm(X), ops.positional_norm(x)
    wrong = dirty.isnan()
    assert wrong[0, :, 2, 3].all() and wrong.sum() == X.size(1) and torch.equal(clean[~wrong], dirty[~wrong])


@pytest.mark.parametrize("act", ["none", 0.2])
def test_batch_norm_with_its_activation(act):
    ours, plain = BatchNormAct(6, act), nn.BatchNorm2d(6)
    nn.init.normal_(plain.weight), nn.init.normal_(plain.bias)
    ours.load_state_dict(plain.state_dict())
    whole = plain if act == "none" else nn.Sequential(plain, nn.LeakyReLU(0.2))
    for training in (True, False):
        ours.train(training), whole.train(training)
        found, expected = gradients(ours, X), gradients(whole, X)
        assert_close(found, {name.replace("0.", ""): t for name, t in expected.items()})


def plain_block(block: DepthsepCCBlock, x: Tensor, segmap: Tensor) -> Tensor:
    """The published formulation with the parameters of ours."""

    def apply(x: Tensor, weight: Tensor) -> Tensor:
        n, c, h, w = x.shape
        patches = F.unfold(x, 3, padding=1).view(n * c, 9, h, w)
        return (patches * weight.reshape(n * c, 9, h, w)).sum(1).view(n, c, h, w)

    def norm(x: Tensor, layer: nn.Module) -> Tensor:
        return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True)

    h = apply(norm(x, block.norm_1), block.gen_weights1(segmap))
    h = F.leaky_relu(block.conv_1(h) * block.gen_se_weights1(segmap), 0.2)
    h = apply(norm(h, block.norm_2), block.gen_weights2(segmap))
    h = F.leaky_relu(block.conv_3(h) * block.gen_se_weights2(segmap), 0.2)
    if not block.learned_shortcut:
        return x + h
    hidden = block.norm_s.mlp_shared(segmap)
    gamma, beta = block.norm_s.mlp_gamma(hidden), block.norm_s.mlp_beta(hidden)
    return block.conv_s(F.batch_norm(x, None, None, training=True) * (1 + gamma) + beta) + h


@pytest.mark.parametrize("fout", [6, 4])
@pytest.mark.parametrize("given", ["one map", "tensor", "plan"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_conditional_block_is_the_published_formulation(fout, given, layout):
    torch.manual_seed(0)
    maps = blocks(2, 16, 24, CLASSES)
    seg, features = one_hot(maps, CLASSES), normal(2, 5, 8, 12, seed=4)
    block = DepthsepCCBlock(6, fout, "spectralsync_batch", CLASSES + 5, nhidden=8)
    used = {k: p for k, p in block.named_parameters() if not k.startswith(("norm_0", "conv_0", "conv_2"))}
    segmap = torch.cat([F.interpolate(seg, size=(8, 12)), features], 1)
    plan = labels.plan(maps, CLASSES)
    conditions = {"one map": (segmap,), "tensor": (seg, features), "plan": (plan, features)}[given]
    state, dy, results = copy.deepcopy(block.state_dict()), normal(2, fout, 8, 12, seed=6), []
    for call in (lambda x: block(x, *conditions), lambda x: plain_block(block, x, segmap)):
        block.load_state_dict(state)
        x = X.contiguous(memory_format=layout).requires_grad_()
        y = call(x)
        results.append(
            dict(zip(["y", "dx", *used], [y, *torch.autograd.grad(y, [x, *used.values()], dy)], strict=True))
        )
    assert_close(*results)


def test_conditional_block_refuses_to_widen():
    with pytest.raises(ValueError, match="4 to 6 channels"):
        DepthsepCCBlock(4, 6, "spectralsync_batch", 3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_depthwise_weights_as_a_convolution_makes_them(layout):
    x, weight = normal(2, 5, 4, 7), normal(2, 45, 4, 7, seed=1)
    expected = (F.unfold(x, 3, padding=1).view(2, 45, 4, 7) * weight).view(2, 5, 9, 4, 7).sum(2)
    x, weight = (t.contiguous(memory_format=layout) for t in (x, weight))
    torch.testing.assert_close(DepthsepCC(5)(x, weight), expected)


def test_reflection_on_the_fast_route():
    """Channels that are no multiple of a block, on maps large enough for the kernel."""
    layer = ReflectionSPADE("spadesyncbatch3x3", 32, 21, PONO=True, nhidden=64)
    plain = PlainReflectionSPADE(32, 21, 64, True)
    plain.load_state_dict(layer.state_dict())
    x, segmap = normal(1, 32, 32, 24), normal(1, 21, 32, 24, seed=1)
    assert_close(gradients(layer, x, segmap), gradients(plain, x, segmap))
