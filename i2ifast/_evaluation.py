"""Folders of images to scores: reading, networks from local files, shares of several processes."""

import itertools
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.utilities.distributed import gather_all_tensors

from . import metrics
from ._processes import rank_and_world
from .data.kinds.labels import ENDINGS
from .data.pixels import images_below, images_in, natural, pair, read_map, read_photo
from .nn.vgg import VGG, imagenet

Row = tuple[Path, ...]
Reader = Callable[[Path], Tensor]
Scores = dict[str, float]


class Score(NamedTuple):
    """The options that a score needs, and which of its values are better."""

    needs: tuple[str, ...]
    better: Literal["lower", "higher"] = "higher"


PAIRS = {
    "ssim": Score(("fake", "real")),
    "psnr": Score(("fake", "real")),
    "rmse": Score(("fake", "real"), "lower"),
    "lpips": Score(("fake", "real", "lpips"), "lower"),
    "dipd": Score(("fake", "real", "vgg"), "lower"),
}
NEIGHBOURS = {name: Score(("fake", "real", "inception")) for name in ("precision", "recall", "density", "coverage")}
FEATURES = {
    "fid": Score(("fake", "real", "inception"), "lower"),
    "kid": Score(("fake", "real", "inception"), "lower"),
    "is": Score(("fake", "inception")),
} | NEIGHBOURS
PATCHES = {"swd": Score(("fake", "real"), "lower")}
LABELS = {name: Score(("fake", "labels", "segmentation")) for name in ("miou", "accuracy")}
CLASSES = {"mcsd": Score(("classes", "labels", "lpips")), "mocd": Score(("classes", "labels", "lpips"), "lower")}
SCORES = PAIRS | FEATURES | PATCHES | LABELS | CLASSES

NETWORKS = {
    "inception": "pt_inception-2015-12-05-6726825d.pth of pytorch-fid, or the same file of torch-fidelity, "
    "weights-inception-2015-12-05-6726825d.pth",
    "lpips": "alexnet-owt-7be5be79.pth or vgg16-397923af.pth of torchvision",
    "segmentation": "TorchScript, images [N,3,H,W] in [0, 1] to logits [N,classes,h,w]",
    "vgg": "vgg16-397923af.pth of torchvision",
}

LOADERS: dict[str, Callable[[Path], nn.Module]] = {
    "inception": metrics.inception,
    "lpips": metrics.LPIPS,
    "segmentation": lambda file: torch.jit.load(file, "cpu"),
    "vgg": lambda file: VGG(file, ("relu5_3",), imagenet),
}


def read_image(path: Path, size: tuple[int, int] | None, filter: str) -> Tensor:
    """[3,H,W] uint8."""
    image = read_photo(path)
    image = image if size is None else image.resize(size, Image.Resampling[filter.upper()])
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def read_labels(path: Path) -> Tensor:
    """[H,W] int64."""
    return torch.from_numpy(read_map(path)).long()


class Rows(Dataset):
    """Rows of files, read: a tuple of tensors each."""

    def __init__(self, rows: Sequence[Row], readers: Sequence[Reader]) -> None:
        self.rows, self.readers = rows, readers

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(read(file) for read, file in zip(self.readers, self.rows[index], strict=True))


def share(count: int) -> range:
    """This process's part of `count` files, one block, so that shares in order of the processes are all in order."""
    rank, world = rank_and_world()
    if count < world:
        raise ValueError(f"{count} images for {world} processes: expected at least one each")
    return range(count * rank // world, count * (rank + 1) // world)


def gathered(values: Sequence[Tensor]) -> Tensor:
    """The values of all processes, in the order of the files."""
    own = torch.cat(list(values))
    return torch.cat(gather_all_tensors(own)) if dist.is_initialized() else own


@contextmanager
def naming(*files: Path) -> Iterator[None]:
    """Put files in front of the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{', '.join(map(str, files))}: {error}") from error


class Evaluation:
    """Scores as a command line asks for them. Processes share the files, and all of them get the same scores.

    options: `i2ifast.evaluate.Arguments`. ValueError and FileNotFoundError name files that do not do.
    """

    def __init__(self, options: Any, device: torch.device) -> None:
        self.options, self.device = options, device
        self.image = partial(read_image, size=options.size, filter=options.resize)
        self.networks: dict[str, nn.Module] = {}
        self.images: dict[str, int] = {}  # how many there are, by option
        self.left_out: dict[str, str] = {}  # scores that there are too few images for, and why
        self.notes: list[str] = []

    @torch.no_grad()
    def scores(self, names: Sequence[str]) -> Scores:
        """The scores of these names, and their deviations (`_std`) and parts."""
        found: Scores = {}
        groups = [
            (PAIRS, self.of_pairs),
            (FEATURES, self.of_features),
            (PATCHES, self.of_patches),
            (LABELS, self.of_labels),
            (CLASSES, self.of_classes),
        ]
        for group, compute in groups:
            if asked := [name for name in group if name in names]:
                found |= compute(asked)
        return found

    def network(self, name: str) -> nn.Module:
        """The network of an option, read when first asked for."""
        if name not in self.networks:
            file: Path = getattr(self.options, name)
            if not file.is_file():
                raise FileNotFoundError(f"{file}: no such file; --{name} takes {NETWORKS[name]}")
            try:
                network = LOADERS[name](file)
            except (RuntimeError, ValueError, LookupError, EOFError, UnpicklingError) as error:
                reason = " ".join(str(error).removeprefix(f"{file}: ").split())[:200]
                raise ValueError(f"{file}: {reason}; --{name} takes {NETWORKS[name]}") from error
            self.networks[name] = network.eval().to(self.device)
        return self.networks[name]

    def files(self, name: str) -> list[Path]:
        """The images of a folder, by option."""
        folder: Path = getattr(self.options, name)
        found = images_below(folder)
        if not found:
            raise FileNotFoundError(f"{folder}: no such folder, or no images below it")
        self.images[name] = len(found)
        return found

    def partners(self, files: Sequence[Path], name: str) -> list[Path]:
        """For each of the files the one of its name in another folder, by option."""
        try:
            return pair(files, self.files(name), ENDINGS)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{error} (--scores chooses others than those that go by name)") from error

    def batches(self, rows: Sequence[Row], readers: Sequence[Reader]) -> Iterator[tuple[list[Row], list[Tensor]]]:
        """This process's share of the rows with what is in them, stacked where neighbours are of one size."""
        rows = [rows[index] for index in share(len(rows))]
        workers, context = self.options.workers, None
        if workers and "forkserver" in multiprocessing.get_all_start_methods():
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])  # imported once, not by every worker
        loader = DataLoader(Rows(rows, readers), None, num_workers=workers, multiprocessing_context=context)
        read = zip(rows, loader, strict=True)
        for _, group in itertools.groupby(read, lambda item: [tensor.shape for tensor in item[1]]):
            while some := list(itertools.islice(group, self.options.batch_size)):
                columns = zip(*(tensors for _, tensors in some), strict=True)
                yield [row for row, _ in some], [torch.stack(column).to(self.device) for column in columns]

    def of_pairs(self, names: Sequence[str]) -> Scores:
        """Means over pairs of images of the same name."""
        functions = {
            "ssim": metrics.ssim,
            "psnr": metrics.psnr,
            "rmse": metrics.squared_error,
            "lpips": lambda x, y: self.network("lpips")(x / 127.5 - 1, y / 127.5 - 1).double(),
            "dipd": lambda x, y: metrics.domain_invariant_distance(self.network("vgg"), x / 255, y / 255),
        }
        values: dict[str, list[Tensor]] = {name: [] for name in names}
        fakes = self.files("fake")
        rows = list(zip(fakes, self.partners(fakes, "real"), strict=True))
        for files, (fake, real) in self.batches(rows, (self.image, self.image)):
            if fake.shape != real.shape:
                sizes = " and ".join(f"{images.size(3)}x{images.size(2)}" for images in (fake, real))
                raise ValueError(f"{files[0][0]} and {files[0][1]}: {sizes} pixels; --size makes them one size")
            with naming(files[0][0]):
                for name in names:
                    values[name].append(functions[name](fake, real))
        found = {name: gathered(values[name]).mean().item() for name in names}
        return found | ({"rmse": math.sqrt(found["rmse"])} if "rmse" in found else {})

    def of_features(self, names: Sequence[str]) -> Scores:
        """Scores of sets of images, by their features."""
        options, network = self.options, self.network("inception")
        features: dict[str, Tensor] = {}
        logits: list[Tensor | None] = []
        for side in ("fake",) if names == ["is"] else ("fake", "real"):
            rows = [(file,) for file in self.files(side)]
            outputs = [network(images) for _, (images,) in self.batches(rows, (self.image,))]
            features[side] = gathered([found for found, _ in outputs])
            logits = logits or [found for _, found in outputs]  # of the fakes
        fake, real = features["fake"], features.get("real")
        count = min(map(len, features.values()))
        subset_size = min(options.kid_subset_size, count)
        if "fid" in names and count < fake.size(1):
            what = f"{count} images give no full covariance of {fake.size(1)} features"
            self.notes.append(f"fid: {what}; compare it with that of as many images only")
        if "kid" in names and subset_size < options.kid_subset_size:
            self.notes.append(f"kid: subsets of {subset_size} images, not of {options.kid_subset_size}")

        def inception_score() -> Scores:
            if logits[0] is None:
                raise ValueError(f"{options.inception} gives no logits; --inception takes {NETWORKS['inception']}")
            return dict(zip(("is", "is_std"), metrics.inception_score(gathered(logits), options.splits), strict=True))

        def kernel_distance() -> Scores:
            values = metrics.kernel_distance(fake, real, options.kid_subsets, subset_size)
            return dict(zip(("kid", "kid_std"), values, strict=True))

        steps: list[tuple[Sequence[str], Callable[[], Scores]]] = [
            (["fid"], lambda: {"fid": metrics.frechet_distance(fake, real)}),
            (["kid"], kernel_distance),
            (["is"], inception_score),
            (list(NEIGHBOURS), lambda: metrics.neighbours(fake, real, options.nearest_k)),
        ]
        scores: Scores = {}
        for together, compute in steps:
            if asked := [name for name in together if name in names]:
                try:
                    found = compute()
                except ValueError as error:  # too few images for this one: the others are not lost
                    self.left_out |= dict.fromkeys(asked, str(error))
                else:
                    scores |= {name: value for name, value in found.items() if name.removesuffix("_std") in asked}
        return scores

    def of_patches(self, names: Sequence[str]) -> Scores:
        """The sliced Wasserstein distance of every level, and their mean."""
        levels: dict[str, list[Tensor]] = {}
        for seed, side in enumerate(("fake", "real")):
            files = self.files(side)
            done, sizes, patches = share(len(files)).start, [], []
            for rows, (images,) in self.batches([(file,) for file in files], (self.image,)):
                with naming(rows[0][0]):
                    patches.append(metrics.patch_descriptors(images, done, seed))
                sizes += [images.new_tensor(images.shape[2:], dtype=torch.long)[None]]
                done += len(images)
            found = gathered(sizes).unique(dim=0)
            if len(found) > 1:
                folder = getattr(self.options, side)
                raise ValueError(f"{folder}: images of {len(found)} sizes; swd takes one, see --size")
            for level in patches[0]:
                levels.setdefault(level, []).append(gathered([each[level] for each in patches]))
        if any(len(sets) < 2 for sets in levels.values()):
            folders = f"{self.options.fake} and {self.options.real}"
            raise ValueError(f"{folders}: images of two sizes; swd takes one, see --size")
        scores = {f"swd_{level}": metrics.sliced_wasserstein(*sets) for level, sets in levels.items()}
        return {"swd": sum(scores.values()) / len(scores)} | scores

    def of_labels(self, names: Sequence[str]) -> Scores:
        """How well the segmentation network finds the label maps in the images."""
        network, total = self.network("segmentation"), []
        fakes = self.files("fake")
        rows = list(zip(fakes, self.partners(fakes, "labels"), strict=True))
        for files, (images, labels) in self.batches(rows, (self.image, read_labels)):
            with naming(*(label for _, label in files)):
                total.append(metrics.confusion(network, images / 255, labels)[None])
        matrix = gathered(total).sum(0)
        found = {"miou": metrics.mean_iou(matrix), "accuracy": metrics.pixel_accuracy(matrix)}
        return {name: found[name] for name in names}

    def of_classes(self, names: Sequence[str]) -> Scores:
        """Diversity within the region of the class whose style is drawn, and outside, over pairs of draws."""
        network, found = self.network("lpips"), []
        root: Path = self.options.classes
        folders = sorted((f for f in root.glob("*") if f.is_dir() and f.name.isdecimal()), key=natural)
        if not folders:
            raise FileNotFoundError(f"{root}: no folders with the numbers of classes")
        for folder in folders:
            draws = [images_in(draw) for draw in sorted(filter(Path.is_dir, folder.iterdir()), key=natural)]
            if len(draws) < 2:
                raise ValueError(f"{folder}: {len(draws)} folders of draws; expected at least 2")
            rows: list[Row] = []
            for first, second in itertools.combinations(draws, 2):
                rows += zip(first, pair(first, second), self.partners(first, "labels"), strict=True)
            self.images["classes"] = self.images.get("classes", 0) + sum(map(len, draws))
            values = []
            for _, (x, y, labels) in self.batches(rows, (self.image, self.image, read_labels)):
                labels = F.interpolate(labels[:, None].float(), x.shape[2:], mode="nearest")[:, 0]
                distances = network.maps(x / 127.5 - 1, y / 127.5 - 1)
                values.append(metrics.inside_and_outside(distances, labels == int(folder.name)).T)
            values = gathered(values)
            found.append(values[values[:, 0].isfinite()].nanmean(0))  # of the images that the class is in
        means = torch.stack(found).nanmean(0).tolist()
        return {name: value for name, value in zip(("mcsd", "mocd"), means, strict=True) if name in names}
