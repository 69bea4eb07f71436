"""SEMIT: FUNIT with octave convolutions, and labels for images that have none.

Contents and codes of classes have two resolutions; what share of the channels lies at the lower one is drawn in every
iteration, and free to choose in translation. As in the original the depth of its networks is fixed, and learning rates
are exchanged: that of the generator trains the discriminator.

Where images have no label (`domain` or `reference_domain` -1, and then `index` and `reference_index`, their numbers;
in training from files those in {phase}_unlabelled/, with num_images as many as there are, labelled or not),
a classifier is trained first, on those that have one; it gives the others labels, which are learned with it from then
on, for some are wrong. The original's repository lacks that part: it is the paper's, after Yi and Wu. Probabilistic
End-to-End Noise Correction for Learning with Noisy Labels. CVPR 2019.

Wang, Khan, Gonzalez-Garcia, van de Weijer, Khan. Semi-supervised Learning for Few-shot Image-to-Image Translation.
CVPR 2020.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from . import _funit
from ._blocks import pad_to
from ._funit import FewShot, GPPatchMcResDis
from ._munit import MLP
from ._octave import FirstOctConv, LastOctConv, Octave, OctConv, OctResBlock, normalised, rectified
from ._system import Batch, Phase, RMSprop

BLOCKS = 6
ENTROPY = 0.01  # weight
COMPATIBILITY, CERTAINTY = 0.1, 0.8  # weights of labels that are learned
CONFIDENCE = 10.0  # of the first soft label


@dataclass
class Config(_funit.Config):
    """Options of the original; those that it nests in `gen` and `dis` have these as prefixes."""

    new_size: int = 130
    fm_w: float = 0.1
    octave_alpha: float | None = None  # share of channels at half resolution; None draws it in every iteration
    num_images: int = 0  # of the data, if some have no label
    label_steps: int = 20000  # iterations in which labels are found, several times for each image; then come images
    label_warm_up: int = 5000  # the first of them, with the given labels alone
    label_lr: float = 600.0  # of soft labels, by gradient descent

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_images and not 0 <= self.label_warm_up < self.label_steps:
            raise ValueError(f"label_warm_up {self.label_warm_up}: must be less than label_steps {self.label_steps}")
        if self.octave_alpha is not None and not 0 <= self.octave_alpha <= 1:
            raise ValueError(f"octave_alpha {self.octave_alpha}: must be in [0, 1]")


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "animals": dict(dis_num_classes=119),
    "tiny":    dict(dis_num_classes=4, new_size=70, crop_image_height=64, crop_image_width=64, gen_nf=8, gen_nf_mlp=16,
                    gen_latent_dim=8, dis_nf=8, dis_n_res_blks=6),
}
# fmt: on


class ContentEncoder(nn.Module):
    def __init__(self, nf: int) -> None:
        super().__init__()
        self.conv1 = FirstOctConv(3, nf, 7)
        self.conv2, self.conv3 = OctConv(nf, 2 * nf, 4, 2), OctConv(2 * nf, 4 * nf, 4, 2)
        for i in range(1, BLOCKS + 1):
            self.add_module(f"Res{i}", OctResBlock(4 * nf, adaptive=False))

    def forward(self, images: Tensor, alpha: float) -> Octave:
        x = normalised(self.conv1(images, alpha))
        for conv in (self.conv2, self.conv3):
            x = normalised(conv(x, alpha))
        for i in range(1, BLOCKS + 1):
            x = self.get_submodule(f"Res{i}")(x, alpha)
        return x


class ClassEncoder(nn.Module):
    """Images to codes [N,latent_dim,1,1] of their classes; its norms are in the original's files and never used."""

    def __init__(self, nf: int, latent_dim: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            FirstOctConv(3, nf, 7),
            OctConv(nf, 2 * nf, 4, 2),
            LastOctConv(2 * nf, 4 * nf, 4, 2),
        )
        for name, channels in {"bn1": nf, "bn2": 2 * nf}.items():
            self.add_module(name, nn.ModuleDict({part: nn.BatchNorm2d(channels) for part in ("bnh", "bnl")}))
        self.Conv2d = nn.Conv2d(4 * nf, latent_dim, 1)

    def forward(self, images: Tensor, alpha: float) -> Tensor:
        x = rectified(self.conv2(rectified(self.conv1(images, alpha)), alpha))
        return self.Conv2d(self.conv3(x).relu().mean((2, 3), keepdim=True))


class Decoder(nn.Module):
    """Content and the styles of all adaptive norms to images in [-1, 1]."""

    def __init__(self, nf: int) -> None:
        super().__init__()
        for i in range(1, BLOCKS + 1):
            self.add_module(f"Res{i}", OctResBlock(4 * nf, adaptive=True))
        self.conv1, self.conv2 = (OctConv(2 * n, n, 3, upsample=True) for n in (2 * nf, nf))
        self.conv3 = LastOctConv(nf, 3, 7)

    def forward(self, x: Octave, styles: Tensor, alpha: float) -> Tensor:
        for i, each in enumerate(styles.chunk(BLOCKS, 1), 1):
            x = self.get_submodule(f"Res{i}")(x, alpha, each)
        for conv in (self.conv1, self.conv2):
            x = normalised(conv(x, alpha))
        return self.conv3(x).tanh()


class FewShotGen(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        nf = config.gen_nf
        self.enc_class_model = ClassEncoder(nf, config.gen_latent_dim)
        self.enc_content, self.dec = ContentEncoder(nf), Decoder(nf)
        vectors = BLOCKS * 2 * 2 * 2 * 4 * nf  # norms of a block, resolutions, bias and scale
        self.mlp = MLP(config.gen_latent_dim, vectors, config.gen_nf_mlp, config.gen_n_mlp_blks, act="relu")

    def encode(self, images: Tensor, alpha: float) -> Octave:
        return self.enc_content(images, alpha)

    def classify(self, images: Tensor, alpha: float) -> Tensor:
        return self.enc_class_model(images, alpha)

    def decode(self, content: Octave, codes: Tensor, alpha: float) -> Tensor:
        return self.dec(content, self.mlp(codes), alpha)


def entropy(content: Octave) -> Tensor:
    """-p log p of the softmax over channels of every part, pooled to an equal size; the mean over all elements."""
    h, rest = content.high.size(1), content.low.size(1)
    parts = []
    for x, by, missing in ((content.high, 4, (0, rest)), (content.low, 2, (h, 0))):
        pooled = F.avg_pool2d(F.pad(x, (0, 0, 0, 0, *missing)), by)  # zeros count, too
        parts.append(-(pooled.softmax(1) * pooled.log_softmax(1)).mean())
    return parts[0] + parts[1]


def noise_tolerant(logits: Tensor, soft: Tensor, first: Tensor) -> dict[str, Tensor]:
    """Terms [N] of labels that may be wrong: KL(p || q) of predictions p and labels q = softmax(soft), cross entropy of
    q and the labels given `first` [N], entropy of p. logits, soft [N,classes]."""
    classes = logits.size(1)
    p, q = logits.log_softmax(1), soft.log_softmax(1)
    return {
        "label_kl": (p.exp() * (p - q)).sum(1) / classes,
        "label_first": COMPATIBILITY * -q.gather(1, first[:, None])[:, 0],
        "label_entropy": CERTAINTY * -(p.exp() * p).sum(1) / classes,
    }


class System(FewShot):
    """A generator and a discriminator; one discriminator step, then one generator step."""

    Config = Config
    PRESETS = PRESETS
    stride = 8

    def __init__(self, config: Config) -> None:
        dis = GPPatchMcResDis(config.dis_nf, config.dis_n_res_blks, config.dis_num_classes)
        of_gen, of_dis = (RMSprop(lr, weight_decay=config.weight_decay) for lr in (config.lr_dis, config.lr_gen))
        super().__init__(config, FewShotGen(config), dis, of_gen, of_dis)
        if not config.num_images:
            return
        self.nets["classifier"] = GPPatchMcResDis(config.dis_nf, config.dis_n_res_blks, config.dis_num_classes)
        self.register_buffer("soft", torch.zeros(config.num_images, config.dis_num_classes))
        self.register_buffer("first", torch.full((config.num_images,), -1))  # the first label; -1 is none yet
        for phase in self.phases:
            phase.when = lambda step: step >= config.label_steps
        of_labels = Phase("labels", ("classifier",), self.label_loss, of_dis, after=self.learn_labels,
                          when=lambda step: config.label_warm_up <= step < config.label_steps)  # fmt: skip
        warm_up = Phase("labels_warm_up", ("classifier",), self.given_label_loss, of_dis, shares="labels",
                        when=lambda step: step < config.label_warm_up)  # fmt: skip
        self.phases[:0] = [of_labels, warm_up]

    def prepare(self, batch: Batch) -> Batch:
        alpha = self.config.octave_alpha
        # Drawn on the CPU: the shapes of all maps depend on it.
        batch = batch | {"alpha": self.rand((1,), torch.empty(0)).item() if alpha is None else alpha}
        if not self.config.num_images:
            return batch
        given = torch.cat([batch["domain"], batch["reference_domain"]])
        index = torch.cat([batch["index"], batch["reference_index"]])
        domain, reference_domain = torch.where(given < 0, self.soft[index].argmax(1), given).chunk(2)
        found = {"domain": domain, "reference_domain": reference_domain, "given": given, "indices": index}
        return batch | found | {"images": torch.cat([batch["image"], batch["reference"]])}

    def given_label_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of the images that have a label."""
        classifier = self.nets["classifier"]
        batch["logits"] = classifier.judge(classifier.features(batch["images"])).mean((2, 3))
        given = batch["given"]
        loss = F.cross_entropy(batch["logits"], given, ignore_index=-1, reduction="sum")
        return {"label_given": loss / (given >= 0).sum().clamp(min=1)}

    def label_loss(self, batch: Batch) -> dict[str, Tensor]:
        """As before, and `noise_tolerant` of the images without a label, which start with the one that is predicted."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(f"{dist.get_world_size()} processes: labels are learned in one")
        of_given = self.given_label_loss(batch)
        logits, index, missing = batch["logits"], batch["indices"], batch["given"] < 0
        with torch.no_grad():
            new = self.first[index] < 0
            first = torch.where(new, logits.argmax(1), self.first[index])
            self.first[index] = first
            self.soft[index] = torch.where(
                new[:, None], CONFIDENCE * F.one_hot(first, logits.size(1)), self.soft[index]
            )
        soft = self.soft[index].requires_grad_()
        self.learned = index, soft
        terms = noise_tolerant(logits, soft, first)
        count = missing.sum().clamp(min=1)
        return of_given | {name: torch.where(missing, term, 0).sum() / count for name, term in terms.items()}

    @torch.no_grad()
    def learn_labels(self) -> None:
        """A step of the labels of the batch at hand."""
        index, soft = self.learned
        self.soft.index_add_(0, index, soft.grad.to(self.soft), alpha=-self.config.label_lr)

    def options(self, batch: Batch) -> dict[str, Any]:
        """`alpha` of the batch, else the config's, else a half."""
        default = 0.5 if self.config.octave_alpha is None else self.config.octave_alpha
        return {"alpha": batch.get("alpha", default)}

    def codes(self, batch: Batch, weights: Sequence[float] | None = None) -> Tensor:
        padded = {name: pad_to(batch[name], self.stride) for name in ("reference", "references") if name in batch}
        return super().codes(batch | padded, weights)

    def more_terms(self, batch: Batch, content: Octave, codes: Tensor, fake: Tensor) -> dict[str, Tensor]:
        gen, image, options = self.nets["gen"], batch["image"], self.options(batch)
        cycled = gen.decode(gen.encode(fake[len(image) :], **options), codes[: len(image)], **options)
        return {
            "gen_cyc_x": self.config.r_w * F.l1_loss(cycled, image),
            "gen_entropy": ENTROPY * entropy(content),
        }
