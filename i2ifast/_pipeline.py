"""Translating what is in memory: from files, images, arrays or tensors to images, in one call."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from . import _checkpoint, models
from ._checkpoint import Header
from ._graphs import Graphs
from ._inputs import MAPS, Input, entry, many
from ._runlog import to_images
from ._state import with_prefix
from ._tiles import tiled
from .data import kind
from .data._items import Item, batches_by_size
from .models import Batch, System
from .nn import bake

# Entries that tiles get their part of, what is translated before what goes with it; styles stay whole.
ALONG = ("label", "a", "sketch", "image", "instance", "dist", "mask")


class Pipeline:
    """A system that is ready to translate: it is called with images and gives images.

    It takes the system over: networks become copies for inference (`nn.bake`) in channels_last. On CUDA what is done
    for inputs of a shape is captured as a graph, except for systems of label maps: the shapes of label plans depend on
    what is in the maps.
    """

    def __init__(self, system: System, device: torch.device) -> None:
        self.system, self.device = system.to(device, memory_format=torch.channels_last).eval(), device
        for name, net in system.nets.items():
            system.nets[name] = bake(net)
        of_kind = kind(system.data)
        self.settings = of_kind.Settings.of(system)
        self.takes: tuple[str, ...] = getattr(of_kind, "TAKES", ())
        self.graphs = Graphs(self._run)

    def __call__(
        self, first: Input | Sequence[Input], *, batch_size: int = 1, **more: Input | Sequence[Input]
    ) -> Image.Image | list[Image.Image]:
        """The translation of one input, or those of a list of inputs of any sizes.

        `first` is what the system's kind of data is translated from: a label map, or a photograph. `more` are other
        entries of a batch, by name: `instance`, the style `b`, ...; each is a list too, or one for all. An input is

        a file's name, or a PIL image
        a NumPy array: of pictures [H,W,3] uint8, of maps [H,W] of integers
        a tensor as in a batch, but without its first dimension: pictures [3,H,W] in [-1, 1], maps [H,W] or [1,H,W]

        `batch_size` inputs of equal size are translated at a time. ValueError for what does not fit.
        """
        if not self.takes:
            raise ValueError(f"{self.system.data} are no single inputs: give batches to `translate`")
        if unknown := more.keys() - set(self.takes[1:]):
            raise ValueError(f"{', '.join(sorted(unknown))}: what is taken of this data is {', '.join(self.takes)}")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: must be at least 1")
        given = {self.takes[0]: first, **more}
        lists = {name: many(value) for name, value in given.items()}
        single = lists[self.takes[0]] is None
        count = 1 if single else len(lists[self.takes[0]])
        for name, values in lists.items():
            if values is not None and len(values) != count:
                raise ValueError(f"{len(values)} of {name} for {count} of {self.takes[0]}: expected as many, or one")
        columns = {name: [given[name]] * count if values is None else values for name, values in lists.items()}

        def item(index: int) -> Item:
            return {k: entry(k, values[index], self.settings) for k, values in columns.items()} | {"path": index}

        made: dict[int, Image.Image] = {}
        for batch in batches_by_size(map(item, range(count)), batch_size, shapes):
            made |= zip(batch["path"], to_images(self.translate(batch)), strict=True)
        return made[0] if single else [made[index] for index in range(count)]

    def translate(self, batch: Batch, tile: int = 0, overlap: int = 0) -> Tensor:
        """Images [N,3,H,W] in [-1, 1] of a batch of the system's kind of data.

        With `tile` images with a longer side are translated in parts, see `_tiles.tiled`.
        """
        names = [name for name in ALONG if name in batch and batch[name].ndim == 4]
        if tile and names and max(batch[names[0]].shape[-2:]) > tile:
            names = [name for name in names if batch[name].shape[-2:] == batch[names[0]].shape[-2:]]
            return tiled(self.translate, batch, names, tile, overlap)
        tensors = {name: self._moved(value) for name, value in batch.items() if isinstance(value, Tensor)}
        fixed = self.device.type == "cuda" and not any(name in MAPS for name in tensors)
        return (self.graphs if fixed else self._run)(tensors)

    def stream(self, batch: Batch) -> Iterator[Tensor]:
        """`translate` of a video [1,T,...], frame by frame, for systems that have a `stream`."""
        with torch.inference_mode():
            yield from self.system.stream(batch)

    def _moved(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device, non_blocking=True)
        if tensor.ndim == 4 and tensor.is_floating_point():
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    @torch.inference_mode()
    def _run(self, tensors: Batch) -> Tensor:
        try:
            return self.system.translate(tensors)["fake"]
        except KeyError as error:
            if error.args[0] in tensors or error.args[0] not in self.takes:
                raise
            raise ValueError(f"{error} is needed too: give it by that name") from error


def shapes(item: Item) -> tuple:
    return tuple(value.shape for value in item.values() if isinstance(value, Tensor))


def pipeline(
    name_or_run: str | Path,
    weights: str | Path | None = None,
    preset: str | None = None,
    device: torch.device | str | None = None,
) -> Pipeline:
    """What a run has learned, or a published system, as a function from images to images; see `Pipeline`.

    `name_or_run` is a run folder, a .safetensors checkpoint, or the name of a system, with checkpoint files of its
    original repository as `weights`; without them they are random. `device` is by default a GPU where there is one.
    Raises CheckpointError for a checkpoint that is not whole or does not fit, ValueError for a name or other weights.
    """
    name = str(name_or_run)
    if name not in models.names():
        if weights is not None or preset is not None or not Path(name).exists():
            raise ValueError(f"{name}: no run, no checkpoint, and no system; there are {', '.join(models.names())}")
        system = load(Path(name))
    elif weights is not None:
        system = load(Path(weights), name, preset)
    else:
        logging.getLogger(__name__).warning("%s: no weights are given, so they are random", name)
        system = models.build(name, preset)
        system.init_weights()
    return Pipeline(system, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))


def load(weights: Path, system: str | None = None, preset: str | None = None) -> System:
    """The system that a run trained, with its averaged weights, or `system` with the original repository's weights.

    Raises CheckpointError for a checkpoint that is not whole or does not fit, ValueError for other weights.
    """
    if system is not None:
        built = models.build(system, preset)
        built.load_original(weights)
        return built.eval()
    loaded: list[System] = []

    def build(tensors: dict[str, Tensor], header: Header) -> None:
        built = models.build(header["system"], **header["config"])
        built.nets.load_state_dict(with_prefix("nets.", tensors) | with_prefix("ema.", tensors))
        loaded.append(built.eval())

    def wanted(name: str) -> bool:
        return name.startswith(("nets.", "ema."))

    read(weights, build, lambda text: print(text, file=sys.stderr), wanted)
    return loaded[0]


def read(
    weights: Path,
    use: Callable[[dict[str, Tensor], Header], None],
    say: Callable[[str], None],
    wanted: Callable[[str], bool],
) -> None:
    """Give the tensors that are `wanted`, and the header, of a run folder or a checkpoint to `use`."""
    if weights.is_dir():
        _checkpoint.load_newest(weights, use, say, wanted)
    elif weights.suffix == ".safetensors":
        use(*_checkpoint.read(weights, wanted))
    else:
        raise ValueError(f"{weights}: neither a run folder nor a .safetensors file; the original's files need --system")
