"""Spectral normalisation: the op against plain PyTorch in float64, the module against torch.nn.utils.spectral_norm."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import remove_spectral_norm
from torch.nn.utils import spectral_norm as torch_spectral_norm

from i2ifast import _backend, use_backend
from i2ifast.nn.spectral import spectral_norm
from i2ifast.ops.spectral_weight import spectral_weight

BUILT = pytest.mark.skipif(bool(_backend.missing["cpu"]), reason=_backend.missing["cpu"])
BACKENDS = ["reference", pytest.param("cpu", marks=BUILT)]
SHAPES = [(8, 5), (1, 200), (64, 3, 3, 3), (33, 17, 3, 5), (7, 130, 1, 1), (130, 70, 4, 4)]


def plain(weight: Tensor, u: Tensor, v: Tensor, iterations: int, eps: float = 1e-12) -> tuple[Tensor, ...]:
    """What torch.nn.utils.spectral_norm computes."""
    matrix = weight.flatten(1)
    with torch.no_grad():
        for _ in range(iterations):
            v = F.normalize(matrix.t() @ u, dim=0, eps=eps)
            u = F.normalize(matrix @ v, dim=0, eps=eps)
    sigma = u @ (matrix @ v)
    return weight / sigma, u, v, sigma


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=g, dtype=torch.float64)
    u = F.normalize(torch.randn(shape[0], generator=g, dtype=torch.float64), dim=0)
    v = F.normalize(torch.randn(weight[0].numel(), generator=g, dtype=torch.float64), dim=0)
    # A shift gives sigma a direction of its own: without it one iteration of random vectors has a sigma near 0.
    weight = weight + 3 * torch.outer(u, v).view(shape)
    return weight.to(dtype), u.to(dtype), v.to(dtype)


def both(op, weight: Tensor, u: Tensor, v: Tensor, iterations: int) -> list[Tensor]:
    """The op's results and the gradient of the weight."""
    weight = weight.detach().requires_grad_()
    results = op(weight, u, v, iterations)
    direction = torch.linspace(-1, 2, weight.numel(), dtype=torch.float64).view(weight.shape).to(weight.dtype)
    return [*(t.detach() for t in results), torch.autograd.grad(results[0], weight, direction)[0]]


def assert_as_good(ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor]) -> None:
    """The error is at most twice that of plain PyTorch in the same precision, plus two ulps of the largest value."""
    for a, b, e in zip(ours, theirs, exact, strict=True):
        ulp = torch.finfo(b.dtype).eps * e.abs().max().item()
        assert (a.double() - e).abs().max().item() <= 2 * (b.double() - e).abs().max().item() + 2 * ulp


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, iterations, backend):
    weight, u, v = inputs(shape)
    exact = both(plain, weight.double(), u.double(), v.double(), iterations)
    with use_backend(backend):
        ours = both(spectral_weight, weight, u, v, iterations)
    assert_as_good(ours, both(plain, weight, u, v, iterations), exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_last_weight_keeps_its_layout(backend):
    weight, u, v = inputs((33, 17, 3, 5))
    with use_backend(backend):
        expected = both(spectral_weight, weight, u, v, 1)
        results = both(spectral_weight, weight.to(memory_format=torch.channels_last), u, v, 1)
    assert results[0].is_contiguous(memory_format=torch.channels_last)
    assert results[-1].is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_strided_arguments():
    weight, u, v = inputs((12, 6, 3, 3))
    sliced = torch.stack([weight, weight], 1)[:, 1]
    strided = torch.stack([v, v], 1)[:, 1]
    for a, b in zip(both(spectral_weight, sliced, u, strided, 1), both(spectral_weight, weight, u, v, 1), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("iterations", [0, 1])
def test_first_and_second_derivatives(iterations):
    weight, u, v = inputs((4, 3, 2, 2), torch.float64)
    weight.requires_grad_()

    def loss(weight):
        # The vectors are constants for autograd, so finite differences must not move them either.
        return spectral_weight(weight, u, v, 0)[0]

    if iterations:
        _, u, v, _ = spectral_weight(weight.detach(), u, v, iterations)
    assert torch.autograd.gradcheck(loss, weight)
    assert torch.autograd.gradgradcheck(loss, weight)


def test_second_derivative_in_float32_matches_plain():
    weight, u, v = inputs((16, 5, 3, 3))

    def second(op, dtype):
        w = weight.to(dtype).requires_grad_()
        (first,) = torch.autograd.grad(op(w, u.to(dtype), v.to(dtype), 1)[0].pow(3).sum(), w, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), w)[0]

    exact = second(plain, torch.float64).float()
    torch.testing.assert_close(second(spectral_weight, torch.float32), exact, rtol=1e-4, atol=1e-5)


def test_vectors_and_sigma_are_constants():
    weight, u, v = inputs((4, 6))
    y, new_u, new_v, sigma = spectral_weight(weight.requires_grad_(), u, v)
    assert y.requires_grad and not (new_u.requires_grad or new_v.requires_grad or sigma.requires_grad)


def test_no_second_copy_of_the_weight_is_kept_for_backward():
    weight, u, v = inputs((16, 5, 3, 3))
    weight.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        spectral_weight(weight, u, v)
    assert [t.data_ptr() for t in kept if t.numel() == weight.numel()] == [weight.data_ptr()]


def test_the_operator_contract():
    weight, u, v = inputs((4, 3, 3, 3))
    sample = (weight.requires_grad_(), u, v, 1, 1e-12)
    torch.library.opcheck(torch.ops.i2ifast.spectral_weight.default, sample)
    dy, sigma = torch.ones_like(weight), torch.tensor(2.0)
    torch.library.opcheck(torch.ops.i2ifast.spectral_weight_backward.default, (dy, weight, u, v, sigma))


@pytest.mark.parametrize("backend", BACKENDS)
def test_reads_no_memory_it_did_not_write(backend):
    weight, u, v = inputs((130, 70, 3, 3))
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan()  # uninitialised memory is filled
        with use_backend(backend):
            assert all(t.isfinite().all() for t in both(spectral_weight, weight, u, v, 1))
    finally:
        torch.use_deterministic_algorithms(False)


def test_same_bits_for_any_number_of_threads():
    weight, u, v = inputs((257, 70, 3, 3))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(both(spectral_weight, weight, u, v, 2))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_bfloat16_weights():
    weight, u, v = inputs((16, 5, 3, 3), torch.bfloat16)
    exact = both(plain, weight.double(), u.double(), v.double(), 1)
    ours = both(spectral_weight, weight, u, v, 1)
    assert [t.dtype for t in ours] == [torch.bfloat16] * 3 + [torch.float32, torch.bfloat16]
    for a, e in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=2e-2, atol=2e-2 * e.abs().max().item())


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_lower_the_precision(backend):
    weight, u, v = inputs((16, 5, 3, 3))
    with use_backend(backend):
        expected = both(spectral_weight, weight, u, v, 1)
        with torch.autocast("cpu", torch.bfloat16):
            results = both(spectral_weight, weight, u, v, 1)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 300),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_any_matrix(rows, columns, scale, seed):
    weight, u, v = inputs((rows, columns), seed=seed)
    weight = weight * scale
    exact = both(plain, weight.double(), u.double(), v.double(), 1)
    assert_as_good(both(spectral_weight, weight, u, v, 1), both(plain, weight, u, v, 1), exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_norms_are_not_blown_up(backend):
    weight, u, v = inputs((4, 6))
    with use_backend(backend):
        _, new_u, new_v, sigma = spectral_weight(weight * 1e-3, u, v, 1, eps=1.0)
    for a, b in zip((new_u, new_v, sigma), plain(weight * 1e-3, u, v, 1, eps=1.0)[1:], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(4)}, "two dimensions"),
        ({"weight": torch.zeros(4, 6, dtype=torch.int64)}, "floating-point"),
        ({"u": torch.zeros(5)}, r"u has shape \[5\], expected \[4\]"),
        ({"v": torch.zeros(5)}, r"v has shape \[5\], expected \[6\]"),
        ({"iterations": -1}, "iterations=-1"),
        ({"u": torch.zeros(4, device="meta")}, "u is on meta"),
    ],
)
def test_refuses(change, message):
    arguments = {"weight": torch.zeros(4, 6), "u": torch.zeros(4), "v": torch.zeros(6), **change}
    with pytest.raises((ValueError, TypeError), match=message):
        spectral_weight(**arguments)


MODULES = {
    "conv": lambda: nn.Conv2d(3, 8, 3, padding=1),
    "linear": lambda: nn.Linear(4, 6),
    "transposed": lambda: nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1),
}


def pair(kind: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """Ours and torch's, with the same random start, and an input."""
    torch.manual_seed(0)
    module = MODULES[kind]()
    states = []
    for wrap in (spectral_norm, torch_spectral_norm):
        torch.manual_seed(1)
        states.append(wrap(copy.deepcopy(module)))
    return *states, torch.randn(2, 4) if kind == "linear" else torch.randn(2, 3, 6, 6)


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)


@pytest.mark.parametrize("kind", MODULES)
def test_module_is_torchs(kind):
    ours, theirs, x = pair(kind)
    assert_same(ours, theirs)
    buffers = [id(ours.weight_u), id(ours.weight_v)]
    for training in (True, True, False, True):
        ours.train(training), theirs.train(training)
        before = ours.weight_u.clone()
        y, expected = ours(x), theirs(x)
        torch.testing.assert_close(y, expected)
        assert torch.equal(before, ours.weight_u) != training
        if training:
            assert ours.weight.data_ptr() == ours.weight_orig.data_ptr(), "a second copy of the weight"
        else:
            torch.testing.assert_close(ours.weight, theirs.weight)
        (y**2).mean().backward(), (expected**2).mean().backward()
        torch.testing.assert_close(ours.weight_orig.grad, theirs.weight_orig.grad)
    assert buffers == [id(ours.weight_u), id(ours.weight_v)]
    assert_same(ours, theirs)


def test_state_dicts_are_exchanged_with_torch():
    ours, theirs, x = pair("conv")
    ours(x), theirs(x + 1)
    spare = copy.deepcopy(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(theirs.eval()(x), ours.eval()(x))
    ours.load_state_dict(spare)
    theirs.load_state_dict(spare)
    torch.testing.assert_close(theirs(x), ours(x))


def test_initialisation_may_write_to_weight():
    ours, _, x = pair("conv")
    nn.init.constant_(ours.weight.data, 0.5)
    assert (ours.weight_orig == 0.5).all()


def test_several_forwards_before_a_backward():
    ours, theirs, x = pair("conv")
    for module in (ours, theirs):
        (module(x) * module(x + 1)).mean().backward()
    torch.testing.assert_close(ours.weight_orig.grad, theirs.weight_orig.grad)


def test_several_forwards_under_distributed_data_parallel(tmp_path):
    ours, theirs, x = pair("conv")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for module in (ours, theirs):
            parallel = nn.parallel.DistributedDataParallel(module)
            (parallel(x) - parallel(x + 1) * parallel(x - 1)).mean().backward()
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(ours.weight_orig.grad, theirs.weight_orig.grad)


def test_evaluation_follows_every_kind_of_write():
    ours, theirs, x = pair("conv")
    with torch.no_grad():
        for _ in range(20):
            ours(x)
        theirs.load_state_dict(ours.state_dict())
        ours.eval(), theirs.eval()
        for write in (
            lambda m: m.weight_orig.data.mul_(2).add_(0.1),
            lambda m: m.weight_orig.add_(0.3),
            lambda m: m.weight_u.data.neg_(),
            lambda m: setattr(m.weight_orig, "data", m.weight_orig.data.flip(0)),
        ):
            ours(x), write(ours), write(theirs)
            torch.testing.assert_close(ours(x), theirs(x))


def test_copies_and_pickles_after_a_training_forward():
    ours, _, x = pair("conv")
    ours(x).sum().backward()
    for duplicate in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert duplicate.weight_orig is not ours.weight_orig
        expected = copy.deepcopy(ours.state_dict())
        duplicate(x)
        assert torch.equal(ours.weight_u, expected["weight_u"])
        twin = torch_spectral_norm(nn.Conv2d(3, 8, 3, padding=1))
        twin.load_state_dict(expected)
        twin(x)
        assert_same(duplicate, twin)
        assert not duplicate.weight.requires_grad


def test_removal_leaves_the_plain_module():
    ours, _, x = pair("conv")
    ours(x)
    expected = ours.eval()(x)
    remove_spectral_norm(ours)
    assert list(dict(ours.named_parameters())) == ["bias", "weight"]
    torch.testing.assert_close(ours.train()(x), expected)


def test_training_under_autocast():
    ours, _, x = pair("conv")
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    assert ours.weight_orig.grad.isfinite().all()


def test_refuses_a_second_time_and_no_iterations():
    with pytest.raises(RuntimeError, match="two spectral_norm hooks"):
        spectral_norm(spectral_norm(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="n_power_iterations=0"):
        spectral_norm(nn.Linear(3, 2), n_power_iterations=0)
