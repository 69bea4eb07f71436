"""Convolutions on faster routes are torch's, and so are their gradients of first and second order."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from i2ifast.nn.conv import Conv2d, ConvTranspose2d, NarrowConv2d, halves

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
