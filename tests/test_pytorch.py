"""What PyTorch does to modules and ops: compile, export, autocast, checkpointing, version counters, transforms."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from plain import PlainBlock, PlainSPADE, blocks, gradients, normal, one_hot
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from i2ifast import labels, ops
from i2ifast.nn import SPADE, AdaILN, AdaIN, InstanceNormAct, LayerNorm, SPADEResnetBlock
from i2ifast.testing import CASES, inputs

CLASSES = 4
MAPS = blocks(2, 16, 12, CLASSES)
SEG = one_hot(MAPS, CLASSES)
X = normal(2, 6, 16, 12)

# Modules and what they are conditioned on; a map that requires grad takes the dense path.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple]]] = {
    "instance": (lambda: InstanceNormAct(6, 0.2, affine=True), lambda: ()),
    "adain": (lambda: AdaIN("relu"), lambda: (normal(2, 12),)),
    "adaptive iln": (lambda: AdaILN(6, act="relu"), lambda: (normal(2, 6, seed=2), normal(2, 6, seed=3))),
    "layer norm": (lambda: LayerNorm(6, act=0.2), lambda: ()),
    "adain map": (AdaIN, lambda: (normal(2, 6, 5, 4),)),
    "dense layer": (
        lambda: SPADE("spadebatch3x3", 6, CLASSES, 8),
        lambda: (SEG.clone().requires_grad_(),),
    ),
    "dense block": (
        lambda: SPADEResnetBlock(6, 4, "spectralspadeinstance3x3", CLASSES, 8),
        lambda: (SEG.clone().requires_grad_(),),
    ),
    "planned layer": (
        lambda: SPADE("spadebatch3x3", 6, CLASSES, 8),
        lambda: (labels.plan(MAPS, CLASSES).precompute([(16, 12)]),),
    ),
}


def network(kind: str) -> tuple[nn.Module, tuple]:
    torch.manual_seed(0)
    make, condition = NETWORKS[kind]
    return make(), condition()


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    for name, expected in theirs.items():
        torch.testing.assert_close(
            ours[name], expected, rtol=tolerance, atol=tolerance * (1 + expected.abs().max().item())
        )


@pytest.mark.parametrize("kind", NETWORKS)
def test_compiled_modules_equal_eager(kind):
    """In one graph: forward, gradients and running buffers."""
    torch.compiler.reset()
    net, condition = network(kind)
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager", dynamic=False)
    for _ in range(2):
        expected = gradients(net, X, *condition)
        twin.zero_grad()
        x = X.clone().requires_grad_()
        y = compiled(x, *condition)
        y.backward(normal(*y.shape, seed=1))
        found = {"y": y.detach(), "dx": x.grad, **{f"d {n}": p.grad for n, p in twin.named_parameters()}}
        assert_close({**found, **dict(twin.named_buffers())}, expected)


def test_a_layer_that_plans_compiles_around_its_plan():
    """Finding distinct vectors depends on data: a graph break, not an error."""
    torch.compiler.reset()
    net = SPADE("spadebatch3x3", 6, CLASSES, 8).eval()
    compiled = torch.compile(net, backend="aot_eager")
    torch.testing.assert_close(compiled(X, SEG.clone()), net(X, SEG))


DYNAMIC = [c for c in CASES if c.name in ("modulate_table-batch-0.2-none-upsample", "modulate-instance-none")]
DYNAMIC += [c for c in CASES if c.name in ("modulate_style-instance-relu", "moments-batch", "linear", "gather_sum")]


@pytest.mark.parametrize("case", DYNAMIC, ids=lambda c: c.name)
def test_one_graph_for_all_shapes(case):
    torch.compiler.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, example: list) -> Callable:
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda **t: case.ours(**t), fullgraph=True, backend=backend, dynamic=True)
    for shape in [(2, 8, 6, 10), (3, 8, 9, 4), (5, 8, 12, 7)]:
        tensors = inputs(case, shape, torch.float32)
        found, expected = compiled(**tensors), case.ours(**tensors)
        pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
        for ours, theirs in pairs:
            assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()
    assert len(graphs) == 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_export(dynamic):
    net = InstanceNormAct(6, 0.2, affine=True)
    shapes = {"x": {d: torch.export.Dim.DYNAMIC for d in (0, 2, 3)}} if dynamic else None
    program = torch.export.export(net, (X,), dynamic_shapes=shapes)
    assert torch.equal(program.module()(X), net(X))
    assert any("i2ifast" in str(node.target) for node in program.graph.nodes)
    if dynamic:
        other = normal(3, 6, 7, 5)
        assert torch.equal(program.module()(other), net(other))


PLAIN = {
    "layer": (lambda: SPADE("spadebatch3x3", 6, CLASSES, 8), lambda: PlainSPADE("batch", 6, CLASSES, 8)),
    "block": (
        lambda: SPADEResnetBlock(6, 4, "spadeinstance3x3", CLASSES, 8),
        lambda: PlainBlock(6, 4, "instance", CLASSES, 8),
    ),
}


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("seg", [SEG, labels.plan(MAPS, CLASSES)], ids=["tensor", "plan"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(kind, seg, dtype):
    """Types are plain PyTorch's, everything is finite, and the mean error is at most twice plain PyTorch's.

    Of blocks the error of the output only: a leaky relu's gradient jumps where rounding changes a sign.
    """
    ours, plain = (make() for make in PLAIN[kind])
    plain.load_state_dict(ours.state_dict())
    exact = gradients(copy.deepcopy(plain).double(), X.double(), SEG.double())
    with torch.autocast("cpu", dtype):
        found, theirs = gradients(ours, X, seg), gradients(plain, X, SEG)
    for name, truth in exact.items():
        assert found[name].isfinite().all() and (name == "y" or found[name].dtype is theirs[name].dtype), name
        if truth.is_floating_point() and (kind == "layer" or name == "y"):
            error, allowed = ((t[name].double() - truth).abs().mean().item() for t in (found, theirs))
            assert error <= 2 * allowed + torch.finfo(dtype).eps / 8 * truth.abs().mean().item(), name


@pytest.mark.parametrize("case", [c for c in CASES if c.name.startswith("modul")], ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ops_take_a_half_x_and_float32_modulation(case, dtype):
    """What autocast hands over: x from a convolution in halves, everything else as it was."""
    tensors = inputs(case, (2, 8, 6, 5), torch.float32)
    x = tensors["x"].to(dtype).requires_grad_()
    outs = case.ours(**{**tensors, "x": x})
    outs = outs if isinstance(outs, tuple) else (outs,)
    exact = case.ours(**{**tensors, "x": x.detach().float()})
    for y, truth in zip(outs, exact if isinstance(exact, tuple) else (exact,), strict=True):
        assert y.dtype is dtype
        torch.testing.assert_close(y.float(), truth, rtol=2 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)
    sum(y.float().sum() for y in outs).backward()
    assert x.grad.dtype is dtype and x.grad.isfinite().all()


def test_grad_scaler_skips_a_step_with_an_infinity():
    net = SPADE("spadebatch3x3", 6, CLASSES, 8)
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=8.0), torch.optim.SGD(net.parameters(), 0.1)
    before = [p.detach().clone() for p in net.parameters()]
    for factor, moved in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = net(X, SEG).float().pow(2).mean()
        scaler.scale(loss * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert any(not torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True)) == moved
        assert scaler.get_scale() == 4.0


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["instance", "adain", "dense block", "planned layer"])
def test_checkpointing(kind, reentrant):
    """Gradients of a recomputed forward; running buffers move twice, so they are left out."""
    net, condition = network(kind)
    net.eval()
    expected = gradients(net, X, *condition)
    x = X.clone().requires_grad_()
    net.zero_grad()
    y = checkpoint(net, x, *condition, use_reentrant=reentrant)
    y.backward(normal(*y.shape, seed=1))
    found = {"y": y.detach(), "dx": x.grad, **{f"d {n}": p.grad for n, p in net.named_parameters()}}
    for name, ours in found.items():
        assert torch.equal(ours, expected[name]), name


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_inputs_changed_after_the_forward_are_noticed(case):
    """Backward refuses, for every input that it reads, instead of using the new values."""
    tensors = inputs(case, (2, 4, 4, 5), torch.float32)
    names = [name for name, t in tensors.items() if t.is_floating_point()]

    def gradient(changed: str | None) -> list[Tensor]:
        leaves = {name: tensors[name].clone().requires_grad_() for name in names}
        used = {name: leaf.clone() for name, leaf in leaves.items()}
        out = case.ours(**{**tensors, **used})
        if changed:
            with torch.no_grad():
                used[changed].mul_(2)
        out = sum((o * o).sum() for o in (out if isinstance(out, tuple) else (out,)))
        return list(torch.autograd.grad(out, list(leaves.values())))

    expected = gradient(None)
    for name in names:
        try:
            found = gradient(name)
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
        else:  # an input that the backward does not read, as the rows of a sum
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), name


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_inputs_and_upstream_gradients_of_any_stride(case):
    """Expanded, transposed and sliced tensors are their contiguous copies."""
    tensors = inputs(case, (3, 4, 5, 5), torch.float32)
    spread = {
        "x": lambda t: t[:1, :, :1].expand(t.shape) if t.dim() == 4 else t[:1].expand(t.shape),
        "upstream": lambda t: t.mean().expand(t.shape) if t.dim() == 4 else t[:, :1].expand(t.shape),
    }
    layouts = [spread, {name: lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2) for name in spread}]
    layouts += [{name: lambda t: torch.stack([t, t], -1)[..., 1] for name in spread}]
    for layout in layouts:
        given = {k: layout["x"](t) if k == "x" else t for k, t in tensors.items()}
        results = []
        for contiguous in (False, True):
            leaves = {k: t.contiguous() if contiguous else t for k, t in given.items()}
            wanted = [t.requires_grad_() for t in (v.detach() for v in leaves.values()) if t.is_floating_point()]
            names = [k for k, t in leaves.items() if t.is_floating_point()]
            out = case.ours(**{**leaves, **dict(zip(names, wanted, strict=True))})
            outs = out if isinstance(out, tuple) else (out,)
            upstream = [layout["upstream"](normal(*o.shape, seed=i)) for i, o in enumerate(outs)]
            upstream = [g.contiguous() if contiguous else g for g in upstream]
            results.append([*outs, *torch.autograd.grad(outs, wanted, upstream)])
        for strided, dense in zip(*results, strict=True):
            torch.testing.assert_close(strided, dense, rtol=1e-5, atol=1e-5)


def test_an_output_changed_in_place_keeps_the_gradient():
    """No op reads its output in backward, so activations in place behind it are fine."""
    x = X.clone().requires_grad_()
    F.relu_(ops.modulate_style(x, None, ops.instance_statistics(x))).sum().backward()
    y = X.clone().requires_grad_()
    F.relu(F.instance_norm(y)).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(kind, mode):
    net, condition = network(kind)
    net.eval()
    expected = net(X, *condition)
    with mode():
        y = net(X, *condition)
        assert not y.requires_grad and torch.equal(y, expected)
        assert torch.equal(net(X.clone(), *condition), expected)
    assert torch.equal(net(X, *condition), expected)


def test_tensors_of_inference_mode_are_planned():
    net = SPADE("spadebatch3x3", 6, CLASSES, 8).eval()
    expected = net(X, SEG)
    with torch.inference_mode():
        assert torch.equal(net(X, SEG.clone()), expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap():
    net, stacked = InstanceNormAct(6, "relu"), torch.stack([X, X + X.abs()])
    assert torch.equal(torch.func.vmap(net)(stacked), torch.stack([net(x) for x in stacked]))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.func.hessian])
def test_reverse_mode_transforms_are_refused(transform):
    net = InstanceNormAct(6, "relu")
    with pytest.raises(RuntimeError, match="functorch transforms"):
        transform(lambda x: net(x).pow(3).sum())(X[:1, :, :2, :2])


def test_forward_mode_is_refused():
    with pytest.raises(RuntimeError):
        torch.func.jvp(InstanceNormAct(6, "relu"), (X,), (normal(*X.shape, seed=1),))


@pytest.mark.parametrize("kind", ["instance", "adain", "adain map"])
def test_shapes_without_data(kind):
    net, condition = network(kind)
    y = net.to("meta")(X.to("meta"), *(c.to("meta") for c in condition))
    assert y.is_meta and y.shape == X.shape
