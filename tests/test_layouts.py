"""Panoptic-aware synthesis, BachGAN and EdgeGAN: what is special about each."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_models import batch_of, settled, sketches_batch, tiny
from torch import Tensor
from toy import assert_same

from i2ifast import labels, models
from i2ifast.models._edgegan import bicubic, instance_norm
from i2ifast.models.bachgan import NOTHING, UNUSED, joined
from i2ifast.models.edgegan import parameter_of

GOLDEN = Path(__file__).with_name("golden")


def test_maps_of_bachgan_lie_one_after_another() -> None:
    """The boxes of a sample, then what was retrieved for it, with nothing where its own objects were."""
    batch = batch_of(tiny("bachgan"))
    boxes, retrieved = batch["boxes"], batch["retrieved"]
    background = labels.plan(retrieved.flatten(0, 1), 12, ignore_index=NOTHING)
    dense = joined(boxes, background)
    torch.testing.assert_close(joined(labels.plan_dense(boxes), background).dense(), dense)
    assert dense.shape == (8, 12, 64, 128) and dense[4].equal(boxes[1])
    assert not dense[1][:, retrieved[0, 0] == NOTHING].any()
    assert dense[1].argmax(0)[retrieved[0, 0] != NOTHING].equal(retrieved[0, 0][retrieved[0, 0] != NOTHING])


def test_bachgan_takes_what_was_retrieved() -> None:
    system = settled("bachgan")
    batch = batch_of(system)
    fake = system.translate(batch)["fake"]
    assert not system.translate({**batch, "retrieved": batch["retrieved"].roll(7, 2)})["fake"].equal(fake)
    torch.testing.assert_close(system.translate({**batch, "retrieved": batch["retrieved"].flip(1)})["fake"], fake)
    with pytest.raises(ValueError, match="boxes of 11 classes: the networks take 12"):
        system.prepare({**batch, "boxes": batch["boxes"][:, :11]})


def test_bachgan_segments_its_images_with_seg() -> None:
    system = tiny("bachgan", seg=True).train()
    batch = batch_of(system)
    terms = system.generator_loss(system.prepare(batch))
    terms["segfine"].backward()
    assert system.nets["G"].conv_seg.weight.grad.any()
    unknown = torch.full_like(batch["label"], 255)
    unknown[..., :8, :] = batch["label"][..., :8, :]
    assert system.generator_loss(system.prepare({**batch, "label": unknown}))["segfine"].isfinite()
    assert "segfine" not in tiny("bachgan").generator_loss(system.prepare(batch))


def test_files_of_bachgan(tmp_path: Path) -> None:
    """Modules that the original does not use are left out; anything else strange is refused."""
    source, target = tiny("bachgan"), tiny("bachgan")
    for parameter in source.nets.parameters():
        torch.nn.init.uniform_(parameter)
    state = source.nets["G"].state_dict()
    torch.save(state | {f"{name}.weight": torch.zeros(3) for name in UNUSED}, tmp_path / "60_net_G.pth")
    target.load_original(tmp_path, "60")
    assert_same(target.nets["G"].state_dict(), state)
    torch.save(state | {"conv9_9.weight": torch.zeros(3)}, tmp_path / "70_net_G.pth")
    with pytest.raises(ValueError, match="unexpected conv9_9.weight"):
        target.load_original(tmp_path, "70")


@pytest.mark.parametrize("options", [{"instance": True}, {"use_vae": True, "crop_size": 256}])
def test_bachgan_refuses_bad_options(options: dict) -> None:
    with pytest.raises(ValueError, match="boxes have neither edges nor styles"):
        tiny("bachgan", **options)


def test_panoptic_plans_and_dense_maps_agree() -> None:
    system = settled("panoptic")
    batch = system.prepare(batch_of(system))
    expected = system.generate(batch, None)
    torch.testing.assert_close(system.generate({**batch, "semantics": batch["semantics"].dense()}, None), expected)


def test_panoptic_keeps_instances_apart() -> None:
    """One label throughout, whose two halves are one instance or two; the edge channel is the same."""
    system = settled("panoptic")
    label, halves = torch.full((1, 1, 64, 128), 3), torch.arange(128) // 64
    batch = system.prepare({"label": label, "instance": halves.expand(1, 1, 64, 128)})
    one = system.prepare({"label": label, "instance": torch.zeros_like(label)})
    apart, together = (system.generate({**batch, "ids": ids}, None) for ids in (batch["ids"], one["ids"]))
    assert (apart - together)[..., 60:68].abs().max() > 1e-6
    with pytest.raises(ValueError, match="instance False"):
        tiny("panoptic", instance=False)
    with pytest.raises(ValueError, match="candidates 'all': expected one of nearest3x3"):
        tiny("panoptic", candidates="all")


def as_variables(system: models.System) -> dict[str, np.ndarray]:
    """As TensorFlow has them, by the recorded names."""
    found, own = {}, system.nets.state_dict()
    for variable, shape in json.loads((GOLDEN / "edgegan/keys.json").read_text())["tf_variables"].items():
        net, key = parameter_of(variable)
        value = own[f"{net}.{key}"]
        if value.ndim == 1:
            found[variable] = value.reshape({4: (1, -1, 1, 1), 2: (1, -1), 1: (-1,), 0: ()}[len(shape)]).numpy()
        else:
            found[variable] = value.permute({4: (2, 3, 1, 0), 2: (1, 0)}[value.ndim]).numpy()
    return found


def test_files_of_edgegan(tmp_path: Path) -> None:
    """All variables by name, without those of optimizers; a missing one is named."""
    source, target = tiny("edgegan"), tiny("edgegan")
    for parameter in source.nets.parameters():
        torch.nn.init.uniform_(parameter)
    variables = as_variables(source)
    others = {"G1/g_lin_0/Matrix/RMSProp": np.zeros(3), "global_step": np.zeros(())}
    np.savez(tmp_path / "model.npz", **variables, **others)
    target.load_original(tmp_path / "model.npz")
    assert_same(target.nets.state_dict(), source.nets.state_dict())
    del variables["E/FC8_mu/w"]
    np.savez(tmp_path / "less.npz", **variables)
    with pytest.raises(ValueError, match="less.npz does not fit this Encoder: no FC8_mu.weight"):
        target.load_original(tmp_path / "less.npz")


def test_edgegan_steps_its_generators_twice() -> None:
    system = tiny("edgegan")
    assert [phase.name for phase in system.phases] == ["D", "D_patch2", "D_patch3", "D2", "G", "E", "G_again"]
    assert system.phases[-1].shares == "G" and system.phases[-1].nets == ("G1", "G2")


def test_edgegan_draws_one_number_for_all_codes() -> None:
    system, drawn = settled("edgegan"), []
    system.randn = lambda shape, like: drawn.append(tuple(shape)) or torch.ones(shape)
    batch = sketches_batch(system.config, (32, 32))
    assert system.translate(batch)["fake"].shape == (2, 3, 32, 32) and drawn == [(1,)]
    with pytest.raises(ValueError, match="sketch of 32x48 pixels: expected 32 on both sides"):
        system.translate(sketches_batch(system.config, (32, 48)))
    with pytest.raises(ValueError, match="edge_dis_size 50: must be a multiple of 16"):
        tiny("edgegan", edge_dis_size=50)


def test_vectors_of_spectral_norms_move_when_the_classifier_is_trained() -> None:
    system = tiny("edgegan").train()
    batch, vectors = system.prepare(batch_of(system)), [u for n, u in system.nets.named_buffers() if n.endswith(".u")]
    used = [u for u in vectors if len(u) > 1]
    for phase in system.phases:
        before = [u.clone() for u in used]
        system.freeze_all_but(phase)
        phase.loss(batch)
        assert all(u.equal(b) != (phase.name == "D2") for u, b in zip(used, before, strict=True))


def test_tensorflow_resizes_without_centres() -> None:
    weights = bicubic(4, 8, torch.device("cpu"))
    torch.testing.assert_close(weights.sum(1), torch.ones(8))
    assert weights[::2].equal(torch.eye(4))
    torch.testing.assert_close(weights[3], torch.tensor([-3, 19, 19, -3]) / 32)


@pytest.mark.parametrize("x", [torch.zeros(1, 2, 4, 4), torch.randn(2, 3, 4, 5)])
def test_instance_norm_of_edgegan(x: Tensor) -> None:
    x.requires_grad_()
    y = instance_norm(x)
    deviation, mean = torch.std_mean(x, (2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(y, (x - mean) / (deviation + 1e-5))
    y.square().sum().backward()
    assert x.grad.isfinite().all()
