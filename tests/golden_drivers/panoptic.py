"""The layers of panoptic-aware synthesis against their slow definition: convolution, upsampling, holes and filling."""

from pathlib import Path

import torch
from golden_recipe import Case
from torch import Tensor

from i2ifast import ops
from i2ifast.nn import PanopticConv2d, PanopticUpsample

VARIANTS = ("contiguous", "channels_last")


def maps(case: Case) -> tuple[Tensor, Tensor]:
    """Panoptic ids [N, 2h, 2w], and the one-hot semantic map of their segments."""
    segments, count, classes = (
        case.inputs("in.segments_hi")[""][:, 0],
        case.options["segments"],
        case.options["classes"],
    )
    h, w = segments.shape[1:]
    for image, islands in zip(segments, case.inputs("in.islands")[""], strict=True):
        for row, column, segment in islands.tolist():
            image[row % h, column % w] = segment % count
    ids = torch.where(segments == 0, 0, 2**33 + segments)
    semantic = torch.nn.functional.one_hot((3 * segments + 1) % classes, classes).permute(0, 3, 1, 2).float()
    return ids, semantic


def conv_of(state: dict[str, Tensor], name: str, bias: bool) -> PanopticConv2d:
    weight = state[f"{name}.weight"]
    conv = PanopticConv2d(weight.size(1), weight.size(0), weight.size(2), bias=bias)
    conv.load_state_dict({leaf: state[f"{name}.{leaf}"] for leaf, _ in conv.named_parameters()})
    return conv


def mask_sums(ids: Tensor, kernel: int) -> Tensor:
    windows = ops.panoptic_windows(ids, kernel)
    full = torch.full((ids.numel(),), kernel**2)
    return full.index_copy(0, windows.at.long(), (windows.taps >= 0).sum(1)).view(ids.shape).double()


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor | None]:
    ids, semantic = maps(case)
    small = ids[:, ::2, ::2].contiguous()
    state, values = case.state("P"), {"mid.panoptic_hi": ids.double(), "mid.semantic_hi": semantic}
    layout = getattr(torch, variant if variant == "channels_last" else "contiguous_format")
    x = case.inputs("in.x")[""].contiguous(memory_format=layout)
    upstream = {name: t.contiguous(memory_format=layout) for name, t in case.inputs("in.").items() if "gy" in name}

    for name in sorted({n.split(".")[2] for n in case.names if n.startswith("out.conv.")}):
        plain, _, without = name.partition("_")
        conv, leaf = conv_of(state, plain, not without), x.clone().requires_grad_()
        y = conv(leaf, small)
        y.backward(upstream[f"conv.{name}.gy"] if f"conv.{name}.gy" in upstream else upstream[f"conv.{plain}.gy"])
        sums = mask_sums(small, conv.kernel_size[0])
        values |= {f"out.conv.{name}.y": y, f"out.conv.{name}.mask_sum": sums, f"grad.conv.{name}.x": leaf.grad}
        values[f"out.conv.{name}.ratio"] = conv.kernel_size[0] ** 2 / sums
        values |= {f"grad.conv.{name}.{leaf}": p.grad for leaf, p in conv.named_parameters()}

    fill = conv_of(state, "enc", True)
    values["out.enc"] = fill(semantic.contiguous(memory_format=layout), ids)
    for mode in case.options["modes"]:
        values |= upsampled(f"up.{mode}", PanopticUpsample(mode), x, ids, small, upstream["up.gy"])
        values[f"out.up.{mode}.filled"] = PanopticUpsample(mode, fill)(x, ids, semantic)[0]
    values |= upsampled("up_alt", PanopticUpsample(), x, ids, ids[:, 1::2, 1::2].contiguous(), upstream["up.gy"])
    return {name: value.detach() for name, value in values.items()}


def upsampled(
    name: str, layer: PanopticUpsample, x: Tensor, ids: Tensor, small: Tensor, dy: Tensor
) -> dict[str, Tensor]:
    leaf = x.clone().requires_grad_()
    y, valid = layer(leaf, ids, ids_small=small)
    y.backward(dy)
    source = ops.panoptic_sources(small, ids, layer.mode).source
    return {f"out.{name}.y": y, f"out.{name}.valid": valid, f"out.{name}.src": source, f"grad.{name}.x": leaf.grad}
