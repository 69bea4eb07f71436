"""CRN and SIMS: their losses against the formulas, levels that are frozen, files, and canvases from a memory bank."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_tensorflow import transposed, variable
from plain import normal
from test_models import batch_of, tiny, vgg_state
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import System
from i2ifast.models._crn import LayerNorm, bytes_of
from i2ifast.models._sims import Bank, near_borders, segments


def write(system: System, file: Path, rename: dict[str, str] | None = None) -> None:
    """The generator's variables, with an optimizer's, as their readers give them."""
    found = {variable(key): transposed(value).numpy() for key, value in system.nets["G"].state_dict().items()}
    for ours, theirs in (rename or {}).items():
        found = {name.replace(ours, theirs): value for name, value in found.items()}
    first = next(iter(found))
    np.savez(file, **found, **{f"{first}/Adam": found[first], "beta1_power": np.float32(0.9)})


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 2)])
def test_layer_norm(shape: tuple[int, ...]) -> None:
    x = normal(*shape).double() * 3 + 1
    norm = LayerNorm(shape[1]).double()
    norm.gamma.data.uniform_()
    expected = F.layer_norm(x, shape[1:], eps=1e-12) * norm.gamma[:, None, None] + norm.beta[:, None, None]
    torch.testing.assert_close(norm(x), F.leaky_relu(expected, 0.2))


def plain_features(state: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """Images in 0..255 and relu<stage>_2 of a VGG19 with average pooling."""
    x, features = images - images.new_tensor([123.68, 116.779, 103.939])[:, None, None], [images]
    for i in range(31):
        if f"features.{i}.weight" in state:
            x = F.conv2d(x, state[f"features.{i}.weight"], state[f"features.{i}.bias"], padding=1).relu()
            features += [x] if i in (2, 7, 12, 21, 30) else []
        elif i in (4, 9, 18, 27):
            x = F.avg_pool2d(x, 2)
    return features


@pytest.mark.parametrize("images", [1, 3])
def test_crn_loss(images: int, tmp_path: Path) -> None:
    """Per class and layer the masked errors, of which the least and a little of the mean; or all errors' mean."""
    torch.save(vgg_state(), tmp_path / "vgg.pth")
    system = tiny("crn", images=images, vgg_weights=str(tmp_path / "vgg.pth"))
    batch = system.prepare(batch_of(system))
    loss = system.generator_loss(batch)["G"]
    fakes, seg, expected = system.nets["G"](batch["semantics"]), batch["semantics"], []
    for n in range(2):
        real = plain_features(vgg_state(), bytes_of(batch["image"][n : n + 1]))
        errors = torch.zeros(images, system.config.num_classes)
        for i in range(images):
            made = plain_features(vgg_state(), bytes_of(fakes[n, i : i + 1]))
            for scale, a, b in zip(system.config.vgg_scales, made, real, strict=True):
                mask = F.adaptive_avg_pool2d(seg[n : n + 1], a.shape[2:])
                errors[i] += scale * (mask * (a - b).abs().mean(1, keepdim=True)).mean((0, 2, 3))
        expected.append((0.999 * errors.min(0).values + 0.001 * errors.mean(0)).sum())
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_crn_makes_images_that_differ() -> None:
    system = tiny("crn").eval()
    found = system.translate(batch_of(system, (33, 50)))
    assert found["fakes"].shape == (2, 3, 3, 33, 50) and found["fake"].equal(found["fakes"][:, 0])
    assert not found["fakes"][:, 0].equal(found["fakes"][:, 1])


def test_crn_grows_from_a_smaller_model(tmp_path: Path) -> None:
    """Levels of a file are taken over, its head is not; levels below train_from do not learn."""
    small = tiny("crn", crop_size=32)
    write(small, tmp_path / "small.npz")
    system = tiny("crn", init=str(tmp_path / "small.npz"), train_from=32)
    own, theirs = system.nets["G"].state_dict(), small.nets["G"].state_dict()
    assert all(own[key].equal(theirs[key]) for key in own if key.startswith(("g_4_", "g_8_", "g_16_conv1.")))
    system.freeze_all_but(system.phases[0])
    system.generator_loss(system.prepare(batch_of(system)))["G"].backward()
    learns = {name.split(".")[0] for name, p in system.nets["G"].named_parameters() if p.grad is not None}
    assert learns == {"g_32_conv1", "g_32_conv2", "g_32_conv100"}
    with pytest.raises(ValueError, match="train_from 5: expected one of 4, 8, 16, 32"):
        tiny("crn", train_from=5)


@pytest.mark.parametrize(
    ("name", "heads"), [("crn", {}), ("sims", {"g_conv100": "g_256_conv100", "g_semantic": "g_semantic_256"})]
)
def test_original_files(name: str, heads: dict[str, str], tmp_path: Path) -> None:
    source, target = tiny(name), tiny(name)
    for parameter in source.nets.parameters():
        nn.init.uniform_(parameter)
    write(source, tmp_path / "variables.npz", heads)
    target.load_original(tmp_path / "variables.npz")
    own = target.nets.state_dict()
    assert all(value.equal(own[key]) for key, value in source.nets.state_dict().items())
    other = {"crn": {"label_nc": 9}, "sims": {"dim": 4}}[name]
    with pytest.raises(ValueError, match=r"variables.npz does not fit this Generator: g_.* instead of "):
        tiny(name, **other).load_original(tmp_path / "variables.npz")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("crn", {"images": 0}, "images 0: must be at least 1"),
        ("crn", {"crop_size": 96}, "images 48 pixels high: must be a power of 2"),
        ("sims", {"crop_size": 96}, "images of 96x48 .*multiples of 64"),
        ("sims", {"semantic": 3}, "semantic 3: must be 0 or at least the number of classes, 6"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build(name, "tiny", **options)


def test_sims_learning_rate_rises() -> None:
    system = tiny("sims")
    assert [system.decay(epoch) for epoch in (1, 2, 3, 100)] == pytest.approx([1, 1.1, 1.21, 100])


def test_sims_learns_labels_too() -> None:
    system = tiny("sims")
    batch = system.prepare(batch_of(system))
    terms = system.generator_loss(batch)
    _, logits = system.nets["G"](batch["semantics"], batch["canvas"], batch["mask"])
    torch.testing.assert_close(terms["semantic"], 10 * F.cross_entropy(logits, batch["label"][:, 0]))
    assert set(tiny("sims", semantic=0).generator_loss(batch)) == {"G"}


def items() -> list[dict[str, Any]]:
    """Two photographs: a disc of label 1 on label 0 and one of label 2, larger, with a bar of label 1."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(128), indexing="ij")
    disc, large = ((y - 30) ** 2 + (x - cx) ** 2 < r**2 for cx, r in ((40, 12), (80, 20)))
    first, second = disc.long(), 2 * large.long()
    second[10:14, 10:50] = 1
    made = []
    for name, label, colours in (("a", first, (-1.0, 0.5, 0.0)), ("b", second, (1.0, -0.5, 0.25))):
        image = torch.tensor(colours)[label].expand(3, -1, -1).clone()
        made.append({"label": label[None], "image": image, "path": f"{name}.png"})
    return made


def test_segments() -> None:
    found = segments(items()[1]["label"][0])
    assert found.label.tolist() == [0, 1, 2]
    assert found.box.tolist() == [[0, 0, 64, 128], [10, 10, 14, 50], [11, 61, 50, 100]]
    assert found.shape[1].min() == 1 and found.shape[2].mean().item() == pytest.approx(np.pi / 4, abs=0.05)
    assert (found.number >= 0).all() and len(segments(torch.zeros(4, 4).long()).label) == 0


def test_a_canvas_is_of_the_segments_that_fit_best(tmp_path: Path) -> None:
    Bank.of(items()).save(tmp_path / "bank.safetensors")
    bank = Bank.load(tmp_path / "bank.safetensors")
    y, x = torch.meshgrid(torch.arange(64), torch.arange(128), indexing="ij")
    label = ((y - 32) ** 2 + (x - 90) ** 2 < 20**2).long()  # a disc of label 1, on 0: as in the first one
    canvas, mask = bank.canvas(label, elide=2)
    kept = mask[0] > 0
    assert (kept <= (near_borders(label, 2)[0] == 0)).all() and kept[label == 1].float().mean() > 0.7
    expected = bytes_of(torch.tensor([1.0, 0.5]))[label].round()  # the second one has a hole in its background
    assert (canvas[0][kept] == expected[kept]).float().mean() > 0.95 and (canvas[:, ~kept] == 0).all()
    alone, _ = bank.canvas(torch.full_like(label, 5), elide=2)
    assert not alone.any()


def test_sims_leaves_a_photograph_out_of_its_own_canvas() -> None:
    system = tiny("sims")
    assert not system.prepare({"label": items()[0]["label"][None]})["mask"].any()
    system.build_bank(items())
    batch = {"label": torch.stack([items()[0]["label"]] * 2), "path": ["a.png", "new.png"]}
    canvas = system.prepare(batch)["canvas"]
    background = canvas[:, 0, 2, 120].tolist()  # label 0 of the other photograph, and of the same
    assert background == [255, 0]
    assert system.translate(batch)["fake"].shape == (2, 3, 64, 128)
