"""Convolutions on faster routes are torch's, and so are their gradients of first and second order."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from i2ifast.models import Adam
from i2ifast.nn import conv as convolutions
from i2ifast.nn.conv import Conv2d, ConvTranspose2d, NarrowConv2d, halves
from i2ifast.ops import conv2d, conv3x3, conv_transpose2d


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "WORTH", 0)


PAIRS = {
    "strided": (Conv2d, nn.Conv2d, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "strided without bias": (Conv2d, nn.Conv2d, {"kernel_size": 3, "stride": 2, "bias": False}),
    "strided with reflection": (
        Conv2d,
        nn.Conv2d,
        {"kernel_size": 3, "stride": 2, "padding": 1, "padding_mode": "reflect"},
    ),
    "transposed": (
        ConvTranspose2d,
        nn.ConvTranspose2d,
        {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    ),
    "narrow": (NarrowConv2d, nn.Conv2d, {"kernel_size": (5, 7), "padding": (2, 3), "padding_mode": "reflect"}),
    "narrow with zeros": (NarrowConv2d, nn.Conv2d, {"kernel_size": 3, "padding": 1, "bias": False}),
}


@pytest.mark.parametrize(("ours", "plain", "options"), PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions_are_those_of_torch(
    ours: type[nn.Module], plain: type[nn.Module], options: dict, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    conv, expected = ours(4, 3, **options).double(), plain(4, 3, **options).double()
    expected.load_state_dict(conv.state_dict())
    images = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    seeds = torch.randn_like(expected(images)), torch.randn_like(images)

    def derivatives(net: nn.Module) -> list[Tensor]:
        x = images.to(memory_format=layout, copy=True).requires_grad_()
        y = net.to(memory_format=layout)(x)
        first = torch.autograd.grad(y, [x, *net.parameters()], seeds[0], create_graph=True)
        second = torch.autograd.grad((first[0] * seeds[1]).sum() + first[1].square().sum(), [x, net.weight])
        return [y, *first, *second]

    torch.testing.assert_close(derivatives(conv), derivatives(expected))


def test_what_takes_the_faster_backward() -> None:
    last = torch.rand(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    conv = Conv2d(4, 4, 3, 2, 1)

    def changed(change: Callable[[nn.Module], nn.Module]) -> bool:
        return halves(change(Conv2d(4, 4, 3, 2, 1)), last)

    assert halves(conv, last) and not halves(conv, last.contiguous())
    assert not changed(lambda net: net.requires_grad_(False)) and not changed(lambda net: net.double())
    assert not halves(Conv2d(4, 4, 4, 2, 1), last) and not halves(Conv2d(4, 4, 3, 1, 1), last)
    with torch.autocast("cpu"):
        assert not halves(conv, last)
    with torch.no_grad():
        assert not halves(conv, last)


@pytest.mark.parametrize("padding", ["reflect", "replicate"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_reaches_all_that_padding_repeats(padding: str, layout: torch.memory_format) -> None:
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, 4, 5, generator=g).double(), torch.randn(6, 3, 3, 3, generator=g).double()

    def gradient(y: Tensor, of: Tensor) -> Tensor:
        return torch.autograd.grad((y * torch.arange(y.numel()).view_as(y)).sum(), of)[0]

    ours, plain = (t.contiguous(memory_format=layout).requires_grad_() for t in (x.clone(), x.clone()))
    weight = weight.contiguous(memory_format=layout)
    expected = nn.functional.conv2d(nn.functional.pad(plain, [1] * 4, mode=padding), weight)
    torch.testing.assert_close(gradient(conv3x3(ours, weight, None, padding), ours), gradient(expected, plain))


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_adam_in_memory_order_is_adam(beta: float) -> None:
    shapes = [(6, 4, 3, 3), (6, 4, 1, 1), (6, 1, 3, 3), (5, 3), (7,)]
    g = torch.Generator().manual_seed(0)
    ours = [torch.randn(shape, generator=g) for shape in shapes]
    ours = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in ours]
    plain = [nn.Parameter(t.clone()) for t in ours]
    ours = [nn.Parameter(t) for t in ours]
    betas = beta, 0.9
    settings = Adam(1e-2, betas, weight_decay=0.1)
    adams = settings.over(ours), torch.optim.Adam(plain, 1e-2, betas, 1e-8, 0.1)
    for _ in range(3):
        for a, b in zip(ours, plain, strict=True):
            b.grad = torch.randn(b.shape, generator=g)
            a.grad = b.grad.clone()  # also in another layout than the parameter's
        for adam in adams:
            adam.step()
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)
        found, expected = adams[0].state[a], adams[1].state[b]
        assert set(found) == set(settings.state) == set(expected) - (set() if beta else {"exp_avg"})
        for key in settings.state[1:]:
            torch.testing.assert_close(found[key], expected[key])
            assert found[key].stride() == a.stride()


def near(found: Tensor, exact: Tensor) -> None:
    """Within the rounding of sums of float32 products."""
    assert (found - exact).abs().max() <= 2e-6 * exact.abs().max()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [(2, 2), (3, 8), (9, 7), (40, 37)], ids=str)
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@pytest.mark.parametrize(("kernel", "stride"), [(4, 1), (4, 2), (3, 2)])
def test_small_kernels_in_float32(
    kernel: int, stride: int, padding: int, size: tuple[int, int], layout: torch.memory_format
) -> None:
    """Channels that the CPU kernel takes, in all directions; and convolutions of stride 2 transposed."""
    shape = (128, 64, kernel, kernel)
    if min(size) + 2 * padding < kernel:
        with pytest.raises(ValueError, match=f"with padding {padding} no window of {kernel} fits"):
            conv2d(torch.zeros(1, 64, *size), torch.zeros(shape), None, stride, padding)
        return
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randn(of, generator=g).to(memory_format=layout) for of in [(2, 64, *size), shape]]
    tensors = [*tensors, torch.randn(128, generator=g)]
    exact = [t.double() for t in tensors]

    def all_of(function: Callable[..., Tensor], values: list[Tensor]) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in values]
        y = function(*leaves, stride, padding)
        seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
        return [y, *torch.autograd.grad(y, leaves, seed)]

    for found, truth in zip(all_of(conv2d, tensors), all_of(nn.functional.conv2d, exact), strict=True):
        near(found, truth)
    for more in (0, 1):
        if stride == 2 and 2 * min(size) - 2 + kernel > 2 * padding:
            weight, bias = tensors[1].transpose(0, 1).contiguous(memory_format=layout), tensors[2]
            y = conv_transpose2d(tensors[0], weight, bias, padding, (more, 0))
            options = {"stride": 2, "padding": padding, "output_padding": (more, 0)}
            near(y, nn.functional.conv_transpose2d(exact[0], weight.double(), bias.double(), **options))


LAYERS = {
    "strided": (Conv2d, nn.Conv2d, {"kernel_size": 4, "stride": 2, "padding": 1}),
    "strided 3x3": (Conv2d, nn.Conv2d, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "flat": (Conv2d, nn.Conv2d, {"kernel_size": 4, "padding": 2, "bias": False}),
    "reflecting": (Conv2d, nn.Conv2d, {"kernel_size": 4, "stride": 2, "padding": 1, "padding_mode": "reflect"}),
    "transposed": (ConvTranspose2d, nn.ConvTranspose2d, {"kernel_size": 4, "stride": 2, "padding": 1}),
    "transposed 3x3": (
        ConvTranspose2d,
        nn.ConvTranspose2d,
        {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    ),
}


@pytest.mark.parametrize(("ours", "plain", "options"), LAYERS.values(), ids=LAYERS)
def test_layers_of_small_kernels(ours: type, plain: type, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    conv, expected = ours(64, 64, **options), plain(64, 64, **options).double()
    expected.load_state_dict(conv.state_dict())
    x = torch.randn(2, 64, 13, 10)
    taken = "conv_transpose2d" if plain is nn.ConvTranspose2d else "conv2d"
    called, function = [], getattr(convolutions, taken)
    monkeypatch.setattr(convolutions, taken, lambda *args: called.append(taken) or function(*args))
    near(conv(x), expected(x.double()))
    assert bool(called) == convolutions.fits_conv2d(conv)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype is torch.bfloat16
    assert not convolutions.fits_conv2d(ours(64, 64, **options | {"dilation": 2}))
    assert not convolutions.fits_conv2d(ours(60, 60, **options)) and not convolutions.fits_conv2d(conv.double())


@pytest.mark.parametrize(("ours", "plain", "options"), LAYERS.values(), ids=LAYERS)
def test_layers_of_small_kernels_compile(ours: type, plain: type, options: dict) -> None:
    """In one graph, with gradients."""
    torch.compiler.reset()
    torch.manual_seed(0)
    conv, x = ours(64, 64, **options), torch.randn(1, 64, 9, 8)
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(conv(x).square().sum(), conv.weight)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), conv.weight), expected)


def test_second_order_of_small_kernels() -> None:
    g = torch.Generator().manual_seed(0)
    for kernel in (3, 4):
        x, bias = torch.randn(2, 2, 5, 6, generator=g).double(), torch.randn(3, generator=g).double()
        weight = torch.randn(3, 2, kernel, kernel, generator=g).double()
        for function, values in ((conv2d, (x, weight, bias)), (conv_transpose2d, (x, weight.transpose(0, 1), bias))):
            assert torch.autograd.gradgradcheck(function, [t.clone().requires_grad_() for t in values])


def test_errors_of_small_kernels_name_value_and_limit() -> None:
    x, weight = torch.zeros(1, 3, 8, 8), torch.zeros(5, 3, 4, 4)
    with pytest.raises(ValueError, match=r"weight has shape \[5, 2, 4, 4\], expected \[O, 3, 4, 4\]"):
        conv2d(x, torch.zeros(5, 2, 4, 4))
    with pytest.raises(ValueError, match=r"weight has shape \[5, 3, 4, 4\], expected \[3, O, 4, 4\]"):
        conv_transpose2d(x, weight)
    with pytest.raises(ValueError, match="kernel 3, stride 1 and padding 1: expected kernel 4 and stride 1 or 2, or 3"):
        conv2d(x, torch.zeros(5, 3, 3, 3), stride=1)
    with pytest.raises(ValueError, match="padding 3 leaves nothing of what it becomes"):
        conv_transpose2d(x[..., :2, :2], weight.transpose(0, 1), None, 3)
    with pytest.raises(ValueError, match=r"output_padding \(2, 0\): expected 0 or 1"):
        conv_transpose2d(x, weight.transpose(0, 1), None, 1, (2, 0))
