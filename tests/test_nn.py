"""The modules stand in for what they replace: arguments, state_dict keys, numbers, copies and types."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from plain import PlainBlock, PlainSPADE, blocks, gradients, normal, one_hot
from test_ops import assert_within_twice
from torch import Tensor, nn

from i2ifast import labels
from i2ifast.nn import SPADE, AdaIN, InstanceNormAct, SPADEResnetBlock

CLASSES = 4
SEG = one_hot(blocks(2, 16, 12, CLASSES), CLASSES)
X = normal(2, 6, 16, 12)

PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "batch": (lambda: SPADE("spadebatch3x3", 6, CLASSES, 8), lambda: PlainSPADE("batch", 6, CLASSES, 8)),
    "syncbatch": (lambda: SPADE("spadesyncbatch3x3", 6, CLASSES, 8), lambda: PlainSPADE("batch", 6, CLASSES, 8)),
    "instance": (lambda: SPADE("spadeinstance5x5", 6, CLASSES, 8), lambda: PlainSPADE("instance", 6, CLASSES, 8, 5)),
    "block": (
        lambda: SPADEResnetBlock(6, 6, "spadebatch3x3", CLASSES, 8),
        lambda: PlainBlock(6, 6, "batch", CLASSES, 8),
    ),
    "spectral block": (
        lambda: SPADEResnetBlock(6, 5, "spectralspadeinstance3x3", CLASSES, 8),
        lambda: PlainBlock(6, 5, "instance", CLASSES, 8, spectral=True),
    ),
}
MODULES = {name: pair[0] for name, pair in PAIRS.items()}


def warm(make: Callable[[], nn.Module]) -> nn.Module:
    """A module after training forwards, which converge its spectral norms and fill its running buffers."""
    torch.manual_seed(0)
    net = make()
    with torch.no_grad():
        for seed in range(5):
            net(normal(2, 6, 16, 12, seed=seed), SEG)
    return net


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("ours_first", [True, False])
def test_state_dicts_and_numbers_are_plain_pytorchs(kind, ours_first):
    """Weights go either way; training forwards, gradients, buffers and evaluation agree."""
    make, make_plain = PAIRS[kind]
    ours, plain = make(), make_plain()
    source, target = (ours, plain) if ours_first else (plain, ours)
    assert list(target.state_dict()) == list(source.state_dict())
    assert [t.shape for t in target.state_dict().values()] == [t.shape for t in source.state_dict().values()]
    target.load_state_dict(source.state_dict())
    for training in (True, True, False):
        ours.train(training), plain.train(training)
        found, expected = gradients(ours, X, SEG), gradients(plain, X, SEG)
        for name, exact in expected.items():
            torch.testing.assert_close(found[name], exact, rtol=1e-4, atol=1e-4 * (1 + exact.abs().max().item()))


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("upsample", [False, True])
def test_running_buffers_move_as_torchs(momentum, upsample):
    """Whatever the momentum, the unbiased variance, of the upsampled map if x is upsampled, and the count."""
    ours, plain = SPADE("spadebatch3x3", 6, CLASSES, 8), nn.BatchNorm2d(6, affine=False, momentum=momentum)
    ours.param_free_norm.momentum = momentum
    for seed in range(3):
        x = 3 + 2 * normal(2, 6, 3, 2, seed=seed)
        ours(x, SEG, upsample=upsample)
        plain(F.interpolate(x, scale_factor=2) if upsample else x)
    for name, theirs in plain.state_dict().items():
        torch.testing.assert_close(ours.param_free_norm.state_dict()[name], theirs)


def test_an_empty_batch_leaves_the_running_buffers():
    net, plain = SPADE("spadebatch3x3", 6, CLASSES, 8), nn.BatchNorm2d(6, affine=False)
    net(X[:0], SEG[:0]), plain(X[:0])
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(net.param_free_norm, name), getattr(plain, name))


def test_frozen_statistics_train_the_rest():
    """Norms in eval mode inside a block in training, as fine-tuning does."""
    ours, plain = (make() for make in PAIRS["block"])
    plain.load_state_dict(ours.state_dict())
    for net in (ours, plain):
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.fill_(0.3), norm.running_var.fill_(2.0), norm.eval()
    found, expected = gradients(ours, X, SEG), gradients(plain, X, SEG)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_are_equal_and_independent(kind, duplicate):
    net = warm(MODULES[kind])
    net(X, SEG).sum().backward()
    other = duplicate(net)
    net.eval(), other.eval()
    expected = net(X, SEG)
    assert torch.equal(other(X, SEG), expected)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    assert torch.equal(net(X, SEG), expected) and not torch.equal(other(X, SEG), expected)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_modules(kind, dtype):
    """`.to(half)`: output and gradients in that type, within the 2x rule.

    Gradients behind a relu or leaky relu are left out: they jump where rounding changes the sign of its input.
    """
    net = warm(MODULES[kind]).eval()
    plain = PAIRS[kind][1]().eval()
    plain.load_state_dict(net.state_dict())
    net.to(dtype), plain.to(dtype)
    exact = copy.deepcopy(plain).double()
    x = X.to(dtype)
    for seg in (SEG.to(dtype), labels.plan(SEG.argmax(1), CLASSES)):
        found = gradients(net, x, seg)
        assert all(t.dtype is dtype for name, t in found.items() if "tracked" not in name)
        truth = gradients(exact, x.double(), SEG.double())
        smooth = ["y"] if "block" in kind else [name for name in truth if "shared" not in name]
        truth = {name: truth[name] for name in smooth}
        assert_within_twice(found, gradients(plain, x, SEG.to(dtype)), truth, dtype)


@pytest.mark.parametrize("kind", MODULES)
def test_memory_formats(kind):
    """Whatever the layouts of weights and input: the same values, and the output has the layout of x."""
    net = warm(MODULES[kind]).eval()
    expected = net(X, SEG)
    for weights in (torch.contiguous_format, torch.channels_last):
        other = copy.deepcopy(net).to(memory_format=weights)
        for layout in (torch.contiguous_format, torch.channels_last):
            y = other(X.contiguous(memory_format=layout), SEG.contiguous(memory_format=layout))
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
            if "block" not in kind:
                assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("kind", MODULES)
def test_built_without_memory_then_loaded(kind):
    net = warm(MODULES[kind]).eval()
    with torch.device("meta"):
        empty = MODULES[kind]()
    assert all(t.is_meta for t in empty.state_dict().values())
    empty = empty.to_empty(device="cpu").eval()
    empty.load_state_dict(net.state_dict())
    assert torch.equal(empty(X, SEG), net(X, SEG))


def test_errors_name_what_was_given():
    for text in ("spadegroup3x3", "spadebatch3x5", "spadebatch4x4", "batch3x3"):
        with pytest.raises(ValueError, match=f"config_text='{text}'.*odd K"):
            SPADE(text, 6, CLASSES)
    net = SPADE("spadebatch3x3", 6, CLASSES, 8)
    with pytest.raises(ValueError, match=r"segmap: expected a tensor \[N, C, H, W\], got shape \[4, 16, 12\]"):
        net(X, SEG[0])
    with pytest.raises(ValueError, match=r"has shape \[1, 16, 12\], expected \[2, 16, 12\]"):
        net(X, SEG[:1])
    with pytest.raises(ValueError, match=r"one value per channel has no variance, got x of shape \[1, 6, 1, 1\]"):
        net(X[:1, :, :1, :1], SEG[:1])
    with pytest.raises(ValueError, match="act='gelu'"):
        InstanceNormAct(6, "gelu")(X)
    with pytest.raises(ValueError, match=r"style has shape \[2, 10\], expected \[2, 12\]"):
        AdaIN()(X, normal(2, 10))


ACTIVATIONS = {"none": lambda z: z, "relu": F.relu, 0.2: lambda z: F.leaky_relu(z, 0.2)}


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_instance_norm_act(act, affine, dtype):
    """Forward and all gradients against instance norm and activation, within the 2x rule."""
    net = InstanceNormAct(6, act, affine, eps=1e-3).to(dtype)
    plain = nn.InstanceNorm2d(6, eps=1e-3, affine=affine).to(dtype)
    if affine:
        net.norm.weight.data.copy_(normal(6, seed=1)), net.norm.bias.data.copy_(normal(6, seed=2))
    plain.load_state_dict(net.norm.state_dict())

    def run(norm: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> dict[str, Tensor]:
        x = x.clone().requires_grad_()
        y = norm(x)
        found = torch.autograd.grad(y, [x, *module.parameters()], normal(*y.shape, seed=3).to(y.dtype))
        return dict(zip(["y", "dx", "dweight", "dbias"], [y.detach(), *found], strict=False))

    x = (2 + 3 * X).to(dtype)
    wide = copy.deepcopy(plain).double()
    exact = run(lambda x: ACTIVATIONS[act](wide(x)), wide, x.double())
    theirs = run(lambda x: ACTIVATIONS[act](plain(x)), plain, x)
    assert_within_twice(run(net, net, x), theirs, exact, dtype)


def small_scales(weight: float) -> tuple[float, float]:
    """Largest errors of a scaled instance norm, ours and plain PyTorch's, with every weight near `weight`."""
    net = InstanceNormAct(6, "none", affine=True)
    net.norm.weight.data.copy_(weight * (1 + 0.1 * normal(6, seed=1)))
    exact = F.instance_norm(X.double(), weight=net.norm.weight.double(), bias=net.norm.bias.double())
    errors = [(y.double() - exact).abs().max().item() for y in (net(X), net.norm(X))]
    return errors[0], errors[1] + 2**-22 * exact.abs().max().item()


@pytest.mark.parametrize(
    "weight",
    [
        3.0,
        0.5,
        1e-3,
        1e-6,
    ],
)
def test_affine_weights_of_any_size(weight):
    ours, allowed = small_scales(weight)
    assert ours <= 2 * allowed


def plain_adain(x: Tensor, style: Tensor) -> Tensor:
    """std(style) * (x - mean(x)) / std(x) + mean(style), std = sqrt(unbiased variance + 1e-5)."""

    def statistics(t: Tensor) -> tuple[Tensor, Tensor]:
        return t.mean((2, 3), keepdim=True), (t.var((2, 3), keepdim=True, correction=1) + 1e-5).sqrt()

    (mean, std), (style_mean, style_std) = statistics(x), statistics(style)
    return (x - mean) / std * style_std + style_mean


@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (2, 6, 1, 2), (2, 6, 16, 12)])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_adain_of_a_feature_map(shape, scale):
    """Forward and both gradients in float64, where x varies as little as eps as well."""
    x, style = scale * X.double() + 1, 2 + normal(*shape, seed=1, dtype=torch.float64)
    upstream = normal(*x.shape, seed=2, dtype=torch.float64)
    results = []
    for function in (AdaIN(), plain_adain):
        leaves = [t.clone().requires_grad_() for t in (x, style)]
        y = function(*leaves)
        results.append([y, *torch.autograd.grad(y, leaves, upstream)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * theirs.abs().max().item())


def test_adain_of_a_vector():
    style = normal(2, 12, seed=1, dtype=torch.float64)
    x = X.double()
    gamma, beta = style[..., None, None].chunk(2, 1)
    expected = F.leaky_relu(F.instance_norm(x, eps=1e-3) * (1 + gamma) + beta, 0.1)
    torch.testing.assert_close(AdaIN(0.1, eps=1e-3)(x, style), expected, rtol=1e-11, atol=1e-11)


def test_adain_in_the_style_of_itself_is_the_identity():
    torch.testing.assert_close(AdaIN()(X, X.flip(2)), X, rtol=1e-5, atol=1e-5)
