"""Layers on tables of distinct label windows are the dense layers: forward and all gradients, for every label map."""

from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plain import PlainBlock, PlainSPADE, blocks, gradients, normal, one_hot
from test_labels import KINDS, pattern
from test_ops import assert_within_twice
from torch import Tensor, nn

from i2ifast import labels
from i2ifast.labels import LabelPlan
from i2ifast.nn import SPADE, SPADEResnetBlock, label_conv2d
from i2ifast.nn import spade as module

CLASSES = 4
ROUTES = ["table", "windows", "dense"]
property_of_maps = settings(max_examples=25, deadline=None, derandomize=True)

label_maps = st.builds(
    pattern,
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 3),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    classes=st.just(CLASSES),
    seed=st.integers(0, 99),
)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@contextmanager
def forced(route: str):
    """Layers take tables of windows, or only the first convolution's windows, whether that pays or not."""
    with patch.object(module, "table_pays", lambda level: route == "table"):
        yield


def conditioning(route: str, plan: LabelPlan, dtype: torch.dtype = torch.float64) -> Tensor | LabelPlan:
    """The plan; for the dense route a map that requires grad, which plans do not apply to."""
    return plan.dense().to(dtype, copy=True).requires_grad_() if route == "dense" else plan


def same_weights(ours: nn.Module, plain: nn.Module, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """Both in `dtype`, with the same parameters of order 1."""
    for i, p in enumerate(ours.parameters()):
        p.data.copy_(normal(*p.shape, seed=i) / max(1, p[0].numel()) ** 0.5)
    plain.load_state_dict(ours.state_dict())
    return ours.to(dtype), plain.to(dtype)


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Within 1e-10 of the largest value, or of 1, the size of the terms that cancel."""
    assert list(ours) == list(theirs)
    for name, exact in theirs.items():
        error = (ours[name] - exact).abs().max().item() if exact.numel() else 0.0
        assert error <= 1e-10 * max(1.0, exact.abs().max().item() if exact.numel() else 0.0), (name, error)


@pytest.mark.parametrize("map_kind", KINDS)
@pytest.mark.parametrize("route", ROUTES)
@property_of_maps
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
    instances=st.booleans(),
    ignore=st.sampled_from([None, 1]),
    size=sizes,
    kernel=st.sampled_from([1, 3, 5]),
    kind=st.sampled_from(["batch", "instance"]),
    act=st.sampled_from(["none", "relu", 0.2]),
    upsample=st.booleans(),
)
def test_layer_in_float64(route, map_kind, shape, seed, instances, ignore, size, kernel, kind, act, upsample):
    """Every pattern, kernel and resolution of x, the running buffers included."""
    maps = pattern(map_kind, *shape, CLASSES, seed)
    assume(size != (1, 1) or upsample)  # torch's norms refuse one value per channel
    plan = labels.plan(maps, CLASSES, instances=maps // 2 if instances else None, ignore_index=ignore)
    sizes_of = 5, CLASSES + instances, 6
    ours, plain = same_weights(SPADE(f"spade{kind}{kernel}x{kernel}", *sizes_of), PlainSPADE(kind, *sizes_of, kernel))
    x = normal(len(maps), 5, *size, dtype=torch.float64)
    seg = conditioning(route, plan)
    with forced(route):
        found = gradients(ours, x, seg, act=act, upsample=upsample)
    dense = plan.dense().double().requires_grad_()
    expected = gradients(plain, x, dense, act=act, upsample=upsample)
    assert_equal(found, expected)
    if route == "dense":
        assert_equal({"dseg": seg.grad}, {"dseg": dense.grad})


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", ["batch", "instance"])
@pytest.mark.parametrize("fout, upsample", [(6, False), (6, True), (4, False), (4, True)])
def test_block_in_float64(route, kind, fout, upsample):
    """With and without a learned shortcut, spectral norm, training and evaluation after it."""
    sizes_of = 6, fout
    ours, plain = same_weights(
        SPADEResnetBlock(*sizes_of, f"spectralspade{kind}3x3", CLASSES, 8),
        PlainBlock(*sizes_of, kind, CLASSES, 8, spectral=True),
    )
    plan = labels.plan(torch.cat([pattern(k, 1, 11, 9, CLASSES, 2) for k in KINDS]), CLASSES)
    x = normal(len(KINDS), 6, 6, 5, dtype=torch.float64)
    seg = conditioning(route, plan)
    with forced(route):
        for training in (True, True, False):
            ours.train(training), plain.train(training)
            found = gradients(ours, x, seg, upsample=upsample)
            assert_equal(found, gradients(plain, x, plan.dense().double(), upsample=upsample))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", ["batch", "instance"])
@pytest.mark.parametrize("layer", ["layer", "upsampled layer", "block"])
def test_float32_is_within_twice_of_dense(route, kind, layer):
    """The tolerance rule of the ops, for whole layers: against float64, at most twice the error of dense PyTorch."""
    if layer == "block":
        ours, plain = SPADEResnetBlock(16, 8, f"spade{kind}3x3", CLASSES, 24), PlainBlock(16, 8, kind, CLASSES, 24)
    else:
        ours, plain = SPADE(f"spade{kind}3x3", 16, CLASSES, 24), PlainSPADE(kind, 16, CLASSES, 24)
    options = {"upsample": True} if layer == "upsampled layer" else {}
    ours, plain = same_weights(ours, plain, torch.float32)
    plan = labels.plan(blocks(2, 24, 20, CLASSES), CLASSES)
    x = normal(2, 16, *((12, 10) if options else (24, 20)))
    with forced(route):
        found = gradients(ours, x, conditioning(route, plan, torch.float32), **options)
    in_float32 = gradients(plain, x, plan.dense(), **options)
    _, plain = same_weights(ours, plain)
    plain.apply(lambda m: m.reset_running_stats() if isinstance(m, nn.BatchNorm2d) else None)
    exact = gradients(plain, x.double(), plan.dense().double(), **options)
    exact.pop("d conv_0.bias", None)  # zero: norm_1 takes the mean away
    assert_within_twice(found, in_float32, exact, torch.float32)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", ["batch", "instance"])
def test_batch_is_its_images_one_by_one(route, kind):
    maps = torch.cat([pattern(k, 1, 9, 7, CLASSES, 1) for k in KINDS])
    x = normal(len(maps), 6, 9, 7, dtype=torch.float64)
    net, _ = same_weights(SPADE(f"spade{kind}3x3", 6, CLASSES, 8), PlainSPADE(kind, 6, CLASSES, 8))
    net.eval()
    with forced(route):
        whole = net(x, conditioning(route, labels.plan(maps, CLASSES)))
        for i in range(len(maps)):
            one = net(x[i : i + 1], conditioning(route, labels.plan(maps[i : i + 1], CLASSES)))
            torch.testing.assert_close(whole[i : i + 1], one, rtol=0, atol=1e-12)


def test_tensor_and_plan_are_the_same_bits():
    """A dense map finds the plan that its labels make."""
    net = SPADE("spadebatch3x3", 6, CLASSES, 8)
    maps, x = blocks(2, 16, 12, CLASSES), normal(2, 6, 16, 12)
    assert net(x, one_hot(maps, CLASSES)).equal(net(x, labels.plan(maps, CLASSES)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_soft_maps_take_the_dense_path(dtype):
    """They do so without a plan, and agree with plain PyTorch; so do float64 maps that float32 cannot hold."""
    ours, plain = same_weights(SPADE("spadebatch3x3", 6, CLASSES, 8), PlainSPADE("batch", 6, CLASSES, 8), dtype)
    soft = normal(2, CLASSES, 20, 18, dtype=dtype).softmax(1)
    x = normal(2, 6, 10, 9, dtype=dtype)
    with patch.object(LabelPlan, "level", side_effect=AssertionError("a plan was used")):
        found = gradients(ours, x, soft)
    expected = gradients(plain, x, soft)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("kind", ["batch", "instance"])
def test_nan_spoils_what_it_spoils_in_plain_pytorch(kind):
    """In x the values that share its statistics, in the map the windows that it is in."""
    ours, plain = same_weights(SPADE(f"spade{kind}3x3", 6, CLASSES, 8), PlainSPADE(kind, 6, CLASSES, 8), torch.float32)
    x, seg = normal(2, 6, 16, 12), one_hot(blocks(2, 16, 12, CLASSES), CLASSES)
    for tensor in (x, seg):
        spoilt = tensor.clone()
        spoilt[1, 2, 5, 6] = float("nan")
        given = (spoilt, seg) if tensor is x else (x, spoilt)
        found = ours(*given).isnan()
        assert 0 < found.sum() < found.numel() and torch.equal(found, plain(*given).isnan())


def test_a_map_that_changes_in_place_is_planned_anew():
    net = SPADE("spadebatch3x3", 6, CLASSES, 8).eval()
    x, seg, other = normal(1, 6, 8, 8), one_hot(blocks(1, 8, 8, CLASSES), CLASSES), one_hot(blocks(1, 8, 8, 4, 2), 4)
    before = net(x, seg)
    seg.copy_(other)
    assert net(x, seg).equal(net(x, other.clone())) and not net(x, seg).equal(before)


def test_a_map_is_saved_without_its_plan(tmp_path):
    seg = one_hot(blocks(1, 8, 8, CLASSES), CLASSES)
    SPADE("spadebatch3x3", 6, CLASSES, 8)(normal(1, 6, 8, 8), seg)
    torch.save(seg, tmp_path / "seg.pt")
    assert torch.equal(torch.load(tmp_path / "seg.pt", weights_only=True), seg)


def test_a_map_that_changes_in_place_in_inference_mode_is_planned_anew():
    net = SPADE("spadebatch3x3", 6, CLASSES, 8).eval()
    with torch.inference_mode():
        x, seg = normal(1, 6, 8, 8), one_hot(blocks(1, 8, 8, CLASSES), CLASSES)
        other = one_hot(blocks(1, 8, 8, CLASSES, 2), CLASSES)
        net(x, seg)
        seg.copy_(other)
        assert net(x, seg).equal(net(x, other.clone()))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["batch", "instance"])
def test_empty_batch(route, training, kind):
    net = SPADEResnetBlock(6, 4, f"spectralspade{kind}3x3", CLASSES, 8).train(training)
    plan = labels.plan(torch.zeros(0, 8, 8, dtype=torch.int64), CLASSES)
    with forced(route):
        found = gradients(net, torch.zeros(0, 6, 4, 4), conditioning(route, plan, torch.float32), upsample=True)
    assert found["y"].shape == (0, 4, 8, 8) and found["dx"].shape == (0, 6, 4, 4)
    assert not any(grad.any() for name, grad in found.items() if name.startswith("d ") and "norm" in name)


@property_of_maps
@given(
    maps=label_maps,
    size=sizes,
    kernel=st.sampled_from([1, 3, 4, 5]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    bias=st.booleans(),
    route=st.sampled_from(["plan", "tensor", "dense"]),
)
def test_label_conv2d(maps, size, kernel, stride, padding, bias, route):
    """Forward, weight, bias and, of a dense map, input gradients are conv2d's."""
    assume(min(size) + 2 * padding >= kernel)
    weight = normal(3, CLASSES, kernel, kernel, dtype=torch.float64).requires_grad_()
    offset = normal(3, dtype=torch.float64).requires_grad_() if bias else None
    seg = one_hot(maps, CLASSES).double().requires_grad_(route == "dense")
    given_seg = labels.plan(maps, CLASSES) if route == "plan" else seg
    expected = F.conv2d(F.interpolate(seg, size=size), weight, offset, stride, padding)
    found = label_conv2d(given_seg, weight, offset, size, stride, padding)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    wanted = [t for t in (weight, offset, seg) if t is not None and t.requires_grad]
    upstream = normal(*expected.shape, seed=1, dtype=torch.float64)
    grads = [torch.autograd.grad(y, wanted, upstream) for y in (found, expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@property_of_maps
@given(maps=label_maps, edges=st.booleans(), option=st.sampled_from([(3, 2, 1), (2, 2, 0), (3, 1, 1), (1, 1, 0)]))
def test_plan_of_a_pooled_map(maps, edges, option):
    kernel, stride, padding = option
    assume(min(maps.shape[1:]) + 2 * padding >= kernel)
    plan = labels.plan(maps, CLASSES, instances=maps if edges else None)
    for _ in range(2):  # a pyramid, as discriminators pool it
        if min(plan.size) + 2 * padding < kernel:
            break
        expected = F.avg_pool2d(plan.dense(), kernel, stride, padding, count_include_pad=False)
        plan = plan.avg_pool2d(kernel, stride, padding)
        torch.testing.assert_close(plan.dense(), expected)
