"""Convolutions that take another route through a library than torch.nn's: the same numbers and derivatives."""

import pytest
import torch
from torch import Tensor, nn

from i2ifast.models import Adam
from i2ifast.nn import conv
from i2ifast.ops import conv3x3


@pytest.fixture
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "WORTH", 0)


@pytest.mark.usefixtures("worth_it")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d"])
def test_resampling_is_the_convolution(name: str, bias: bool) -> None:
    """And so are its second derivatives."""
    options = {"output_padding": 1} if name == "ConvTranspose2d" else {}
    ours, plain = (getattr(room, name)(4, 6, 3, 2, 1, bias=bias, **options) for room in (conv, nn))
    plain.load_state_dict(ours.state_dict())
    ours.to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    results = []
    for layer in (ours, plain):
        images = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = layer(images)
        assert ("_Resampling" in y.grad_fn.name()) == (layer is ours)
        first = torch.autograd.grad(y.square().sum(), [images, *layer.parameters()], create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), [images, layer.weight])
        results.append([y, *first, *second])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_resampling_leaves_alone_what_it_does_not_speed_up() -> None:
    layer = conv.Conv2d(4, 6, 3, 2, 1)
    x = torch.randn(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    assert not conv.is_resampling(layer, x, layer.weight)
    assert "_Resampling" not in layer(x).grad_fn.name()


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


def test_adam_in_memory_order_is_adam() -> None:
    shapes = [(6, 4, 3, 3), (6, 4, 1, 1), (6, 1, 3, 3), (5, 3), (7,)]
    g = torch.Generator().manual_seed(0)
    ours = [torch.randn(shape, generator=g) for shape in shapes]
    ours = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in ours]
    plain = [nn.Parameter(t.clone()) for t in ours]
    ours = [nn.Parameter(t) for t in ours]
    adams = Adam(1e-2, (0.5, 0.9), weight_decay=0.1).over(ours), torch.optim.Adam(plain, 1e-2, (0.5, 0.9), 1e-8, 0.1)
    for _ in range(3):
        for a, b in zip(ours, plain, strict=True):
            b.grad = torch.randn(b.shape, generator=g)
            a.grad = b.grad.clone()  # also in another layout than the parameter's
        for adam in adams:
            adam.step()
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(adams[0].state[a]["exp_avg_sq"], adams[1].state[b]["exp_avg_sq"])
        assert adams[0].state[a]["exp_avg"].stride() == a.stride()
