"""Images of classes by attentive normalisation: its networks by plain layers, baselines, noise, the command line."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_models import batch_of, check_phases, settled, tiny
from torch import Tensor, nn
from toy import newest

from i2ifast import translate
from i2ifast.models import System, build
from i2ifast.nn import AttentiveNorm, ConditionalNorm, SelfAttention
from i2ifast.train import main

BASELINES = [("none", "none"), ("self", "self"), ("attentive", "none"), ("none", "self")]


def published(system: System, z: Tensor, classes: Tensor) -> Tensor:
    """The generator in evaluation by plain layers, with the normalised weights of its last forward."""
    net = system.nets["G"]

    def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.size(-1) // 2)

    def norm(layer: ConditionalNorm, x: Tensor) -> Tensor:
        scale, shift = layer.embed.weight[classes].chunk(2, 1)
        mean, var = layer.norm.running_mean, layer.norm.running_var
        return (F.batch_norm(x, mean, var) * scale[..., None, None] + shift[..., None, None]).relu()

    x = F.linear(z, net.linear.weight, net.linear.bias).view(len(z), -1, 4, 4)
    for block in net.blocks:
        y = conv(block.conv1, F.interpolate(norm(block.norm1, x), scale_factor=2))
        x = conv(block.conv2, norm(block.norm2, y)) + conv(block.skip, F.interpolate(x, scale_factor=2))
        if x.size(2) == system.config.attention_size:
            layout = torch.softmax(net.attention.semantic(x) / 10, 1)  # nothing is sampled in evaluation
            value, parts = net.attention.value(x), 0
            for i, region in enumerate(layout.split(1, 1)):
                count, masked = region.sum((2, 3), keepdim=True) + 1e-7, value * region
                mean = masked.sum((2, 3), keepdim=True) / count
                std = ((masked - mean).square().sum((2, 3), keepdim=True) / count).sqrt() + 1e-7
                weight, bias = (t[i][:, None, None] for t in (net.attention.weight, net.attention.bias))
                parts = parts + region * ((value - mean) / std * weight + bias)
            x = x + net.attention.sigma * parts
    x = F.batch_norm(x, net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias).relu()
    return torch.tanh(conv(net.to_rgb, x))


def tell_apart(system: System) -> System:
    """With norms that differ between classes, which they do not at first."""
    for module in system.nets["G"].modules():
        if isinstance(module, ConditionalNorm):
            nn.init.normal_(module.embed.weight)
    return system


def test_generator_is_the_papers() -> None:
    system = tell_apart(tiny("attnorm_class")).double().train()
    attention = system.nets["G"].attention
    for parameter in (attention.sigma, attention.weight, attention.bias):
        nn.init.normal_(parameter)
    batch = batch_of(system)
    batch["image"] = batch["image"].double()
    with torch.no_grad():
        system.fakes(batch)
        system.eval()
        z, classes = torch.randn(3, 8, dtype=torch.float64), torch.tensor([0, 1, 1])
        torch.testing.assert_close(system.generate(z, classes), published(system, z, classes))


@pytest.mark.parametrize(("attention", "of_d"), BASELINES)
def test_baselines_learn(attention: str, of_d: str) -> None:
    system = tiny("attnorm_class", attention=attention, d_attention=of_d, g_spectral=attention != "none")
    of_g = system.nets["G"].attention
    kinds = {"none": type(None), "self": SelfAttention, "attentive": AttentiveNorm}
    assert isinstance(of_g, kinds[attention]) and any("gamma" in key for key in system.nets["D"].state_dict()) == (
        of_d == "self"
    )
    check_phases(system, batch_of(system))
    assert ("orth" in system.generator_loss(batch_of(system))) == (attention == "attentive")


def test_published_sizes() -> None:
    """Of ImageNet: 64 channels at 128 pixels, 16 times as many at 8 and 4; steps of the older baseline."""
    with torch.device("meta"):
        system = build("attnorm_class", "imagenet_sngan")
        widths = [block.conv2.weight_orig.size(0) for block in build("attnorm_class", "imagenet").nets["G"].blocks]
    assert widths == [1024, 512, 256, 128, 64]
    logits = [module.out_channels for module in system.nets["D"].modules() if isinstance(module, nn.Conv2d)][::3]
    assert logits == [64, 128, 256, 512, 1024, 1024]
    assert [step for step in range(12) if system.phases[1].when(step)] == [4, 9]


def test_noise_is_truncated() -> None:
    system = tiny("attnorm_class")
    z = system.latents(2000, torch.zeros(()), 0.5)
    inside = torch.randn(200000)
    inside = inside[inside.abs() <= 0.5]
    assert z.abs().max() <= 0.5 and z.std().item() == pytest.approx(inside.std().item(), rel=0.02)
    assert system.latents(2000, torch.zeros(()), 9.0).std().item() == pytest.approx(1, rel=0.02)
    with pytest.raises(ValueError, match="truncation 0: must be positive"):
        system.latents(1, torch.zeros(()), 0)


def test_translation_is_of_noise_and_classes() -> None:
    """As many as there are images, of the class asked for, or random ones; on lines between noise and classes."""
    system = tell_apart(settled("attnorm_class"))
    z = torch.randn(2, 8)
    first, second = (system.translate({"latent": z, "domain": torch.tensor([n, n])})["fake"] for n in (0, 1))
    assert first.shape == (2, 3, 32, 32) and not first.equal(second)
    asked = {"latent": z, "domain": torch.tensor([0, 0]), "reference_domain": torch.tensor([1, 1])}
    torch.testing.assert_close(system.translate(asked)["fake"], second)
    assert system.translate({"image": torch.empty(3, 0)}, truncation=0.5)["fake"].shape == (3, 3, 32, 32)
    line = system.interpolate(z[0], z[1], (0, 1), 3)
    torch.testing.assert_close(line[[0, 2]], torch.stack([first[0], second[1]]))


def test_from_the_command_line(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (40, 36), name == "cat" and "red" or "blue").save(tmp_path / "train" / name / "0.png")
    run, out = tmp_path / "run", tmp_path / "out"
    where = ["--data", str(tmp_path), "--out", str(run), "--steps", "1", "--batch-size", "2", "--workers", "0"]
    main(["attnorm_class", "--preset", "tiny", *where])
    assert newest(run)[1]["step"] == 1
    for options in (["--domain", "dog", "--data", str(tmp_path)], ["--domain", "1"], []):
        translate.main(["--weights", str(run), "--out", str(out), "--count", "3", "--batch-size", "2", *options])
        assert sorted(file.name for file in out.iterdir()) == ["00000.png", "00001.png", "00002.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "much"}, "attention 'much': expected one of none, self, attentive"),
        ({"d_attention": "attentive"}, "d_attention 'attentive': expected one of none, self"),
        ({"image_size": 48}, "image_size 48: must be a power of 2"),
        ({"attention_size": 32}, "attention_size 32: expected one of 8, 16"),
        ({"n_critic": 0}, "n_critic 0: must be at least 1"),
    ],
)
def test_refused_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny("attnorm_class", **options)


def test_there_are_no_original_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither code nor weights"):
        tiny("attnorm_class").load_original(tmp_path)
