"""AdaIN style transfer: its encoder's files, colours, mixes of styles."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_models import tiny, unpaired_batch
from torch import Tensor

from i2ifast.models import System, build
from i2ifast.models.adain import Encoder, coral
from i2ifast.nn.instance import adain


def vgg_state(channels: int = 4) -> dict[str, Tensor]:
    """An encoder's file as the original has it, with a layer that is not used."""
    torch.manual_seed(1)
    return dict(Encoder(channels).state_dict()) | {"32.weight": torch.zeros(2, 2, 3, 3), "32.bias": torch.zeros(2)}


@pytest.fixture
def system(tmp_path: Path) -> System:
    torch.save(vgg_state(), tmp_path / "vgg_normalised.pth")
    return tiny("adain", vgg_weights=str(tmp_path / "vgg_normalised.pth"))


def plain_features(state: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    x, features = F.conv2d(images, state["0.weight"], state["0.bias"]), []
    for i in (2, 5, 9, 12, 16, 19, 22, 25, 29):
        x = F.max_pool2d(x, 2, ceil_mode=True) if i in (9, 16, 29) else x
        x = F.relu(F.conv2d(F.pad(x, (1,) * 4, "reflect"), state[f"{i}.weight"], state[f"{i}.bias"]))
        if i in (2, 9, 16, 29):
            features.append(x)
    return features


def test_encoder(system: System) -> None:
    """Borders are reflected, and poolings keep odd rests."""
    images = torch.rand(1, 3, 41, 58)
    found = system.fixed["VGG"](images)
    torch.testing.assert_close(found, plain_features(vgg_state(), images), rtol=1e-4, atol=1e-5)
    assert found[-1].shape[2:] == (6, 8)
    assert not any(p.requires_grad for p in system.fixed.parameters())


def test_without_a_file_the_encoder_is_always_the_same(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    one, two = build("adain", "tiny"), build("adain", "tiny")
    assert "adain: vgg_weights names no file, so the encoder has random weights" in caplog.messages
    assert all(a.equal(b) for a, b in zip(one.fixed.parameters(), two.fixed.parameters(), strict=True))
    torch.manual_seed(5)
    assert torch.rand(1).equal(before)


def covariance(images: Tensor) -> Tensor:
    return torch.stack([torch.cov(each) for each in images.flatten(2)])


def test_coral_gives_the_colours_of_another_image() -> None:
    source, target = torch.rand(2, 3, 40, 30).double(), torch.rand(2, 3, 35, 50).double()
    source[:, 1] += source[:, 0]
    target[:, 2] = 0.3 * target[:, 2] + 0.5 * target[:, 1]
    found = coral(source, target)
    assert found.shape == source.shape
    torch.testing.assert_close(found.mean((2, 3)), target.mean((2, 3)))
    torch.testing.assert_close(covariance(found), covariance(target), rtol=5e-3, atol=1e-4)
    torch.testing.assert_close(coral(source, source), source)
    assert coral(torch.full((1, 3, 4, 4), 0.5), target[:1].float()).isfinite().all()


def test_mixes_of_styles(system: System) -> None:
    """Weighted, in any scale; alike styles are one; without a style's share the content is decoded as it is."""
    batch, other = unpaired_batch(None, (48, 64)), unpaired_batch(None, (40, 56))["b"]
    with torch.no_grad():
        content, first, second = (system.fixed["VGG"]((x + 1) / 2)[-1] for x in (batch["a"], batch["b"], -batch["b"]))
        mixed = 0.25 * adain(content, first) + 0.75 * adain(content, second)
        expected, plain = (2 * system.nets["decoder"](features) - 1 for features in (mixed, content))
    styles = torch.stack([batch["b"], -batch["b"]], 1)
    found = system.translate({"a": batch["a"], "b": styles}, weights=(2, 6))["fake"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    twice = system.translate({"a": batch["a"], "b": other[:, None].expand(-1, 2, -1, -1, -1)}, weights=(1, 2))
    torch.testing.assert_close(twice, system.translate({"a": batch["a"], "b": other}), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(system.translate(batch, alpha=0.0)["fake"], plain, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"weights \[1, 2\]: expected as many as styles, 1, of a positive sum"):
        system.translate(batch, weights=(1, 2))
    with pytest.raises(ValueError, match="no `b` in the batch"):
        system.translate({"a": batch["a"]})


def test_preserve_color(system: System) -> None:
    batch = unpaired_batch(None, (48, 64))
    matched = 2 * coral((batch["b"] + 1) / 2, (batch["a"] + 1) / 2) - 1
    found = system.translate(batch, preserve_color=True)
    torch.testing.assert_close(found, system.translate(batch | {"b": matched}), rtol=1e-4, atol=1e-5)


def test_learning_rate() -> None:
    assert [tiny("adain", lr_decay=0.5).rate(step) for step in range(3)] == [1, 1 / 1.5, 0.5]


def test_files(tmp_path: Path) -> None:
    """The newest decoder of a folder with the encoder beside it, or one file; without an encoder it is refused."""
    source, target = tiny("adain"), tiny("adain")
    for parameter in source.nets.parameters():
        torch.nn.init.uniform_(parameter)
    for name in ("decoder.pth", "decoder_iter_9000.pth.tar"):
        torch.save({}, tmp_path / name)
    torch.save(source.nets["decoder"].state_dict(), tmp_path / "decoder_iter_10000.pth.tar")
    with pytest.raises(ValueError, match="no vgg_normalised.pth in it, and vgg_weights names no file"):
        target.load_original(tmp_path)
    torch.save(vgg_state(), tmp_path / "vgg_normalised.pth")
    target.load_original(tmp_path)
    state = target.state_dict()
    assert all(state[f"nets.decoder.{key}"].equal(value) for key, value in source.nets["decoder"].state_dict().items())
    assert state["fixed.VGG.29.bias"].equal(vgg_state()["29.bias"])
    with pytest.raises(ValueError, match="decoder.pth does not fit"):
        target.load_original(tmp_path / "decoder.pth")
    torch.save(vgg_state(8), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match="wide.pth does not fit this Encoder"):
        tiny("adain", vgg_weights=str(tmp_path / "wide.pth"))
    with pytest.raises(ValueError, match="no decoder_iter_<iteration>.pth.tar and no decoder.pth in it"):
        target.load_original(Path(__file__).parent)
