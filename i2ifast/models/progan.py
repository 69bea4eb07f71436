"""ProgressiveGAN: latent vectors to images, by networks that grow from 4 x 4 pixels while they are trained.

Karras, Aila, Laine, Lehtinen. Progressive Growing of GANs for Improved Quality, Stability, and Variation. ICLR 2018.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from i2ifast.nn.losses import input_gradient

from . import _system
from ._originals import load_strictly
from ._progan import Config, Discriminator, Generator, Scaled, doubled, official_state
from ._system import Adam, Batch, Phase

# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "celeba":   dict(depthOtherScales=(512, 512, 512, 256, 128)),
    "celebahq": dict(depthOtherScales=(512, 512, 512, 256, 128, 64, 32, 16)),
    "official": dict(depthOtherScales=(512, 512, 512, 256, 128, 64, 32, 16), official=True),
    "tiny":     dict(depthOtherScales=(12, 8), depthScale0=12, dimLatentVector=12, first_iterations=2, iterations=4,
                     fade_iterations=2),
}
# fmt: on


class System(_system.System):
    """Discriminator with its penalties, then generator; both grow with the iterations, which it counts.

    Losses are sums over the batch, those of the official networks means. Where label_size is not 0 the batch has
    `domain` [N]. Optimizers go on when the networks grow, where the originals begin anew, and the penalty's gradients
    are those with respect to images of the size trained at, in official networks too.
    """

    Config = Config
    PRESETS = PRESETS
    data = "images"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.data = config, config.data
        self.nets["G"], self.nets["D"] = Generator(config), Discriminator(config)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.reduce: Callable[[Tensor], Tensor] = torch.mean if config.official else torch.sum
        adam = Adam(config.lr, (0.0, 0.99))
        self.phases = [
            Phase("D", ("D",), self.discriminator_loss, adam),
            Phase("G", ("G",), self.generator_loss, adam),
        ]

    @property
    def data_settings(self) -> dict[str, Any]:
        """The shorter side to the size of images, then a crop; domains are classes."""
        side, count = self.config.size[0], self.config.label_size
        classes = {"num_domains": count, "num_references": 0} if count else {}
        return {"crop_size": side, "load_size": side, "preprocess_mode": "scale_shortside_and_crop", **classes}

    def init_weights(self) -> None:
        """Standard normal weights, zero biases; the layers scale them."""
        for module in self.nets.modules():
            if isinstance(module, Scaled):
                module.reset_parameters()

    def prepare(self, batch: Batch) -> Batch:
        """One iteration further: with `lod`, and the images as `real`, of its size, faded as the networks are."""
        lod = self.config.lod(int(self.steps))
        self.steps += 1
        self.nets["G"].lod.fill_(lod)
        return batch | {"lod": lod, "real": shrunk(batch["image"], lod)}

    def classes(self, batch: Batch) -> Tensor | None:
        """`domain` [N] of the batch; None where the networks know no classes."""
        if not self.config.label_size:
            return None
        if "domain" not in batch:
            raise ValueError(f"no domain in the batch: with label_size {self.config.label_size} images have classes")
        return batch["domain"]

    def generate(self, latents: Tensor, lod: float, classes: Tensor | None) -> Tensor:
        one_hot = None if classes is None else F.one_hot(classes, self.config.label_size).to(latents)
        return self.nets["G"](latents, lod, one_hot)

    def fakes(self, batch: Batch) -> Tensor:
        latents = self.randn((len(batch["real"]), self.config.dimLatentVector), batch["real"])
        return self.generate(latents, batch["lod"], self.classes(batch))

    def judged(self, name: str, images: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores [N] of images, and the term of the classes that they should show, if there are any."""
        scores, found = self.nets["D"](images, batch["lod"]).tensor_split([1], 1)
        classes = self.classes(batch)
        return scores[:, 0], {} if classes is None else {f"{name}_class": F.cross_entropy(found, classes)}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        config, real, reduce = self.config, batch["real"], self.reduce
        with torch.no_grad():
            fake = self.fakes(batch)
        of_real, real_terms = self.judged("real", real, batch)
        of_fake, fake_terms = self.judged("fake", fake, batch)
        between = fake.lerp(real, self.rand((len(real), 1), real)[..., None, None]).requires_grad_()
        slopes = input_gradient(self.nets["D"](between, batch["lod"])[:, 0], between).norm(dim=1)
        return {
            "real": -reduce(of_real),
            "fake": reduce(of_fake),
            "gp": config.lambdaGP * reduce((slopes - 1).square()),
            "epsilon": config.epsilonD * reduce(of_real.square()),
            **real_terms,
            **fake_terms,
        }

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        scores, terms = self.judged("fake", self.fakes(batch), batch)
        return {"G": -self.reduce(scores), **terms}

    @torch.no_grad()
    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """{"fake": [N,3,H,W]} of `latent` [N,dimLatentVector], or of as many latents as there are images.

        Networks that are not grown up make smaller images, which are enlarged. Classes are `domain` [N].
        """
        generator = self.nets["G"]
        like = generator.toRGBLayers[0].module.weight
        z = (
            batch["latent"]
            if "latent" in batch
            else self.randn((len(batch["image"]), self.config.dimLatentVector), like)
        )
        images = self.generate(z, float(generator.lod), self.classes(batch))
        return {"fake": F.interpolate(images, self.config.size)}

    def interpolate(self, first: Tensor, last: Tensor, points: int = 5, domain: Tensor | None = None) -> Tensor:
        """Images [points,3,H,W] on the line between two latents [dimLatentVector], both included, of a class [] if the
        networks know any."""
        at = torch.linspace(0, 1, points, device=first.device, dtype=first.dtype)[:, None]
        classes = {} if domain is None else {"domain": domain.expand(points)}
        return self.translate({"latent": first.lerp(last, at), **classes})["fake"]

    def load_original(self, path: str | Path) -> None:
        """Load a checkpoint of networks that are grown up.

        A file of the state_dicts `avgG` or `netG`, and `netD` if it is there; the original's own have its configuration
        beside them, which only its own code can read. For official networks a .safetensors file of their variables, by
        names such as G/4x4/Dense/weight.
        """
        path = Path(path)
        states = official_states(self.nets, path) if self.config.official else port_states(path)
        for name, state in states.items():
            lod = {"lod": torch.zeros(())} if name == "G" else {}
            load_strictly(self.nets[name], {**state, **lod}, path)


def official_states(nets: nn.ModuleDict, path: Path) -> dict[str, dict[str, Tensor]]:
    found = load_file(path)
    variables = {
        name: {key.removeprefix(f"{name}/"): value for key, value in found.items() if key.startswith(f"{name}/")}
        for name in nets
    }
    return {name: official_state(net, variables[name]) for name, net in nets.items() if variables[name]}


def port_states(path: Path) -> dict[str, dict[str, Tensor]]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        message = f"{path} holds objects: save its netG, netD and avgG alone, with the original's code"
        raise ValueError(message) from error
    generator = found.get("avgG", found.get("netG"))
    if generator is None:
        raise ValueError(f"{path} has neither avgG nor netG")
    return {"G": generator, **({"D": found["netD"]} if "netD" in found else {})}


def shrunk(images: Tensor, lod: float) -> Tensor:
    """Images at the size of `lod`, mixed with what is left of them at half that size."""
    images = F.avg_pool2d(images, 1 << int(lod))
    fade = lod - int(lod)
    return images.lerp(doubled(F.avg_pool2d(images, 2)), fade) if fade else images
