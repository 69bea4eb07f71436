"""Few-shot vid2vid: what its generated weights do, references, the schedule, all options, and what it refuses."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain import normal
from torch import Tensor, nn

from i2ifast import _checkpoint, models
from i2ifast.models import Batch, System, _fs_vid2vid
from i2ifast.models._fs_vid2vid import SPADEBlock, Warped, each_its_own, spread
from i2ifast.models.fs_vid2vid import Config, mask_loss

OPTIONS = {
    "default": {},
    "references": {"n_shot": 2, "num_D": 2},
    "raw": {"add_raw_output_loss": True},
    "masks": {"spade_combine": False, "add_raw_output_loss": True},
    "apart": {"sep_flow_prev": True, "sep_warp_embed": False, "norm_G": "spectralspadeinstance"},
    "frames before": {"warp_ref": False, "norm_F": "spectralinstance"},
    "frames": {"temporal": False},
    "drawings": {"label_nc": 0, "input_nc": 1, "n_adaptive_layers": 3},
}
by_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def tiny(**options: Any) -> System:
    torch.manual_seed(0)
    system = models.build("fs_vid2vid", "tiny", **options)
    for parameter in system.nets.parameters():  # as initialised, references would hardly matter
        nn.init.normal_(parameter, 0, 0.3 / max(1, parameter[0].numel()) ** 0.5)
    return system


def batch_of(config: Config, frames: int = 3, size: tuple[int, int] = (64, 64), n: int = 2) -> Batch:
    g, k = torch.Generator().manual_seed(0), config.n_shot

    def labels(count: int) -> Tensor:
        blocks = torch.randint(config.label_nc or 256, (n * count, 1, 8, 8), generator=g)
        return F.interpolate(blocks.float(), size).long().unflatten(0, (n, count))

    def images(count: int) -> Tensor:
        return torch.rand(n, count, 3, *size, generator=g) * 2 - 1

    batch = {"label": labels(frames), "image": images(frames), "label_refs": labels(k), "image_refs": images(k)}
    for name, shape in {"": (n, frames - 1), "_refs": (n, frames, k)}.items():
        batch[f"flow{name}"] = 3 * torch.randn(*shape, 2, *size, generator=g)
        batch[f"confidence{name}"] = (torch.rand(*shape, 1, *size, generator=g) < 0.7).float()
    return batch


def settled(**options: Any) -> System:
    """In eval mode after a pass in train mode, before which spectral norms are arbitrary."""
    system = tiny(**options).train()
    with torch.no_grad():
        system.generate(system.prepare(batch_of(system.config)))
    return system.eval()


@by_options
def test_phases_train_their_networks_and_no_others(options: dict[str, Any]) -> None:
    system = tiny(**options).train()
    config, batch = system.config, system.prepare(batch_of(system.config))
    for phase in system.phases:
        before = copy.deepcopy(system.nets.state_dict())
        system.freeze_all_but(phase)
        system.zero_grad()
        terms = phase.loss(batch)
        assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
        sum(terms.values()).backward()
        torch.optim.Adam(system.parameters(), 1e-3).step()
        changed = {k.split(".")[0] for k, p in system.nets.named_parameters() if not p.equal(before[k])}
        assert changed == set(phase.nets)
        assert len(batch["made"]) == (1 if phase.name == "G_single" else 3)
        if phase.name == "G":
            assert ("F_Flow" in terms) == (config.warp_ref or config.temporal)


@by_options
def test_frames_of_any_size_one_after_the_other(options: dict[str, Any]) -> None:
    system = settled(**options)
    batch = batch_of(system.config)
    made = system.translate(batch)
    with torch.no_grad():
        expected = [frame.image for frame in system.generate(system.prepare(batch))]
    torch.testing.assert_close(made["fake"], torch.stack(expected, 1).flatten(0, 1))
    assert made["label"].shape == (6, 1, 64, 64) and not made["fake"].requires_grad
    small = {name: value[..., :50, :41] for name, value in batch.items()}
    assert system.translate(small)["fake"].shape == (6, 3, 50, 41)


def plain(x: Tensor, block: SPADEBlock, maps: list[Tensor], weights: list[Tensor]) -> Tensor:
    """The block by torch's layers on full maps, sample by sample."""
    size = x.shape[2:]

    def modulate(y: Tensor, layer: nn.Module, weight: Tensor) -> Tensor:
        y = F.batch_norm(y, None, None, training=True)
        for i, each in enumerate(maps, 1):
            each = F.interpolate(each, size)
            if i == 1:
                rows = [F.conv2d(m[None], w[:, :, None, None]) for m, w in zip(each, weight, strict=True)]
                gamma, beta = torch.cat(rows).chunk(2, 1)
            else:
                gamma, beta = getattr(layer, f"mlp_gamma{i}")(each), getattr(layer, f"mlp_beta{i}")(each)
            y = y * (1 + gamma) + beta
        return y

    h = block.conv_0(F.leaky_relu(modulate(x, block.bn_0, weights[0]), 0.2))
    h = block.conv_1(F.leaky_relu(modulate(h, block.bn_1, weights[1]), 0.2))
    return h + block.conv_s(modulate(x, block.bn_s, weights[2]))


@pytest.mark.parametrize("maps", [1, 3])
@pytest.mark.parametrize("side", [4, 16])
def test_a_block_with_generated_weights_is_that_of_plain_layers(maps: int, side: int) -> None:
    block = SPADEBlock(8, 4, "spadesyncbatch", [4] * maps, True).double()
    given = [normal(2, 4, side, side).double(), *(normal(2, 4, 16, 16, seed=i).double() for i in range(1, maps))]
    weights = [normal(2, 2 * c, 4, seed=9 + i).double() for i, c in enumerate((8, 4, 8))]
    x = normal(2, 8, 8, 8, seed=5).double()
    leaves = [t.requires_grad_() for t in (x, *given, *weights)]
    results = []
    for y in (block(x, given, weights, True), plain(F.interpolate(x, scale_factor=2), block, given, weights)):
        results.append([y, *torch.autograd.grad(y, leaves, normal(*y.shape, seed=7).double())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_map_that_is_no_multiple_is_resized() -> None:
    x, weight = normal(2, 3, 4, 4), normal(2, 6, 3, seed=1)
    rows = each_its_own(x, weight)
    table = spread(rows, x, (12, 8))
    spread_out = table.rows[table.patches.long()].movedim(-1, 1)
    dense = torch.einsum("noc,nchw->nohw", weight, x)
    torch.testing.assert_close(spread_out, F.interpolate(dense, (12, 8)))
    torch.testing.assert_close(spread(rows, x, (6, 5)), F.interpolate(dense, (6, 5)))


def test_weights_follow_from_the_reference_and_from_nothing_else() -> None:
    system = settled()
    batch = system.prepare(batch_of(system.config))
    refs = batch["semantic_refs"], batch["image_refs"]
    with torch.no_grad():
        first, second = (system.nets["G"].refer(*refs, batch["semantics"][:, t]) for t in range(2))
        other = system.nets["G"].refer(refs[0], -refs[1], batch["semantics"][:, 0])
    assert first.x.equal(second.x) and not first.x.equal(other.x) and first.index.tolist() == [0, 0]
    for i, (own, same, unlike) in enumerate(zip(first.weights, second.weights, other.weights, strict=True)):
        fine = 8 << i
        assert own.embed[0].shape == (2, fine, 2 * fine) and own.embed[1].shape == (2, fine)
        assert [w.shape for w in own.spade] == [(2, 2 * c, fine) for c in (2 * fine, fine, 2 * fine)]
        assert own.spade[0].equal(same.spade[0]) and not own.spade[0].equal(unlike.spade[0])


def test_where_channels_stop_growing_embeddings_have_no_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fs_vid2vid, "LARGEST", 16)
    system = settled(n_adaptive_layers=3)
    batch = system.prepare(batch_of(system.config))
    with torch.no_grad():
        found = system.nets["G"].refer(batch["semantic_refs"], batch["image_refs"], batch["semantics"][:, 0])
    assert [level.embed[1] is None for level in found.weights] == [False, True, True]
    assert [list(w.shape) for w in found.weights[2].spade] == [[2, 32, 16]] * 3
    assert system.translate(batch_of(system.config))["fake"].isfinite().all()


def test_the_order_of_references_does_not_matter() -> None:
    system = settled(n_shot=3)
    batch = system.prepare(batch_of(system.config))
    label, refs = batch["semantics"][:, 0], (batch["semantic_refs"], batch["image_refs"])
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        attention = system.nets["G"].attention(label, refs[0])
        one, other = (system.nets["G"].refer(*pair, label) for pair in (refs, [r[:, order] for r in refs]))
        frames = [system.nets["G"](label, *pair).image for pair in (refs, [r[:, order] for r in refs])]
    assert attention.shape == (2, 3 * 256, 256)
    torch.testing.assert_close(attention.sum(1), torch.ones(2, 256))
    torch.testing.assert_close(one.x, other.x)
    assert one.index.equal(order[other.index])
    torch.testing.assert_close(*frames, rtol=1e-3, atol=1e-4)


def test_attention_to_one_reference_is_that_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    system = settled(n_shot=2)
    net, batch = system.nets["G"], system.prepare(batch_of(system.config))
    label, refs = batch["semantics"][:, 0], (batch["semantic_refs"], batch["image_refs"])
    chosen = torch.tensor([1, 0])
    attention = F.one_hot(chosen, 2)[:, :, None, None] * torch.eye(256)  # of each pixel to the one at its place
    monkeypatch.setattr(net, "attention", lambda *maps: attention.flatten(1, 2))
    with torch.no_grad():
        found = net.refer(*refs, label)
        expected = net.refer(*(each[[0, 1], chosen][:, None] for each in refs), label)
    assert found.index.equal(chosen)
    torch.testing.assert_close(found.x, expected.x)
    torch.testing.assert_close(found.weights, expected.weights)


def test_single_frames_come_first() -> None:
    system = tiny(niter_single=2, niter=2, niter_decay=3)
    assert [[p.name for p in system.phases if p.epochs(epoch)] for epoch in (2, 3)] == [["G_single", "D"], ["G", "D"]]
    assert system.phases[1].shares == "G_single"
    assert [phase.name for phase in tiny(temporal=False).phases] == ["G", "D"]
    assert [phase.optimizer.lr for phase in system.phases] == [2e-4, 2e-4, 8e-4]
    assert [phase.optimizer.lr for phase in tiny(ttur=False).phases] == [4e-4] * 3
    assert [round(system.decay(epoch), 2) for epoch in (1, 3, 4, 6)] == [1, 1, 0.75, 0.25]


def test_flow_networks_are_shared_unless_apart() -> None:
    shared, apart = (tiny(**options).nets["G"] for options in ({}, OPTIONS["apart"]))
    assert shared.flow_network_temp is shared.flow_network_ref
    assert shared.img_prev_embedding is not shared.img_ref_embedding
    assert apart.flow_network_temp is not apart.flow_network_ref
    assert apart.img_prev_embedding is apart.img_ref_embedding


def test_parts_of_the_losses() -> None:
    logits = normal(4, 1, 5, 5)
    fake, real = logits.chunk(2)
    judged = [[logits], [logits * 2]]
    for generated, given in ((True, fake), (False, real)):
        expected = (F.relu(1 - given).mean() + F.relu(1 - 2 * given).mean()) / 2  # of a generator, too
        torch.testing.assert_close(models.system("fs_vid2vid").adversarial(judged, True, generated), expected)
    image, target = normal(2, 3, 4, 4).mul(0.2), normal(2, 3, 4, 4, seed=1).mul(0.2)
    mask = normal(2, 1, 4, 4, seed=2).sigmoid()
    sure = (1 - (image - target).abs().sum(1, keepdim=True)).clamp(0, 1)
    expected = F.l1_loss(mask * sure, 0 * mask) + F.l1_loss(mask * (1 - sure), 1 - sure)
    torch.testing.assert_close(mask_loss(Warped(image, image, mask), target), expected)


def test_label_maps_are_classes_or_drawings() -> None:
    classes, drawings = tiny(), tiny(**OPTIONS["drawings"])
    label = torch.randint(12, (1, 2, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    assert classes.semantics(label).argmax(2, keepdim=True).equal(label)
    torch.testing.assert_close(drawings.semantics(label), label / 255)
    given = normal(1, 2, 1, 4, 4)
    assert drawings.semantics(given) is given and drawings.data_settings["label_nc"] == 256
    with pytest.raises(ValueError, match="label 12: must be less than label_nc, 12"):
        classes.semantics(label.clamp(min=12))
    with pytest.raises(ValueError, match="the batch has no references"):
        classes.prepare({"label": label})


def test_bad_options_are_refused() -> None:
    for options, message in [
        ({"n_adaptive_layers": 4}, "n_adaptive_layers 4: must be from 1 to 3"),
        ({"n_downsample_A": 0}, "n_downsample_A 0: must be from 1 to 3"),
        ({"n_shot": 0}, "n_shot 0: expected at least 1"),
        ({"fineSize": 60}, r"frames of 60x60 .*multiples of 8"),
    ]:
        with pytest.raises(ValueError, match=message):
            tiny(**options)
    options = {"no_sep_warp_embed": True, "n_shot": 4, "adaptive_spade": True}
    config = Config.from_original(options)
    assert (config.sep_warp_embed, config.n_shot, config.ttur) == (False, 4, True)
    with pytest.raises(ValueError, match="adaptive_conv True: only False is supported"):
        Config.from_original(options | {"adaptive_conv": True})


def test_checkpoints(tmp_path: Path) -> None:
    """Of the original, and own ones, in which a module has two names."""
    system, other, single = tiny(), tiny(), tiny(temporal=False)
    for parameter in system.nets.parameters():
        nn.init.uniform_(parameter)
    for name, net in system.nets.items():
        torch.save(net.state_dict(), tmp_path / f"latest_net_{name}.pth")
    other.load_original(tmp_path)
    assert all(p.equal(q) for p, q in zip(system.nets.parameters(), other.nets.parameters(), strict=True))
    (tmp_path / "latest_net_D.pth").unlink()
    other.load_original(tmp_path)
    with pytest.raises(ValueError, match="unexpected flow_network_temp"):
        single.load_original(tmp_path)
    state = system.nets.state_dict()
    path = _checkpoint.save(tmp_path, 1, state, {})
    tensors, _ = _checkpoint.read(path)
    assert state.keys() == tensors.keys() and all(value.equal(tensors[key]) for key, value in state.items())
