"""vid2vid: norms with running statistics, what its terms are made of, all options, and what it refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from plain import normal
from torch import nn

from i2ifast import models
from i2ifast.models._vid2vid import MultiscaleDiscriminator
from i2ifast.models.vid2vid import edges, masked_l1, pyramid
from i2ifast.nn import BatchNormAct, TrackedInstanceNormAct
from i2ifast.nn.conv import ValidConv2d


@pytest.mark.parametrize("channels", [64, 12])
def test_convolutions_of_padded_maps_are_torchs(channels):
    ours, plain = ValidConv2d(channels, 64, 3), nn.Conv2d(channels, 64, 3)
    ours.load_state_dict(plain.state_dict())
    results = []
    for net in (ours, plain):
        x = normal(2, channels, 9, 7).requires_grad_()
        y = net(x)
        results.append([y, *torch.autograd.grad(y, [x, *net.parameters()], normal(*y.shape, seed=1))])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def batch_of(config, frames=5, size=(32, 24)):
    g = torch.Generator().manual_seed(0)
    n, made = 2, frames - config.n_frames_G + 1
    label = torch.randint(config.label_nc, (n, frames, 1, 4, 3), generator=g)
    label = label.repeat_interleave(8, 3).repeat_interleave(8, 4)
    batch = {"label": label, "instance": label * 1000, "image": torch.rand(n, frames, 3, *size, generator=g) * 2 - 1}
    batch["flow"] = 3 * torch.randn(n, made, 2, *size, generator=g)
    return batch | {"confidence": (torch.rand(n, made, 1, *size, generator=g) < 0.7).float()}


def tiny(**options):
    torch.manual_seed(0)
    system = models.build("vid2vid", "tiny", **options)
    system.init_weights()
    return system


OPTIONS = {
    "default": {},
    "two scales": {"n_scales_spatial": 2, "norm": "instance", "fg": True, "fg_labels": (1, 3), "n_frames_G": 2},
    "no flow": {"flow": False},
    "from nothing": {"first_img": False, "use_instance": False},
    "no features": {"ganFeat": False},
    "temporal scales": {"n_scales_temporal": 2},
}


@pytest.mark.parametrize("ours, plain", [
    (BatchNormAct(6), nn.BatchNorm2d(6)),
    (TrackedInstanceNormAct(6), nn.InstanceNorm2d(6, track_running_stats=True)),
])  # fmt: skip
def test_norms_are_torchs_with_relu(ours, plain):
    if isinstance(plain, nn.BatchNorm2d):
        nn.init.normal_(plain.weight), nn.init.normal_(plain.bias)
    ours.load_state_dict(plain.state_dict())
    for i in range(3):
        x = (3 + normal(2, 6, 5, 4, seed=i)).requires_grad_()
        y, expected = ours(x), F.relu(plain(x))
        torch.testing.assert_close(y, expected)
        dy = normal(*y.shape, seed=9)
        torch.testing.assert_close(*(torch.autograd.grad(t, x, dy)[0] for t in (y, expected)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(plain.named_buffers()))
    torch.testing.assert_close(ours.eval()(x), F.relu(plain.eval()(x)))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_phases_train_their_networks_and_no_others(options):
    system = tiny(**options).train()
    batch = system.prepare(batch_of(system.config))
    for phase in system.phases:
        before = copy.deepcopy(system.nets.state_dict())
        system.freeze_all_but(phase)
        system.zero_grad()
        terms = phase.loss(batch)
        assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
        sum(terms.values()).backward()
        torch.optim.Adam(system.parameters(), 1e-3).step()
        changed = {k.split(".")[0] for k, p in system.nets.named_parameters() if not p.equal(before[k])}
        assert changed == (set(phase.nets) if phase.name != "D_T1" else set())  # five frames are too few for D_T1
    assert ("F_Flow" in system.phases[0].loss(batch)) == system.config.flow
    assert ("W" in system.phases[0].loss(batch)) == (not system.config.first_img)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_video_in_parts_is_the_whole_video(options):
    system = tiny(**options).eval()
    semantics = system.prepare(batch := batch_of(system.config))["semantics"]
    seen = system.config.n_frames_G
    with torch.no_grad():
        whole = system.generate(semantics, system.first(batch))
        first = system.generate(semantics[:, :seen], system.first(batch))
        second = system.generate(semantics[:, 1:], first.last, first=not system.config.first_img)
    torch.testing.assert_close(torch.cat([first.fake, second.fake], 1), whole.fake)
    assert [tuple(level.shape) for level in whole.last] == [tuple(level.shape) for level in system.first(batch)]
    if system.config.first_img:
        torch.testing.assert_close(system.translate(batch)["fake"], whole.fake.flatten(0, 1))


def test_only_the_very_first_frame_of_nothing_is_raw():
    system = tiny(**OPTIONS["from nothing"]).eval()
    semantics = system.prepare(batch := batch_of(system.config))["semantics"]
    with torch.no_grad():
        first = system.generate(semantics[:, : system.config.n_frames_G], system.first(batch))
        others = system.generate(semantics[:, 1:], first.last, first=False)
    torch.testing.assert_close(torch.stack(list(system.stream(batch)), 1), torch.cat([first.fake, others.fake], 1))


@pytest.mark.parametrize("options", [OPTIONS["default"], OPTIONS["two scales"]], ids=["default", "two scales"])
def test_frames_of_any_size(options):
    system = tiny(**options).eval()
    frames = list(system.stream(batch_of(system.config, size=(32, 24))))
    batch = {name: value[..., :29, :22] for name, value in batch_of(system.config).items()}
    assert [tuple(frame.shape) for frame in system.stream(batch)] == [(2, 3, 29, 22)] * len(frames)
    assert not any(frame.requires_grad for frame in frames)


def test_the_foreground_is_its_own_branch():
    system = tiny(fg=True, fg_labels=(1,)).eval()
    batch = batch_of(system.config)
    with torch.no_grad():
        before = system.translate(batch)["fake"]
        system.nets["netG0"].indv_final[1].bias += 1
        after = system.translate(batch)["fake"]
    changed = (before != after).any(1).view(2, 3, 32, 24)[:, 0]
    assert torch.equal(changed, batch["label"][:, 2, 0] == 1)


def test_temporal_pairs_end_with_the_last_frame():
    system = tiny(n_frames_D=3)
    batch = system.prepare(batch_of(system.config, frames=7))
    fake = torch.arange(5.0).view(1, 5, 1, 1, 1).expand(2, 5, 3, 32, 24)
    batch["video"] = system.generate(batch["semantics"], system.first(batch))._replace(fake=fake)
    real, made = system.temporal_pair(batch, 0)
    assert made[:, :9:3, 0, 0].tolist() == [[2, 3, 4], [2, 3, 4]] and made.shape == real.shape == (2, 13, 32, 24)
    torch.testing.assert_close(made[:, 9:], batch["flow"][:, 3:].flatten(1, 2) / 20)
    assert system.temporal_pair(batch, 1) is None


def test_discriminators_see_full_resolution_last_in_name():
    config = models.system("vid2vid").Config(label_nc=2, ndf=8, num_D=3, n_layers_D=1)
    net = MultiscaleDiscriminator(4, config)
    assert [net.get_submodule(f"scale{i}_layer0")[0].out_channels for i in range(3)] == [32, 16, 8]
    assert [scale[0].size(1) for scale in net(normal(1, 4, 32, 32))] == [8, 16, 32]


def test_parts_of_the_losses():
    a, b, mask = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1), (normal(2, 1, 4, 4, seed=2) > 0).float()
    torch.testing.assert_close(masked_l1(a, b, mask), ((a - b).abs() * mask).mean())
    ids = torch.tensor([[1, 1, 2], [1, 1, 2], [3, 3, 3]])
    assert edges(ids).tolist() == [[0, 1, 1], [1, 1, 1], [1, 1, 1]]
    frames = normal(2, 3, 4, 8, 6)
    assert [tuple(level.shape) for level in pyramid(frames, 3)] == [(2, 3, 4, 8, 6), (2, 3, 4, 4, 3), (2, 3, 4, 2, 2)]


def test_bad_options_and_labels_are_refused():
    with pytest.raises(ValueError, match="norm 'layer': expected one of batch, instance"):
        tiny(norm="layer")
    with pytest.raises(ValueError, match="n_frames_G 1, n_frames_D 2: expected at least 2"):
        tiny(n_frames_G=1)
    with pytest.raises(ValueError, match="labels are 0 to 11; fg False does without"):
        tiny(fg=True)
    options = {"no_flow": True, "no_first_img": False, "no_ganFeat": False, "label_nc": 7}
    config = models.system("vid2vid").Config.from_original(options)
    assert (config.flow, config.first_img, config.ganFeat, config.label_nc) == (False, True, True, 7)
    with pytest.raises(ValueError, match="add_face_disc True: only False is supported"):
        models.system("vid2vid").Config.from_original(options | {"add_face_disc": True})
    system = tiny()
    batch = batch_of(system.config)
    batch["label"][0, 0, 0, 0, 0] = 12
    with pytest.raises(ValueError, match="label 12: must be less than label_nc, 12"):
        system.prepare(batch)


def test_learning_rate_and_checkpoints(tmp_path):
    system, other = tiny(niter=2, niter_decay=3), tiny()
    assert [round(system.decay(epoch), 2) for epoch in (1, 3, 4, 6)] == [1, 1, 0.75, 0.25]
    for net in system.nets.values():
        nn.init.uniform_(next(net.parameters()))
    for name, net in system.nets.items():
        torch.save(net.state_dict(), tmp_path / f"latest_net_{name[3:]}.pth")
    other.load_original(tmp_path)
    assert all(p.equal(q) for p, q in zip(system.nets.parameters(), other.nets.parameters(), strict=True))
