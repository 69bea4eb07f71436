"""How results are computed does not change them: threads, repeats, sizes, magnitudes, and what is installed."""

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from plain import blocks, gradients, normal, one_hot
from test_ops import assert_within_twice, run
from torch import Tensor, nn

import i2ifast
from i2ifast import labels, ops, use_backend
from i2ifast._backend import missing
from i2ifast.nn import SPADEResnetBlock, bake, label_conv2d
from i2ifast.ops import _winograd
from i2ifast.testing import CASES, Case, inputs

CLASSES = 4


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def block() -> nn.Module:
    torch.manual_seed(0)
    net = SPADEResnetBlock(6, 4, "spectralspadebatch3x3", CLASSES, 8)
    with torch.no_grad():
        net(normal(2, 6, 16, 12), labels.plan(blocks(2, 16, 12, CLASSES), CLASSES))
    return net


def job(net: nn.Module, seed: int) -> dict[str, Tensor]:
    """A training forward and backward of a copy on data of its own, from the label maps to the gradients."""
    maps = blocks(2, 16, 12, CLASSES, seed=seed)
    seg = one_hot(maps, CLASSES) if seed % 2 else labels.plan(maps, CLASSES)
    return gradients(copy.deepcopy(net), normal(2, 6, 16, 12, seed=seed), seg)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in b)


def test_two_host_threads_train():
    net = block()
    expected = [job(net, seed) for seed in range(4)]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            found = pool.map(lambda seed: job(net, seed), range(4))
            assert all(same(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shared_plan", [False, True])
def test_two_host_threads_share_a_baked_network(shared_plan):
    """Also its first call, which lays weights out, and the first use of a tensor, which plans it."""
    net, x, maps = block().eval(), normal(2, 6, 16, 12), blocks(2, 16, 12, CLASSES)
    with torch.no_grad():
        expected = bake(net)(x, one_hot(maps, CLASSES))
        for _ in range(10):
            baked, seg = bake(net), labels.plan(maps, CLASSES) if shared_plan else one_hot(maps, CLASSES)

            def call(_: int, baked: nn.Module = baked, seg: Tensor | labels.LabelPlan = seg) -> Tensor:
                with torch.no_grad():
                    return baked(x, seg)

            with ThreadPoolExecutor(2) as pool:
                assert all(torch.equal(y, expected) for y in pool.map(call, range(4)))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_two_host_threads_run_an_op(case):
    tensors = [inputs(case, (2, 9, 7, 6), torch.float32, seed=seed) for seed in range(2)]
    expected = [run(case.ours, t) for t in tensors]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            found = pool.map(lambda t: run(case.ours, t), tensors)
            assert all(same(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_250_repeats_are_bit_equal(case):
    tensors = inputs(case, (2, 9, 7, 6), torch.float32)
    expected = run(case.ours, tensors)
    for i in range(250):
        assert same(run(case.ours, tensors), expected), f"run {i}"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
# A convolution of sizes that no kernel is for is the library's, whose sums depend on the number of threads.
@pytest.mark.parametrize("case", [c for c in CASES if not c.name.startswith("conv")], ids=lambda c: c.name)
def test_any_number_of_threads_gives_the_same_bits(case, layout, threads):
    """With enough elements for several threads to share them."""
    tensors = inputs(case, (2, 24, 40, 31), torch.float32)
    tensors = {k: t.contiguous(memory_format=layout) if t.dim() == 4 else t for k, t in tensors.items()}
    threads(1)
    expected = run(case.ours, tensors)
    for count in (2, 3, 4, 2, 1):
        threads(count)
        assert same(run(case.ours, tensors), expected), f"{count} threads"


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (4, 1), (4, 2)])
def test_convolutions_are_bit_equal_for_any_number_of_threads(kernel, stride, threads):
    """Of channels that the CPU kernel takes; more tiles than are done at a time."""
    x, weight = normal(2, 64, 61, 64), normal(64, 64, kernel, kernel, seed=1)
    function = ops.conv2d if (kernel, stride) != (3, 1) else lambda x, weight, *_: ops.conv3x3(x, weight)

    def once() -> list[Tensor]:
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        y = function(*leaves, None, stride)
        return [y.detach(), *torch.autograd.grad(y, leaves, normal(*y.shape, seed=2))]

    if not _winograd.fast(x, 64, 64):
        return
    threads(1)
    expected = once()
    for count in (2, 3, 4, 16):
        threads(count)
        assert all(map(torch.equal, once(), expected)), f"{count} threads"


def test_layers_are_bit_equal_for_any_number_of_threads(threads):
    """What a layer adds to its ops: the plan, and sums over lists of windows."""
    maps = blocks(2, 64, 60, CLASSES, cell=3)
    weight = normal(16, CLASSES, 3, 3).requires_grad_()
    table = normal(9, 32, seed=2).requires_grad_()

    def once() -> dict[str, Tensor]:
        y = label_conv2d(labels.plan(maps, CLASSES), weight, None, (64, 60), 1, 1)
        z = ops.modulate_table(y, table, (maps % 9).int(), ops.batch_statistics(y)[0], 0.2)
        grads = torch.autograd.grad(z, [weight, table], normal(*z.shape, seed=3))
        return {"z": z.detach(), "dweight": grads[0], "dtable": grads[1]}

    threads(1)
    expected = once()
    for i in range(24):
        threads(1 + i % 4)
        assert same(once(), expected), f"run {i}"


SHAPE_OF_MANY = (1, 1, 4096, 4100)  # more than 2^24: a float32 sum of ones would stand still


@pytest.fixture(scope="module")
def many() -> Tensor:
    return 1 + torch.rand(SHAPE_OF_MANY, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("per_sample", [True, False])
def test_moments_of_more_than_2_24_elements(many, per_sample):
    mean, var = ops.moments(many, per_sample)
    exact = torch.var_mean(many.double(), correction=0)
    plain = torch.var_mean(many, correction=0)
    for ours, truth, theirs in ((var, exact[0], plain[0]), (mean, exact[1], plain[1])):
        floor = 2**-23 * truth.item()
        assert abs(ours.item() - truth.item()) <= 2 * abs(theirs.item() - truth.item()) + floor


def test_gradient_sums_of_more_than_2_24_elements(many):
    """dstyle and dtable are sums over the plane: within 1e-6 of float64, however many terms."""
    parameter = torch.zeros(1, 2, requires_grad=True)
    patches = torch.zeros((1, *SHAPE_OF_MANY[2:]), dtype=torch.int32)
    expected = torch.stack([(many.double() ** 2).sum(), many.double().sum()])
    for y in (ops.modulate_style(many, parameter), ops.modulate_table(many, parameter, patches)):
        (grad,) = torch.autograd.grad(y, parameter, many)
        torch.testing.assert_close(grad[0].double(), expected, rtol=1e-6, atol=0)


PLAIN_STATISTICS = [c for c in CASES if "none" in c.name.split("-")[1:2] or "fixed" in c.name]


@pytest.mark.parametrize("scale", [1e30, 1e-40], ids=["huge", "denormal"])
@pytest.mark.parametrize("case", PLAIN_STATISTICS, ids=lambda c: c.name)
def test_extreme_values_without_statistics(case, scale):
    """x is multiplied and added to only: within the 2x rule at the ends of float32's range."""
    assert_rule(case, scale)


@pytest.mark.parametrize("scale", [1e17, 1e-18, 1e-40], ids=["large", "small", "denormal"])
@pytest.mark.parametrize(
    "case", [c for c in CASES if "instance" in c.name or "moments" in c.name], ids=lambda c: c.name
)
def test_extreme_values_with_statistics(case, scale):
    """As far as the variance can be held in float32 at all."""
    assert_rule(case, scale)


def assert_rule(case: Case, scale: float) -> None:
    tensors = inputs(case, (2, 8, 9, 7), torch.float32)
    tensors["x"] = (scale * tensors["x"].double()).float()
    wide = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
    truth, plain = run(case.plain, wide), run(case.plain, tensors)
    for layout in (torch.contiguous_format, torch.channels_last):
        ours = run(case.ours, {**tensors, "x": tensors["x"].contiguous(memory_format=layout)})
        assert all(t.isfinite().all() for t in ours.values())
        assert_within_twice(ours, plain, truth, torch.float32)


STEP = """
import torch
from i2ifast import models, report

print(report())
torch.manual_seed(0)
system = models.build("spade", "tiny")
system.init_weights()
system.train()
label = torch.arange(8).repeat_interleave(8)[None, None, :, None].expand(2, 1, 64, 128).clone()
batch = {"label": label, "instance": label, "image": torch.rand(2, 3, 64, 128) * 2 - 1}
prepared = system.prepare(batch)
for phase in system.phases:
    system.freeze_all_but(phase)
    trained = [p for p in system.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    adam = torch.optim.Adam(trained, lr=1e-3)
    sum(phase.loss(prepared).values()).backward()
    adam.step()
    assert all(p.isfinite().all() for p in trained)
    assert any(not p.equal(b) for p, b in zip(trained, before))
fake = system.eval().translate(batch)["fake"]
assert fake.shape == (2, 3, 64, 128) and fake.isfinite().all()
"""
HIDE_TRITON = "import sys; sys.modules['triton'] = None\n"


def interpreter(source: str, root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A new Python that runs `source` and finds i2ifast in `root`."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, cwd=root)


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The lines of a report by their first words."""
    assert done.returncode == 0, done.stderr
    return {line.split()[0]: line for line in done.stdout.splitlines() if line}


@pytest.fixture
def checkout() -> Path:
    return Path(i2ifast.__file__).parent.parent


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The package without its compiled libraries."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(Path(i2ifast.__file__).parent, tmp_path / "i2ifast", ignore=ignore)
    shutil.copytree(Path(i2ifast.kernels.__path__[0]), tmp_path / "kernels", ignore=ignore)
    return tmp_path


def test_a_system_trains_and_translates_on_the_forced_reference(checkout):
    found = rows(interpreter(STEP, checkout, I2IFAST_BACKEND="reference"))
    assert "reference (forced)" in found["modulate_table"]


def test_a_system_trains_and_translates_without_compiled_libraries_and_triton(bare):
    found = rows(interpreter(HIDE_TRITON + STEP, bare))
    assert "_C.so was not built (no compiler when i2ifast was installed)" in found["cpu"]
    assert "triton is not installed" in found["triton"]
    assert "reference (cpu: _C.so was not built" in found["modulate_table"]


def test_a_forced_backend_that_is_not_there_says_why(bare):
    call = "import torch, i2ifast; i2ifast.ops.modulate_style(torch.ones(1, 1, 2, 2))"
    done = interpreter(call, bare, I2IFAST_BACKEND="cpu")
    assert done.returncode == 1
    assert "the forced backend 'cpu' cannot run: _C.so was not built" in done.stderr


def test_an_unknown_backend_in_the_environment_is_refused(checkout):
    done = interpreter("import i2ifast", checkout, I2IFAST_BACKEND="fast")
    assert done.returncode == 1 and "I2IFAST_BACKEND='fast': expected one of auto, reference" in done.stderr


@pytest.mark.skipif(bool(missing["cpu"]), reason=missing["cpu"])
def test_a_whole_layer_is_the_same_on_reference_and_kernels():
    maps, x = blocks(2, 16, 12, CLASSES), normal(2, 6, 16, 12)
    plan = labels.plan(maps, CLASSES)
    found = gradients(block(), x, plan)
    with use_backend("reference"):
        expected = gradients(block(), x, plan)
    for name, theirs in expected.items():
        torch.testing.assert_close(found[name], theirs, rtol=1e-4, atol=1e-5 * (1 + theirs.abs().max().item()))
