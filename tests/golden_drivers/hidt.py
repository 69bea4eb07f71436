"""How recorded cases of HiDT run: the networks alone, for the original has no training."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from golden_recipe import Case
from golden_unpaired import Found, first_outputs
from torch import nn

from i2ifast import models

VARIANTS = ("",)


def system_of(options: dict[str, Any]) -> models.System:
    return models.build("hidt", **vars(models.system("hidt").Config.from_original(options)))


def nets_of(name: str, options: dict[str, Any]) -> dict[str, nn.Module]:
    """That of the configuration that the file of keys has, and those of the original's other files."""
    daytime, wikiart = (models.build("hidt", preset).nets for preset in ("daytime", "wikiart"))
    gen = system_of({"gen": options}).nets["gen"]
    return {"gen": gen, "gen_wikiart": wikiart["gen"], "enhancer": daytime["enhancer"]}


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    system = system_of(case.options)
    gen, enhancer = system.nets["gen"], system.nets["enhancer"]
    for name in case.meta["nets"]:
        net = system.nets[name]
        assert {key: (list(v.shape), v.dtype) for key, v in net.state_dict().items()} == case.keys(name), name
        net.load_state_dict(case.state(name))
    inputs = case.inputs("in.")
    image = inputs["content_image"].requires_grad_()

    # Blocks lie one deeper where the original has a sequence of one.
    paths = {name: name.replace("out.any.", "out.any.gen.") for name in case.names}
    deeper = {name: f"{path}.0" for name, path in paths.items() if "_preprocess" in name or "upsample_post" in name}
    with first_outputs(system, "out.any.", {*paths.values(), *deeper.values()}) as seen:
        content, skips = gen.content_encoder(image)
        style = gen.style_encoder(inputs["style_image"])
        images, maps = gen.decoder(content, skips, style)
    projection = (images * inputs["cot"]).sum()
    projection.backward()
    seen = {name: seen[path] for name, path in (paths | deeper).items() if path in seen}
    with torch.no_grad():
        first = gen.decoder(content[:1], [skip[:1] for skip in skips], style[:1])
        outputs = {
            "content": content,
            **{f"skips.{i}": skip for i, skip in enumerate(skips)},
            "style": style,
            "adain_params": gen.decoder.adain_net(style),
            "dec_images": images,
            "dec_images_first_sample_b1": first[0],
            "dec_segmentation_maps": torch.tanh(maps),
            "enh": enhancer(inputs["enh_in"]),
        }
    seen |= {f"out.any.{name}": value.detach() for name, value in outputs.items()}
    for i, below in enumerate(("body.0", "upsample_postprocess.0")):  # upsampled, which the convolution does
        name = f"out.any.decoder.upsample_head.{i}"
        seen[name] = F.interpolate(seen[f"out.any.decoder.{below}"], scale_factor=2)
    seen |= {"loss.any.projection": projection.detach(), "grad.any.in.content_image": image.grad}
    return seen | {f"grad.any.gen.{key}": p.grad for key, p in gen.named_parameters()}
