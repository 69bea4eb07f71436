"""A 3x3 convolution and the pooling behind it as one convolution: outputs and gradients, up to the borders."""

import pytest
import torch
import torch.nn.functional as F
from plain import gradients, normal
from torch import Tensor, nn

from i2ifast.nn import DownsampleConv2d, downsample_conv2d


class Plain(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(super().forward(x), 2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [(2, 2), (2, 3), (5, 4), (8, 9)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_convolution_and_pooling(bias, size, layout):
    """In float64: y, and the gradients of x, weight and bias."""
    ours, plain = DownsampleConv2d(3, 4, bias=bias).double(), Plain(3, 4, 3, padding=1, bias=bias).double()
    plain.load_state_dict(ours.state_dict())
    x = normal(2, 3, *size, dtype=torch.float64).contiguous(memory_format=layout)
    found, expected = gradients(ours, x), gradients(plain, x)
    assert found.keys() == expected.keys()
    for name, exact in expected.items():
        torch.testing.assert_close(found[name], exact, rtol=1e-10, atol=1e-10)


def test_second_order():
    x, weight = normal(1, 2, 4, 5, dtype=torch.float64), normal(2, 2, 3, 3, seed=1, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(downsample_conv2d, [t.requires_grad_() for t in (x, weight)])


def test_other_kernels_are_refused():
    with pytest.raises(ValueError, match=r"weight has shape \[4, 3, 5, 5\], expected \[O, C, 3, 3\]"):
        downsample_conv2d(torch.zeros(1, 3, 4, 4), torch.zeros(4, 3, 5, 5))
