"""Losses against their definitions, and their gradients and penalties through the library's own layers."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from plain import normal
from torch import Tensor, nn

import i2ifast
from i2ifast import _backend, ops
from i2ifast.nn import InstanceNormAct, losses, spectral_norm
from i2ifast.nn.vgg import STAGES, VGG, VGG19, caffe, imagenet, positions_of

BACKENDS = [name for name in ("reference", "cpu") if not _backend.missing[name]]


def outputs(n: int, layout: torch.memory_format = torch.channels_last) -> list[list[Tensor]]:
    """Of two discriminators, for a batch of n fake and n real images."""
    shapes = [(8, 17, 17), (16, 9, 9), (1, 5, 5)], [(8, 9, 9), (16, 5, 5), (1, 3, 3)]
    maps = [[normal(2 * n, *shape, seed=i) for i, shape in enumerate(scale)] for scale in shapes]
    return [[x.contiguous(memory_format=layout).requires_grad_() for x in scale] for scale in maps]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
def test_feature_matching_of_pairs_and_of_halves(backend, layout):
    batch = outputs(3, layout)
    fake, real = [[x[:3] for x in scale] for scale in batch], [[x[3:] for x in scale] for scale in batch]
    pairs = [(f, r) for scales in zip(fake, real, strict=True) for f, r in list(zip(*scales, strict=True))[:-1]]
    expected = sum(F.l1_loss(f, r.detach()) for f, r in pairs) / 2
    leaves = [x for scale in batch for x in scale[:-1]]
    gradients = torch.autograd.grad(expected, leaves)
    with i2ifast.use_backend(backend):
        for found in (losses.feature_matching(fake, real), losses.feature_matching(batch)):
            torch.testing.assert_close(found, expected)
            for ours, theirs in zip(torch.autograd.grad(found, leaves), gradients, strict=True):
                torch.testing.assert_close(ours, theirs)
        halves = torch.autograd.grad(losses.feature_matching(batch), leaves)
    assert all(x.is_contiguous(memory_format=layout) for x in halves)


def test_feature_matching_keeps_no_signs_without_gradients():
    with torch.no_grad():
        assert torch.ops.i2ifast.feature_matching([normal(2, 3)], [normal(2, 3)], [1.0], False)[1].numel() == 0
    same = normal(2, 3).requires_grad_()
    ops.feature_matching([same], [same]).sum().backward()
    assert not same.grad.any()


def test_feature_matching_of_layers_of_several_types_and_ranks():
    fake = [normal(2, 5), normal(2, 4, 3, 3).bfloat16(), normal(2, 4, 6, dtype=torch.float64)]
    real = [normal(*x.shape, seed=1, dtype=torch.float64) for x in fake]
    fake = [x.requires_grad_() for x in fake]
    found = ops.feature_matching(fake, real, [1.0, 2.0, 3.0])
    terms = [(f.double() - r.to(f.dtype)).abs().flatten(1).mean(1) for f, r in zip(fake, real, strict=True)]
    torch.testing.assert_close(found.double(), sum(w * t for w, t in enumerate(terms, 1)), rtol=1e-6, atol=0)
    found.sum().backward()
    assert all(x.grad.dtype is x.dtype for x in fake)


def test_feature_matching_errors():
    x = normal(2, 3, 4, 4)
    for arguments, message in (
        (([], []), "real has 0 layers, fake 0"),
        (([x], [x, x]), "real has 2 layers, fake 1"),
        (([x], [x], [1.0, 2.0]), "weights has 2 layers, fake 1"),
        (([x], [x[:, :2]]), r"layer 0: real has shape \[2, 2, 4, 4\], fake \[2, 3, 4, 4\]"),
        (([x[:1]],), "layer 0 has 1 samples: expected 1, and an even number"),
        (([x, x.repeat(2, 1, 1, 1)],), "layer 1 has 4 samples: expected 2"),
        (([x], [x.to("meta")]), "layer 0: expected fake and real on cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.feature_matching(*arguments)


def test_empty_batch_is_no_loss():
    batch = [[x[:0].detach().requires_grad_() for x in scale] for scale in outputs(1)]
    loss = losses.feature_matching(batch)
    assert loss == 0
    loss.backward()


@pytest.mark.parametrize("reduction, factor", [("sum", 1.0), ("mean", 0.5)])
def test_reductions(reduction, factor):
    logits = [normal(2, 1, 5, 5), normal(2, 1, 3, 3, seed=1)]
    expected = factor * (F.relu(1 - logits[0]).mean() + F.relu(1 - logits[1]).mean())
    torch.testing.assert_close(losses.multiscale(losses.hinge, logits, True, reduction=reduction), expected)
    mu, logvar = normal(2), normal(2, seed=1)
    both = losses.kl_divergence(mu, logvar)
    torch.testing.assert_close(losses.kl_divergence(mu, logvar, reduction), factor * both)
    with pytest.raises(ValueError, match="reduction 'none': expected mean or sum"):
        losses.kl_divergence(mu, logvar, "none")


def test_gram_matrix_and_total_variation():
    x = normal(2, 3, 4, 5)
    expected = torch.einsum("nahw,nbhw->nab", x, x) / (3 * 4 * 5)
    torch.testing.assert_close(losses.gram_matrix(x), expected)
    across = F.l1_loss(x[:, :, :, 1:], x[:, :, :, :-1]) + F.l1_loss(x[:, :, 1:], x[:, :, :-1])
    torch.testing.assert_close(losses.total_variation(x), across)


def critic() -> nn.Module:
    torch.manual_seed(0)
    first = nn.Sequential(spectral_norm(nn.Conv2d(3, 8, 3, 2, 1, bias=False)), InstanceNormAct(8, 0.2, affine=True))
    return nn.Sequential(first, nn.Conv2d(8, 1, 3)).eval()


@pytest.mark.parametrize("penalty", [losses.r1_penalty, losses.gradient_penalty])
def test_penalties_through_fused_layers(penalty):
    """Their gradients in the weights, which go through the second derivatives of the ops, are the reference's."""
    images, results = normal(2, 3, 12, 12), {}
    for backend, dtype in (("auto", torch.float32), ("reference", torch.float64)):
        net, x = critic().to(dtype), images.to(dtype).requires_grad_()
        with i2ifast.use_backend(backend):
            logits = net(x)
            loss = penalty(logits, x)
            loss.backward()
        (gradient,) = torch.autograd.grad(net(x).sum(), x)
        norms = gradient.flatten(1).norm(dim=1)
        expected = norms.square().mean() / 2 if penalty is losses.r1_penalty else (norms - 1).square().mean()
        torch.testing.assert_close(loss, expected)
        results[backend] = [loss.detach(), *(p.grad for p in net.parameters() if p.grad is not None)]
    for ours, truth in zip(*results.values(), strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-3, atol=1e-4 * truth.abs().max().item())


@pytest.mark.parametrize("pono", [True, False])
@pytest.mark.parametrize("elements", [1 << 22, 200])
def test_contextual_loss(pono, elements, monkeypatch):
    """Its definition, with the whole matrix, also where that is computed in chunks."""
    for limit in ("CHUNK", "KEPT"):
        monkeypatch.setattr(f"i2ifast.nn.correspondence.{limit}", elements)
    x, y = normal(2, 6, 5, 5).requires_grad_(), normal(2, 6, 5, 5, seed=1)
    mean = y.mean(1, keepdim=True) if pono else y.mean((2, 3), keepdim=True)
    a, b = (F.normalize((t - mean).flatten(2), dim=1) for t in (x, y))
    d = 1 - a.transpose(1, 2) @ b
    w = torch.exp((1 - d / (d.min(2, keepdim=True).values + 1e-3)) / 0.1)
    expected = -(w / w.sum(2, keepdim=True)).max(2).values.mean(1).log()
    found = losses.contextual(x, y, pono)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    ours, theirs = (torch.autograd.grad(t.sum(), x)[0] for t in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


def vgg_state(depth: int, prefix: str = "features.") -> dict[str, Tensor]:
    state, fin = {}, 3
    for index, name in positions_of(depth).items():
        width = min(4 << (int(name[4]) - 1), 16)
        state |= {
            f"{prefix}{index}.weight": normal(width, fin, 3, 3, seed=index),
            f"{prefix}{index}.bias": normal(width),
        }
        fin = width
    return state


@pytest.mark.parametrize("depth", STAGES)
def test_vgg_names_layers_as_torchvision_orders_them(depth, tmp_path: Path):
    state = vgg_state(depth)
    torch.save(state, tmp_path / "vgg.pth")
    net = VGG(tmp_path / "vgg.pth", ("relu1_2", "pool2", "relu4_2"), lambda x: caffe((x + 1) / 2))
    x, expected = normal(1, 3, 32, 32), []
    h = torch.stack([(x[:, 2 - c] + 1) / 2 * 255 - mean for c, mean in enumerate((103.939, 116.779, 123.68))], 1)
    for index, name in positions_of(depth).items():
        h = F.relu(F.conv2d(h, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1))
        expected += [h] if name in ("conv1_2", "conv4_2") else []
        if int(name[6]) == STAGES[depth][int(name[4]) - 1]:
            h = F.max_pool2d(h, 2)
            expected += [h] if name.startswith("conv2") else []
    for ours, theirs in zip(net(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2)
    torch.save(net.state_dict(), tmp_path / "named.pth")
    named, numbered = (VGG(tmp_path / f"{name}.pth", ("relu4_2",)) for name in ("named", "vgg"))
    assert torch.equal(named(x)[0], numbered(x)[0])
    with pytest.raises(ValueError, match="has no layers relu6_1; there are relu1_1"):
        VGG(tmp_path / "vgg.pth", ("relu6_1",))


def test_perceptual_is_the_weighted_sum(tmp_path: Path):
    torch.save(vgg_state(19), tmp_path / "vgg.pth")
    nets = VGG19(tmp_path / "vgg.pth"), VGG(tmp_path / "vgg.pth")
    fake, real = normal(2, 3, 32, 32).requires_grad_(), normal(2, 3, 32, 32, seed=1)
    weights = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)
    expected = sum(w * F.l1_loss(f, r) for w, f, r in zip(weights, nets[0](fake), nets[0](real), strict=True))
    for net in nets:
        found = losses.perceptual(net, fake, real)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(t, fake, retain_graph=True)[0] for t in (found, expected)))


def test_imagenet_preprocessing():
    x = imagenet(
        torch.tensor([0.485, 0.456, 0.406])[None, :, None, None] + torch.tensor([0.0, 0.224, -0.225])[:, None, None]
    )
    torch.testing.assert_close(x.flatten(), torch.tensor([0.0, 1.0, -1.0]), rtol=1e-4, atol=1e-5)
