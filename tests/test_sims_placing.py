"""SIMS: the network that transforms segments, the one that orders them, what both learn from, the canvas they make."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_crn import items
from test_models import batch_of, check_phases, tiny
from torch import Tensor
from toy import newest

from i2ifast.data.kinds import labels
from i2ifast.models import Batch, System
from i2ifast.models._sims import Bank, Piece, segments
from i2ifast.models._sims_placing import (
    Box,
    Ordering,
    Transformer,
    disturbances,
    from_back,
    nearer,
    neighbours,
    order,
    transformed,
    warp,
)
from i2ifast.train import main

SMALL = {"patch": 32, "patch_dim": 2}


def placing(**options: bool) -> System:
    return tiny("sims", **SMALL, **options)


def batch_with_disparity(system: System) -> Batch:
    """Classes of a larger number are nearer."""
    batch = batch_of(system)
    return batch | {"disparity": batch["label"] + 1}


def test_both_networks_learn_beside_the_generator() -> None:
    system = placing(transformer=True, ordering=True)
    batch = batch_with_disparity(system)
    assert [phase.name for phase in system.phases] == ["G", "T", "O"]
    check_phases(system, batch)
    del batch["disparity"]
    with pytest.raises(ValueError, match="the batch has no disparity"):
        system.ordering_loss(system.prepare(batch))
    empty = batch | {"label": torch.arange(128 * 64).view(1, 1, 64, 128).expand(2, -1, -1, -1) % 5}  # of no segments
    prepared = system.prepare(empty | {"disparity": empty["label"]})
    assert system.transformer_loss(prepared)["T"] == 0 and system.ordering_loss(prepared)["O"] == 0
    with pytest.raises(ValueError, match="patch 48: must be a multiple of 32"):
        tiny("sims", patch=48)


def test_the_transformer_undoes_what_it_learns_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """The right answers have next to no loss, and a network comes nearer to them."""
    system, theta = placing(transformer=True), disturbances(torch.full((2, 4), 0.8))
    system.rand = lambda shape, like: torch.full(shape, 0.8)
    system.randint = lambda high, shape, like: torch.zeros(shape, dtype=torch.int64)
    label = torch.zeros(2, 1, 64, 128).long()
    label[:, :, 16:48, 40:90] = 2  # of which the first is the background
    gradient = torch.linspace(-1, 1, 128).expand(2, 3, 64, -1)
    batch = system.prepare({"label": label, "image": gradient})
    first = system.transformer_loss(batch)["T"].item()
    row = torch.tensor([[0.0, 0, 1]]).expand(2, 1, -1)
    inverse = torch.cat([theta, row], 1).inverse()[:, :2]
    monkeypatch.setattr(Transformer, "forward", lambda self, segment, wanted: inverse)
    assert system.transformer_loss(batch)["T"].item() < 0.6 * first
    monkeypatch.undo()
    optimizer = torch.optim.Adam(system.nets["T"].parameters(), 3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        loss = system.transformer_loss(batch)["T"]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * first


def test_warp_is_about_the_middle() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    torch.testing.assert_close(warp(x, torch.eye(2, 3)[None]), x)
    right = torch.tensor([[[1.0, 0, 0.5], [0, 1, 0]]])  # takes what is a pixel to the right
    torch.testing.assert_close(warp(x, right)[..., :3], x[..., 1:])
    assert not warp(x, right)[..., 3].any()
    still = disturbances(torch.full((1, 4), 0.5))
    torch.testing.assert_close(still, torch.eye(2, 3)[None])


def test_an_untrained_transformer_leaves_segments_where_they_fit() -> None:
    system = placing(transformer=True).eval()
    system.build_bank(items())
    label = items()[0]["label"][0].flip(1)
    expected = system.bank.canvas(label, 2)
    canvas, mask = system.bank.canvas(label, 2, place=system.place)
    assert (mask != expected[1]).float().mean() < 0.01
    assert ((canvas - expected[0]).abs() > 2).float().mean() < 0.01
    assert system.translate({"label": label[None, None]})["fake"].shape == (1, 3, 64, 128)


def halves() -> Tensor:
    """A map of labels 0, left, and 1, right."""
    return (torch.arange(16).expand(16, -1) >= 8).long()


def test_neighbours_and_which_is_nearer() -> None:
    number = torch.tensor([[0, 0, 1], [2, 2, 1], [2, -1, 3]])
    assert neighbours(number) == [[0, 1], [0, 2], [1, 2], [1, 3]]
    disparity = torch.tensor([[5, 5, 3], [7, 7, 3], [7, 9, 0]])
    assert [nearer(number, disparity, pair) for pair in ([0, 1], [0, 2], [1, 2])] == [0, 2, 2]
    assert nearer(number, disparity, [1, 3]) is None and nearer(number, disparity * 0, [0, 1]) is None


def test_order_from_back_to_front() -> None:
    assert from_back([0, 1, 2, 3], [(1, 0), (2, 1), (3, 2)]) == [0, 1, 2, 3]
    assert from_back([0, 1, 2, 3], [(0, 1), (0, 2), (3, 0)]) == [1, 2, 0, 3]
    assert sorted(from_back([0, 1, 2], [(0, 1), (1, 2), (2, 0)])) == [0, 1, 2]  # a circle


@pytest.mark.parametrize("front", [0, 1])
def test_segments_in_front_cover_others(front: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two overlap the canvas shows the one whose class the network names."""
    logits = torch.eye(2)[front]
    monkeypatch.setattr(Ordering, "forward", lambda self, pair, kept=None: logits.expand(len(pair), -1))
    query, size = segments(halves()), (16, 12)
    whole = {i: Piece((0, 0 if i == 0 else 4, 16, 12 if i == 0 else 16), torch.full((3, *size), 100.0 * i),
                      torch.ones(1, *size)) for i in (0, 1)}  # fmt: skip
    assert order(Ordering(2, 2), whole, query, 32, 2) == ([1, 0] if front == 0 else [0, 1])
    bank = SimpleNamespace(pieces=lambda query, without: whole)
    net = Ordering(2, 2)
    canvas, mask = Bank.canvas(
        bank, halves(), 0, None, lambda pieces, query: [pieces[i] for i in order(net, pieces, query, 32, 2)]
    )
    assert mask.all() and (canvas[:, :, 4:12] == 100.0 * front).all() and (canvas[:, :, 12:] == 100).all()


def test_of_one_class_the_lower_is_in_front() -> None:
    query = segments((torch.arange(32)[:, None] // 11 % 2).expand(-1, 32))  # three bands
    query.label[:] = 1
    pieces = {i: Piece(query.box[i].tolist(), torch.zeros(3, 1, 1), torch.ones(1, 1, 1)) for i in (2, 0, 1)}
    ordered = order(Ordering(2, 2), pieces, query, 32, 2)
    assert [int(query.box[i, 2]) for i in ordered] == [11, 22, 32]


def test_boxes_and_transformed_pieces_stay_inside() -> None:
    box = Box(0, 10, 8, 18).wider((10, 20))
    assert box == (0, 8, 10, 20) and Box(1, 2, 3, 4).around(Box(0, 3, 2, 9)) == (0, 2, 3, 9)
    query = segments(halves())
    assert transformed(Transformer(2, 2), {}, query, 32, 2) == {}


def test_disparities_are_read_and_learned_from(tmp_path: Path) -> None:
    for folder in ("train_label", "train_img", "train_disparity"):
        (tmp_path / folder).mkdir()
    for n, item in enumerate(items()):
        label = item["label"][0].numpy()
        Image.fromarray(label.astype(np.uint8)).save(tmp_path / f"train_label/{n}.png")
        Image.fromarray((label * 300 + 1).astype(np.uint16)).save(tmp_path / f"train_disparity/{n}.png")
        Image.new("RGB", label.shape[::-1], "grey").save(tmp_path / f"train_img/{n}.png")
    settings = labels.Settings(label_nc=5, instance=False, disparity=True, crop_size=128, aspect_ratio=2.0)
    item = labels.folder(tmp_path, "train", settings, train=True)[0]
    assert item["disparity"].equal(item["label"] * 300 + 1)
    assert "disparity" not in labels.folder(tmp_path, "train", settings)[0]
    run = tmp_path / "run"
    options = ["--config.patch", "32", "--config.patch-dim", "2", "--config.transformer", "--config.ordering"]
    where = ["--data", str(tmp_path), "--out", str(run), "--steps", "1", "--workers", "0"]
    main(["sims", "--preset", "tiny", *where, *options])
    assert newest(run)[1]["step"] == 1
