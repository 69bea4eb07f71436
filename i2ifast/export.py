"""Systems as files that run without this library: torch.export programs (.pt2) and ONNX models (.onnx).

python -m i2ifast.export --weights RUN --out model.onnx
python -m i2ifast.export --system spade --preset coco --weights checkpoints/coco_pretrained --out model.pt2

What is exported is the dense formulation: plain convolutions over label maps in the place of label plans, and the
definitions of our ops in PyTorch in the place of the ops.
"""

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from . import labels
from ._backend import use_backend
from ._checkpoint import CheckpointError
from ._inputs import MAPS
from ._pipeline import load
from .data import kind
from .models import Batch, System
from .nn.bake import fold
from .ops._op import implementations

STRIDE = 4  # of systems whose config names none


class Translation(nn.Module):
    """What a system translates, as a module: the entries `names` of a batch, in order, to images."""

    def __init__(self, system: System, names: tuple[str, ...]) -> None:
        super().__init__()
        self.system, self.names = system, names

    def forward(self, *entries: Tensor) -> Tensor:
        batch = dict(zip(self.names, entries, strict=True))
        if self.system.data == "labels":
            batch["semantics"] = semantics(self.system.config, batch)
        return self.system.translate(batch)["fake"]


def semantics(config: object, batch: Batch) -> Tensor:
    """Label maps as the networks see them, [N, semantic_nc, H, W] float32."""
    label = batch["label"]
    maps = label == torch.arange(config.num_classes, device=label.device).view(1, -1, 1, 1)
    if config.instance:
        maps = torch.cat([maps, labels.instance_edges(batch["instance"])], 1)
    return maps.float()


def lean(system: System, example: Batch) -> System:
    """A copy in eval mode of what translation needs: networks that it runs, with spectral norms folded."""
    system, used, hooks = copy.deepcopy(system).eval(), set(), []
    for nets in (system.nets, system.fixed):
        for net in nets.values():
            for module in net.modules():
                hooks.append(module.register_forward_pre_hook(lambda *_, net=net: used.add(net)))
    system.translate(example)
    for hook in hooks:
        hook.remove()
    for nets in (system.nets, system.fixed):
        for name, net in list(nets.items()):
            nets[name] = fold(net) if net in used else nn.Identity()
    return system


def free_sides(system: System, example: Batch) -> tuple[dict[int, Dim], ...]:
    """For each entry of the batch its dimensions that are free: height and width of all maps as large as the first."""
    first, *_ = example.values()
    stride = getattr(system.config, "stride", STRIDE)
    free = {dim: stride * Dim(name, min=2) for dim, name in ((2, "rows"), (3, "columns"))}
    return tuple(free if entry.shape[2:] == first.shape[2:] else {} for entry in example.values())


@torch.no_grad()
def to_program(system: System, example: Batch, dynamic: bool = True) -> ExportedProgram:
    """The translation of batches with the entries of `example`, which are the program's arguments in this order.

    With `dynamic` height and width are free, as multiples of the system's stride, at least two of them; else they are
    the example's, as the batch size always is. A program refuses sizes for which a network takes another route than for
    the example. What translation draws, such as a style that is not given, the program draws too.
    ValueError for a system whose networks do not let sides be free.
    """
    module = Translation(lean(system, example), tuple(example))
    free = free_sides(system, example) if dynamic else ()
    ours = {getattr(torch.ops.i2ifast, name).default: function for name, function in implementations.items()}
    with use_backend("reference"):
        shapes = {"entries": free} if dynamic else None
        program = torch.export.export(module, tuple(example.values()), dynamic_shapes=shapes).run_decompositions(ours)
    inputs = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    for name, entry, sides in zip(example, inputs, free, strict=False):
        shape = list(entry.shape)
        if any(str(shape[dim]).isdecimal() for dim in sides):  # a number, not a formula
            raise ValueError(f"{name} cannot be but of shape {shape}, which a network asks for: take dynamic=False")
    return program


def to_onnx(system: System, path: str | Path, example: Batch, dynamic: bool = True) -> None:
    """Write `to_program` as an ONNX model, whose inputs are named as the entries and whose output is `fake`.

    Needs the packages onnx and onnxscript.
    """
    write_onnx(to_program(system, example, dynamic), path, list(example))


def write_onnx(program: ExportedProgram, path: str | Path, names: list[str]) -> None:
    torch.onnx.export(program, (), str(path), input_names=names, output_names=["fake"], verbose=False)


def example_of(system: System, size: tuple[int, int], entries: Sequence[str] = ()) -> Batch:
    """A batch of one input of `size` (height, width), with what the system needs and other `entries` that it takes."""
    of_kind = kind(system.data)
    settings = of_kind.Settings.of(system)
    needed = of_kind.TAKES[: 2 if getattr(settings, "instance", False) else 1]
    if unknown := set(entries) - set(of_kind.TAKES):
        raise ValueError(f"{', '.join(sorted(unknown))}: what is taken of this data is {', '.join(of_kind.TAKES)}")
    names = [name for name in of_kind.TAKES if name in needed or name in entries]
    channels = {"a": getattr(settings, "input_nc", 3), "b": getattr(settings, "output_nc", 3)}
    made = {name: torch.zeros(1, channels.get(name, 3), *size) for name in names}
    return made | {name: torch.zeros(1, 1, *size).long() for name in names if name in MAPS}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write a system as a torch.export program (.pt2) or an ONNX model (.onnx)."""

    weights: Path
    """run folder, .safetensors checkpoint, or, with --system, files of the system's original repository"""
    out: Path
    """file to write; its ending is the format"""
    system: str | None = None
    """for weights of the original repository"""
    preset: str | None = None
    """for weights of the original repository"""
    size: tuple[int, int] | None = None
    """height and width of an example; by default those of training images"""
    entries: tuple[str, ...] = ()
    """more that translation takes, as a style image, which is drawn or left out otherwise"""
    dynamic: bool = True
    """let height and width be free"""


def export(arguments: Arguments) -> None:
    """Export as the command line says."""
    formats = {".onnx": to_onnx, ".pt2": save_program}
    if arguments.out.suffix not in formats:
        raise ValueError(f"{arguments.out}: expected a name ending in {' or '.join(formats)}")
    system = load(arguments.weights, arguments.system, arguments.preset)
    settings = kind(system.data).Settings.of(system)
    size = arguments.size or (round(settings.crop_size / settings.aspect_ratio), settings.crop_size)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    example = example_of(system, size, arguments.entries)
    formats[arguments.out.suffix](system, arguments.out, example, arguments.dynamic)
    print(f"{', '.join(f'{name} {list(entry.shape)}' for name, entry in example.items())} -> fake, in {arguments.out}")


def save_program(system: System, path: Path, example: Batch, dynamic: bool) -> None:
    """Write `to_program`, for torch.export.load."""
    torch.export.save(to_program(system, example, dynamic), path)


def main(args: Sequence[str] | None = None) -> None:
    try:
        export(tyro.cli(Arguments, args=args, prog="python -m i2ifast.export"))
    except (CheckpointError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
