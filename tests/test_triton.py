"""Triton kernels: their numbers, by the interpreter on the CPU.

Triton reads TRITON_INTERPRET when it is imported, so the numeric tests run in a second pytest that has it set.
"""

import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from test_ops import assert_within_twice, run, truth_of
from torch import Tensor

import i2ifast
from i2ifast import ops, testing
from i2ifast.ops.spectral_weight import spectral_weight
from i2ifast.testing import CASES, inputs
from i2ifast.testing.regions import largest_factor

pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Case(NamedTuple):
    op: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    channels_last: bool = True
    per_sample: bool = True
    act: float = 0.2
    act2: float | None = None
    upsample: bool = False
    rows: int = 7  # of the table
    scaled: bool = False
    noisy: bool = False

    def __str__(self) -> str:
        kind = "instance" if self.per_sample else "batch"
        layout = "nhwc" if self.channels_last else "nchw"
        extra = "-pair" * (self.act2 is not None) + "-up" * self.upsample
        extra += "-scaled" * self.scaled + "-noisy" * self.noisy
        return f"{self.op}-{'x'.join(map(str, self.shape))}-{str(self.dtype)[6:]}-{layout}-{kind}{extra}"


def _cases() -> list[Case]:
    shapes = [(2, 8, 5, 6), (3, 5, 1, 1), (1, 33, 9, 7), (2, 1, 4, 3)]
    cases = [
        Case(op, shape, dtype, channels_last, per_sample)
        for op in ("modulate", "modulate_style", "modulate_table")
        for shape in shapes
        for dtype in (torch.float32, torch.bfloat16)
        for channels_last in (True, False)
        for per_sample in (True, False)
    ]
    cases += [
        Case("modulate_table", shape, dtype, channels_last, per_sample, 1.0, act2, upsample)
        for shape, dtype in zip(shapes, (torch.float32, torch.bfloat16, torch.float16, torch.float32), strict=True)
        for channels_last in (True, False)
        for per_sample in (True, False)
        for act2, upsample in ((0.0, False), (None, True), (0.2, True))
    ]
    cases += [
        Case("modulate_table", shape, torch.float32, channels_last, per_sample, 0.2, act2, upsample, scaled=True)
        for shape in (*shapes, (1, 130, 3, 2))
        for channels_last in (True, False)
        for per_sample in (True, False)
        for act2, upsample in ((None, False), (0.0, True))
    ]
    cases += [
        Case("modulate_table", shape, dtype, channels_last, per_sample=False, upsample=upsample, noisy=True)
        for shape, dtype in zip(shapes, (torch.float32, torch.bfloat16, torch.float16, torch.float32), strict=True)
        for channels_last in (True, False)
        for upsample in (True, False)
    ]
    return [
        *cases,
        Case("modulate", (1, 200, 3, 5), torch.float16, act=0.0),
        Case("modulate_style", (2, 130, 20, 17), torch.float16, act=1.0),
        Case("modulate_table", (2, 3, 40, 23), rows=2, per_sample=False),  # rows of several segments
        Case("modulate_table", (1, 1, 96, 96), rows=1),  # more segments than are added at once
    ]


def _inputs(case: Case) -> list[Tensor]:
    """x, the source of gamma and beta, upstream gradients, and scales, with values that case.dtype represents."""
    n, c, h, w = case.shape
    outputs, scale = (1 if case.act2 is None else 2), (2 if case.upsample else 1)
    draw = torch.Generator().manual_seed(0)
    source = {
        "modulate": (n, 2 * c, h, w),
        "modulate_style": (n, 2 * c),
        "modulate_table": (case.rows, 2 * c * outputs),
    }
    shapes = [case.shape, source[case.op], *[(n, c, h * scale, w * scale)] * outputs]
    shapes += [(n, 2 * outputs, h * scale, w * scale)] * case.scaled
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(case.dtype).double() for shape in shapes]


def _run(case: Case, backend: str, dtype: torch.dtype) -> list[Tensor]:
    """Outputs, then gradients of x, of the source of gamma and beta, and of scales, in float64."""
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    tensors = [t.to(dtype) for t in _inputs(case)]
    scales = tensors.pop().requires_grad_() if case.scaled else None
    x, *upstream = (t.contiguous(memory_format=layout) for t in (tensors[0], *tensors[2:]))
    source = tensors[1].float() if dtype is not torch.float64 and case.op != "modulate" else tensors[1]
    x.requires_grad_(), source.requires_grad_()
    noise, leaves = {}, [x, source, scales] if case.scaled else [x, source]
    if case.noisy:
        draw, wide = torch.Generator().manual_seed(2), source.dtype
        strength = torch.randn(x.size(1), generator=draw, dtype=torch.float64).to(wide).requires_grad_()
        plane = torch.randn(upstream[0][:, 0].shape, generator=draw, dtype=torch.float64).float().to(wide)
        noise, leaves = {"noise": plane, "strength": strength}, [x, source, strength]
    with i2ifast.use_backend("reference"):  # moments have a test of their own
        statistics = ops.instance_statistics(x) if case.per_sample else ops.batch_statistics(x, **noise)[0]
    with i2ifast.use_backend(backend):
        if case.op == "modulate_table":
            n, c, h, w = upstream[0].shape
            patches = torch.randint(case.rows, (n, h, w), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
            options = case.act, case.act2, case.upsample, None, scales
            y = ops.modulate_table(x, source, patches, statistics, *options, **noise)
        elif case.op == "modulate":
            y = ops.modulate(x, source, None, statistics, case.act)
        else:
            y = ops.modulate_style(x, source, statistics, case.act)
        ys = y if isinstance(y, tuple) else (y,)
        gradients = torch.autograd.grad(ys, leaves, upstream)
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    assert all(t.is_contiguous(memory_format=layout) for t in (*ys, gradients[0]))
    return [t.detach().double() for t in (*ys, *gradients)]


def _check(found: list[Tensor], plain: list[Tensor], truth: list[Tensor], dtype: torch.dtype) -> None:
    """Error against float64 is at most twice that of plain PyTorch, plus the rounding of the largest value."""
    for kernel, torch_own, exact in zip(found, plain, truth, strict=True):
        floor = torch.finfo(dtype).eps * exact.abs().max()
        assert (kernel - exact).abs().max() <= 2 * (torch_own - exact).abs().max() + floor


@pytest.mark.parametrize("case", _cases() if INTERPRETED else [], ids=str)
def test_modulation(case):
    found, plain = (_run(case, backend, case.dtype) for backend in ("triton", "reference"))
    _check(found, plain, _run(case, "reference", torch.float64), case.dtype)


@pytest.mark.parametrize("programs", [1, 1024] if INTERPRETED else [])
@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 60, 70), (3, 130, 1, 1), (2, 33, 13, 11), (20, 5, 3, 2)], ids=str)
def test_moments(shape, channels_last, per_sample, programs, monkeypatch):
    """A large mean, an outlier as the channel's first value, and both one tile and many tiles for each program.

    The bound is that of adding up the rows of a block, 512 at most, one after another, as the interpreter does.
    """
    monkeypatch.setattr("i2ifast.kernels._common.PROGRAMS", programs)
    x = 1e4 + 1e-2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 0] = -50
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    with i2ifast.use_backend("triton"):
        found = ops.moments(x, per_sample)
    for name, a, b in zip(("mean", "variance"), found, ops.moments(x.double(), per_sample), strict=True):
        assert ((a - b).abs() <= 512 * 2**-24 * b.abs()).all(), name


@pytest.mark.parametrize("programs", [1, 1024] if INTERPRETED else [])
@pytest.mark.parametrize("upsampled", [False, True])
@pytest.mark.parametrize("channels_last", [True, False])
def test_moments_with_noise(channels_last, upsampled, programs, monkeypatch):
    monkeypatch.setattr("i2ifast.kernels._common.PROGRAMS", programs)
    draw = torch.Generator().manual_seed(0)
    x = 1e4 + 1e-2 * torch.randn((2, 33, 60, 70), generator=draw)
    noise, strength = (
        torch.randn((2, 120, 140) if upsampled else (2, 60, 70), generator=draw),
        torch.rand(33, generator=draw),
    )
    laid = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    with i2ifast.use_backend("triton"):
        found, var, _ = ops.batch_statistics(laid, noise=noise, strength=strength)
    x = x.double().repeat_interleave(1 + upsampled, 2).repeat_interleave(1 + upsampled, 3)
    exact = torch.var_mean(x + strength[:, None, None] * noise[:, None].double(), (0, 2, 3), correction=0)
    for a, b in zip((var, found.mean[0]), exact, strict=True):
        assert ((a - b).abs() <= 512 * 2**-24 * b.abs()).all()


@pytest.mark.parametrize("programs", [1, 1024] if INTERPRETED else [])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("op", ["modulate", "modulate_style", "modulate_table"])
def test_sums_of_many_tiles(op, noisy, programs, monkeypatch):
    monkeypatch.setattr("i2ifast.kernels._common.PROGRAMS", programs)
    if noisy and op != "modulate_table":
        pytest.skip("of modulate_table only")
    case = Case(op, (2, 70, 13, 17), per_sample=not noisy, noisy=noisy)
    found, plain = (_run(case, backend, case.dtype) for backend in ("triton", "reference"))
    _check(found, plain, _run(case, "reference", torch.float64), case.dtype)


@pytest.mark.parametrize("op", ["modulate", "modulate_style", "modulate_table"] if INTERPRETED else [])
def test_nan_stays_in_its_sample(op):
    draw = torch.Generator().manual_seed(0)
    x, dy = (torch.randn((2, 5, 6, 7), generator=draw) for _ in range(2))
    shape = {"modulate": (2, 10, 6, 7), "modulate_style": (2, 10), "modulate_table": (2, 10)}[op]
    source = torch.randn(shape, generator=draw, requires_grad=True)
    more = (torch.arange(2, dtype=torch.int32).view(2, 1, 1).expand(2, 6, 7).contiguous(),)  # a table row per sample
    results = []
    for value in (1.0, float("nan")):
        x[0, 1, 2, 3] = value
        leaf = x.clone().requires_grad_()
        with i2ifast.use_backend("triton"):
            extra = more if op == "modulate_table" else (None,) if op == "modulate" else ()
            y = getattr(ops, op)(leaf, source, *extra, ops.instance_statistics(leaf), 0.2)
            results.append([t[1] for t in (y, *torch.autograd.grad(y, [leaf, source], dy))])
    assert all(torch.equal(clean, dirty) for clean, dirty in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if INTERPRETED else [])
@pytest.mark.parametrize("width", [1, 70])
def test_gather_sum(width, dtype):
    """Rows of no, few and more than two segments' members."""
    draw = torch.Generator().manual_seed(0)
    counts = torch.tensor([0, 3, 700, 0, 1, 256, 40, 0])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).int()
    index = torch.randint(50, (int(offsets[-1]),), generator=draw, dtype=torch.int32)
    rows = torch.randn((50, width), generator=draw).to(dtype)
    t_offsets = torch.searchsorted(index.sort().values, torch.arange(51, dtype=torch.int32), out_int32=True)
    t_index = torch.repeat_interleave(torch.arange(8), counts)[index.sort(stable=True).indices].int()
    args = (offsets, index, t_offsets, t_index)
    results = {}
    for name, values in (("triton", rows), ("reference", rows), ("truth", rows.double())):
        values = values.clone().requires_grad_()
        with i2ifast.use_backend("triton" if name == "triton" else "reference"):
            out = ops.gather_sum(values, *args)
            results[name] = [out.detach(), *torch.autograd.grad(out, values, (out.detach() > 0).to(out.dtype))]
    _check(*([t.double() for t in results[name]] for name in ("triton", "reference", "truth")), dtype)


PANOPTIC = [c for c in CASES if c.name.startswith("panoptic")]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("shape", [(2, 33, 5, 6), (3, 8, 1, 1), (1, 130, 3, 4)], ids=str)
@pytest.mark.parametrize("case", PANOPTIC if INTERPRETED else [], ids=lambda c: c.name)
def test_panoptic(case, shape, channels_last):
    for dtype in (torch.float32, torch.bfloat16):
        tensors = inputs(case, shape, dtype)
        if channels_last:
            tensors["x"] = tensors["x"].contiguous(memory_format=torch.channels_last)
        with i2ifast.use_backend("triton"):
            found = run(case.ours, tensors)
        assert_within_twice(found, run(case.plain, tensors), truth_of(case, tensors), dtype)


REGION_CASES = [c for c in CASES if c.name.startswith(("region", "modulate_region", "modulate_mix", "mix", "channel"))]


@pytest.mark.parametrize("channels_last", [True, False] if INTERPRETED else [])
@pytest.mark.parametrize("shape", [(2, 8, 5, 6), (3, 5, 1, 1), (1, 33, 9, 7), (2, 1, 4, 3), (1, 140, 20, 17)], ids=str)
@pytest.mark.parametrize("case", REGION_CASES, ids=lambda c: c.name)
def test_regions(case, shape, channels_last):
    """Outputs and all gradients; in the largest map regions of several segments."""
    results = {}
    for name, dtype in (("triton", torch.float32), ("reference", torch.float32), ("truth", torch.float64)):
        given = {k: t.to(dtype) if t.is_floating_point() else t for k, t in inputs(case, shape, torch.float32).items()}
        if channels_last:
            given["x"] = given["x"].contiguous(memory_format=torch.channels_last)
        leaves = {k: t.requires_grad_() for k, t in given.items() if t.is_floating_point()}
        with i2ifast.use_backend("triton" if name == "triton" else "reference"):
            outs = case.ours(**given)
            outs = outs if isinstance(outs, tuple) else (outs,)
            draw = torch.Generator().manual_seed(1)
            ups = [torch.randn(o.shape, generator=draw, dtype=torch.float64).to(dtype) for o in outs]
            grads = torch.autograd.grad(outs, list(leaves.values()), ups)
        results[name] = [t.detach().double() for t in (*outs, *grads)]
    terms = largest_factor(**inputs(case, shape, torch.float32)) if "ids" in given else 1.0
    for kernel, torch_own, exact in zip(*(results[n] for n in ("triton", "reference", "truth")), strict=True):
        floor = 4 * torch.finfo(torch.float32).eps * max(exact.abs().max().item(), terms)
        assert (kernel - exact).abs().max() <= 2 * (torch_own - exact).abs().max() + floor


@pytest.mark.parametrize("large", [1e4] if INTERPRETED else [])
def test_region_moments_with_a_large_mean(large):
    """An outlier as the first pixel, and regions without one."""
    x = large + 1e-2 * torch.randn((2, 5, 40, 30), generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 0] = -50
    ids = 1 + torch.arange(30, dtype=torch.int32).div(11, rounding_mode="floor").expand(2, 40, 30).contiguous()
    with i2ifast.use_backend("triton"):
        found = ops.region_moments(x, ids, 5)
    for name, a, b in zip(("count", "mean", "variance"), found, ops.region_moments(x.double(), ids, 5), strict=True):
        assert ((a - b).abs() <= 512 * 2**-24 * b.abs()).all(), name


@pytest.mark.parametrize("iterations", [0, 1, 2] if INTERPRETED else [])
@pytest.mark.parametrize("shape", [(130, 70, 1, 3), (3, 5), (70, 8, 3, 3)], ids=str)
def test_spectral_weight(shape, iterations):
    """Forward and backward, for weights of one and of more blocks, and a channels_last one."""
    draw = torch.Generator().manual_seed(0)
    weight, dy = (torch.randn(shape, generator=draw) for _ in range(2))
    weight += 1  # else sigma of a random u and v is near 0, and all is noise
    if shape == (70, 8, 3, 3):
        weight = weight.contiguous(memory_format=torch.channels_last)
    u, v = torch.rand(shape[0], generator=draw), torch.rand(weight[0].numel(), generator=draw)
    results = {}
    for name, dtype in (("triton", torch.float32), ("reference", torch.float32), ("truth", torch.float64)):
        w = weight.to(dtype, copy=True).requires_grad_()
        with i2ifast.use_backend("triton" if name == "triton" else "reference"):
            y, *rest = spectral_weight(w, u.to(dtype), v.to(dtype), iterations)
            gradient = torch.autograd.grad(y, w, dy.to(dtype))[0]
        assert y.stride() == gradient.stride() == weight.stride()
        results[name] = [t.detach().double() for t in (y, *rest, gradient)]
    _check(*(results[name] for name in ("triton", "reference", "truth")), torch.float32)


@pytest.mark.parametrize("halves", [True, False] if INTERPRETED else [])
@pytest.mark.parametrize("channels_last", [True, False])
def test_feature_matching(halves, channels_last):
    """Layers of less and of more than a program, of two types, one of a single element per sample."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(4, 33, 31, 17), (4, 7, 3, 5), (4, 1, 1, 1), (4, 70, 9, 9)]
    dtypes = [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    batches = [torch.randn(shape, generator=draw).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    weights, results = (0.5, 1.0, 2.0, 0.25), {}
    for name in ("triton", "reference", "truth"):
        leaves = [x.to(torch.float64 if name == "truth" else x.dtype) for x in batches]
        leaves = [x.contiguous(memory_format=layout).requires_grad_() for x in leaves]
        pairs = ([x[:2] for x in leaves], [x[2:] for x in leaves])
        with i2ifast.use_backend("triton" if name == "triton" else "reference"):
            y = ops.feature_matching(leaves, None, weights) if halves else ops.feature_matching(*pairs, weights)
            gradients = torch.autograd.grad(y, leaves, y.new_tensor([1.0, -3.0]))
        assert not halves or all(g.stride() == x.stride() for g, x in zip(gradients, leaves, strict=True))
        results[name] = [t.detach().double() for t in (y, *gradients)]
    for i, dtype in enumerate([torch.float32, *dtypes]):
        _check(*([results[name][i]] for name in ("triton", "reference", "truth")), dtype)


LOCAL = [case for case in CASES if case.name.split("-")[0] in ("dynamic_conv", "positional_norm")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16] if INTERPRETED else [])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("shape", [(2, 8, 5, 6), (3, 5, 1, 1), (1, 33, 9, 7), (2, 130, 3, 20)], ids=str)
@pytest.mark.parametrize("case", LOCAL, ids=lambda case: case.name)
def test_local_ops(case, shape, channels_last, dtype):
    """Ops of a pixel and its neighbours: outputs and all gradients."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    results = {}
    for name, kind in (("triton", dtype), ("reference", dtype), ("truth", torch.float64)):
        made = {k: t.to(kind) for k, t in inputs(case, shape, dtype).items()}
        made = {k: t.contiguous(memory_format=layout) if t.dim() == 4 else t for k, t in made.items()}
        leaves = [t.requires_grad_() for t in made.values()]
        with i2ifast.use_backend("triton" if name == "triton" else "reference"):
            y = case.ours(**made)
            dy = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(kind)
            results[name] = [t.detach().double() for t in (y, *torch.autograd.grad(y, leaves, dy))]
    _check(*(results[name] for name in ("triton", "reference", "truth")), dtype)


def _table_cases(*stems: str) -> list[testing.Case]:
    return [case for case in testing.CASES if case.name.split("-")[0] in stems] if INTERPRETED else []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("case", _table_cases("bias_act", "upfirdn2d"), ids=lambda case: case.name)
def test_of_the_table(case, channels_last, dtype):
    """Ops whose inputs are those of the table of cases."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for shape in ((2, 33, 9, 7), (3, 8, 1, 1), (1, 3, 12, 20)):
        tensors = testing.inputs(case, shape, dtype)
        results = {}
        for name, kind in (("triton", dtype), ("reference", dtype), ("truth", torch.float64)):
            given = {k: t.to(kind) for k, t in tensors.items()}
            given["x"] = given["x"].contiguous(memory_format=layout)
            leaves = {k: t.requires_grad_() for k, t in given.items()}
            with i2ifast.use_backend("triton" if name == "triton" else "reference"):
                y = case.ours(**leaves)
                upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(kind)
                results[name] = [y.detach(), *torch.autograd.grad(y, list(leaves.values()), upstream)]
        _check(*([t.double() for t in results[name]] for name in ("triton", "reference", "truth")), dtype)


@pytest.mark.skipif(INTERPRETED, reason="this is that run")
def test_kernels_interpreted():
    """Every test above, with Triton's interpreter."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
