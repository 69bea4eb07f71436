"""StackGAN: images of an embedding of text, first small, then drawn again four times as large.

The second stage goes on from a trained first one, which stage1_g names.
Zhang, Xu, Li, Zhang, Wang, Huang, Metaxas. StackGAN: Text to Photo-realistic Image Synthesis with Stacked Generative
Adversarial Networks. ICCV 2017.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from i2ifast.nn import BatchNormAct, UpsampleConv2d
from i2ifast.nn.conv import Conv2d

from ._blocks import reset, tiled
from ._losses import cross_entropy
from ._originals import load_strictly, named
from ._stackgan import CANet, TextSystem, VectorNormAct, conditions, convolved, down16, halved, kl_term
from ._system import Adam, Batch, Phase


@dataclass
class Config:
    """Options of the original, in lower case."""

    stage: int = 1
    text_dim: int = 1024
    condition_dim: int = 128
    z_dim: int = 100
    gf_dim: int = 128
    df_dim: int = 64
    stage1_gf_dim: int = 128  # gf_dim of the first stage, for the second
    stage1_g: str = ""  # weights of that one: a file of the original, or a .safetensors checkpoint
    r_num: int = 4  # residual blocks of the second stage
    kl: float = 2.0
    generator_lr: float = 2e-4
    discriminator_lr: float = 2e-4
    lr_decay_epoch: int = 600  # epochs after which learning rates are halved, again and again

    def __post_init__(self) -> None:
        if self.stage not in (1, 2):
            raise ValueError(f"stage {self.stage}: expected 1 or 2")
        if self.stage1_g and self.stage == 1:
            raise ValueError(f"stage1_g {self.stage1_g}: is for stage 2")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of images."""
        return (64, 64) if self.stage == 1 else (256, 256)

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        """From the original's option names and values."""
        options = {name.lower(): value for name, value in options.items()}
        return cls(**named(cls, options))


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "stage1": dict(stage=1),
    "stage2": dict(stage=2),
    "tiny":   dict(stage=1, text_dim=12, condition_dim=6, z_dim=5, gf_dim=8, df_dim=4, stage1_gf_dim=8, r_num=1),
}
# fmt: on


def doubled(fin: int, fout: int) -> nn.Sequential:
    """Upsampled x2, 3x3 convolution, norm, relu."""
    conv = UpsampleConv2d(fin, fout, 3, padding=1, bias=False)
    return nn.Sequential(nn.Identity(), conv, BatchNormAct(fout))


class Painter(nn.Module):
    """What both stages end with: maps of `width` channels to images 16 times as large."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.upsample1, self.upsample2, self.upsample3, self.upsample4 = (
            doubled(width >> i, width >> i + 1) for i in range(4)
        )
        self.img = nn.Sequential(nn.Conv2d(width // 16, 3, 3, padding=1, bias=False), nn.Tanh())

    def paint(self, x: Tensor) -> Tensor:
        return self.img(self.upsample4(self.upsample3(self.upsample2(self.upsample1(x)))))


class Stage1(Painter):
    """Embeddings [N,text_dim], noise [N,z_dim] and [N,condition_dim] to images [N,3,64,64], mean and logarithm of the
    variance of their conditions."""

    def __init__(self, config: Config, gf_dim: int) -> None:
        width = 8 * gf_dim
        super().__init__(width)
        self.ca_net = CANet(config.text_dim, 2 * config.condition_dim, nn.ReLU())
        linear = nn.Linear(config.z_dim + config.condition_dim, 16 * width, bias=False)
        self.fc = nn.Sequential(linear, VectorNormAct(16 * width))

    def forward(self, embedding: Tensor, z: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.ca_net(embedding)
        code = torch.cat([z, conditions(mu, logvar, eps)], 1)
        return self.paint(self.fc(code).unflatten(1, (-1, 4, 4))), mu, logvar


class ResBlock(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x))))))"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(*convolved(channels, channels, "relu"), *convolved(channels, channels, "none")[:2])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.block(x))


class Stage2(Painter):
    """Stage1 with images [N,3,256,256] made of those of the first stage, which is not trained any more.

    The noise of conditions is [2,N,condition_dim]: that of the first stage and its own.
    """

    def __init__(self, config: Config) -> None:
        ngf = config.gf_dim
        super().__init__(4 * ngf)
        self.STAGE1_G = Stage1(config, config.stage1_gf_dim)
        self.ca_net = CANet(config.text_dim, 2 * config.condition_dim, nn.ReLU())
        down = [Conv2d(fin, 2 * fin, 4, 2, 1, bias=False) for fin in (ngf, 2 * ngf)]
        first, second = ([conv, BatchNormAct(conv.out_channels), nn.Identity()] for conv in down)
        self.encoder = nn.Sequential(Conv2d(3, ngf, 3, padding=1, bias=False), nn.ReLU(), *first, *second)
        self.hr_joint = nn.Sequential(*convolved(config.condition_dim + 4 * ngf, 4 * ngf, "relu"))
        self.residual = nn.Sequential(*(ResBlock(4 * ngf) for _ in range(config.r_num)))

    def forward(self, embedding: Tensor, z: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            small, _, _ = self.STAGE1_G(embedding, z, eps[0])
        mu, logvar = self.ca_net(embedding)
        x = self.encoder(small)
        x = self.hr_joint(torch.cat([x, tiled(conditions(mu, logvar, eps[1]), x)], 1))
        return self.paint(self.residual(x)), mu, logvar


class Logits(nn.Module):
    """Maps [N,C,4,4], and conditions with `condition_dim`, to logits [N,1,1,1]."""

    def __init__(self, width: int, condition_dim: int = 0) -> None:
        super().__init__()
        joint = convolved(width + condition_dim, width, 0.2) if condition_dim else []
        self.outlogits = nn.Sequential(*joint, nn.Conv2d(width, 1, 4, 4))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.outlogits(x if condition is None else torch.cat([x, tiled(condition, x)], 1))


class Discriminator(nn.Module):
    """Images to maps [N,C,4,4], of which get_cond_logits and, in the second stage, get_uncond_logits make logits."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        ndf, width = config.df_dim, 8 * config.df_dim
        layers = down16(ndf)
        if config.stage == 2:
            layers += [*halved(width, 2 * width), *halved(2 * width, 4 * width)]
            layers += [*convolved(4 * width, 2 * width, 0.2), *convolved(2 * width, width, 0.2)]
        self.encode_img = nn.Sequential(*layers)
        self.get_cond_logits = Logits(width, config.condition_dim)
        self.get_uncond_logits = Logits(width) if config.stage == 2 else None

    def forward(self, images: Tensor) -> Tensor:
        return self.encode_img(images)


class System(TextSystem):
    """Discriminator, then generator, of one of the two stages; one forward of the generator serves both.

    Discriminators are told the mean of conditions, not what was drawn for the images; an image with the condition of
    the next one of the batch is a wrong pair. The first stage of the second has its norms in training mode, as the
    original's.
    """

    Config = Config
    PRESETS = PRESETS
    ema = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.nets["G"] = Stage1(config, config.gf_dim) if config.stage == 1 else Stage2(config)
        self.nets["D"] = Discriminator(config)
        self.phases = [
            Phase("D", ("D",), self.discriminator_loss, Adam(config.discriminator_lr, (0.5, 0.999))),
            Phase("G", ("G",), self.generator_loss, Adam(config.generator_lr, (0.5, 0.999))),
        ]

    @torch.no_grad()
    def init_weights(self) -> None:
        """Weights from N(0, 0.02), scales of norms N(1, 0.02), biases of those and linear layers zero; stage1_g."""
        reset(self.nets)  # biases of the last convolutions are PyTorch's
        for module in self.nets.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | BatchNormAct):
                nn.init.normal_(module.weight, float(isinstance(module, BatchNormAct)), 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        path = self.config.stage1_g
        if path.endswith(".safetensors"):
            state = {key.removeprefix("nets.G."): t for key, t in load_file(path).items() if key.startswith("nets.G.")}
            load_strictly(self.nets["G"].STAGE1_G, state, Path(path))
        elif path:
            self.load_original(path)
        elif self.config.stage == 2:
            logging.getLogger(__name__).warning("stackgan: stage1_g names no file, so the first stage is untrained")

    def decay(self, epoch: int) -> float:
        return 0.5 ** ((epoch - 1) // self.config.lr_decay_epoch)

    def generate(self, z: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images, mean and logarithm of the variance of conditions."""
        shape = (len(z), self.config.condition_dim)
        eps = [self.randn(shape, z) for _ in range(self.config.stage)]
        return self.nets["G"](embedding, z, eps[0] if self.config.stage == 1 else torch.stack(eps))

    def images(self, z: Tensor, embedding: Tensor | None) -> Tensor:
        if embedding is None:
            raise ValueError("no embedding in the batch: images are made of one")
        return self.generate(z, embedding)[0]

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        self.nets["G"].requires_grad_(True)  # its step takes the fakes with their graph
        real, net = batch["image"], self.nets["D"]
        z = self.randn((len(real), self.config.z_dim), real)
        batch["fake"], batch["mu"], batch["logvar"] = self.generate(z, batch["embedding"])
        mu = batch["mu"].detach()
        of_real, of_fake = net(real), net(batch["fake"].detach())
        terms = {
            "real": cross_entropy(net.get_cond_logits(of_real, mu), True),
            "wrong": cross_entropy(net.get_cond_logits(of_real[:-1], mu[1:]), False),
            "fake": cross_entropy(net.get_cond_logits(of_fake, mu), False),
        }
        if net.get_uncond_logits is None:
            weights = {"real": 1.0, "wrong": 1 / 2, "fake": 1 / 2}
        else:
            terms["real_uncond"] = cross_entropy(net.get_uncond_logits(of_real), True)
            terms["fake_uncond"] = cross_entropy(net.get_uncond_logits(of_fake), False)
            weights = {name: 1 / 2 if name.startswith("real") else 1 / 3 for name in terms}
        return {name: weights[name] * term for name, term in terms.items()}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        net = self.nets["D"]
        of_fake = net(batch["fake"])
        terms = {"G": cross_entropy(net.get_cond_logits(of_fake, batch["mu"].detach()), True)}
        if net.get_uncond_logits is not None:
            terms["G_uncond"] = cross_entropy(net.get_uncond_logits(of_fake), True)
        return terms | kl_term(batch["mu"], batch["logvar"], self.config.kl)

    def load_original(self, path: str | Path) -> None:
        """Load netG_epoch_<epoch>.pth, of the largest epoch, and netD_epoch_last.pth (may be absent) of a folder, or
        one such file. The second stage takes a generator of the first for its first one."""
        path = Path(path)
        if path.is_dir():
            generators = sorted(path.glob("netG_epoch_*.pth"), key=lambda file: int(file.stem.rpartition("_")[2]))
            if not generators:
                raise ValueError(f"{path}: no netG_epoch_<number>.pth in it")
            files = [generators[-1], *path.glob("netD_epoch_last.pth")]
        else:
            files = [path]
        for file in files:
            name = file.stem.removeprefix("net").partition("_")[0]
            if name not in self.nets:
                raise ValueError(f"{file}: expected a file name such as netG_epoch_600.pth")
            state, net = torch.load(file, map_location="cpu", weights_only=True), self.nets[name]
            first = self.config.stage == 2 and name == "G" and not any(key.startswith("STAGE1_G.") for key in state)
            load_strictly(net.STAGE1_G if first else net, state, file)
