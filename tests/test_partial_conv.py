"""Partial convolutions against the published formula, and the loss of inpainting."""

import copy

import pytest
import torch
import torch.nn.functional as F
from plain import normal
from safetensors.torch import save_file
from torch import Tensor, nn

from i2ifast.nn import PartialConv2d, PartialConv3d, VGG16PartialLoss


def published(layer: nn.Module, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """As Liu et al. write it: every channel of a window counted, with bias."""
    convolve = F.conv2d if x.dim() == 4 else F.conv3d
    geometry = layer.stride, layer.padding, layer.dilation
    whole = torch.ones_like(x) if mask is None else mask.expand_as(x)
    channels = x.size(1) if layer.multi_channel else 1
    counted = whole if layer.multi_channel else whole[:, :1]
    ones = torch.ones((1, channels, *layer.kernel_size), dtype=x.dtype)
    count = convolve(counted, ones, None, *geometry)
    seen = count.clamp(0, 1)
    ratio = ones.numel() / (count + 1e-8) * seen
    y = convolve(x * whole, layer.weight, None, *geometry, layer.groups) * ratio
    bias = 0 if layer.bias is None else layer.bias.view(-1, *[1] * (x.dim() - 2))
    return (y + bias) * seen, seen


LAYERS = {
    "padding": (PartialConv2d, dict(kernel_size=3, padding=1), False),
    "winograd": (PartialConv2d, dict(kernel_size=3, padding=1, bias=False), False),
    "mask": (PartialConv2d, dict(kernel_size=5, stride=2, padding=2), True),
    "dilated": (PartialConv2d, dict(kernel_size=3, padding=2, dilation=2, groups=2), True),
    "multi": (PartialConv2d, dict(kernel_size=3, padding=1, multi_channel=True), True),
    "multi padding": (PartialConv2d, dict(kernel_size=3, padding=1, multi_channel=True, groups=2), False),
    "even": (PartialConv2d, dict(kernel_size=4, stride=2, padding=1), True),
    "point": (PartialConv2d, dict(kernel_size=1), True),
    "volume": (PartialConv3d, dict(kernel_size=3, stride=2, padding=1), True),
    "volume padding": (PartialConv3d, dict(kernel_size=2, padding=1, bias=False), False),
}


def made(name: str) -> tuple[nn.Module, Tensor, Tensor | None]:
    kind, options, masked = LAYERS[name]
    torch.manual_seed(0)
    channels, outputs = (16, 64) if name == "winograd" else (4, 6)
    layer = kind(channels, outputs, **options, return_mask=True).double()
    size = (9, 7) if kind is PartialConv2d else (6, 9, 7)
    x = normal(2, channels, *size).double()
    shape = x.shape if layer.multi_channel else (1, 1, *size)
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.6).double()
    mask[..., :5, :5] = 0
    return layer, x.requires_grad_(), mask if masked else None


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_its_formula(name):
    layer, x, mask = made(name)
    (y, seen), (expected, expected_seen) = layer(x, mask), published(layer, x, mask)
    assert torch.equal(seen.expand_as(y), expected_seen.expand_as(y))
    leaves = [x, *layer.parameters()]
    dy = normal(*y.shape, seed=2).double()
    pairs = zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True)
    for ours, theirs in ((y, expected), *pairs):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert y[(seen == 0).expand_as(y)].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_order_and_dtypes(dtype):
    layer, x, mask = made("mask")
    layer, x = layer.to(dtype), x.detach().to(dtype).requires_grad_()
    y, seen = layer(x, mask.to(dtype))
    assert y.dtype is seen.dtype is dtype
    (gradient,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
    assert torch.autograd.grad(gradient.float().square().sum(), layer.weight)[0].isfinite().all()


def test_what_a_mask_gave_holds_for_inputs_of_its_size():
    layer, x, mask = made("mask")
    x = x.detach()
    masked, seen = layer(x, mask)
    again, seen_again = layer(x * mask)
    assert torch.equal(masked, again) and seen_again is seen
    other, _ = layer(torch.cat([x, x]))
    torch.testing.assert_close(other, published(layer, torch.cat([x, x]), None)[0])


def test_state_dict_is_that_of_a_convolution():
    layer, plain = PartialConv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    layer(normal(1, 3, 8, 8))
    assert layer.state_dict().keys() == plain.state_dict().keys()
    layer.load_state_dict(plain.state_dict())
    assert copy.deepcopy(layer)(normal(1, 3, 8, 8)).shape == (1, 4, 6, 6)
    with pytest.raises(ValueError, match="padding_mode='reflect'"):
        PartialConv2d(3, 4, 3, padding=1, padding_mode="reflect")


@pytest.fixture
def vgg(tmp_path):
    torch.manual_seed(0)
    widths, state = {0: (3, 4), 2: (4, 4), 5: (4, 8), 7: (8, 8), 10: (8, 16), 12: (16, 16), 14: (16, 16)}, {}
    for i, (inputs, outputs) in widths.items():
        state |= {f"features.{i}.weight": normal(outputs, inputs, 3, 3, seed=i), f"features.{i}.bias": normal(outputs)}
    save_file(state, tmp_path / "vgg16.safetensors")
    return tmp_path / "vgg16.safetensors"


def test_loss_is_its_formula(vgg):
    criterion = VGG16PartialLoss(smooth_alpha=0.5, vgg_path=vgg)
    x, y = (torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(i)) for i in range(2))
    x.requires_grad_()
    total, perceptual, style = criterion(x, y)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    a, b = (x - mean) / std, (y - mean) / std
    expected = [5 * (a - b).abs().mean(), 0, 0]
    expected[0] += 0.5 * ((a[..., 1:] - a[..., :-1]).abs().mean() + (a[:, :, 1:] - a[:, :, :-1]).abs().mean())
    for layers in criterion.slices:
        a, b = layers(a), layers(b)
        grams = [torch.einsum("nchw,ndhw->ncd", f, f) / f[0].numel() for f in (a, b)]
        expected[1] += 0.05 * (a - b).abs().mean()
        expected[2] += 120 * (grams[0] - grams[1]).abs().mean()
    expected[0] += expected[1] + expected[2]
    for ours, theirs in zip((total, perceptual, style), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    total.backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in criterion.parameters())


def test_loss_refuses_other_files(vgg, tmp_path):
    save_file({"features.0.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is no VGG16: it has no features.0.bias, features.2.weight"):
        VGG16PartialLoss(vgg_path=tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="feat_num=4: expected 1..3"):
        VGG16PartialLoss(feat_num=4, vgg_path=vgg)
