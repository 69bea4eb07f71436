"""Semantic Pyramid: its classifier and losses against the formulas, masks, and what it translates from."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_models import parameters, tiny

from i2ifast import models
from i2ifast.models import Batch, System
from i2ifast.models.semantic_pyramid import diversity, reconstruction


def batch_of(n: int = 2) -> Batch:
    return {"image": torch.rand((n, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1}


def settled() -> System:
    system = tiny("semantic_pyramid").train()
    system.discriminator_loss(system.prepare(batch_of()))
    return system.eval()


def test_phases_update_their_networks() -> None:
    system = tiny("semantic_pyramid").train()
    batch = system.prepare(batch_of())
    batch["masks"] = [torch.ones_like(mask) for mask in batch["masks"]]
    for phase in system.phases:
        before = parameters(system)
        system.freeze_all_but(phase)
        system.zero_grad()
        terms = phase.loss(batch)
        sum(terms.values()).backward()
        phase.optimizer.over(system.nets[phase.name].parameters()).step()
        changed = {key.split(".")[0] for key, p in parameters(system).items() if not p.equal(before[key])}
        assert changed == set(phase.nets) and all(term.isfinite() for term in terms.values())


def test_classifier(tmp_path: Path) -> None:
    """Of a torchvision file: five pools, then fc7 and fc8 of the last one, pooled again and spread over 7x7."""
    state = tiny("semantic_pyramid").fixed["VGG"].state_dict()
    state = {key: torch.randn_like(value) / value[0].numel() ** 0.5 for key, value in state.items()}
    torch.save(state, tmp_path / "vgg16.pth")
    system = tiny("semantic_pyramid", vgg_weights=str(tmp_path / "vgg16.pth"))
    images = batch_of()["image"]
    mean, std = (torch.tensor(t)[:, None, None] for t in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x, expected = ((images + 1) / 2 - mean) / std, []
    for i in range(31):
        if f"features.{i}.weight" in state:
            x = F.conv2d(x, state[f"features.{i}.weight"], state[f"features.{i}.bias"], padding=1).relu()
        elif i in (4, 9, 16, 23, 30):
            x = F.max_pool2d(x, 2)
            expected.append(x)
    x = F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 7).flatten(1)
    for i in (0, 3, 6):
        x = F.linear(x if i == 0 else x.relu(), state[f"classifier.{i}.weight"], state[f"classifier.{i}.bias"])
        expected += [x.relu()] if i == 3 else [x] if i == 6 else []
    torch.testing.assert_close(system.extract(images), expected)
    again = tiny("semantic_pyramid").fixed["VGG"].state_dict()
    assert all(value.equal(again[key]) for key, value in tiny("semantic_pyramid").fixed["VGG"].state_dict().items())


def test_losses() -> None:
    a, b = ([torch.rand(2, 3, 5, 4), torch.rand(2, 6)] for _ in range(2))
    masks = [(torch.rand(2, 1, 5, 4) > 0.5).float(), torch.tensor([1.0, 0.0]).view(2, 1, 1)]
    pooled = [F.max_pool2d(t, 2, ceil_mode=True) for t in (a[0], b[0], masks[0])]
    expected = ((pooled[0] - pooled[1]).abs() * pooled[2]).mean() + (a[1] - b[1])[0].abs().sum() / 12
    torch.testing.assert_close(reconstruction(a, b, masks), expected)
    z, fakes = [torch.zeros(1, 4), torch.ones(1, 4)], [torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)]
    assert diversity(z, fakes).item() == pytest.approx(2)


def test_masks_give_one_level_sometimes_with_a_hole() -> None:
    system = tiny("semantic_pyramid", crop_probability=1.0)
    features = system.extract(batch_of(3)["image"])
    system.randint = lambda high, shape, like: torch.tensor([0, 3, 6])
    system.rand = lambda shape, like: torch.full(shape, 0.5)
    masks = system.masks(features)
    assert [tuple(mask.shape) for mask in masks[4:]] == [(3, 1, 2, 2), (3, 1, 1), (3, 1, 1)]
    assert [[bool(mask[n].any()) for n in range(3)] for mask in masks] == [
        [i == level for level in (0, 3, 6)] for i in range(7)
    ]
    assert masks[0][0, 0, 16, 16] == 0 and masks[0][0, 0, 0, 0] == 1
    system.rand = lambda shape, like: torch.full(shape, 1.0)
    assert system.masks(features)[0][0].all()


def test_translate_takes_levels_and_parts() -> None:
    system = settled()
    system.randn = lambda shape, like: torch.ones(shape)
    images = batch_of()["image"]
    made = [system.translate({"image": images, "level": level})["fake"] for level in (0, 4, 6)]
    assert all(fake.shape == (2, 3, 64, 64) and fake.isfinite().all() for fake in made) and not made[0].equal(made[1])
    each = system.translate({"image": images, "level": torch.tensor([0, 6])})["fake"]
    torch.testing.assert_close(each, torch.stack([made[0][0], made[2][1]]))
    torch.testing.assert_close(system.translate({"image": images})["fake"], made[1])
    half = torch.ones(2, 1, 30, 30)
    half[..., 15:] = 0
    assert not system.translate({"image": images, "level": 0, "mask": half})["fake"].equal(made[0])
    assert system.translate({"image": torch.rand(1, 3, 50, 90)})["fake"].shape == (1, 3, 64, 64)
    assert system.translate({"image": torch.empty(3, 0)})["fake"].shape == (3, 3, 64, 64)


def test_original_checkpoint(tmp_path: Path) -> None:
    source, target = settled(), tiny("semantic_pyramid")
    states = {net: module.state_dict() for net, module in source.nets.items()}
    torch.save({"g": {}, "g_ema": states["G"], "d": states["D"]}, tmp_path / "1.pt")
    target.load_original(tmp_path / "1.pt")
    own = target.nets.state_dict()
    assert all(value.equal(own[key]) for key, value in source.nets.state_dict().items())
    torch.save({"g": states["G"]}, tmp_path / "2.pt")
    with pytest.raises(ValueError, match="2.pt has none of d"):
        target.load_original(tmp_path / "2.pt")


def test_errors_name_value_and_limit() -> None:
    for options, message in (
        ({"upsample": "nu"}, "upsample nu: expected 6, one for each of blocks"),
        ({"blocks": "rrrraa"}, "blocks 'rrrraa': expected 5 r"),
    ):
        with pytest.raises(ValueError, match=message):
            models.build("semantic_pyramid", "tiny", **options)
    with pytest.raises(ValueError, match="classifier has 10 classes, the networks 4: give `class`"):
        tiny("semantic_pyramid", n_class=4).prepare(batch_of())
    with pytest.raises(ValueError, match="features of 2x2: expected 4x4"):
        tiny("semantic_pyramid", size=4).discriminator_loss(tiny("semantic_pyramid").prepare(batch_of()))
