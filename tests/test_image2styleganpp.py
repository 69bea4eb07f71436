"""Embedding of images into a StyleGAN: its generator, the order of its steps, edits, and files."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_models import tiny, vgg_state
from torch import Tensor

from i2ifast import translate
from i2ifast.models import _stylegan
from i2ifast.train import main


def batch(**more: Tensor) -> dict[str, Tensor]:
    return {"image": torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(0)) * 2 - 1, **more}


@pytest.mark.parametrize("size", [32, 64])
def test_upsampling_is_the_originals(size: int) -> None:
    """Nearest up to 64 pixels; beyond, a transposed convolution by the kernel spread over four."""
    g = torch.Generator().manual_seed(0)
    x, layer = torch.randn(2, 3, size, size, generator=g), _stylegan.Conv(3, 4, upsample=True)
    weight = layer.weight * (2 / 27) ** 0.5
    if size == 32:
        y = F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=1)
    else:
        w = F.pad(weight.transpose(0, 1), (1, 1, 1, 1))
        w = w[..., 1:, 1:] + w[..., :-1, 1:] + w[..., 1:, :-1] + w[..., :-1, :-1]
        y = F.conv_transpose2d(x, w, stride=2, padding=1)
    line = torch.tensor([0.25, 0.5, 0.25])
    expected = F.conv2d(y, torch.outer(line, line).expand(4, 1, 3, 3), padding=1, groups=4)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_styles_first_then_noise() -> None:
    system = tiny("image2styleganpp", w_steps=4, n_steps=3)
    for epilogue in (m for m in system.fixed["G"].modules() if isinstance(m, _stylegan.Epilogue)):
        torch.nn.init.ones_(epilogue.top_epi["noise"].weight)  # zero at first
    given, losses = system.prepare(batch()), []
    adams = {p.name: p.optimizer.over(system.nets[p.nets[0]].parameters()) for p in system.phases}
    ran = [[phase for phase in system.phases if phase.when(step)] for step in range(8)]
    assert [[phase.name for phase in phases] for phases in ran] == [["W"]] * 4 + [["noise"]] * 3 + [[]]
    for (phase,) in ran[:7]:
        before = {name: p.detach().clone() for name, p in system.nets.named_parameters()}
        system.freeze_all_but(phase)
        loss = sum(phase.loss(given).values())
        adams[phase.name].zero_grad()
        loss.backward()
        adams[phase.name].step()
        changed = {name.split(".")[0] for name, p in system.nets.named_parameters() if not p.equal(before[name])}
        assert changed == set(phase.nets)
        losses.append(loss.item())
    assert losses[3] < losses[0] and losses[6] < losses[4]


def test_what_is_masked_counts_for_the_reference_only(tmp_path: Path) -> None:
    torch.save(vgg_state(), tmp_path / "vgg16.pth")
    options = {"vgg_weights": str(tmp_path / "vgg16.pth"), "scale": 1.0, "blur_mask": False, "lamb_p": 1.0}
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    for edit in ("crossover", "style"):
        system, first = tiny("image2styleganpp", edit=edit, **options), batch()
        changed = batch(image=first["image"] * torch.where(mask == 1, 1.0, -1.0))
        terms = [
            phase.loss(system.prepare(given | {"mask": mask, "reference": -first["image"]}))
            for phase in system.phases
            for given in (first, changed)
        ]
        assert set(terms[0]) == {"W", "W_reference"} and set(terms[2]) == {"noise", "noise_reference"}
        assert terms[0] == terms[1] and terms[2] == terms[3]
    with pytest.raises(ValueError, match="a reference, but no mask"):
        system.prepare(batch(reference=first["image"]))
    with pytest.raises(ValueError, match="a batch of 2 images: one is embedded"):
        system.prepare({"image": first["image"].repeat(2, 1, 1, 1)})


def test_activations_are_blended_where_the_mask_is_not() -> None:
    system = tiny("image2styleganpp")
    own = system.translate(batch())["fake"]
    other = torch.randn_like(system.nets["styles"].w)
    everything = torch.ones(1, 1, 32, 32)
    torch.testing.assert_close(system.blend(other, everything, 16), own)
    left = everything.clone()
    left[..., 16:] = 0
    blended = system.blend(other, left, 32)  # in front of the last layer, which has a kernel of 1
    torch.testing.assert_close(blended[..., :16], own[..., :16])
    assert not blended[..., 16:].allclose(own[..., 16:])
    with pytest.raises(ValueError, match="resolution 12: expected one of 4, 8, 16, 32"):
        system.blend(other, left, 12)


def test_files(tmp_path: Path) -> None:
    """A generator's file, an image, a mask and a reference, from the command line to an image."""
    source = tiny("image2styleganpp")
    for net in source.fixed.values():
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter)
    state = {f"g_synthesis.{key}": value for key, value in source.fixed["G"].state_dict().items()}
    state |= {f"g_mapping.{key}": value for key, value in source.fixed["mapping"].state_dict().items()}
    torch.save(state, tmp_path / "generator.pth")
    (tmp_path / "data/train").mkdir(parents=True)
    Image.new("RGB", (40, 32), (250, 0, 0)).save(tmp_path / "data/train/0.png")
    Image.new("RGB", (64, 64), (0, 0, 250)).save(tmp_path / "reference.png")
    Image.new("L", (32, 32), 255).save(tmp_path / "mask.png")
    files = {"generator": "generator.pth", "mask": "mask.png", "reference": "reference.png"}
    options = [part for name, file in files.items() for part in (f"--config.{name}", str(tmp_path / file))]
    options += ["--config.init", "mean", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    main(["image2styleganpp", "--preset", "tiny", *options, "--steps", "4", "--batch-size", "1", "--workers", "0"])
    out = ["--weights", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--count", "1"]
    translate.main(out)
    with Image.open(tmp_path / "out/00000.png") as image:
        assert image.size == (32, 32)
    del state["g_synthesis.torgb.bias"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"less\.pth does not fit this Synthesis: no torgb\.bias"):
        tiny("image2styleganpp", generator=str(tmp_path / "less.pth"))
