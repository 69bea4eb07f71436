"""Region normalisation: against its published formulation, for any map of ids, and pooling by region."""

import pytest
import torch
import torch.nn.functional as F
from plain import blocks, gradients, normal
from torch import Tensor, nn

from i2ifast import labels, models, ops, use_backend
from i2ifast.nn import RN, RN_B, RN_L, RegionNorm, region_average_pool, region_means

X = normal(2, 6, 16, 12)
IDS = blocks(2, 16, 12, 5)  # [N, H, W]


def published(x: Tensor, mask: Tensor, eps: float = 1e-5) -> Tensor:
    """RN(x * mask) + RN(x * (1 - mask)): each side fills the other with its mean and is batch-normalised."""
    total = 0
    for m in (mask, 1 - mask):
        count = m.sum((0, 2, 3), keepdim=True)
        count = torch.where(count == 0, torch.ones_like(count), count)
        mean = (x * m).sum((0, 2, 3), keepdim=True) / count
        filled = x * m + (1 - m) * mean
        pixels = x.numel() / x.size(1)
        total = total + F.batch_norm(filled, None, None, training=True, eps=eps) * torch.sqrt(count / pixels)
    return total


class PlainRN(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return published(x, mask)


class PlainRNB(RN_B):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mask = F.interpolate(mask, size=x.shape[2:])
        by_channel = [getattr(self, n)[:, None, None] for n in ("foreground_gamma", "background_gamma")]
        scale = mask * (1 + by_channel[0]) + (1 - mask) * (1 + by_channel[1])
        shift = (self.foreground_beta + self.background_beta)[:, None, None]
        return F.leaky_relu(published(x, mask) * scale + shift, 0.2)


class PlainRNL(RN_L):
    def forward(self, x: Tensor) -> Tensor:
        sa = self.sa
        importance = torch.sigmoid(sa.conv1(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)))
        gamma, beta = sa.gamma_conv(importance), sa.beta_conv(importance)
        return F.leaky_relu(published(x, (importance >= self.threshold).to(x.dtype)) * (1 + gamma) + beta, 0.2)


def pair(kind: str) -> tuple[nn.Module, nn.Module, tuple]:
    mask = torch.zeros(2, 1, 32, 24)
    mask[0, :, 4:20, 3:11] = 1
    mask[1, :, 20:, 6:14] = 1
    torch.manual_seed(0)
    if kind == "core":
        return RN(6), PlainRN(), (mask[:, :, ::2, ::2].contiguous(),)
    if kind == "empty":
        return RN_B(6, 0.2), PlainRNB(6), (torch.zeros_like(mask),)
    if kind == "basic":
        return RN_B(6, 0.2), PlainRNB(6), (mask,)
    return RN_L(6, 0.5, act=0.2), PlainRNL(6, 0.5), ()


@pytest.mark.parametrize("kind", ["core", "basic", "empty", "learned"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_rn_is_its_published_formulation(kind, layout, backend):
    ours, plain, condition = pair(kind)
    with torch.no_grad():
        for i, parameter in enumerate(ours.parameters()):
            parameter.add_(0.3 * normal(*parameter.shape, seed=i))
    plain.load_state_dict(ours.state_dict())
    x = (X * torch.arange(1, 7)[:, None, None] + 3).contiguous(memory_format=layout)
    expected = gradients(plain.double(), x.double(), *(c.double() for c in condition))
    with use_backend(backend):
        found = gradients(ours, x, *condition)
    for name, truth in expected.items():
        torch.testing.assert_close(found[name].double(), truth, rtol=1e-4, atol=1e-5 * (1 + truth.abs().max().item()))
    assert found["y"].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("per_sample", [True, False])
def test_region_norm_normalises_every_region(per_sample):
    """Any 64-bit ids; mean 0 and variance 1 over each region; affine rows by id."""
    x, big = 3 * X + 5, (IDS.long() - 2) * 2**60
    y = RegionNorm(6, per_sample=per_sample)(x, big)
    groups = [(n, i) for n in range(2) for i in range(5)] if per_sample else [(slice(None), i) for i in range(5)]
    for n, i in groups:
        inside = y[n].movedim(-3, -1)[IDS[n] == i]
        if len(inside) > 1:
            torch.testing.assert_close(inside.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
            torch.testing.assert_close(inside.var(0, correction=0), torch.ones(6), atol=1e-3, rtol=0)
    affine = RegionNorm(6, 5, per_sample)
    with torch.no_grad():
        affine.weight.copy_(normal(5, 6))
        affine.bias.copy_(normal(5, 6, seed=2))
    scale, shift = (p[IDS.long()].permute(0, 3, 1, 2) for p in (affine.weight, affine.bias))
    torch.testing.assert_close(affine(x, IDS), y * scale + shift, rtol=1e-5, atol=1e-5)


def test_region_norm_takes_maps_of_another_size_and_refuses_ids_without_weight():
    large = F.interpolate(IDS[:, None].float(), scale_factor=2).long()
    assert torch.equal(RegionNorm(6)(X, large), RegionNorm(6)(X, IDS))
    assert torch.equal(RegionNorm(6)(X, labels.regions(large, True)), RegionNorm(6)(X, IDS))
    with pytest.raises(ValueError, match="id 4: the maximum is 3, the minimum 0"):
        RegionNorm(6, 4)(X, IDS)


def test_regions_are_remembered_until_the_map_changes():
    ids, norm = IDS.clone(), RegionNorm(6)
    first = norm(X, ids)
    assert torch.equal(norm(X, ids), first)
    ids[:] = 0
    torch.testing.assert_close(norm(X, ids), F.instance_norm(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_sample", [True, False])
def test_regions_of_any_ids(per_sample):
    maps = torch.tensor([[[7, -(2**63)], [2**63 - 1, 7]], [[7, 7], [7, 0]]])
    found = labels.regions(maps, per_sample)
    assert torch.equal(found.values[found.ids.long()], maps)
    assert found.count == (5 if per_sample else 4) and found.ids.dtype is torch.int32
    if per_sample:
        assert found.samples.tolist() == [0, 0, 0, 1, 1]
    order, offsets = found.segments
    assert torch.equal(
        found.ids.flatten()[order.long()], torch.arange(found.count).repeat_interleave(offsets.diff()).int()
    )
    with pytest.raises(TypeError, match="expected integers"):
        labels.regions(maps.float())


def test_pooling_by_region():
    x = X.clone().requires_grad_()
    means, pooled = region_means(x, IDS, 7), region_average_pool(x, IDS)
    grads = [torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (means, pooled)]
    one_hot = F.one_hot(IDS.long(), 7).double()
    count = one_hot.sum((1, 2)).clamp(min=1)[..., None]
    z = X.double().requires_grad_()
    expected = torch.einsum("nhwr,nchw->nrc", one_hot, z) / count
    spread = torch.einsum("nhwr,nrc->nchw", one_hot, expected)
    truths = [torch.autograd.grad(y.square().sum(), z, retain_graph=True)[0] for y in (expected, spread)]
    for ours, truth in zip((means, pooled, *grads), (expected, spread, *truths), strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["basic", "learned", "by ids"])
def test_compiles_in_one_graph(kind):
    torch.compiler.reset()
    net, condition = (RegionNorm(6), (labels.regions(IDS),)) if kind == "by ids" else pair(kind)[::2]
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=False)
    expected, found = (gradients(f, X, *condition) for f in (net, compiled))
    for name in ("y", "dx"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["basic", "learned"])
def test_halves(kind, dtype):
    ours, _, condition = pair(kind)
    exact = ours(X.to(dtype).float(), *condition)
    y = ours.to(dtype)(X.to(dtype), *condition)
    assert y.dtype is dtype and (y.float() - exact).abs().mean() < 4 * torch.finfo(dtype).eps


def test_empty_batches_and_single_pixels():
    assert RN_B(6)(X[:0], torch.zeros(0, 1, 16, 12)).shape == (0, 6, 16, 12)
    assert RegionNorm(6)(X[:0], IDS[:0]).shape == (0, 6, 16, 12)
    assert torch.equal(RegionNorm(6)(X[:, :, :1, :1], IDS[:, :1, :1]), torch.zeros(2, 6, 1, 1))
    assert region_means(X[:0], IDS[:0], 3).shape == (0, 3, 6)


def system_and_batch() -> tuple[models.System, dict[str, Tensor]]:
    torch.manual_seed(0)
    system = models.build("region_norm", "tiny").train()
    mask = torch.zeros(2, 1, 32, 32)
    mask[:, :, 8:20, 10:24] = 1
    return system, {"image": torch.rand(2, 3, 32, 32) * 2 - 1, "mask": mask}


def gradients_of(system: models.System, phase: models.Phase, batch: dict[str, Tensor]) -> list[Tensor]:
    system.freeze_all_but(phase)
    system.zero_grad()
    sum(phase.loss(batch).values()).backward()
    return [p.grad.clone() for p in system.nets[phase.nets[0]].parameters()]


def test_discriminator_steps_along_what_the_generators_loss_left():
    system, batch = system_and_batch()
    system.eval()  # spectral norms do not move
    d, g = system.phases
    fresh = gradients_of(system, d, system.prepare(batch))
    gradients_of(system, g, system.prepare(batch))
    carried = gradients_of(system, d, system.prepare(batch))
    system.nets.requires_grad_(True)
    system.zero_grad()
    sum(g.loss(system.prepare(batch)).values()).backward()
    logits = system.nets["D"](system.nets["G"]((batch["image"] + 1) / 2, batch["mask"]))
    left = torch.autograd.grad(0.1 * F.softplus(-logits).mean(), list(system.nets["D"].parameters()))
    for with_it, without, what in zip(carried, fresh, left, strict=True):
        torch.testing.assert_close(with_it, without + what, rtol=1e-4, atol=1e-7)


def test_both_phases_share_a_prediction():
    system, batch = system_and_batch()
    calls = []
    system.nets["G"].register_forward_hook(lambda *_: calls.append(1))
    shared, alone = system.prepare(batch), system.prepare(batch)
    for phase in system.phases:
        found = gradients_of(system, phase, shared)
    assert len(calls) == 1
    system.eval()
    expected = gradients_of(system, system.phases[1], alone)
    assert len(calls) == 2 and len(found) == len(expected)


def test_what_is_in_the_holes_is_not_looked_at():
    system, batch = system_and_batch()
    other = {**batch, "image": torch.where(batch["mask"] > 0, -batch["image"], batch["image"])}
    system.eval()
    first, second = (system.translate(b)["fake"] for b in (batch, other))
    assert torch.equal(first, second)
    assert torch.equal(first * (1 - batch["mask"]), batch["image"] * (1 - batch["mask"]))


@pytest.mark.parametrize(
    "options, message", [({"threshold": 1.0}, "threshold 1.0"), ({"width_divisor": 3}, "divisor 3")]
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        models.build("region_norm", **options)


@pytest.mark.parametrize("channels", [1, 16, 19, 40])
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_channel_pool_of_special_values_and_ties(channels, special):
    """As torch's: a NaN is the maximum, and the first of equal channels gets its gradient."""
    x = normal(2, channels, 3, 3).round()
    x[0, channels // 2, 1], x[1, :, 0] = special, special
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    plain = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
    up = normal(*plain.shape, seed=1)
    ours = ops.channel_pool(x)
    found, expected = ([y, *torch.autograd.grad(y, x, up)] for y in (ours, plain))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
