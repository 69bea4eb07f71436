"""What networks of optical flow are made of: sampling along a flow, lengths of vectors, cost volumes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resample2d(image: Tensor, flow: Tensor) -> Tensor:
    """y[p] = image[p + flow[p]], bilinear; positions outside are moved to the border.

    image [N, C, H, W], flow [N, 2, H', W'] in pixels (x, then y) -> [N, C, H', W'] of image's dtype. Differentiable in
    both. Raises ValueError for a flow that does not fit. Ilg et al., FlowNet 2.0, CVPR 2017.
    """
    n, _, h, w = image.shape
    if flow.dim() != 4 or flow.shape[:2] != (n, 2):
        raise ValueError(f"flow has shape {list(flow.shape)}, expected [{n}, 2, H, W]")
    wide = torch.promote_types(image.dtype, torch.float32)  # positions in halves would be off by pixels
    flow = flow.to(wide)
    y, x = (torch.arange(size, dtype=wide, device=flow.device) for size in flow.shape[2:])
    x, y = x + flow[:, 0], y[:, None] + flow[:, 1]
    grid = torch.stack([2 * x / max(1, w - 1) - 1, 2 * y / max(1, h - 1) - 1], -1)
    return F.grid_sample(image.to(wide), grid, "bilinear", "border", align_corners=True).to(image.dtype)


def channelnorm(x: Tensor) -> Tensor:
    """y[p] = sqrt(sum over channels of x[p]^2), [N, 1, H, W]; its gradient where x is zero is zero."""
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)


def correlation(
    a: Tensor,
    b: Tensor,
    pad_size: int = 20,
    kernel_size: int = 1,
    max_displacement: int = 20,
    stride1: int = 1,
    stride2: int = 2,
) -> Tensor:
    """y[d, p] = mean over channels and a window of a[p] * b[p + d], for displacements d up to max_displacement.

    a, b [N, C, H, W], padded by pad_size zeros -> [N, D * D, H', W'], D = 2 (max_displacement // stride2) + 1, rows of
    displacements in y outermost; displacements in steps of stride2, p in steps of stride1 from max_displacement on.
    Raises ValueError for shapes that differ and for an even kernel. Dosovitskiy et al., FlowNet, ICCV 2015.
    """
    if a.shape != b.shape:
        raise ValueError(f"a has shape {list(a.shape)}, b {list(b.shape)}")
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size={kernel_size}: expected an odd number")
    radius, reach = kernel_size // 2, max_displacement // stride2 * stride2
    # Windows begin at max_displacement, or before it by the radius; b is read up to `reach` further. Beyond: zeros.
    before, behind = pad_size - max_displacement + radius, pad_size - max_displacement - radius
    a = F.pad(a, [before, behind] * 2)
    b = F.pad(b, [before + reach, behind + reach] * 2)
    lines, columns = a.permute(0, 2, 3, 1), b.permute(0, 2, 1, 3)  # [N, H, W, C], [N, H, C, W]
    costs = []
    for dy in range(0, 2 * reach + 1, stride2):
        products = lines @ columns[:, dy : dy + a.size(2)]  # of every pair of pixels in two lines
        costs.append(_band(products, 2 * reach + 1, stride2))
    cost = torch.stack(costs, 1).permute(0, 1, 4, 2, 3).flatten(1, 2) / a.size(1)
    return F.avg_pool2d(cost, kernel_size, stride1)


def _band(products: Tensor, length: int, step: int) -> Tensor:
    """[..., W, W + length - 1] -> [..., W, D]: of row w the entries w, w + step, ... of `length` ones.

    Rows one entry longer begin one entry earlier, each relative to the last: the band becomes a column block.
    """
    w, width = products.shape[-2:]
    shifted = F.pad(products.flatten(-2), (0, w)).unflatten(-1, (w, width + 1))
    return shifted[..., :length:step]
