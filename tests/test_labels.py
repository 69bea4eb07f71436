"""Label plans against their definition: brute force, F.interpolate, and the convolutions that they stand for."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from i2ifast import _backend, labels, use_backend
from i2ifast.ops.label_patches import (
    distinct_vectors,
    label_bags,
    label_patches,
    reference_forward,
)

needs_cpu = pytest.mark.skipif(bool(_backend.missing["cpu"]), reason=_backend.missing["cpu"])
backends = pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])


def pattern(kind: str, n: int, h: int, w: int, classes: int, seed: int) -> Tensor:
    """Label maps [n, h, w] of one kind."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(classes, (n, h, w), generator=generator)
    y, x = torch.arange(h)[:, None], torch.arange(w)
    maps = {
        "noise": noise,
        "stripes": (x % classes).expand(n, h, w),
        "checkerboard": ((x + y) % classes).expand(n, h, w),
        "single": torch.zeros(n, h, w, dtype=torch.int64),
        "border": ((x == 0) | (y == h - 1)).long().expand(n, h, w) % classes,
        "blocks": noise[:, : -(-h // 3), : -(-w // 3)].repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :h, :w],
    }
    return maps[kind].contiguous()


KINDS = ["noise", "stripes", "checkerboard", "single", "border", "blocks"]
label_maps = st.builds(
    pattern,
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 3),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    classes=st.sampled_from([1, 2, 5, 2**30]),
    seed=st.integers(0, 99),
)


def brute_force(ids: Tensor, kernel: int, stride: int, padding: int) -> tuple[list, list]:
    """Windows, numbered in a dict in raster order."""
    windows = (
        F.pad(ids, [padding] * 4, value=-1).unfold(1, kernel, stride).unfold(2, kernel, stride).flatten(3).tolist()
    )
    numbers: dict[tuple[int, ...], int] = {}
    patches = [[[numbers.setdefault(tuple(w), len(numbers)) for w in row] for row in image] for image in windows]
    return patches, [list(window) for window in numbers]


def gather_sum(rows: Tensor, bags: labels.Bags) -> Tensor:
    assert rows.size(0) == bags.rows
    return torch.stack([rows[bags.index[a:b].long()].sum(0) for a, b in bags.offsets.unfold(0, 2, 1).tolist()])


def every_tensor(plan: labels.LabelPlan) -> list[Tensor]:
    found = [plan.values, plan.symbols, *(level.symbols for level in plan.levels.values())]
    pairs = [windows for level in plan.levels.values() for windows in (level.hidden, level.table)]
    for windows in pairs + list(plan.windowed.values()):
        found += [windows.patches, *windows.bags[:2], *windows.bags_t[:2], *windows.segments]
    return found


@settings(max_examples=300, deadline=None)
@given(label_maps, st.sampled_from([1, 2, 3, 5]), st.integers(1, 3), st.integers(0, 2))
def test_label_patches_is_its_definition(ids, kernel, stride, padding):
    ids = ids.int()
    if min(ids.shape[1:]) + 2 * padding < kernel:
        with pytest.raises(ValueError, match="larger than the map"):
            label_patches(ids, kernel, stride, padding)
        return
    expected = brute_force(ids, kernel, stride, padding)
    found = [label_patches(ids, kernel, stride, padding), reference_forward(ids, kernel, stride, padding)]
    if not _backend.missing["cpu"]:
        found += [torch.ops.i2ifast_cpu.label_patches(ids, kernel, stride, padding, bits) for bits in (0, 1, 3, 64)]
    for patches, neighbours in found:
        assert patches.dtype is torch.int32 and neighbours.dtype is torch.int32
        assert (patches.tolist(), neighbours.tolist()) == expected


def test_ids_too_large_for_one_key_per_window():
    ids = pattern("noise", 2, 9, 9, 2, 0).int() * (2**30 - 2)  # keys of 90 bits if not numbered anew
    patches, neighbours = reference_forward(ids, 3, 1, 1)
    assert (patches.tolist(), neighbours.tolist()) == brute_force(ids, 3, 1, 1)


@needs_cpu
@pytest.mark.parametrize("hash_bits", [4, 64])
def test_table_of_windows_grows(hash_bits):
    ids = pattern("noise", 2, 64, 48, 1000, 0).int()
    patches, neighbours = torch.ops.i2ifast_cpu.label_patches(ids, 3, 1, 1, hash_bits)
    expected = reference_forward(ids, 3, 1, 1)
    assert neighbours.size(0) > 5000
    assert torch.equal(patches, expected[0]) and torch.equal(neighbours, expected[1])


@settings(max_examples=100, deadline=None)
@given(label_maps, st.sampled_from([1, 3, 5]))
def test_numpy_module_equals_reference(ids, kernel):
    native = pytest.importorskip("i2ifast._labels")
    ids = ids.int()
    patches, neighbours = reference_forward(ids, kernel, 1, kernel // 2)
    with use_backend("reference"):
        bags = labels.Bags(*label_bags(neighbours), (int(ids.max()) + 1) * kernel**2)
    for bits in (0, 64):
        found = native.label_patches(ids.numpy(), kernel, padding=kernel // 2, hash_bits=bits)
        assert np.array_equal(found[0], patches.numpy()) and np.array_equal(found[1], neighbours.numpy())
    offsets, index = native.label_bags(neighbours.numpy())
    assert np.array_equal(offsets, bags.offsets.numpy()) and np.array_equal(index, bags.index.numpy())
    if bags.rows < 1000:
        with use_backend("reference"):
            expected = bags.transpose()
        transposed = native.label_transpose(offsets, index, bags.rows)
        assert all(np.array_equal(a, b.numpy()) for a, b in zip(transposed, expected, strict=False))


def test_numpy_module_refuses_bad_input():
    native = pytest.importorskip("i2ifast._labels")
    with pytest.raises(ValueError, match="3 dimensions"):
        native.label_patches(np.zeros((2, 2), np.int32), 3)
    with pytest.raises(ValueError, match="fits the padded map"):
        native.label_patches(np.zeros((1, 2, 2), np.int32), 3)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        native.label_transpose(np.array([0, 1], np.int32), np.array([2], np.int32), 2)


@backends
def test_opcheck(backend):
    with use_backend(backend):
        ids = pattern("blocks", 2, 7, 9, 4, 0).int()
        torch.library.opcheck(torch.ops.i2ifast.label_patches.default, (ids, 3, 1, 1))
        torch.library.opcheck(torch.ops.i2ifast.label_patches.default, (ids[:0], 3, 2, 1))


def test_label_patches_refuses_bad_input():
    ids = torch.zeros(1, 4, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match="int64"):
        label_patches(ids.long(), 3)
    with pytest.raises(ValueError, match="stride=0"):
        label_patches(ids, 3, 0)
    with pytest.raises(ValueError, match="hold -2"):
        label_patches(ids - 2, 3)


@backends
@settings(max_examples=150, deadline=None)
@given(ids=label_maps, kernel=st.sampled_from([1, 2, 3]))
def test_bags_and_their_transpose(backend, ids, kernel):
    ids = ids.clamp(max=6).int()
    with use_backend(backend):
        _, neighbours = label_patches(ids, kernel, 1, kernel // 2)
        bags = labels.Bags(*label_bags(neighbours), 7 * kernel**2)
        transposed = bags.transpose()
    taps = kernel**2
    expected = [[i * taps + t for t, i in enumerate(window) if i >= 0] for window in neighbours.tolist()]
    users = [[d for d, bag in enumerate(expected) for member in bag if member == r] for r in range(bags.rows)]
    for found, lists in ((bags, expected), (transposed, users)):
        assert found.offsets.dtype is torch.int32 and found.index.dtype is torch.int32
        assert found.offsets.tolist() == [0, *np.cumsum([len(members) for members in lists])]
        assert found.index.tolist() == [member for members in lists for member in members]
    assert transposed.rows == len(expected)


def test_resize_takes_the_pixels_that_interpolate_takes():
    generator = torch.Generator().manual_seed(0)
    for h, w in [(7, 5), (64, 33), (255, 256), (341, 97)]:
        maps = torch.randint(2**20, (2, h, w), generator=generator)
        for size in [(1, 1), (3, 4), (h, 2 * w), (2 * h, w // 2), (h // 3 + 1, 3 * w - 1), (100, 257), (13, 170)]:
            expected = F.interpolate(maps[:, None].float(), size=size, mode="nearest")[:, 0].int()
            assert torch.equal(labels._resize(maps.int(), size), expected)


@settings(max_examples=150, deadline=None)
@given(
    maps=label_maps.map(lambda m: m % 5),
    instances=st.booleans(),
    ignore=st.sampled_from([None, 2]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_plan_is_the_one_hot_map(maps, instances, ignore, size):
    ids = maps // 2 + 70000 if instances else None
    plan = labels.plan(maps[:, None], 5, instances=ids, ignore_index=ignore)
    expected = F.one_hot(maps, 5).permute(0, 3, 1, 2).float()
    if instances:
        expected = torch.cat([expected, labels.instance_edges(ids[:, None]).float()], 1)
    if ignore is not None:
        expected = expected * (maps != ignore)[:, None]
    assert plan.num_channels == 5 + instances and plan.size == maps.shape[1:]
    assert torch.equal(plan.dense(), expected)
    assert torch.equal(plan.dense(size), F.interpolate(expected, size=size, mode="nearest"))
    assert len(plan.values.unique(dim=0)) == len(plan.values)
    dense = labels.plan_dense(expected)
    assert torch.equal(dense.symbols, plan.symbols) and torch.equal(dense.values, plan.values)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64, torch.bool])
def test_plan_takes_every_integer_type(dtype):
    maps = pattern("blocks", 2, 6, 7, 2, 0)
    plan = labels.plan(maps.to(dtype), 2, edges=maps[:, None].float())
    expected = F.one_hot(maps, 2).permute(0, 3, 1, 2).float()
    assert torch.equal(plan.dense(), torch.cat([expected, maps[:, None].float()], 1))


def test_instance_edges_is_its_definition():
    ids = pattern("blocks", 2, 7, 8, 3, 0) + 2**40
    edges = labels.instance_edges(ids)
    for n, y, x in np.ndindex(*ids.shape):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        different = [ids[n, v, u] != ids[n, y, x] for v, u in around if 0 <= v < 7 and 0 <= u < 8]
        assert edges[n, y, x] == any(different)
    assert torch.equal(labels.instance_edges(ids[:, None]), edges[:, None])


@backends
@settings(max_examples=150, deadline=None)
@given(
    maps=label_maps.map(lambda m: m % 4),
    kernel=st.sampled_from([1, 3, 5]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_table_equals_the_two_convolutions(backend, maps, kernel, size):
    generator = torch.Generator().manual_seed(1)
    pad = kernel // 2
    with use_backend(backend):
        plan = labels.plan(maps, 4, instances=maps, ignore_index=3).precompute([size], kernel)
    level = plan.level(size, kernel)
    shared = torch.randn(6, 5, kernel, kernel, generator=generator, dtype=torch.float64)
    shared_bias = torch.randn(6, generator=generator, dtype=torch.float64)
    final = torch.randn(4, 6, kernel, kernel, generator=generator, dtype=torch.float64)
    final_bias = torch.randn(4, generator=generator, dtype=torch.float64)

    segmap = plan.dense(size).double()
    expected = F.conv2d(F.conv2d(segmap, shared, shared_bias, padding=pad).relu(), final, final_bias, padding=pad)

    rows = torch.einsum("sc,hckl->sklh", plan.values.double(), shared).reshape(-1, 6)
    hidden = (shared_bias + gather_sum(rows, level.hidden.bags)).relu()
    tap = torch.einsum("dh,chkl->dklc", hidden, final).reshape(-1, 4)
    table = final_bias + gather_sum(tap, level.table.bags)
    assert (level.hidden.count, level.table.count) == (hidden.size(0), table.size(0))
    torch.testing.assert_close(table[level.table.patches.long()].permute(0, 3, 1, 2), expected, rtol=0, atol=1e-12)

    for windows in (level.hidden, level.table):
        order, offsets = windows.segments
        pixels = windows.patches.flatten()
        assert order.tolist() == pixels.sort(stable=True).indices.tolist()
        assert offsets.diff().tolist() == pixels.bincount(minlength=windows.count).tolist()
        matrix = gather_sum(torch.eye(windows.bags.rows), windows.bags)
        assert torch.equal(matrix.T, gather_sum(torch.eye(windows.count), windows.bags_t))


@pytest.mark.parametrize("kernel, stride, padding", [(3, 1, 1), (4, 2, 2), (4, 2, 1), (7, 1, 3), (1, 1, 0)])
def test_windows_equal_one_convolution(kernel, stride, padding):
    plan = labels.plan(pattern("blocks", 2, 16, 13, 5, 0), 5)
    weight = torch.randn(3, 5, kernel, kernel, dtype=torch.float64)
    windows = plan.windows((12, 9), kernel, stride, padding)
    rows = torch.einsum("sc,ockl->sklo", plan.values.double(), weight).reshape(-1, 3)
    expected = F.conv2d(plan.dense((12, 9)).double(), weight, stride=stride, padding=padding)
    found = gather_sum(rows, windows.bags)[windows.patches.long()].permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_batch_means_its_images_one_by_one():
    maps = torch.cat([pattern(kind, 1, 9, 9, 4, 3) for kind in KINDS])
    batch = labels.plan(maps, 4)
    for i in range(len(maps)):
        alone = labels.plan(maps[i : i + 1], 4)
        for size in ((9, 9), (5, 7)):
            assert torch.equal(batch.dense(size)[i : i + 1], alone.dense(size))
            whole, part = batch.level(size).table, alone.level(size).table
            renamed = whole.patches[i].unique(return_inverse=True)[1]
            pairs = torch.stack([renamed.flatten(), part.patches.flatten()], 1).unique(dim=0)
            assert len(pairs) == part.count == len(renamed.unique())


def test_backends_make_the_same_plan():
    maps = pattern("blocks", 2, 33, 40, 7, 5)
    made = []
    for backend in ["reference", "auto", "triton", "cuda"] + ["cpu"] * (not _backend.missing["cpu"]):
        with use_backend(backend):
            plan = labels.plan(maps, 7, instances=maps).precompute([(33, 40), (8, 10)])
            plan.windows((33, 40), 4, 2, 2)
            made.append(every_tensor(plan))
    for other in made[1:]:
        assert all(torch.equal(a, b) and a.dtype is b.dtype for a, b in zip(made[0], other, strict=True))


@backends
def test_plan_dense_of_any_values(backend):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(9, 5, generator=generator)
    vectors[1], vectors[2, 0], vectors[3, 1] = vectors[0], float("inf"), 1e-42
    segmap = vectors[torch.randint(9, (2, 17, 19), generator=generator)].permute(0, 3, 1, 2)
    with use_backend(backend):
        plan = labels.plan_dense(segmap)
        assert len(plan.values) == 8 and torch.equal(plan.dense(), segmap)
        poisoned = segmap.clone()
        poisoned[0, 1, 2, 3] = float("nan")
        plan = labels.plan_dense(poisoned)
        torch.testing.assert_close(plan.dense(), poisoned, rtol=0, atol=0, equal_nan=True)
        for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.uint8):
            other = segmap.nan_to_num(posinf=4).abs().to(dtype)
            assert torch.equal(labels.plan_dense(other).dense().to(dtype), other)
        assert labels.plan_dense(segmap.double() / 3) is None


@backends
def test_plan_dense_gives_soft_maps_up(backend):
    soft = torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with use_backend(backend):
        assert labels.plan_dense(soft) is None
        assert len(labels.plan_dense(soft, limit=1024).values) == 1024
        assert labels.plan_dense(soft, limit=1023) is None
        assert len(labels.plan_dense(soft[..., :8, :8]).values) == 64


def test_distinct_vectors_survive_collisions(monkeypatch):
    x = pattern("noise", 2, 9, 8, 5, 0).view(2, 3, 3, 8).float()
    with use_backend("reference"):
        expected = distinct_vectors(x, 1000)
    if not _backend.missing["cpu"]:
        for bits in (0, 2, 64):
            for layout in (torch.contiguous_format, torch.channels_last):
                found = torch.ops.i2ifast_cpu.label_vectors(x.contiguous(memory_format=layout), 1000, bits)
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    # Equal factors for all channels make permuted vectors collide in the reference.
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: torch.ones(3, dtype=torch.int64))
    with use_backend("reference"):
        found = distinct_vectors(x, 1000)
        assert distinct_vectors(x, len(expected[1]) - 1) is None
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_errors_name_value_limit_and_place():
    maps = torch.zeros(2, 4, 5, dtype=torch.int64)
    maps[1, 2, 3] = 182
    with pytest.raises(ValueError, match="labels hold 182 in image 1 at row 2, column 3: the maximum is 181"):
        labels.plan(maps, 182)
    maps[1, 2, 3] = -1
    with pytest.raises(ValueError, match="labels hold -1"):
        labels.plan(maps, 182, ignore_index=255)
    maps[1, 2, 3] = 2**32
    with pytest.raises(ValueError, match="labels hold 4294967296"):
        labels.plan(maps, 182)
    assert labels.plan(maps, 182, ignore_index=2**32).values.sum() == 1
    with pytest.raises(ValueError, match="edges hold 0.5 .*expected 0 or 1"):
        labels.plan(maps.clamp(max=1), 2, edges=torch.full((2, 4, 5), 0.5))
    with pytest.raises(ValueError, match="edges have shape"):
        labels.plan(maps.clamp(max=1), 2, edges=torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match="not both"):
        labels.plan(maps.clamp(max=1), 2, edges=maps, instances=maps)
    with pytest.raises(TypeError, match="float32"):
        labels.plan(maps.float(), 182)
    with pytest.raises(ValueError, match=r"\[2, 3, 4, 5\]"):
        labels.plan(torch.zeros(2, 3, 4, 5, dtype=torch.int64), 182)
    with pytest.raises(ValueError, match="num_classes=0"):
        labels.plan(maps, 0)
    with pytest.raises(ValueError, match="kernel=4"):
        labels.plan(maps.clamp(max=1), 2).level((4, 5), 4)


def ready_plan() -> labels.LabelPlan:
    maps = pattern("blocks", 2, 20, 24, 6, 1)
    plan = labels.plan(maps, 6, instances=maps).precompute([(20, 24), (10, 12)])
    plan.windows((20, 24), 4, 2, 2)
    plan.dense()
    return plan


class Plans(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> labels.LabelPlan:
        return ready_plan()


def test_plans_copy_pickle_and_come_out_of_workers():
    plan = ready_plan()
    expected = every_tensor(plan)
    saved = io.BytesIO()
    torch.save(plan, saved)
    saved.seek(0)
    copies = [copy.deepcopy(plan), pickle.loads(pickle.dumps(plan)), torch.load(saved, weights_only=False)]
    copies += list(DataLoader(Plans(), batch_size=None, num_workers=1))
    for other in copies:
        assert list(other.levels) == list(plan.levels) and not other.maps
        assert all(torch.equal(a, b) for a, b in zip(every_tensor(other), expected, strict=True))
        assert other.level((10, 12)).hidden.bags.rows == plan.level((10, 12)).hidden.bags.rows
        assert torch.equal(other.dense((5, 5)), plan.dense((5, 5)))
    assert len({t.untyped_storage().data_ptr() for t in every_tensor(copies[0])}) == 2
    assert plan.to("cpu") is plan
    assert plan.to("meta").level((10, 12)).table.patches.device.type == "meta"


def test_plans_that_keep_samples_apart():
    maps = torch.arange(3).repeat_interleave(4).view(1, 3, 4).expand(2, 3, 4)
    plan = labels.plan(maps, 4)
    apart = plan.per_sample()
    assert plan.per_sample() is apart and apart.per_sample() is apart
    assert torch.equal(apart.dense((6, 5)), plan.dense((6, 5)))
    level, shared = apart.level((6, 8)), plan.level((6, 8))
    for ours, both in ((level.hidden, shared.hidden), (level.table, shared.table)):
        assert ours.count == 2 * both.count and ours.patches[0].max() < ours.patches[1].min()
    assert [v.tolist() for v in apart.symbols.unique(return_counts=True)] == [[0, 1, 2, 3, 4, 5], [4] * 6]
    moved = pickle.loads(pickle.dumps(apart))
    assert moved.separate and list(moved.levels) == [((6, 8), 3)]

    single = labels.plan(maps[:1], 4)
    assert single.per_sample().level((6, 8)) is single.level((6, 8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_plans_move_to_the_device_and_are_made_there():
    plan = ready_plan()
    moved = plan.pin_memory().to("cuda", non_blocking=True)
    made = labels.plan(plan.dense()[:, :6].argmax(1).cuda(), 6, edges=plan.dense()[:, 6].cuda())
    made.precompute(size for size, _ in plan.levels)
    made.windows((20, 24), 4, 2, 2)
    for other in (moved, made):
        pairs = zip(every_tensor(other), every_tensor(plan), strict=True)
        assert all(a.is_cuda and torch.equal(a.cpu(), b) for a, b in pairs)
    assert torch.equal(labels.plan_dense(plan.dense().cuda()).symbols.cpu(), plan.symbols)


def test_two_host_threads():
    expected = every_tensor(ready_plan())
    shared = ready_plan()
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(lambda _: every_tensor(ready_plan()), range(8)))
        levels = list(threads.map(lambda _: shared.precompute([(5, 6)]).level((5, 6)).table.patches, range(8)))
    assert all(torch.equal(a, b) for tensors in made for a, b in zip(tensors, expected, strict=True))
    assert all(torch.equal(patches, levels[0]) for patches in levels)


def test_empty_batch():
    plan = labels.plan(torch.zeros(0, 4, 4, dtype=torch.int64), 3).precompute([(4, 4), (2, 2)])
    assert plan.level((2, 2)).table.patches.shape == (0, 2, 2) and plan.level((2, 2)).table.count == 0
    assert plan.dense((2, 2)).shape == (0, 3, 2, 2)
    assert labels.plan_dense(torch.zeros(0, 3, 4, 4)).symbols.shape == (0, 4, 4)
