"""Six checks for every op from the one table of cases: i2ifast/testing.py."""

import contextlib
import math
import os
from collections.abc import Iterator

import pytest
import torch

import i2ifast
from i2ifast import _backend
from i2ifast.testing import CASES, SHAPES, Case, inputs, regions

DEVICES = os.environ.get("I2IFAST_TEST_DEVICES", "cpu").split(",")
HALVES = [torch.bfloat16, torch.float16]


def backends(device: str) -> list[str]:
    names = ["reference", "cpu"] if device == "cpu" else ["reference", "triton", "cuda"]
    return [n for n in names if not _backend.missing[n]]


@contextlib.contextmanager
def running(backend: str, dtype: torch.dtype) -> Iterator[None]:
    """Force a backend, as far as it has the kernels: CUDA C++ has those of some ops, the CPU none of float16."""
    if backend == "cuda":
        preferred = {name: lambda x: True for name in ("modulate_table", "modulate_table_dx")}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_backend, "prefer_cuda", preferred)
            yield
    else:
        with i2ifast.use_backend("auto" if backend == "cpu" and dtype is torch.float16 else backend):
            yield


def layouts(t: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values in every layout that a caller may bring."""
    if t.dim() != 4:
        return {"contiguous": t}
    wide = torch.empty([s + 3 for s in t.shape], dtype=t.dtype, device=t.device)
    sliced = wide[1:-2, 2:-1, 1:-2, 3:].copy_(t)
    return {
        "contiguous": t.contiguous(),
        "channels_last": t.contiguous(memory_format=torch.channels_last),
        "transposed": t.transpose(2, 3).contiguous().transpose(2, 3),
        "sliced": sliced,
    }


def run(function, tensors: dict, upstream_seed: int = 1) -> dict[str, torch.Tensor]:
    """Outputs and gradients of all floating-point inputs, for random upstream gradients."""
    leaves = {k: v.detach().requires_grad_() for k, v in tensors.items() if v.is_floating_point()}
    out = function(**{**tensors, **leaves})
    outs = out if isinstance(out, tuple) else (out,)
    g = torch.Generator().manual_seed(upstream_seed)
    ups = [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o) for o in outs]
    grads = torch.autograd.grad(outs, list(leaves.values()), ups)
    return {f"out{i}": o.detach() for i, o in enumerate(outs)} | {
        f"d{k}": v for k, v in zip(leaves, grads, strict=True)
    }


def assert_within_twice(ours: dict, plain: dict, truth: dict, dtype: torch.dtype, terms: float = 0.0) -> None:
    """The one tolerance: our error is at most twice that of plain PyTorch in the same dtype, plus a floor of a few ulp.

    `terms`: size of the terms that dx is a difference of; its rounding is relative to these, not to what is left of
    them.
    """
    eps = torch.finfo(dtype).eps
    for name, exact in truth.items():
        if exact.numel() == 0:
            assert ours[name].shape == exact.shape
            continue
        error = (ours[name].double().cpu() - exact).abs().max().item()
        allowed = (plain[name].double().cpu() - exact).abs().max().item()
        scale = max(exact.abs().max().item(), terms if name == "dx" else 0.0)
        assert error <= 2 * (0.0 if math.isnan(allowed) else allowed) + 4 * eps * scale, (
            f"{name}: {error:.3g} against plain PyTorch's {allowed:.3g}"
        )


def terms_of(case: Case, tensors: dict) -> float:
    """The largest rstd that multiplies a difference in dx, for planes of few values."""
    if "instance" not in case.name and "batch" not in case.name or tensors["x"].numel() == 0:
        return 0.0
    if "ids" in tensors:
        return regions.largest_factor(**tensors)
    dims = (2, 3) if "instance" in case.name else (0, 2, 3)
    return (tensors["x"].double().var(dims, correction=0) + 1e-5).rsqrt().max().item()


def truth_of(case: Case, tensors: dict) -> dict[str, torch.Tensor]:
    wide = {k: v.detach().double().cpu() if v.is_floating_point() else v.cpu() for k, v in tensors.items()}
    with i2ifast.use_backend("reference"):
        return run(case.ours, wide)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_against_float64(case, shape, device):
    for dtype in (torch.float32, *HALVES):
        tensors = inputs(case, SHAPES[shape], dtype, device)
        truth = truth_of(case, tensors)
        for layout in ("contiguous", "channels_last", "transposed", "sliced"):
            laid = {k: layouts(v).get(layout, v) for k, v in tensors.items()}
            plain = run(case.plain, laid)  # whose convolutions round otherwise in other layouts
            for backend in backends(device):
                with running(backend, dtype):
                    ours = run(case.ours, laid)
                assert_within_twice(ours, plain, truth, dtype, terms_of(case, tensors))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_reference_is_plain_pytorch(case):
    """The reference, in float64, is the plain formulation."""
    tensors = inputs(case, SHAPES["plain"], torch.float64)
    ours, plain = run(case.ours, tensors), run(case.plain, tensors)
    for name in ours:
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mean, std", [(1e4, 1e-2), (3.0, 0.0), (1e-20, 1e-21)])
@pytest.mark.parametrize("case", [c for c in CASES if "instance" in c.name or "batch" in c.name], ids=lambda c: c.name)
def test_hard_statistics(case, mean, std):
    tensors = inputs(case, (2, 16, 24, 20), torch.float32)
    tensors["x"] = (mean + std * tensors["x"].double()).float()
    truth, plain = truth_of(case, tensors), run(case.plain, tensors)
    for layout in ("contiguous", "channels_last"):
        assert_within_twice(
            run(case.ours, {**tensors, "x": layouts(tensors["x"])[layout]}),
            plain,
            truth,
            torch.float32,
            terms_of(case, tensors),
        )


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_second_order(case):
    tensors = inputs(case, (2, 3, 2, 3), torch.float64)
    names = [k for k, v in tensors.items() if v.is_floating_point()]
    leaves = [tensors[k].requires_grad_() for k in names]

    def function(*values):
        return case.ours(**{**tensors, **dict(zip(names, values, strict=True))})

    assert torch.autograd.gradcheck(function, leaves, nondet_tol=0)
    assert torch.autograd.gradgradcheck(function, leaves, nondet_tol=0)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_second_order_of_kernels(case):
    """A gradient penalty through the compiled kernels is the reference's."""
    tensors = inputs(case, (2, 8, 3, 3), torch.float32)

    def penalty(tensors):
        leaves = {k: v.detach().requires_grad_() for k, v in tensors.items() if v.is_floating_point()}
        out = case.ours(**{**tensors, **leaves})
        out = sum((o.float() ** 3).sum() for o in (out if isinstance(out, tuple) else (out,)))
        grads = torch.autograd.grad(out, list(leaves.values()), create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in grads), list(leaves.values()))

    ours = penalty(tensors)
    with i2ifast.use_backend("reference"):
        truth = penalty({k: v.double() if v.is_floating_point() else v for k, v in tensors.items()})
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_poisoned_memory_and_repeats(case):
    """Every output element is written, and two runs are bit-equal."""
    tensors = inputs(case, SHAPES["wide"], torch.float32)
    first = run(case.ours, tensors)
    torch.use_deterministic_algorithms(True)  # fills every new tensor with NaN
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        second = run(case.ours, tensors)
    finally:
        torch.use_deterministic_algorithms(False)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_compile_equals_eager(case):
    torch.compiler.reset()
    tensors = inputs(case, SHAPES["plain"], torch.float32)
    compiled = torch.compile(lambda **t: case.ours(**t), fullgraph=True, backend="aot_eager", dynamic=False)
    eager, ours = run(case.ours, tensors), run(compiled, tensors)
    for name in eager:
        # The compiler may choose other layouts, and with them other summation orders of the library's convolutions.
        scale = max(1.0, eager[name].abs().max().item())
        torch.testing.assert_close(ours[name], eager[name], rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_opcheck(case, monkeypatch):
    """torch.library.opcheck on every op call that the case makes, forward and backward."""
    calls = []
    tensors = inputs(case, SHAPES["odd"], torch.float32)

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.namespace == "i2ifast":
                calls.append((function, args))
            return function(*args, **(kwargs or {}))

    with Record():
        run(case.ours, tensors)
    assert calls
    for function, args in calls:
        args = [a.detach().requires_grad_(a.is_floating_point()) if isinstance(a, torch.Tensor) else a for a in args]
        constant = {"mean", "rstd"}
        names = [a.name for a in function._schema.arguments]
        args = [a.detach() if n in constant else a for n, a in zip(names, args, strict=False)]  # not all options
        torch.library.opcheck(function, tuple(args), raise_exception=True)


@pytest.mark.parametrize("case", [c for c in CASES if "instance" in c.name], ids=lambda c: c.name)
def test_nan_stays_in_its_sample(case):
    tensors = inputs(case, (2, 8, 6, 6), torch.float32)
    clean = run(case.ours, tensors)
    tensors["x"][1, 3, 2, 2] = float("nan")
    dirty = run(case.ours, tensors)
    for name in ("out0", "dx"):
        assert torch.equal(clean[name][0], dirty[name][0])
        assert "layer" in case.name or torch.equal(clean[name][1, :3], dirty[name][1, :3])
        assert dirty[name][1, 3].isnan().any()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_small_shape(case):
    """Vector tails: every H, W in 1..9 and awkward channel counts, float32, both layouts."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, c, h, w) for h in range(1, 10) for w in range(1, 10) for c in (3, 31)]
    shapes = [shapes[i] for i in torch.randperm(len(shapes), generator=generator)[:24].tolist()] + [
        (5, 64, 1, 9),
        (1, 1000, 2, 1),
    ]
    for shape in shapes:
        tensors = inputs(case, shape, torch.float32)
        truth = truth_of(case, tensors)
        for layout in ("contiguous", "channels_last"):
            laid = {k: layouts(v).get(layout, v) for k, v in tensors.items()}
            assert_within_twice(
                run(case.ours, laid), run(case.plain, laid), truth, torch.float32, terms_of(case, tensors)
            )


def test_errors_name_value_and_limit():
    x, table, patches = torch.randn(1, 4, 3, 3), torch.randn(5, 8), torch.zeros(1, 3, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"expected a tensor \[N, C, H, W\], got shape \[4, 3, 3\]"):
        i2ifast.ops.modulate_table(x[0], table, patches)
    with pytest.raises(ValueError, match=r"table has shape \[5, 6\], expected \[5, 8\]"):
        i2ifast.ops.modulate_table(x, table[:, :6], patches)
    with pytest.raises(TypeError, match="patches are torch.int64"):
        i2ifast.ops.modulate_table(x, table, patches.long())
    with pytest.raises(ValueError, match="act='gelu'"):
        i2ifast.ops.modulate_style(x, act="gelu")
    with pytest.raises(ValueError, match="unknown backend 'fast'"), i2ifast.use_backend("fast"):
        pass


def test_forced_backend_that_cannot_run_says_why():
    if not _backend.missing["cuda"]:
        pytest.skip("CUDA kernels run here")
    with i2ifast.use_backend("cuda"), pytest.raises(RuntimeError, match="forced backend 'cuda' cannot run"):
        i2ifast.ops.modulate_style(torch.randn(1, 2, 3, 3))
