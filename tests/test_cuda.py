"""What only a GPU can show: streams, graphs, devices, determinism, and tensors of more than 2^31 elements."""

import pytest
import torch
from torch import Tensor

import i2ifast
from i2ifast import _backend, ops
from i2ifast.testing import CASES, Case, inputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

SHAPE = (2, 40, 33, 48)
BACKENDS = [name for name in ("triton", "cuda") if not _backend.missing[name]]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(params=BACKENDS)
def preferred(request, monkeypatch) -> str:
    """Tables by CUDA C++ or by Triton, all else by Triton."""
    for name in ("modulate_table", "modulate_table_dx"):
        monkeypatch.setitem(_backend.prefer_cuda, name, lambda x: request.param == "cuda")
    return request.param


def made(case: Case, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of a case on the GPU, channels_last where they can be; floating-point ones require gradients."""
    tensors = inputs(case, SHAPE, torch.bfloat16, "cuda", seed)
    for name, t in tensors.items():
        t = t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
        tensors[name] = t.requires_grad_(t.is_floating_point())
    return tensors


def step(case: Case, tensors: dict[str, Tensor]) -> list[Tensor]:
    """Outputs and gradients."""
    out = case.ours(**tensors)
    outs = out if isinstance(out, tuple) else (out,)
    gradients = torch.autograd.grad(outs, [t for t in tensors.values() if t.requires_grad], [o.detach() for o in outs])
    return [*(o.detach() for o in outs), *gradients]


@every_case
def test_repeats_are_bit_equal(case, preferred):
    tensors = made(case)
    first = step(case, tensors)
    for _ in range(250):
        assert all(torch.equal(a, b) for a, b in zip(first, step(case, tensors), strict=True))


@every_case
def test_side_stream(case, preferred):
    """The kernels wait for what their own stream does before them."""
    tensors, stream = made(case), torch.cuda.Stream()
    expected = step(case, tensors)
    late = {name: t.detach().clone().zero_() for name, t in tensors.items()}
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for name, t in late.items():
            t.copy_(tensors[name].detach())
        found = step(case, {name: t.requires_grad_(t.is_floating_point()) for name, t in late.items()})
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@every_case
def test_graph_replays_with_new_data(case, preferred):
    tensors, other = made(case), made(case, seed=1)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compiles, and fills the allocator
        for _ in range(3):
            step(case, tensors)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(case, tensors)
    with torch.no_grad():
        for name, t in tensors.items():
            if t.is_floating_point() or name == "patches":  # the lists of gather_sum differ in length
                t.copy_(other[name])
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(step(case, tensors), found, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@every_case
def test_second_device(case, preferred):
    tensors = made(case)
    moved = {k: t.detach().to("cuda:1").requires_grad_(t.requires_grad) for k, t in tensors.items()}
    assert all(torch.equal(a, b.to(a.device)) for a, b in zip(step(case, tensors), step(case, moved), strict=True))


def test_mixed_devices_raise():
    x, style = torch.zeros((1, 4, 3, 3), device="cuda"), torch.zeros((1, 8))
    with pytest.raises(ValueError, match="style is on cpu, x on cuda"):
        ops.modulate_style(x, style)


@every_backend
@pytest.mark.parametrize("channels_last", [True, False])
def test_more_than_2_31_elements(backend, channels_last):
    """The last rows of an image of 2^31 + 2^26 elements are as those rows alone."""
    c, h, w = 64, 4224, 8192
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of GPU memory")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    draw = torch.Generator("cuda").manual_seed(0)
    empty = torch.empty((1, c, h, w), dtype=torch.bfloat16, device="cuda", memory_format=layout)
    x = empty.normal_(generator=draw).requires_grad_()
    table = torch.randn((50, 2 * c), device="cuda", generator=draw)
    coarse = torch.randint(50, (1, h // 64, w // 64), device="cuda", generator=draw, dtype=torch.int32)
    patches = coarse.repeat_interleave(64, 1).repeat_interleave(64, 2)
    with i2ifast.use_backend(backend):
        y = ops.modulate_table(x, table, patches, act="relu")
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        tail = x.detach()[:, :, -8:].contiguous(memory_format=layout).requires_grad_()
        y_tail = ops.modulate_table(tail, table, patches[:, -8:].contiguous(), act="relu")
        (dx_tail,) = torch.autograd.grad(y_tail, tail, torch.ones_like(y_tail))
    assert torch.equal(y[:, :, -8:], y_tail) and torch.equal(dx[:, :, -8:], dx_tail)


@pytest.mark.skipif("triton" not in BACKENDS, reason="Triton cannot run")
def test_moments_of_more_than_2_31_elements():
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("needs 20 GiB of GPU memory")
    x = torch.empty((33, 2, 8192, 4096), dtype=torch.float32, device="cuda")
    for sample in x:
        sample.normal_(1e4, 1e-2)
    with i2ifast.use_backend("triton"):
        mean, var = ops.moments(x, per_sample=False)
    exact = torch.stack([torch.stack([plane.double().mean(), plane.double().var()]) for plane in x.flatten(0, 1)])
    exact = exact.view(33, 2, 2).mean(
        0
    )  # planes of one distribution: the variance of their means is nothing beside theirs
    torch.testing.assert_close(mean[0].double(), exact[:, 0], rtol=1e-6, atol=0)
    torch.testing.assert_close(var[0].double(), exact[:, 1], rtol=1e-4, atol=0)
