"""Upsampling folded into the convolution behind it is exact: outputs and gradients, up to the borders."""

import pytest
import torch
import torch.nn.functional as F
from plain import gradients, normal
from torch import Tensor, nn

from i2ifast.nn import UpsampleConv2d, bake, upsample_conv2d
from i2ifast.nn.upsample_conv import PADDINGS


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """The small convolution, whether it pays or not."""
    monkeypatch.setattr("i2ifast.nn.upsample_conv._pays", lambda x, weight: True)


class Plain(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2))


def pair(kernel: int, padding: str, fin: int, fout: int, bias: bool = True) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    options = {"padding": kernel // 2, "padding_mode": padding, "bias": bias}
    ours, plain = UpsampleConv2d(fin, fout, kernel, **options), Plain(fin, fout, kernel, **options)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [(2, 2), (2, 3), (5, 4), (8, 9)], ids=str)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kernel", [3, 5])
def test_equals_upsampling_and_convolution(kernel, padding, size, layout):
    """In float64: y, and the gradients of x, weight and bias."""
    ours, plain = (net.double() for net in pair(kernel, padding, 3, 4))
    x = normal(2, 3, *size, dtype=torch.float64).contiguous(memory_format=layout)
    found, expected = gradients(ours, x), gradients(plain, x)
    assert found["y"].is_contiguous(memory_format=layout)
    for name, exact in expected.items():
        torch.testing.assert_close(found[name], exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kernel", [3, 5])
def test_kernels_of_float32(kernel, padding):
    """Channels that the convolution's CPU kernel takes."""
    ours, plain = pair(kernel, padding, 32, 16, bias=False)
    x = normal(1, 32, 9, 8).contiguous(memory_format=torch.channels_last)
    found, expected = gradients(ours, x), gradients(plain, x)
    for name, theirs in expected.items():
        torch.testing.assert_close(found[name], theirs, rtol=1e-4, atol=2e-6 * (1 + theirs.abs().max().item()))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kernel", [3, 5])
def test_baked(kernel, padding, monkeypatch):
    """The small weight is made once, for maps of any size; where the large convolution is faster nothing changes."""
    ours, _ = pair(kernel, padding, 32, 16)
    baked = bake(ours)
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr("i2ifast.nn.upsample_conv.small_weight", None)
        found = [baked(normal(1, 32, *size)) for size in ((9, 8), (4, 5))]
    expected = [ours(normal(1, 32, *size)) for size in ((9, 8), (4, 5))]
    torch.testing.assert_close(found, expected)
    monkeypatch.undo()
    torch.testing.assert_close(baked(normal(1, 32, 4, 5)), ours(normal(1, 32, 4, 5)))


@pytest.mark.parametrize("padding", PADDINGS)
def test_second_order(padding):
    x, weight = normal(1, 2, 3, 2, dtype=torch.float64), normal(2, 2, 5, 5, seed=1, dtype=torch.float64)
    tensors = [t.requires_grad_() for t in (x, weight)]
    assert torch.autograd.gradgradcheck(lambda x, w: upsample_conv2d(x, w, None, padding), tensors)


@pytest.mark.parametrize("padding", PADDINGS)
def test_small_maps_go_the_plain_way(padding, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("i2ifast.nn.upsample_conv.small_weight", None)
    ours, plain = pair(5, padding, 3, 4)
    x = normal(2, 3, 4, 5)
    assert torch.equal(ours(x), plain(x))


def test_autocast_and_other_types(monkeypatch):
    """As torch's own layers, whose weights stay float32."""
    monkeypatch.undo()
    monkeypatch.setattr("i2ifast.nn.upsample_conv.WORTH", 0)
    ours, plain = pair(5, "reflect", 3, 4)
    x = normal(2, 3, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), plain(x)) and ours(x).dtype is torch.bfloat16
    for dtype in (torch.bfloat16, torch.float16):
        found, expected = ours.to(dtype)(x.to(dtype)), plain.to(dtype)(x.to(dtype))
        torch.testing.assert_close(found, expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("kernel", [3, 5])
def test_compiles_in_one_graph(kernel, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("i2ifast.nn.upsample_conv.WORTH", 0)
    torch.compiler.reset()
    ours, _ = pair(kernel, "reflect", 16, 16)
    compiled, x = torch.compile(ours, fullgraph=True, backend="aot_eager"), normal(1, 16, 6, 7)
    torch.testing.assert_close(gradients(compiled, x)["dx"], gradients(ours, x)["dx"])


def test_errors_name_value_and_limit():
    x = normal(1, 2, 4, 4)
    with pytest.raises(ValueError, match=r"weight has shape \[3, 2, 7, 7\], expected \[O, C, 3, 3\] or \[O, C, 5, 5\]"):
        upsample_conv2d(x, normal(3, 2, 7, 7))
    with pytest.raises(ValueError, match="padding_mode 'circular': expected one of zeros, replicate, reflect"):
        upsample_conv2d(x, normal(3, 2, 3, 3), padding_mode="circular")
