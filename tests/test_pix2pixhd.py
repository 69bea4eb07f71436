"""pix2pixHD: its generators against plain ones, features and their clusters, its schedule, what it begins with."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_models import label_batch, settled, tiny
from toy import newest

from i2ifast import labels, translate
from i2ifast.data import procedural
from i2ifast.models import Batch, System, _feature_clusters
from i2ifast.train import main

NAME = "pix2pixhd"
LOCAL = dict(netG="local", ngf=8, n_blocks_local=1)


def paired_batch(size: tuple[int, int], n: int = 2) -> Batch:
    g = torch.Generator().manual_seed(0)
    return {side: torch.rand((n, 3, *size), generator=g) * 2 - 1 for side in "ab"}


def batch_for(system: System, size: tuple[int, int] = (32, 64)) -> Batch:
    return label_batch(system.config, size) if system.config.label_nc else paired_batch(size)


FORMS: list[dict[str, Any]] = [
    dict(LOCAL, n_local_enhancers=2),
    dict(instance_feat=True),
    dict(label_feat=True, **LOCAL),
    dict(label_nc=0, instance=False, norm="batch", ganFeat=False, lsgan=False, n_layers_D=2),
    dict(norm="batch", pool_size=2),
    dict(lsgan=False),
]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_every_form_trains_and_translates(options: dict[str, Any]) -> None:
    system = tiny(NAME, **options).train()
    batch = system.prepare(batch_for(system))
    for phase in system.phases:
        system.zero_grad()
        system.freeze_all_but(phase)
        terms = phase.loss(batch)
        sum(terms.values()).backward()
        assert all(term.isfinite() for term in terms.values())
        for name, net in system.nets.items():
            assert any(p.grad is not None and p.grad.any() for p in net.parameters()) == (name in phase.nets)
    batch = batch_for(system, (33, 50))
    assert system.eval().translate(batch)["fake"].shape == (2, 3, 33, 50)


@pytest.mark.parametrize("options", FORMS[:3], ids=str)
def test_label_plan_equals_dense_maps(options: dict[str, Any]) -> None:
    system = tiny(NAME, **options)
    batch = system.prepare(batch_for(system))
    dense = {**batch, "semantics": batch["semantics"].dense()}
    for phase in system.phases:
        found, expected = phase.loss(batch), phase.loss(dense)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_features_are_means_of_instances_of_each_image() -> None:
    system = tiny(NAME, instance_feat=True)
    batch = system.prepare(batch_for(system))
    found, plain = system.encode(batch), system.nets["E"].model(batch["image"])
    for n in range(2):
        for number in batch["instance"].unique():  # ids occur in both images
            where = batch["instance"][n, 0] == number
            if where.any():
                mean = plain[n, :, where].mean(1, keepdim=True)
                torch.testing.assert_close(found[n, :, where], mean.expand(-1, int(where.sum())))


def test_the_last_enhancer_is_trained_alone_at_first() -> None:
    system = tiny(NAME, **LOCAL, n_local_enhancers=2, niter_fix_global=3)
    assert [[p.name for p in system.phases if p.epochs(e)] for e in (3, 4)] == [["G_local", "D"], ["G", "D"]]
    system.phases[0].loss(system.prepare(batch_for(system)))["G_GAN"].backward()
    trained = {key.partition(".")[0] for key, p in system.nets["G"].named_parameters() if p.grad is not None}
    assert trained == {"model2_1", "model2_2"}
    assert [tiny(NAME, niter=2, niter_decay=4).decay(epoch) for epoch in range(1, 8)] == [1, 1, 1, 0.75, 0.5, 0.25, 0]


def test_k_means_finds_what_is_apart() -> None:
    g = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    points = centres.repeat(20, 1) + 0.01 * torch.randn(60, 2, generator=g)
    found = _feature_clusters.k_means(points, 3, lambda shape, like: torch.rand(shape, generator=g))
    assert sorted(map(tuple, found.round(decimals=1).abs().tolist())) == sorted(map(tuple, centres.tolist()))
    alike = _feature_clusters.k_means(torch.ones(4, 2), 3, lambda shape, like: torch.rand(shape, generator=g))
    assert alike.equal(torch.ones(3, 2))


def test_translates_with_features_drawn_from_clusters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    system = settled(NAME, instance_feat=True, n_clusters=3)
    batch = batch_for(system)
    given = {name: batch[name] for name in ("label", "instance")}
    assert not system.chosen(given).any()
    assert "no clusters of features, so they are zero" in caplog.text
    clusters = system.cluster_features([system.prepare(batch)])
    assert clusters and all(centres.shape[1] == 3 and len(centres) <= 3 for centres in clusters.values())
    features = system.chosen(given)
    for label in batch["label"].unique().tolist():
        rows = features.movedim(1, -1)[batch["label"][:, 0] == label].unique(dim=0)
        known = clusters.get(label, torch.zeros(1, 3))
        assert all((known - row).abs().sum(1).min() == 0 for row in rows)
    fake = system.translate(given)["fake"]
    assert fake.shape == batch["image"].shape and not fake.equal(system.translate(batch)["fake"])

    _feature_clusters.save(clusters, tmp_path / "features_clustered_001.safetensors")
    other = tiny(NAME, instance_feat=True, n_clusters=3)
    other.load_original(tmp_path / "features_clustered_001.safetensors")
    assert other.clusters.equal(system.clusters) and other.cluster_counts.equal(system.cluster_counts)
    with pytest.raises(ValueError, match="of label 12: expected a label below 12, at most 3 clusters of 3 numbers"):
        other.take_clusters({12: torch.zeros(1, 3)})


class Hostile:
    def __reduce__(self) -> tuple:
        return print, ("run",)


def test_reads_clusters_of_the_original_and_nothing_that_runs(tmp_path: Path, capsys) -> None:
    system, file = tiny(NAME, instance_feat=True), tmp_path / "features_clustered_010.npy"
    np.save(file, {3: np.arange(6.0).reshape(2, 3), 5: np.ones((1, 3), np.float32)}, allow_pickle=True)
    for net, module in system.nets.items():
        torch.save(module.state_dict(), tmp_path / f"latest_net_{net}.pth")
    system.load_original(tmp_path)
    assert system.clusters[3, :2].tolist() == [[0, 1, 2], [3, 4, 5]] and system.cluster_counts[5] == 1
    for bad in ({1: Hostile()}, {1: Path("x")}):
        np.save(file, bad, allow_pickle=True)
        with pytest.raises(ValueError, match=r"features_clustered_010.npy: no clusters of features \(it asks for"):
            system.load_original(file)
    assert "run" not in capsys.readouterr().out
    file.write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match="no clusters of features"):
        system.load_original(file)


def test_a_local_enhancer_begins_with_a_global_generator(tmp_path: Path) -> None:
    source = tiny(NAME, ngf=16, num_D=2)
    for net, module in source.nets.items():
        torch.save(module.state_dict(), tmp_path / f"latest_net_{net}.pth")
    save_file({f"nets.{key}": value for key, value in source.nets.state_dict().items()}, tmp_path / "run.safetensors")
    for path in (tmp_path, tmp_path / "run.safetensors"):
        target = tiny(NAME, **LOCAL, num_D=3, load_pretrain=str(path))
        for net, module in target.nets.items():
            state = source.nets[net].state_dict()
            taken = [key for key, value in module.state_dict().items() if key in state and value.equal(state[key])]
            shared = {"G": lambda key: key.startswith("model."), "D": lambda key: not key.startswith("scale2")}[net]
            assert taken == [key for key in module.state_dict() if shared(key)]
    with pytest.raises(ValueError, match="nothing in it fits"):
        tiny(NAME, load_pretrain=str(tmp_path / "nowhere"))


def test_refuses_what_does_not_fit() -> None:
    for options, message in (
        (dict(norm="group"), "norm 'group': expected one of instance, batch"),
        (dict(netG="large"), "netG 'large': expected one of global, local"),
        (dict(instance_feat=True, instance=False), "instance_feat: needs instance"),
        (dict(label_feat=True, label_nc=0), "label_feat: needs label maps"),
        (dict(niter_fix_global=2), "niter_fix_global 2: netG is global"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny(NAME, **options)
    system = tiny(NAME)
    with pytest.raises(ValueError, match="images of 50x32 pixels: both sides must be multiples of 4"):
        system.prepare(label_batch(system.config, (32, 50)))
    with pytest.raises(ValueError, match="label plan of 3 channels: the networks take 12 classes and 1 for instance"):
        system.prepare({**batch_for(system), "plan": labels.plan(torch.zeros(1, 4, 4).long(), 3)})


def test_trains_and_translates_photographs_from_files(tmp_path: Path) -> None:
    for number in range(3):
        for side in "AB":
            folder = tmp_path / f"train_{side}"
            folder.mkdir(exist_ok=True)
            Image.fromarray(procedural.scene(48, number).image).save(folder / f"{number}.png")
    run = str(tmp_path / "run")
    where = ["--data", str(tmp_path), "--out", run, "--steps", "1", "--workers", "0", "--direction", "BtoA"]
    main([NAME, "--preset", "tiny_photographs", *where])
    assert newest(tmp_path / "run")[1]["step"] == 1
    translate.main(["--weights", run, "--out", str(tmp_path / "out"), "--images", str(tmp_path / "train_A")])
    assert len(list((tmp_path / "out").iterdir())) == 3
    with pytest.raises(SystemExit, match="with these options pix2pixhd takes paired data"):
        main([NAME, "--preset", "tiny", *where[:-2], "--config.label-nc", "0", "--config.no-instance"])
