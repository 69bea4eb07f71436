"""pix2pixHD: label maps, or photographs, to images of high resolution, with features of each object to choose.

Wang, Liu, Zhu, Tao, Kautz, Catanzaro. High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs.
CVPR 2018.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from i2ifast import labels
from i2ifast.nn.losses import multiscale

from . import _feature_clusters, _system
from ._blocks import decay_from, pad_to, reset
from ._config import check_choices
from ._feature_clusters import Clusters
from ._losses import GAN_LOSSES, VGG19, feature_matching, perceptual
from ._originals import load_nets, named, require
from ._pix2pixhd import NORMS, Encoder, Features, GlobalGenerator, LocalEnhancer, MultiscaleDiscriminator
from ._pool import ImagePool
from ._system import Adam, Batch, Phase

GENERATORS = {"global": GlobalGenerator, "local": LocalEnhancer}
CLUSTERS = "features_clustered_"  # how files of clusters begin
LARGE = 0.5 / 32  # share of an image from which on the features of a region count for clusters


@dataclass
class Config:
    """Options of the original, under its names, except that negative ones (no_instance, no_lsgan) are positive here."""

    label_nc: int = 35  # 0: images of input_nc channels instead of label maps
    input_nc: int = 3
    output_nc: int = 3
    instance: bool = True  # instance edges are the last channel
    loadSize: int = 1024  # width of training images before the crop, if any
    fineSize: int = 512  # side of the crop
    resize_or_crop: Literal["resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none"] = "scale_width"
    norm: Literal["instance", "batch"] = "instance"
    netG: Literal["global", "local"] = "global"
    ngf: int = 64
    n_downsample_global: int = 4
    n_blocks_global: int = 9
    n_local_enhancers: int = 1
    n_blocks_local: int = 3
    niter_fix_global: int = 0  # epochs in which only the last local enhancer is trained
    load_pretrain: str = ""  # weights to begin with: of a global generator, for a local enhancer; see System
    instance_feat: bool = False  # features of each instance, by an encoder
    label_feat: bool = False  # features of each label
    feat_num: int = 3
    n_downsample_E: int = 4
    nef: int = 16
    n_clusters: int = 10  # of features, for each label
    num_D: int = 2
    n_layers_D: int = 3
    ndf: int = 64
    lsgan: bool = True  # least squares; else cross entropy
    pool_size: int = 0  # images shown before that the discriminator learns from, too
    ganFeat: bool = True  # match features of the discriminators
    lambda_feat: float = 10.0  # of that, and of the perceptual term
    vgg_weights: str = ""  # file with VGG19 weights; without one there is no perceptual term
    lr: float = 2e-4
    beta1: float = 0.5
    niter: int = 100  # epochs before the learning rate decays
    niter_decay: int = 100  # epochs of linear decay to zero

    def __post_init__(self) -> None:
        check_choices(self, norm=NORMS, netG=GENERATORS)
        if self.instance_feat and not self.instance:
            raise ValueError("instance_feat: needs instance, for the maps")
        if self.label_feat and not self.label_nc:
            raise ValueError("label_feat: needs label maps, and label_nc is 0")
        if self.niter_fix_global and self.netG != "local":
            raise ValueError(f"niter_fix_global {self.niter_fix_global}: netG is {self.netG}, and has one part only")

    @property
    def data(self) -> str:
        return "labels" if self.label_nc else "paired"

    @property
    def num_classes(self) -> int:
        """Labels are 0 .. num_classes - 1."""
        return self.label_nc

    @property
    def semantic_nc(self) -> int:
        """Channels of the label map, or the image, as the networks see it."""
        return (self.label_nc or self.input_nc) + self.instance

    @property
    def features(self) -> int:
        """Channels that an encoder adds for the generator."""
        return self.feat_num if self.instance_feat or self.label_feat else 0

    @property
    def stride(self) -> int:
        """What both sides of images must be multiples of."""
        return 2 ** (self.n_downsample_global + (self.n_local_enhancers if self.netG == "local" else 0))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of training images, where they are twice as wide as high."""
        if self.resize_or_crop.endswith("crop"):
            return self.fineSize, self.fineSize
        return self.loadSize // 2, self.loadSize

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values; ValueError for what this system does not have."""
        require(options, use_dropout=False, load_features=False)
        positive = {"instance": "no_instance", "lsgan": "no_lsgan", "ganFeat": "no_ganFeat_loss"}
        return cls(**named(cls, options) | {name: not options[negative] for name, negative in positive.items()})


LOCAL = dict(netG="local", ngf=32, num_D=3, resize_or_crop="none", niter=50, niter_decay=50, niter_fix_global=10)
SMALL = dict(ngf=8, ndf=8, nef=4, n_downsample_global=2, n_blocks_global=2, n_downsample_E=2, loadSize=64)
# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "cityscapes_512":       dict(label_nc=35),
    "cityscapes_512_feat":  dict(label_nc=35, instance_feat=True),
    "cityscapes_1024":      dict(label_nc=35, **LOCAL),
    "cityscapes_1024_feat": dict(label_nc=35, **LOCAL, instance_feat=True),
    "photographs":          dict(label_nc=0,  instance=False),
    "tiny":                 dict(label_nc=12, **SMALL),
    "tiny_photographs":     dict(label_nc=0,  **SMALL, instance=False),
}
# fmt: on


class System(_system.System):
    """Generator, multi-scale discriminator and, for features, an encoder; one generator step, one discriminator step.

    A batch has `label`, `instance` [N,1,H,W] and `image`; with label_nc 0 it has `a` and `b`, the image that `a`
    becomes, instead of label and image.

    In the first niter_fix_global epochs the last local enhancer is trained alone; what follows begins without memory of
    these steps. As in the original, all else of the schedule counts on. In one thing it is another: with cross entropy
    and feature matching it minimises cross entropy, where the original has lost the sigmoid in front of it.
    """

    Config = Config
    PRESETS = PRESETS

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.data = config, config.data
        self.nets["G"] = GENERATORS[config.netG](config)
        self.nets["D"] = MultiscaleDiscriminator(config)
        if config.features:
            self.nets["E"] = Encoder(config)
            # By label the centres of its clusters, of which there are so many.
            self.register_buffer("clusters", torch.zeros(max(1, config.label_nc), config.n_clusters, config.feat_num))
            self.register_buffer("cluster_counts", torch.zeros(max(1, config.label_nc), dtype=torch.long))
        if config.vgg_weights:
            self.fixed["VGG"] = VGG19(config.vgg_weights)
        elif config.lambda_feat:
            self.warn("vgg_weights names no file, so there is no perceptual term")
        self.pool = ImagePool(config.pool_size)
        self.gan = GAN_LOSSES["ls" if config.lsgan else "original"]
        adam = Adam(config.lr, (config.beta1, 0.999))
        generator, fixed = tuple(name for name in self.nets if name != "D"), config.niter_fix_global
        self.phases = [
            Phase("G", generator, self.generator_loss, adam, epochs=lambda epoch: epoch > fixed),
            Phase("D", ("D",), self.discriminator_loss, adam),
        ]
        if fixed:
            loss = partial(self.generator_loss, last_only=True)
            self.phases.insert(0, Phase("G_local", generator, loss, adam, epochs=lambda epoch: epoch <= fixed))

    @property
    def data_settings(self) -> dict[str, Any]:
        config = self.config
        return {"load_size": config.loadSize, "crop_size": config.fineSize, "preprocess_mode": config.resize_or_crop}

    def init_weights(self) -> None:
        """Convolutions N(0, 0.02) with the biases of their constructors, scales of norms N(1, 0.02); load_pretrain."""
        reset(self.nets)
        for module in self.nets.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.02)
        if self.config.load_pretrain:
            self.load_pretrain(self.config.load_pretrain)

    def decay(self, epoch: int) -> float:
        return decay_from(self.config.niter, self.config.niter_decay, epoch)

    def prepare(self, batch: Batch) -> Batch:
        """Add `semantics`: of label maps the batch's plan, else one made of them; of images `a`, and `b` as `image`."""
        config = self.config
        source = batch["label" if config.label_nc else "a"]
        if source.size(-2) % config.stride or source.size(-1) % config.stride:
            h, w = source.shape[-2:]
            raise ValueError(f"images of {w}x{h} pixels: both sides must be multiples of {config.stride}")
        if not config.label_nc:
            if config.instance:
                source = torch.cat([source, labels.instance_edges(batch["instance"]).to(source.dtype)], 1)
            return {"image": batch.get("b"), **batch, "semantics": source}
        plan = batch.get("plan")
        if plan is None:
            plan = labels.plan(source, config.label_nc, instances=batch["instance"] if config.instance else None)
        if plan.num_channels != config.semantic_nc:
            classes = f"{config.label_nc} classes and {int(config.instance)} for instance edges"
            raise ValueError(f"label plan of {plan.num_channels} channels: the networks take {classes}")
        return {**batch, "semantics": plan}

    def regions(self, batch: Batch) -> Tensor:
        """What has features of its own: the ids of instances, or labels."""
        return batch["label" if self.config.label_feat else "instance"]

    def encode(self, batch: Batch) -> Tensor | None:
        """Features of `image` for the generator, if it takes any."""
        return self.nets["E"](batch["image"], self.regions(batch)) if self.config.features else None

    def adversarial(self, outputs: Features, real: bool) -> Tensor:
        """The GAN loss of the logits, added up over scales."""
        return multiscale(self.gan, [scale[-1] for scale in outputs], real, reduction="sum")

    def generator_loss(self, batch: Batch, last_only: bool = False) -> dict[str, Tensor]:
        config, seg, net = self.config, batch["semantics"], self.nets["D"]
        fake = self.nets["G"](seg, self.encode(batch), last_only)
        batch["fake"] = fake.detach()
        on_fake = net(seg, fake)
        terms = {"G_GAN": self.adversarial(on_fake, True)}
        if config.ganFeat and config.lambda_feat:
            with torch.no_grad():  # apart, so that no gradient goes through this half
                on_real = net(seg, batch["image"])
            weight = config.lambda_feat * 4 / (config.n_layers_D + 1)
            terms["G_GAN_Feat"] = weight * feature_matching(on_fake, on_real)
        if "VGG" in self.fixed:
            terms["G_VGG"] = config.lambda_feat * perceptual(self.fixed["VGG"], fake, batch["image"])
        return terms

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """On the images that the generator's phase has made: fake and real ones together, where no norm mixes them."""
        config, seg, net = self.config, batch["semantics"], self.nets["D"]
        fake, real = batch["fake"], batch["image"]
        if config.pool_size or config.norm != "instance":
            of_fake = self.pooled(seg, fake) if config.pool_size else (seg, fake)
            on_fake, on_real = net(*of_fake), net(seg, real)
        else:
            outputs = net(seg, torch.cat([fake, real]))
            on_fake, on_real = ([[scale[-1].chunk(2)[i]] for scale in outputs] for i in range(2))
        return {
            "D_fake": 0.5 * self.adversarial(on_fake, False),
            "D_real": 0.5 * self.adversarial(on_real, True),
        }

    def pooled(self, seg: Tensor | labels.LabelPlan, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Label maps and fakes, some of them from the pool."""
        maps = seg if isinstance(seg, Tensor) else seg.dense()
        images = self.pool.query(torch.cat([maps, fake], 1), self.rand, self.randint)
        return images.split([maps.size(1), fake.size(1)], 1)

    def chosen(self, batch: Batch) -> Tensor:
        """Features for the generator: for each region a random cluster of its label; zeros for labels without."""
        if not self.cluster_counts.any():
            self.warn("no image to take features from and no clusters of features, so they are zero")
        found = labels.regions(self.regions(batch), per_sample=True)
        label = _feature_clusters.labels_of(found.values)
        known = label < len(self.cluster_counts)
        label = label * known
        count = self.cluster_counts[label] * known
        which = (self.rand(count.shape, self.clusters) * count).long()
        rows = self.clusters[label, which] * (count > 0)[:, None]
        return F.embedding(found.ids, rows).movedim(-1, 1)

    @torch.no_grad()
    def cluster_features(self, batches: Iterable[Batch]) -> Clusters:
        """Keep, and return, clusters of the encoder's features of all but small regions in `batches`, by label."""
        points: dict[int, list[Tensor]] = {}
        for batch in batches:
            encoded = self.encode(batch).movedim(1, -1).flatten(0, 2)
            found = labels.regions(self.regions(batch), per_sample=True)
            pixels, (order, offsets) = found.ids[0].numel(), found.segments
            large = offsets.diff() > LARGE * pixels
            of = _feature_clusters.labels_of(found.values)[large]
            rows = encoded[order[offsets[:-1].long()].long()][large]  # a region's pixels are alike
            for label in of.unique().tolist():
                points.setdefault(label, []).append(rows[of == label])
        clusters = {}
        for label, rows in points.items():
            rows = torch.cat(rows)
            clusters[label] = _feature_clusters.k_means(rows, min(len(rows), self.config.n_clusters), self.rand)
        self.take_clusters(clusters)
        return clusters

    def take_clusters(self, clusters: Clusters) -> None:
        """Generate with these clusters; ValueError for ones that do not fit."""
        most, count, channels = self.clusters.shape
        self.cluster_counts.zero_()
        for label, centres in clusters.items():
            if label >= most or len(centres) > count or centres.shape[1:] != (channels,):
                limits = f"label below {most}, at most {count} clusters of {channels} numbers"
                raise ValueError(f"clusters {list(centres.shape)} of label {label}: expected a {limits}")
            self.clusters[label, : len(centres)] = centres
            self.cluster_counts[label] = len(centres)

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,H,W]} of any size; with features, those of `image` (`b`) if given, else drawn from clusters."""
        h, w = batch["label" if self.config.label_nc else "a"].shape[-2:]
        if h % self.config.stride or w % self.config.stride:
            names = ("label", "instance", "image", "a", "b")
            batch = {name: pad_to(batch[name], self.config.stride) for name in names if name in batch}
        batch, features = self.prepare(batch), None
        if self.config.features:
            features = self.chosen(batch) if batch.get("image") is None else self.encode(batch)
        return {"fake": self.nets["G"](batch["semantics"], features)[..., :h, :w]}

    def load_original(self, path: str | Path, epoch: str = "latest") -> None:
        """Load <epoch>_net_{G,D,E}.pth of a checkpoint folder (D and E may be absent), or one such file.

        With features, clusters too: the newest features_clustered_*.npy, or .safetensors, of the folder, if there is
        one, or the file of such a name.
        """
        path = Path(path)
        if path.stem.startswith(CLUSTERS):
            self.take_clusters(_feature_clusters.load(path))
            return
        load_nets(self.nets, path, epoch, optional=("D", "E"))
        if self.config.features and (files := sorted(path.glob(f"{CLUSTERS}*"))):
            self.take_clusters(_feature_clusters.load(files[-1]))

    @torch.no_grad()
    def load_pretrain(self, path: str | Path, epoch: str = "latest") -> None:
        """Take whatever has a key and a shape of ours: a global generator's weights begin a local enhancer.

        path: a folder of <epoch>_net_<name>.pth, or a .safetensors checkpoint. ValueError where nothing fits.
        """
        path, taken = Path(path), 0
        given = load_file(path) if path.suffix == ".safetensors" else {}
        for name, net in self.nets.items():
            file, start = path / f"{epoch}_net_{name}.pth", f"nets.{name}."
            state = {key.removeprefix(start): value for key, value in given.items() if key.startswith(start)}
            if file.exists():
                state = torch.load(file, map_location="cpu", weights_only=True)
            for key, value in net.state_dict().items():
                if key in state and state[key].shape == value.shape:
                    value.copy_(state[key])
                    taken += 1
        if not taken:
            raise ValueError(f"{path}: nothing in it fits these networks")
