"""MDMM: its phases, what is translated to what, styles and domains to translate to, files, the command line."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_models import batch_of, check_phases, settled, tiny
from torch import nn
from toy import assert_same, newest

from i2ifast import translate
from i2ifast.models._blocks import tiled
from i2ifast.models._drit import NZ
from i2ifast.models.mdmm import ConcatGenerator
from i2ifast.train import main

WITH_CONTENT = {"isDcontent": True, "crop_size": 216, "base_channels": 2, "dis_scale": 1}


def beside(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, tiled(z, x)], 1)


def test_a_discriminator_of_contents_and_its_turns() -> None:
    """It learns the domains of contents, alone in all but the last of three iterations; encoders, to hide them."""
    system = tiny("mdmm", **WITH_CONTENT)
    runs = [[phase.name for phase in system.phases if phase.when(step)] for step in range(3)]
    assert runs == [["D_content"], ["D_content"], ["D_content", "D", "EG", "G_alone"]]
    batch = {name: value[:1] for name, value in batch_of(system).items()}
    check_phases(system, batch)
    prepared = system.prepare(batch)
    nn.init.zeros_(system.nets["disContent"].model[-1].weight)
    nn.init.zeros_(system.nets["disContent"].model[-1].bias)  # it cannot tell: what encoders want
    assert system.content_loss(prepared)["disContent_loss"].item() == pytest.approx(math.log(3))
    assert system.encoded_loss(prepared)["gan_content"].item() == pytest.approx(math.log(3))
    assert [tiny("mdmm").phases[0].when(step) for step in range(2)] == [True, True]


@pytest.mark.parametrize(
    "options", [{"concat": False, "ms": False}, {"dis_scale": 1, "ms": False}, {"dis_spectral_norm": True}]
)
def test_other_options_learn(options: dict) -> None:
    system = tiny("mdmm", **options)
    check_phases(system, batch_of(system))


def test_one_forward_for_all_phases() -> None:
    system, calls = tiny("mdmm").train(), []
    system.nets["enc_c"].register_forward_hook(lambda *args: calls.append(1))
    batch = system.prepare(batch_of(system))
    for phase in system.phases:
        system.freeze_all_but(phase)
        sum(phase.loss(batch).values()).backward()
    assert len(calls) == 2  # of images, and of their translations


def test_what_is_translated_to_what() -> None:
    """Each image takes the content of the one across, and gets its own back by way of it."""
    system, (a, b) = settled("mdmm", ms=False), torch.eye(3)[:2]
    system.drawn = lambda code: code[:, :NZ]
    system.randn = lambda shape, like: torch.ones(shape)
    nets, real = system.nets, torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        content, code = system.contents(real), torch.stack([a, b])
        made = system.made(real, content, code)
        style = torch.cat([nets["enc_a"](real, code)[:, :NZ], code], 1)
        gen = lambda content, style: nets["gen"](nets["gen"].begin(content), style)  # noqa: E731
        torch.testing.assert_close(made["encoded"], gen(content.flip(0), style))
        torch.testing.assert_close(made["itself"], gen(content, style))
        torch.testing.assert_close(made["random"], gen(content.flip(0), torch.cat([torch.ones(2, NZ), code], 1)))
        again = torch.cat([nets["enc_a"](made["encoded"], code)[:, :NZ], code], 1)
        torch.testing.assert_close(made["recon"], gen(system.contents(made["encoded"]).flip(0), again))


def test_styles_pass_by_the_residual_blocks() -> None:
    """As if they were beside the content from the start."""
    torch.manual_seed(0)
    gen = ConcatGenerator(tiny("mdmm").config).double()
    content, style = torch.randn(2, 16, 6, 7, dtype=torch.float64), torch.randn(2, NZ + 3, dtype=torch.float64)
    with_style = gen.dec1(beside(gen.dec_share(content), style))
    x = gen.dec3(beside(gen.dec2(beside(with_style, style)), style))
    expected = torch.tanh(F.conv_transpose2d(beside(x, style), gen.dec4[0].weight, gen.dec4[0].bias))
    torch.testing.assert_close(gen(gen.begin(content), style), expected)


def test_styles_and_domains() -> None:
    system = settled("mdmm")
    batch, (x, z) = batch_of(system, (40, 50)), (torch.rand(2, 3, 40, 50), torch.randn(2, NZ))
    system.randn = lambda shape, like: torch.ones(shape)
    a, b = (system.translate({**batch, "reference": sign * batch["reference"]})["fake"] for sign in (1, -1))
    alone = {key: value for key, value in batch.items() if key != "reference"}
    assert not a.equal(b) and not a.equal(system.translate(alone)["fake"])
    domains = [torch.full((2,), number) for number in range(3)]
    each = [system.in_styles(x, domain, [z])[0] for domain in domains]
    assert not each[0].equal(each[1])
    codes = [system.code(domain) for domain in domains]
    torch.testing.assert_close(system.in_styles(x, codes[0].lerp(codes[1], 0.0), [z])[0], each[0])
    between = system.in_styles(x, codes[0].lerp(codes[1], 0.5), [z])[0]
    assert not between.equal(each[0]) and not between.equal(each[1])
    with pytest.raises(ValueError, match="has no reference_domain: name the domain"):
        system.translate({"image": x})


def test_files(tmp_path: Path) -> None:
    source, target = tiny("mdmm"), tiny("mdmm")
    for parameter in source.nets.parameters():
        nn.init.uniform_(parameter)
    states = {name: net.state_dict() for name, net in source.nets.items()}
    torch.save(states | {"ep": 7}, tmp_path / "00007.pth")
    target.load_original(tmp_path)
    assert_same(target.nets.state_dict(), source.nets.state_dict())
    torch.save({}, tmp_path / "00008.pth")
    with pytest.raises(ValueError, match="00008.pth has no network dis1, dis2"):
        target.load_original(tmp_path)


def test_from_the_command_line(tmp_path: Path) -> None:
    for name in ("fog", "rain", "sun"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (80, 80), "white").save(tmp_path / "train" / name / "0.png")
    run, where = tmp_path / "run", ["--data", str(tmp_path)]
    main(["mdmm", "--preset", "tiny", *where, "--out", str(run), "--steps", "1", "--workers", "0"])
    assert newest(run)[1]["step"] == 1
    inputs = ["--images", str(tmp_path / "train/fog"), "--domain", "sun", *where]
    translate.main(["--weights", str(run), "--out", str(tmp_path / "out"), *inputs])
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["0.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isDcontent": True}, "crop_size 64: the discriminator of contents needs at least 212"),
        ({"num_domains": 1}, "num_domains 1: must be at least 2"),
        ({"dis_scale": 0}, "dis_scale 0: must be at least 1"),
    ],
)
def test_refused_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny("mdmm", **options)
