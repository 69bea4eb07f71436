"""How recorded cases of vid2vid run: a part of a video in training, its terms and gradients, then frames in evaluation.

The discriminators run as often, and in the same order, as in the original: their running statistics are recorded.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from golden_recipe import Case
from golden_system import recorded_outputs
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import Batch, System, vid2vid
from i2ifast.models.vid2vid import adversarial, matching

VARIANTS = ("",)


def keyed(recorded: dict[str, Any]) -> dict[str, nn.Module]:
    """Street scenes: netG0 of 512 pixels with a foreground, and netG1 of twice that."""
    return dict(models.build("vid2vid", "cityscapes_1024").nets)


def stacked(case: Case, name: str) -> Tensor:
    """[N, T, C, H, W] of the inputs name0, name1, ..."""
    given = {int(re.search(r"\d+$", key)[0]): value for key, value in case.inputs(f"in.{name}").items()}
    return torch.stack([given[t] for t in sorted(given)], 1)


def batch_of(case: Case, config: vid2vid.Config) -> Batch:
    batch = {"label": stacked(case, "label"), "image": stacked(case, "real_B")}
    batch["flow"] = 3 * stacked(case, "flow_ref")
    batch["confidence"] = (stacked(case, "conf_ref") < 0.7).float()
    return batch | ({"instance": stacked(case, "inst")} if config.use_instance else {})


def load(system: System, case: Case) -> None:
    for name, net in system.nets.items():
        assert {key: (list(v.shape), v.dtype) for key, v in net.state_dict().items()} == case.keys(name), name
        net.load_state_dict(case.state(name))


def discriminate(net: nn.Module, real: Tensor, fake: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """GAN and feature term of the generator, real and fake term of the discriminator."""
    on_real, apart, on_fake = net(real), net(fake.detach()), net(fake)
    of_g = adversarial(on_fake, True), weight * matching(on_fake, on_real)
    return *of_g, adversarial(on_real, True), adversarial(apart, False)


def train(system: System, case: Case) -> dict[str, Tensor]:
    config, found = system.config, {}
    batch = system.prepare(batch_of(case, config))
    wanted = [name.removeprefix("out.train.") for name in case.names if name.startswith("out.train.net")]
    with recorded_outputs(system, wanted) as outputs:
        batch["video"] = video = system.generate(batch["semantics"], system.first(batch))
        frames = [discriminate(system.nets["netD"], *p, config.lambda_feat) for p in system.frame_pairs(batch, video)]
        gan, matched, real, fake = (sum(terms) for terms in zip(*frames, strict=True))
        t_gan = t_matched = t_real = t_fake = torch.zeros((), requires_grad=True)
        if pair := system.temporal_pair(batch, 0):
            t_gan, t_matched, t_real, t_fake = discriminate(system.nets["netD_T0"], *pair, config.lambda_feat)
    post = {f"post.train.{key}": buffer.clone() for key, buffer in system.nets.named_buffers()}
    terms = system.generator_loss(batch)  # what does not come from a discriminator
    zero = torch.zeros(())
    terms = {"G_VGG": zero, "W": zero, "F_Flow": zero, "F_Warp": zero, "G_T_Warp": zero} | terms
    terms |= {"G_GAN": gan, "G_GAN_Feat": matched, "G_T_GAN": t_gan, "G_T_GAN_Feat": t_matched}
    # The video was made twice: its own terms depend on the second one.
    own = sum(value for name, value in terms.items() if "GAN" not in name)
    of_g = own + gan + matched + t_gan + t_matched
    of_d, of_t = (real + fake) / 2, (t_real + t_fake) / 2
    for total, trained in ((of_g, system.ema), (of_d + of_t, ("netD", "netD_T0"))):
        leaves = {f"grad.train.{n}.{k}": p for n in trained for k, p in system.nets[n].named_parameters()}
        values = torch.autograd.grad(total, list(leaves.values()), retain_graph=True, allow_unused=True)
        found |= {name: g for name, g in zip(leaves, values, strict=True) if g is not None}
    terms |= {"D_real": real, "D_fake": fake, "D_T_real": t_real, "D_T_fake": t_fake}
    terms |= {"total_G": of_g, "total_D": of_d, "total_D_T0": of_t}
    found |= {f"loss.train.{name}": value for name, value in terms.items()} | post
    ahead = config.n_frames_G - 1
    before = batch["image"][:, ahead - 1 : ahead]
    values = {"fake_B": video.fake, "fake_B_raw": video.raw, "flow": video.flow, "weight": video.weight}
    values |= {f"fake_B_last.{i}": frames for i, frames in enumerate(video.last)}
    values["fake_B_prev"] = torch.cat([before, video.fake[:, :-1].detach()], 1)
    values["real_A"] = batch["semantics"][:, ahead:]
    return found | {f"out.train.{name}": value for name, value in {**values, **outputs}.items()}


@torch.no_grad()
def evaluate(system: System, case: Case) -> dict[str, Tensor]:
    """The first video, frame by frame: the second from the first that was made."""
    batch = {name: value[:1] for name, value in batch_of(case, system.config).items()}
    batch, seen, found = system.prepare(batch), system.config.n_frames_G, {}
    before = system.first(batch)
    for t in range(2):
        video = system.generate(batch["semantics"][:, t : t + seen], before, first=t == 0)
        before, found[f"out.eval.infer_frame.{t}"] = video.last, video.fake[:, 0]
    return found


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor]:
    config = replace(vid2vid.Config.from_original(case.options), vgg_weights="")
    system = models.build("vid2vid", **vars(config))
    load(system, case)
    values = train(system.train(), case)
    load(system, case)
    return values | evaluate(system.eval(), case)
