"""StarGAN and StarGAN v2: labels, schedules, shared optimizers, styles, the high-pass filter, files."""

from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from test_models import batch_of, settled, tiny
from torch import Tensor, nn
from toy import assert_same

from i2ifast._state import State
from i2ifast.models import System
from i2ifast.nn import TrackedInstanceNormAct

MASKED = {"w_hpf": 1.5, "img_size": 64, "channel_base": 512}


def one_step(state: State) -> None:
    """An iteration as the loop runs it."""
    system = state.system
    state.set_learning_rates()
    batch = system.prepare(batch_of(system))
    for phase in system.phases:
        system.freeze_all_but(phase)
        state.optimizers[phase.name].zero_grad()
        sum(phase.loss(batch).values()).backward()
        state.optimizers[phase.name].step()
        if phase.after is not None:
            phase.after()
    state.step += 1
    state.average()


class HeatMaps(nn.Module):
    """In place of a landmark network: two maps of its input."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images[:, :1, ::4, ::4], images[:, 1:2, ::4, ::4]


def masked() -> System:
    system = tiny("starganv2", **MASKED)
    system.fixed["fan"] = HeatMaps()
    return system


def test_affine_statistics_are_tracked_and_taken_only_if_running():
    torch.manual_seed(0)
    theirs = nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
    nn.init.uniform_(theirs.weight)
    nn.init.uniform_(theirs.bias)
    ours, own = (TrackedInstanceNormAct(3, "relu", affine=True, running=running) for running in (True, False))
    for net in (ours, own):
        net.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 5, 4) + 1
    y = F.relu(theirs(x))
    for net in (ours, own):
        torch.testing.assert_close(net(x), y)
        torch.testing.assert_close(net.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), F.relu(theirs.eval()(x)))
    torch.testing.assert_close(own.eval()(x), y)


def test_stargan_takes_classes_and_attributes():
    system = tiny("stargan")
    assert system.labels(torch.tensor([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
    attributes = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    assert system.labels(attributes) is attributes
    with pytest.raises(ValueError, match="2 attributes: the system has 3"):
        system.labels(torch.zeros(2, 2))

    system = tiny("stargan", dataset="CelebA")
    logits = torch.randn(2, 3)
    each = -(F.logsigmoid(logits) * attributes + F.logsigmoid(-logits) * (1 - attributes))
    torch.testing.assert_close(system.classification(logits, attributes), each.sum() / 2)
    batch = system.prepare(batch_of(system) | {"domain": attributes})
    assert sorted(batch["sets"]["CelebA"]["target"].tolist()) == sorted(attributes.tolist())
    assert all(term.isfinite() for phase in system.phases for term in phase.loss(batch).values())


def test_stargan_translates_without_touching_statistics():
    system = settled("stargan")
    batch, before = batch_of(system), {k: v.clone() for k, v in system.nets["G"].state_dict().items()}
    fake = system.translate(batch)["fake"]
    assert_same(system.nets["G"].state_dict(), before)
    alone = system.translate({name: value[:1] for name, value in batch.items()})["fake"]
    torch.testing.assert_close(alone, fake[:1])
    del batch["reference_domain"]
    torch.testing.assert_close(system.translate(batch)["fake"][:1], fake[:1])  # of domain 0 the next is 1


def test_stargan_schedules():
    """A generator step in every third iteration; rates fall once per update, by what an iteration should take off."""
    system = tiny("stargan", n_critic=3, num_iters=8, num_iters_decay=4, lr_update_step=2)
    assert [step for step in range(7) if system.phases[1].when(step)] == [2, 5]
    assert [system.rate(step) for step in range(9)] == [1, 1, 1, 1, 1, 1, 0.75, 0.75, 0.5]
    assert tiny("stargan", num_iters=4, num_iters_decay=100).rate(3) == 1


def test_rates_of_networks_that_share_an_optimizer():
    """The last phase steps the generator alone, with the optimizer of the phase before it."""
    state = State(tiny("starganv2", lr=1e-3, f_lr=1e-5).train())
    optimizer = state.optimizers["G_latent"]
    assert state.optimizers["G_ref"] is optimizer and state.optimizers["D_ref"] is state.optimizers["D_latent"]
    one_step(state)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-5, 1e-3]
    nets = {name: state.system.nets[name].parameters() for name in state.averages}
    steps = {name: {int(optimizer.state[p]["step"]) for p in parameters} for name, parameters in nets.items()}
    assert steps == {"generator": {2}, "mapping_network": {1}, "style_encoder": {1}}


def test_what_is_trained_is_saved_with_its_count_of_iterations():
    torch.manual_seed(0)
    whole = State(tiny("starganv2", ds_iter=4).train())
    for _ in range(2):
        one_step(whole)
    tensors = {name: value.clone() for name, value in whole.tensors().items()}
    resumed = State(tiny("starganv2", ds_iter=4).train())
    resumed.load(tensors, whole.position)
    assert resumed.system.lambda_ds.item() == pytest.approx(2.0 * 2 / 4)
    for state in (whole, resumed):
        torch.manual_seed(1)
        one_step(state)
    assert_same(whole.tensors(), resumed.tensors())
    whole.system.iterations.fill_(9)
    assert whole.system.lambda_ds.item() == 0


def test_translation_modes():
    """In the style of a reference, the mean of several, a random one; in every domain; between two styles."""
    system = settled("starganv2")
    batch = batch_of(system, (40, 50))
    image, domain = batch["image"], batch["reference_domain"]
    style = system.reference_styles(batch["reference"], domain)
    of_reference = system.translate(batch)["fake"]
    torch.testing.assert_close(of_reference, system.in_styles(image, [style])[0])
    twice = torch.stack([batch["reference"]] * 2, 1)
    torch.testing.assert_close(system.translate(batch | {"references": twice})["fake"], of_reference)

    system.randn = lambda shape, like: torch.ones(shape)
    random = system.random_styles(domain)
    without = {"image": image, "reference_domain": domain}
    torch.testing.assert_close(system.translate(without)["fake"], system.in_styles(image, [random])[0])
    torch.testing.assert_close(system.random_styles(domain, psi=0.3), random)  # all latents are alike here

    each = [system.random_styles(torch.full((2,), number)) for number in range(3)]
    everywhere = system.in_styles(image, each)
    assert everywhere.shape == (3, 2, 3, 40, 50) and not everywhere[0].equal(everywhere[1])
    between = system.in_styles(image, [each[0].lerp(each[1], share) for share in (0, 0.5, 1)])
    torch.testing.assert_close(between[::2], everywhere[:2])
    with pytest.raises(ValueError, match="no reference_domain"):
        system.translate({"image": image})


def test_truncation_draws_styles_to_their_mean():
    system = settled("starganv2")
    latents = torch.randn(10000, 4)
    system.randn = lambda shape, like: latents[: shape[0]]
    domain = torch.tensor([0, 2])
    mean = system.nets["mapping_network"].styles(latents).mean(0)[domain]
    expected = mean + 0.5 * (system.random_styles(domain) - mean)
    torch.testing.assert_close(system.random_styles(domain, psi=0.5), expected)


def test_generator_is_the_published_one():
    """By plain layers: pre-activation residual blocks, (shortcut + residual) / sqrt(2), pooling and upsampling."""
    net = settled("starganv2", img_size=64, channel_base=512).double().nets["generator"]
    x, style = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 64, 64), (2, 8)))
    with torch.no_grad():
        torch.testing.assert_close(net(x, style), published(net, x, style, None))


def test_high_pass_filter_is_the_published_one():
    """Details of maps of 32 to 128 pixels behind the block of their size, by mask; blocks without shortcuts."""
    net = masked().double().nets["generator"]
    assert net.detailed == {0: 64, 1: 32} and len(net.encode) == 5
    x, style = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 64, 64), (2, 8)))
    masks = [torch.rand(2, 1, 16, 16, dtype=torch.float64) for _ in range(2)]
    with torch.no_grad():
        torch.testing.assert_close(net(x, style, masks), published(net, x, style, masks))
        assert not net(x, style).equal(net(x, style, masks))


def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.size(-1) // 2)


def act(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def published(net: nn.Module, x: Tensor, style: Tensor, masks: list[Tensor] | None) -> Tensor:
    def project(block: nn.Module, x: Tensor) -> Tensor:
        return x if isinstance(block.conv1x1, nn.Identity) else conv(block.conv1x1, x)

    def norm(layer: nn.Module, x: Tensor) -> Tensor:
        return act(F.instance_norm(x, weight=layer.weight, bias=layer.bias))

    def adain(layer: nn.Module, x: Tensor) -> Tensor:
        gamma, beta = layer.fc(style)[..., None, None].chunk(2, 1)
        return act((1 + gamma) * F.instance_norm(x) + beta)

    kept, x = {}, conv(net.from_rgb, x)
    for block in net.encode:
        kept[x.size(2)] = x
        pool = (lambda t: F.avg_pool2d(t, 2)) if block.downsample else lambda t: t
        residual = conv(block.conv2, norm(block.norm2, pool(conv(block.conv1, norm(block.norm1, x)))))
        x = (pool(project(block, x)) + residual) / sqrt(2)
    for block in net.decode:
        larger = (lambda t: F.interpolate(t, scale_factor=2)) if block.upsample else lambda t: t
        residual = conv(block.conv1, larger(adain(block.norm1, x)))
        residual = conv(block.conv2, adain(block.norm2, residual))
        x = residual if masks else (residual + project(block, larger(x))) / sqrt(2)
        if masks and x.size(2) in (32, 64, 128):
            mask = F.interpolate(masks[0 if x.size(2) == 32 else 1], size=x.shape[2:], mode="bilinear")
            details = (mask * kept[x.size(2)]).flatten(0, 1)[:, None]
            laplacian = torch.tensor([[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]]).to(x) / 1.5
            x = x + F.conv2d(details, laplacian[None, None], padding=1).view_as(x)
    return conv(net.to_rgb[1], norm(net.to_rgb[0], x))


def test_landmark_network_of_a_file(tmp_path):
    file = tmp_path / "fan.pt"
    torch.jit.script(HeatMaps()).save(file)
    system = tiny("starganv2", fan_weights=str(file), **MASKED)
    batch = system.prepare(batch_of(system))
    images = F.interpolate(batch["image"], (256, 256), mode="bilinear") * 0.5 + 0.5
    torch.testing.assert_close(batch["masks"], HeatMaps()(images))
    one_step(State(system.train()))
    assert not system.fixed["fan"].training
    assert system.eval().translate(batch_of(system, (40, 70)))["fake"].shape == (2, 3, 40, 70)
    assert not any("fan" in name for name in system.nets.state_dict())
    without = tiny("starganv2", **MASKED)
    with pytest.raises(ValueError, match="w_hpf 1.5: fan_weights must name a file"):
        without.prepare(batch_of(without))


def test_files_of_stargan(tmp_path):
    """The newest of a folder by number; one file; a name that says no network."""
    source, target = tiny("stargan"), tiny("stargan")
    for parameter in source.nets.parameters():
        nn.init.uniform_(parameter)
    for name, net in source.nets.items():
        torch.save(net.state_dict(), tmp_path / f"200000-{name}.ckpt")
        torch.save({}, tmp_path / f"90000-{name}.ckpt")
    target.load_original(tmp_path)
    assert_same(target.nets.state_dict(), source.nets.state_dict())
    target.init_weights()
    target.load_original(tmp_path / "200000-G.ckpt")
    assert_same(target.nets["G"].state_dict(), source.nets["G"].state_dict())
    with pytest.raises(ValueError, match="90000-G.ckpt does not fit this Generator: no main.0.weight"):
        target.load_original(tmp_path / "90000-G.ckpt")
    torch.save({}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="other.ckpt: expected a file name <iteration>-G.ckpt"):
        target.load_original(tmp_path / "other.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no <iteration>-G.ckpt in it"):
        target.load_original(tmp_path / "empty")


def test_files_of_starganv2(tmp_path):
    """Averaged networks of a folder, with the discriminator that belongs to them; one file."""
    source, target = tiny("starganv2"), tiny("starganv2")
    for parameter in source.nets.parameters():
        nn.init.uniform_(parameter)
    states = {name: net.state_dict() for name, net in source.nets.items()}
    averaged = {name: states[name] for name in source.ema} | {"fan": {}}
    torch.save(averaged, tmp_path / "100000_nets_ema.ckpt")
    torch.save(tiny("starganv2").nets.generator.state_dict(), tmp_path / "050000_nets_ema.ckpt")
    before = {name: value.clone() for name, value in target.nets["discriminator"].state_dict().items()}
    target.load_original(tmp_path / "100000_nets_ema.ckpt")
    assert_same(target.nets["generator"].state_dict(), states["generator"])
    assert_same(target.nets["discriminator"].state_dict(), before)
    wrong = {name: {key: value * 2 for key, value in state.items()} for name, state in states.items()}
    torch.save(wrong | {"discriminator": states["discriminator"]}, tmp_path / "100000_nets.ckpt")
    target.load_original(tmp_path)
    assert_same(target.nets.state_dict(), source.nets.state_dict())
    with pytest.raises(ValueError, match="050000_nets_ema.ckpt has no network generator, mapping_network"):
        target.load_original(tmp_path / "050000_nets_ema.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no <iteration>_nets_ema.ckpt in it"):
        target.load_original(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("stargan", {"dataset": "All"}, "dataset 'All': expected CelebA"),
        ("stargan", {"image_size": 36}, "image_size 36: must be a multiple of 8"),
        ("starganv2", {"img_size": 96}, "img_size 96: must be a power of two, at least 16"),
        ("starganv2", {"w_hpf": -1.0}, "w_hpf -1.0: must be at least 0"),
        ("starganv2", {"ds_iter": 0}, "num_domains 3, ds_iter 0: both must be at least 1"),
    ],
)
def test_options_that_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        tiny(name, **options)
