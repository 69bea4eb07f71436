"""Plans of id maps and the panoptic layers: against definitions in loops, over all kinds of ids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import normal
from torch import Tensor

from i2ifast import ops
from i2ifast.nn import PanopticConv2d, PanopticPlan, PanopticUpsample
from i2ifast.nn.panoptic import panoptic_plan
from i2ifast.testing.panoptic import unfolded

MODES = ("nearest3x3", "window2x2", "bilinear2x2")


def id_map(kind: str, n: int, h: int, w: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    if kind == "noise":
        return torch.randint(0, 3, (n, h, w), generator=g)
    if kind == "stripes":
        return (torch.arange(w) % 2).expand(n, h, w).clone()
    if kind == "single":
        return torch.zeros(n, h, w, dtype=torch.int64)
    if kind == "border":  # a frame of id 0, which padding must not equal
        ids = torch.zeros(n, h, w, dtype=torch.int64)
        ids[:, 1:-1, 1:-1] = 5
        return ids
    # Neighbours that float32, float64 or int32 would take for one another.
    return 2**62 + torch.randint(0, 2, (n, h, w), generator=g) * (
        1 + 2**32 * torch.randint(0, 2, (n, 1, 1), generator=g)
    )


KINDS = ("noise", "stripes", "single", "border", "huge")
MAPS = st.tuples(st.sampled_from(KINDS), st.integers(1, 2), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9))


def taps_by_loops(ids: Tensor, kernel: int, stride: int) -> np.ndarray:
    """[N * Ho * Wo, k * k]: the pixel at each tap, -1 where it does not count."""
    a, (n, h, w), r = ids.numpy(), ids.shape, kernel // 2
    windows = []
    for i, y, x in np.ndindex(n, (h - 1) // stride + 1, (w - 1) // stride + 1):
        row = []
        for dy, dx in np.ndindex(kernel, kernel):
            v, u = y * stride + dy - r, x * stride + dx - r
            counts = 0 <= v < h and 0 <= u < w and a[i, v, u] == a[i, y * stride, x * stride]
            row.append((i * h + v) * w + u if counts else -1)
        windows.append(row)
    return np.array(windows)


@settings(max_examples=60, deadline=None)
@given(MAPS, st.sampled_from((1, 3, 5, 7)), st.sampled_from((1, 2)))
def test_windows_are_their_definition(made, kernel, stride):
    ids = id_map(*made)
    windows = ops.panoptic_windows(ids, kernel, stride)
    expected = taps_by_loops(ids, kernel, stride)
    listed = windows.at.long().numpy()
    assert (windows.taps.numpy() == expected[listed]).all()
    broken = (expected < 0).any(1)
    assert broken[listed].all() or len(listed) == len(expected)
    assert (np.diff(listed) > 0).all() and set(np.flatnonzero(broken)) <= set(listed)


def source_by_loops(ids: Tensor, ids_up: Tensor, mode: str) -> np.ndarray:
    """Candidates sorted by the distance of pixel centres, ties by row and column."""
    a, b, (_, h, w) = ids.numpy(), ids_up.numpy(), ids.shape
    source = np.full(b.shape, -1)
    for i, y, x in np.ndindex(*b.shape):
        fy, fx = (y + 0.5) / 2 - 0.5, (x + 0.5) / 2 - 0.5  # the centre, in pixels of the small map
        if mode == "window2x2":
            near = [(y // 2 + dy, x // 2 + dx) for dy in (0, 1) for dx in (0, 1)]
        elif mode == "nearest3x3":
            near = [(y // 2 + dy, x // 2 + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        else:
            near = [(int(np.floor(fy)) + dy, int(np.floor(fx)) + dx) for dy in (0, 1) for dx in (0, 1)]
        if mode != "window2x2":
            near.sort(key=lambda q: (q[0] - fy) ** 2 + (q[1] - fx) ** 2)
        for v, u in near:
            if 0 <= v < h and 0 <= u < w and a[i, v, u] == b[i, y, x]:
                source[i, y, x] = v * w + u
                break
    return source


@settings(max_examples=40, deadline=None)
@given(MAPS, st.sampled_from(MODES), st.booleans())
def test_sources_are_their_definition(made, mode, of_the_same):
    kind, n, h, w, seed = made
    ids_up = id_map(kind, n, 2 * h, 2 * w, seed)
    ids = ids_up[:, ::2, ::2].contiguous() if of_the_same else id_map(kind, n, h, w, seed + 1)
    found = ops.panoptic_sources(ids, ids_up, mode)
    expected = source_by_loops(ids, ids_up, mode)
    assert (found.source.numpy() == expected).all()
    assert (found.holes.numpy() == np.flatnonzero(expected < 0)).all()
    numbered = torch.from_numpy(expected + np.arange(n)[:, None, None] * h * w * (expected >= 0)).flatten()
    for q in range(n * h * w):
        copies = found.copies[found.offsets[q] : found.offsets[q + 1]].long()
        assert torch.equal(copies, ((numbered == q) & (torch.from_numpy(expected).flatten() >= 0)).nonzero()[:, 0])


@settings(max_examples=25, deadline=None)
@given(MAPS, st.sampled_from((1, 3, 5, 7)), st.sampled_from((1, 2)), st.booleans())
def test_conv_is_its_definition_in_float64(made, kernel, stride, bias):
    ids = id_map(*made)
    torch.manual_seed(0)
    conv = PanopticConv2d(3, 4, kernel, stride, bias).double()
    x = normal(ids.size(0), 3, *ids.shape[1:]).double().requires_grad_()
    y, expected = conv(x, ids), unfolded(x, conv.weight, conv.bias, ids, stride)
    dy = normal(*expected.shape, seed=1).double()
    leaves = [x, *conv.parameters()]
    pairs = zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True)
    for ours, theirs in ((y, expected), *pairs):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_one_id_is_the_plain_convolution_inside():
    ids, x = id_map("single", 1, 12, 12), normal(1, 16, 12, 12)
    conv = PanopticConv2d(16, 64, 3)
    plain = torch.nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv(x, ids)[..., 1:-1, 1:-1], plain[..., 1:-1, 1:-1], rtol=1e-5, atol=1e-5)


def test_other_segments_do_not_reach_a_segment():
    """Not even their infinities and NaN, where the plain convolution is a direct one."""
    ids = torch.zeros(1, 12, 13, dtype=torch.int64)
    ids[..., 6:8] = 1
    x = normal(1, 6, 12, 13)
    conv = PanopticConv2d(6, 5, 3)
    clean = conv(x, ids)
    x[..., 6], x[..., 7] = float("nan"), float("inf")
    there = (ids == 0)[:, None].expand_as(clean)
    assert torch.equal(conv(x, ids)[there], clean[there])


def test_layers_share_the_plan_of_a_tensor():
    ids = id_map("noise", 1, 16, 16)
    plan = panoptic_plan(ids)
    assert panoptic_plan(ids) is plan and plan.level((8, 8)) is plan.level((8, 8))
    assert torch.equal(plan.level((8, 8)).ids, ids[:, ::2, ::2])
    assert plan.windows(3) is plan.windows(3)
    ids[0, 0, 0] += 1
    assert panoptic_plan(ids) is not plan


@pytest.mark.parametrize("mode", MODES)
def test_holes_are_filled_by_the_convolution_of_the_map(mode):
    ids = id_map("noise", 2, 12, 16)
    seg = torch.nn.functional.one_hot((ids + 1) % 3, 4).permute(0, 3, 1, 2).double().requires_grad_()
    x = normal(2, 5, 6, 8).double().requires_grad_()
    layer = PanopticUpsample(mode, PanopticConv2d(4, 5, 3)).double()
    y, valid = layer(x, ids, seg)
    bare, _ = PanopticUpsample(mode)(x, ids)
    expected = torch.where(valid[:, None], bare, layer.fill(seg, ids))
    assert not valid.all() and bare[~valid[:, None].expand_as(bare)].eq(0).all()
    leaves = [x, seg, *layer.parameters()]
    dy = normal(*y.shape, seed=1).double()
    pairs = zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True)
    for ours, theirs in ((y, expected), *pairs):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_layers_compile_around_a_plan():
    """In one graph, once the plan holds what they need."""
    torch.compiler.reset()
    plan, seg = PanopticPlan(id_map("noise", 2, 12, 16)), normal(2, 4, 12, 16)
    conv, up = PanopticConv2d(6, 5, 3), PanopticUpsample(fill=PanopticConv2d(4, 5, 3))

    def layers(x: Tensor) -> Tensor:
        return up(conv(x, plan), plan, seg)[0]

    x = normal(2, 6, 6, 8).requires_grad_()
    expected = layers(x)
    found = torch.compile(layers, fullgraph=True, backend="aot_eager", dynamic=False)(x)
    leaves = [x, *conv.parameters(), *up.parameters()]
    dy = normal(*expected.shape, seed=1)
    pairs = zip(torch.autograd.grad(found, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True)
    for ours, theirs in ((found, expected), *pairs):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layouts_and_empty_batches(dtype):
    for n, layout in ((2, torch.channels_last), (2, torch.contiguous_format), (0, torch.contiguous_format)):
        ids = id_map("noise", n, 8, 6) if n else torch.zeros(0, 8, 6, dtype=torch.int64)
        x = normal(n, 6, 4, 3).to(dtype).contiguous(memory_format=layout)
        y, valid = PanopticUpsample(fill=PanopticConv2d(3, 6, 3))(x, ids, normal(n, 3, 8, 6))
        z = PanopticConv2d(6, 4, 3, stride=2)(y, ids)
        assert y.dtype is z.dtype is dtype and valid.shape == ids.shape and z.shape == (n, 4, 4, 3)
        assert y.is_contiguous(memory_format=layout) and y.isfinite().all() and z.isfinite().all()


def test_errors_name_value_and_limit():
    x, ids = normal(1, 3, 4, 4), id_map("noise", 1, 8, 8)
    with pytest.raises(ValueError, match="kernel_size=4: expected an odd number"):
        PanopticConv2d(3, 4, 4)
    with pytest.raises(ValueError, match=r"ids: expected integers \[N, H, W\], got torch.float32"):
        PanopticConv2d(3, 4, 3)(x, ids.float())
    with pytest.raises(ValueError, match=r"ids_up has shape \[1, 8, 8\], expected \[1, 16, 16\]"):
        ops.panoptic_sources(ids, ids)
    with pytest.raises(ValueError, match="mode='nearest': expected nearest3x3"):
        PanopticUpsample("nearest")(x, ids)
    with pytest.raises(ValueError, match="seg is None"):
        PanopticUpsample(fill=PanopticConv2d(4, 3, 3))(x, ids)
    with pytest.raises(ValueError, match=r"taps has shape \[16, 9\], expected \[16, 25\]"):
        ops.panoptic_conv(x, normal(2, 3, 5, 5), None, PanopticPlan(ids[:, ::2, ::2]).windows(3))
