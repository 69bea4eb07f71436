"""InfoGAN, CVAE-GAN, ProgressiveGAN, StackGAN and StackGAN++, which make images of codes: what each has of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from test_models import check_phases, tiny
from torch import Tensor, nn
from toy import assert_same

from i2ifast import data
from i2ifast._state import State
from i2ifast.models import Batch, System
from i2ifast.models._progan import with_deviations
from i2ifast.nn import bake

VARIANTS = [
    ("infogan", {}),
    ("infogan", {"img_size": 48, "channels": 1, "n_classes": 3, "code_dim": 3, "ndf": 1, "dropout": False}),
    ("cvaegan", {}),
    ("cvaegan", {"n_classes": 6, "nz": 12}),
    ("progan", {}),
    ("progan", {"official": True, "label_size": 2, "fused_scale": False}),
    ("stackgan", {}),
    ("stackgan", {"stage": 2}),
    ("stackgan2", {}),
    ("stackgan2", {"b_condition": False, "color_loss": 50.0, "branch_num": 3}),
    ("stackgan2", {"uncond_loss": 0.0, "branch_num": 1}),
]


def batch_of(system: System, n: int = 3) -> Batch:
    """Images with a class and an embedding each."""
    g = torch.Generator().manual_seed(0)
    side = system.data_settings["crop_size"]
    batch = {"image": torch.rand((n, 3, side, side), generator=g) * 2 - 1, "domain": torch.arange(n) % 2}
    text_dim = getattr(system.config, "text_dim", 0)
    return batch | ({"embedding": torch.randn((n, text_dim), generator=g)} if text_dim else {})


def scrambled(name: str, **options: Any) -> System:
    """A tiny system whose weights are those of no other."""
    system = tiny(name, **options)
    for parameter in system.nets.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    return system


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_phases_and_translation(name: str, options: dict[str, Any]) -> None:
    system = tiny(name, **options)
    batch = batch_of(system)
    check_phases(system, batch)
    fake = system.eval().translate(batch)["fake"]
    assert fake.shape == batch["image"].shape and fake.isfinite().all() and not fake.requires_grad


@pytest.mark.parametrize(("name", "options"), [each for each in VARIANTS if each[0] not in ("stackgan", "cvaegan")])
def test_as_many_images_as_are_asked_for(name: str, options: dict[str, Any]) -> None:
    system = tiny(name, **options).eval()
    batch = batch_of(system, 2) | {"image": torch.empty(2, 0)}
    assert len(system.translate(batch)["fake"]) == 2


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_baked_networks_translate_alike(name: str, options: dict[str, Any]) -> None:
    system = tiny(name, **options).eval()
    batch, fakes = batch_of(system), []
    for _ in range(2):
        torch.manual_seed(0)
        fakes.append(system.translate(batch)["fake"])
        net = "vae" if name == "cvaegan" else "G"
        system.nets[net] = bake(system.nets[net])
    torch.testing.assert_close(*fakes, rtol=1e-4, atol=1e-4)


def test_infogan_changes_with_its_codes_alone() -> None:
    system = scrambled("infogan").eval()
    given = {"latent": torch.zeros(3, 8), "domain": torch.zeros(3, dtype=torch.long), "code": torch.zeros(3, 2)}
    given["code"][1:, 0] = torch.tensor([1.0, -1.0])
    first, *others = system.translate(given)["fake"]
    assert system.translate(given)["fake"][0].equal(first) and not any(first.equal(other) for other in others)


def test_infogan_drops_channels_in_training() -> None:
    system = tiny("infogan")
    dropout = system.nets["D"].conv_blocks[2]
    system.rand = lambda shape, like: torch.tensor([0.8, 0.1]).view(1, 2, 1, 1)
    x = torch.ones(1, 2, 3, 3)
    assert dropout(x)[0, :, 0, 0].tolist() == [0, pytest.approx(4 / 3)]
    assert dropout.eval()(x) is x
    with pytest.raises(ValueError, match="writes no checkpoints"):
        system.load_original("somewhere")


def test_cvaegan_moves_statistics_as_two_passes() -> None:
    system = scrambled("cvaegan").train()
    norm, x = system.nets["vae"].encoder_conv[1], torch.randn(5, 4, 6, 6)
    plain = nn.BatchNorm2d(4)
    norm(x), plain(x), plain(x)
    torch.testing.assert_close([norm.running_mean, norm.running_var], [plain.running_mean, plain.running_var])


def test_cvaegan_draws_images_again_in_another_class() -> None:
    system = scrambled("cvaegan").eval()
    batch = batch_of(system)
    codes, other = system.encode(batch["image"]), 1 - batch["domain"]
    fake = system.translate(batch | {"reference_domain": other})["fake"]
    assert fake.equal(system.decode(codes, other)) and not fake.equal(system.translate(batch)["fake"])
    between = system.interpolate(codes[0], codes[1], torch.tensor(0), points=3)
    ends = system.decode(codes[:2], torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(between[[0, 2]], ends)
    assert system.translate({"image": torch.empty(4, 0)})["fake"].shape == (4, 3, 28, 28)
    with pytest.raises(ValueError, match=r"images of \[3, 28, 30\]: this system takes 28x28 only"):
        system.translate({"image": torch.zeros(1, 3, 28, 30)})


def test_progan_grows() -> None:
    """4 pixels for two iterations, then 8 and 16 for four each, in the first two of which they fade in."""
    system = tiny("progan")
    system.nets["D"].register_forward_hook(lambda module, args, output: sides.append(args[0].size(-1)))
    lods = [2, 2, 2, 1.5, 1, 1, 1, 0.5, 0, 0, 0, 0]
    for lod in lods:
        sides: list[int] = []
        batch = system.prepare(batch_of(system))
        system.discriminator_loss(batch), system.generator_loss(batch)
        assert batch["lod"] == lod == system.nets["G"].lod and set(sides) == {4 << 2 - int(lod)}
    last = tiny("progan", depthOtherScales=())
    assert last.config.lod(10) == 0 and last.config.size == (4, 4)


@pytest.mark.parametrize("official", [False, True])
def test_progan_fades_without_a_jump(official: bool) -> None:
    """At the beginning of a fade networks are what they were, at its end the new layers alone."""
    system = scrambled("progan", official=official)
    z, images = torch.randn(4, 12), torch.rand(4, 3, 16, 16)
    generator, discriminator = system.nets["G"], system.nets["D"]
    small, images_small = generator(z, 1.0), F.avg_pool2d(images, 2)
    large = F.interpolate(small, scale_factor=2)
    torch.testing.assert_close(generator(z, 1 - 1e-7), large, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(generator(z, 1e-7), generator(z, 0.0), rtol=1e-4, atol=1e-5)
    faded = discriminator(images, 1 - 1e-7)
    torch.testing.assert_close(faded, discriminator(images_small, 1.0), rtol=1e-4, atol=1e-5)


def test_progan_goes_on_from_its_state() -> None:
    source, target = State(tiny("progan")), State(tiny("progan"))
    for _ in range(4):
        source.system.prepare(batch_of(source.system))
    source.average()
    target.load(source.tensors(), source.position)
    assert target.system.prepare(batch_of(target.system))["lod"] == 1
    assert target.averages["G"].lod == 1.5


@pytest.mark.parametrize("n", [1, 3, 6, 8])
def test_deviations_of_groups(n: int) -> None:
    x = torch.randn(n, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    size = 4 if n == 8 else n
    expected = [x[i : i + size].std(0).mean() if n > 1 else torch.zeros(()) for i in range(0, n, size)]
    more = with_deviations(x)[:, 5]
    torch.testing.assert_close(more, torch.stack(expected).repeat_interleave(size)[:, None, None].expand_as(more))


def test_files_of_progan(tmp_path: Path) -> None:
    source, target = scrambled("progan"), tiny("progan")
    states = {net: {k: v for k, v in module.state_dict().items() if k != "lod"} for net, module in source.nets.items()}
    torch.save({"netG": {}, "avgG": states["G"], "netD": states["D"]}, tmp_path / "a.pt")
    target.load_original(tmp_path / "a.pt")
    source.nets["G"].lod.zero_()  # grown up
    assert_same(target.nets.state_dict(), source.nets.state_dict())
    torch.save({"netD": states["D"]}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="b.pt has neither avgG nor netG"):
        target.load_original(tmp_path / "b.pt")
    torch.save({"netG": states["G"], "config": Path("x")}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="c.pt holds objects: save its netG"):
        target.load_original(tmp_path / "c.pt")


def test_variables_of_the_official_progan(tmp_path: Path) -> None:
    """Kernels [h,w,in,out]; enlarging ones, [h,w,out,in], turned; rows of the dense layer by channels, then pixels."""
    system = tiny("progan", official=True)
    shapes = {"4x4/Dense": (12, 192), "4x4/Conv": (3, 3, 12, 12), "8x8/Conv0_up": (3, 3, 12, 12)}
    shapes |= {"8x8/Conv1": (3, 3, 12, 12), "16x16/Conv0_up": (3, 3, 8, 12), "16x16/Conv1": (3, 3, 8, 8)}
    shapes |= {"ToRGB_lod2": (1, 1, 12, 3), "ToRGB_lod1": (1, 1, 12, 3), "ToRGB_lod0": (1, 1, 8, 3)}
    variables: dict[str, Tensor] = {}
    for layer, shape in shapes.items():
        outputs = shape[2] if layer.endswith("_up") else 12 if layer == "4x4/Dense" else shape[-1]
        variables |= {f"G/{layer}/weight": torch.randn(shape), f"G/{layer}/bias": torch.randn(outputs)}
    save_file(variables | {"G/lod": torch.zeros(())}, tmp_path / "g.safetensors")
    system.load_original(tmp_path / "g.safetensors")
    state = system.nets["G"].state_dict()
    kernel = variables["G/16x16/Conv0_up/weight"]
    assert state["scaleLayers.1.0.module.weight"][5, 7, 0, 2] == kernel[2, 0, 5, 7]
    assert state["scaleLayers.1.1.module.weight"][5, 7, 0, 2] == variables["G/16x16/Conv1/weight"][0, 2, 7, 5]
    assert state["formatLayer.module.weight"][2, 3, 1, 0] == variables["G/4x4/Dense/weight"][2, 3 * 16 + 4]
    with pytest.raises(ValueError, match="no domain in the batch: with label_size 2"):
        tiny("progan", official=True, label_size=2).translate({"image": torch.empty(1, 0)})


@pytest.mark.parametrize("name", ["stackgan", "stackgan2"])
def test_texts_with_the_same_noise(name: str) -> None:
    system = scrambled(name).eval()
    batch = batch_of(system, 2)
    system.randn = lambda shape, like: torch.ones(shape)
    ends = system.translate(batch)["fake"]
    between = system.interpolate(*batch["embedding"], points=3)
    torch.testing.assert_close(between[[0, 2]], ends)
    with pytest.raises(ValueError, match="no embedding in the batch"):
        system.translate({"image": torch.empty(1, 0)})


def test_stackgan2_takes_other_images_for_wrong() -> None:
    system = tiny("stackgan2")
    batch = batch_of(system)
    prepared = system.prepare(batch)
    assert [images.size(-1) for images in prepared["real"]] == [64, 128]
    assert prepared["wrong"][1].equal(batch["image"][[2, 0, 1]])
    assert system.prepare(batch | {"wrong": -batch["image"]})["wrong"][1].equal(-batch["image"])


def test_stackgan_halves_learning_rates() -> None:
    system = tiny("stackgan", lr_decay_epoch=2)
    assert [system.decay(epoch) for epoch in range(1, 6)] == [1, 1, 0.5, 0.5, 0.25]


FILES = {
    "cvaegan": {"vae": "CVAE-GAN-VAE.pth", "D": "CVAE-GAN-Discriminator.pth", "C": "CVAE-GAN-Classifier.pth"},
    "stackgan": {"G": "netG_epoch_120.pth", "D": "netD_epoch_last.pth"},
    "stackgan2": {"G": "netG_9000.pth", "D0": "netD0.pth", "D1": "netD1.pth"},
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_originals(name: str, tmp_path: Path) -> None:
    """Those of the largest number; discriminators may be missing, generators not."""
    source, target = scrambled(name), tiny(name)
    for net, file in FILES[name].items():
        torch.save(source.nets[net].state_dict(), tmp_path / file)
    if name != "cvaegan":
        torch.save({}, tmp_path / ("netG_epoch_9.pth" if name == "stackgan" else "netG_99.pth"))
    target.load_original(tmp_path)
    assert_same(target.nets.state_dict(), source.nets.state_dict())
    first, *others = FILES[name].values()
    for file in others:
        (tmp_path / file).unlink()
    target.load_original(tmp_path)
    target.load_original(tmp_path / first)
    (tmp_path / first).rename(tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: expected a file name"):
        target.load_original(tmp_path / "other.pth")


def test_the_second_stage_takes_the_first(tmp_path: Path) -> None:
    first, second = scrambled("stackgan"), tiny("stackgan", stage=2)
    torch.save(first.nets["G"].state_dict(), tmp_path / "netG_epoch_600.pth")
    second.load_original(tmp_path)
    assert_same(second.nets["G"].STAGE1_G.state_dict(), first.nets["G"].state_dict())
    state = {f"nets.{key}": value for key, value in first.nets.state_dict().items()}
    save_file(state, tmp_path / "checkpoint.safetensors")
    for name in ("netG_epoch_600.pth", "checkpoint.safetensors"):
        begun = tiny("stackgan", stage=2, stage1_g=str(tmp_path / name))
        assert_same(begun.nets["G"].STAGE1_G.state_dict(), first.nets["G"].state_dict())


def test_generators_of_nothing_but_noise_take_photographs() -> None:
    for name, options, kind in (
        ("progan", {}, "images"),
        ("progan", {"official": True, "label_size": 2}, "domains"),
        ("stackgan2", {"b_condition": False}, "images"),
        ("stackgan2", {}, "embeddings"),
    ):
        system = tiny(name, **options)
        assert system.data == system.data_of(system.config) == kind
        assert data.kind(kind).Settings.of(system).crop_size == system.config.size[1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("infogan", {"img_size": 28}, "img_size 28: must be a multiple of 16"),
        ("infogan", {"channels": 2}, "channels 2: expected 1 or 3"),
        ("progan", {"fade_iterations": 5}, "fade_iterations 5: must be at least 1, and .* at most iterations 4"),
        ("progan", {"label_size": 3}, "label_size 3: only with official"),
        ("stackgan", {"stage": 3}, "stage 3: expected 1 or 2"),
        ("stackgan2", {"branch_num": 5}, "branch_num 5: expected 1 to 4"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(name, **options)
