"""CycleGAN, pix2pix and BicycleGAN: schedules, what passes together, how they translate, files of the originals."""

from pathlib import Path

import pytest
import torch
from test_models import batch_of, settled, tiny, unpaired_batch
from torch import Tensor, nn
from toy import assert_same

from i2ifast.models import System, bicyclegan, build
from i2ifast.models._cyclegan import Dropout

NAMES = ("bicyclegan", "cyclegan", "pix2pix")


def rates(name: str, count: int, **options) -> list[float]:
    system = tiny(name, **options)
    return [system.decay(epoch) for epoch in range(1, count + 1)]


def test_linear_decay_starts_an_epoch_early_and_ends_in_zero():
    for name in ("cyclegan", "pix2pix"):
        assert rates(name, 8, n_epochs=4, n_epochs_decay=3) == [1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert rates("bicyclegan", 8, niter=4, niter_decay=3) == [1, 1, 1, 1, 0.75, 0.5, 0.25, 0]


def test_other_schedules():
    assert rates("cyclegan", 4, lr_policy="step", lr_decay_iters=2) == pytest.approx([1, 0.1, 0.1, 0.01])
    assert rates("pix2pix", 4, lr_policy="cosine", n_epochs=2) == pytest.approx([0.5, 0, 0.5, 1], abs=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cyclegan", {"lr_policy": "plateau"}, "lr_policy 'plateau': needs a metric"),
        ("cyclegan", {"netG": "unet_64"}, "netG 'unet_64': expected one of resnet_9blocks, .*unet_128"),
        ("cyclegan", {"input_nc": 1}, "input_nc 1 and output_nc 3: with lambda_identity"),
        ("pix2pix", {"crop_size": 192}, "crop_size 192: must be a multiple of 128 for unet_128"),
        ("bicyclegan", {"num_Ds": 1}, "num_Ds 1: must be at least 2"),
        ("bicyclegan", {"nl": "elu"}, "nl 'elu': expected one of relu, lrelu"),
    ],
)
def test_options_that_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        tiny(name, **options)


def test_originals_options():
    config = type(tiny("cyclegan")).Config.from_original({"no_dropout": False, "norm": "batch", "name": "x"})
    assert config.dropout and config.norm == "batch" and not hasattr(config, "name")
    with pytest.raises(ValueError, match="lr_policy 'step': only 'linear' is supported"):
        bicyclegan.Config.from_original({"lr_policy": "step"})


@pytest.mark.parametrize("name", NAMES)
def test_passes_that_go_together_change_nothing(name, monkeypatch):
    """Losses and gradients are those of every pass by itself."""

    def run(together: bool) -> dict[str, Tensor]:
        options = {"cyclegan": {"pool_size": 0}, "pix2pix": {"norm": "instance", "dropout": False}}
        system = tiny(name, **options.get(name, {})).double()
        monkeypatch.setattr(type(system.config), "per_sample", property(lambda config: together))
        system.randn = lambda shape, like: torch.full(shape, 0.3).to(like)
        batch, terms = {side: images.double() for side, images in batch_of(system).items()}, {}
        for phase in system.phases:
            system.freeze_all_but(phase)
            terms |= phase.loss(batch)
        sum(terms.values()).backward()
        return terms | {key: p.grad for key, p in system.named_parameters() if p.grad is not None}

    torch.testing.assert_close(run(True), run(False))


def changed_by(system: System, phase: str, term: str) -> set[str]:
    """Networks that a term of a phase has gradients for."""
    system.zero_grad()
    (phase,) = (each for each in system.phases if each.name == phase)
    system.freeze_all_but(phase)
    phase.loss(batch_of(system))[term].backward()
    return {key.split(".")[1] for key, p in system.named_parameters() if p.grad is not None and p.grad.any()}


def test_only_the_generator_learns_to_keep_random_codes():
    system = tiny("bicyclegan")
    assert changed_by(system, "G", "z_L1") == {"G"}
    assert changed_by(system, "G", "kl") == {"E"} and changed_by(system, "G", "G_L1") == {"E", "G"}


@pytest.mark.parametrize("where_add", ["all", "input"])
def test_codes_keep_the_memory_format(where_add: str):
    generator, kept = tiny("bicyclegan", where_add=where_add).nets["G"].to(memory_format=torch.channels_last), []

    def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
        kept.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for module in generator.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(look)
    images = torch.randn(2, 3, 128, 128).to(memory_format=torch.channels_last)
    generator(images, torch.randn(2, 8))
    assert kept == 7 * [True]


def test_bicyclegan_with_one_discriminator_or_none():
    one = tiny("bicyclegan", use_same_D=True)
    batch = batch_of(one)
    assert list(one.nets) == ["G", "D", "E"] and one.phases[1].nets == ("D",)
    one.generator_loss(batch)
    assert set(one.discriminator_loss(batch)) == {"D_fake", "D_real", "D2_fake", "D2_real"}
    none = tiny("bicyclegan", lambda_GAN=0.0, lambda_GAN2=0.0)
    assert list(none.nets) == ["G", "E"] and [phase.name for phase in none.phases] == ["G"]
    with pytest.raises(ValueError, match="batch of 1 images: must be even"):
        one.generator_loss({side: batch[side][:1] for side in "ab"})


def test_bicyclegan_translates_with_any_code():
    system = settled("bicyclegan")
    batch, drawn = batch_of(system), []
    system.randn = lambda shape, like: drawn.append(tuple(shape)) or torch.zeros(shape)
    start, end = system.encoded(batch["b"]), system.encoded(-batch["b"])

    def translated(**style: Tensor) -> Tensor:
        return system.translate({"a": batch["a"], **style})["fake"]

    torch.testing.assert_close(translated(b=batch["b"]), translated(z=start))
    assert not drawn and not translated(z=torch.lerp(start, end, 0.5)).equal(translated(z=start))
    assert translated().equal(translated(z=torch.zeros(2, 8))) and drawn == [(2, 8)]


def test_pix2pix_translates_as_it_trains():
    """Statistics of each image and dropout, and the running statistics left alone; with `eval` neither."""
    system = settled("pix2pix")
    batch, drawn = batch_of(system), []
    before = {name: buffer.clone() for name, buffer in system.named_buffers()}
    system.rand = lambda shape, like: drawn.append(len(drawn)) or torch.zeros(shape)
    both = system.translate(batch)["fake"]
    apart = [system.translate({"a": image})["fake"] for image in batch["a"].split(1)]
    torch.testing.assert_close(both, torch.cat(apart))
    assert len(drawn) == 6 and not system.nets["G"].training  # two layers, three passes
    assert_same(dict(system.named_buffers()), before)
    system.config.eval = True
    running = system.translate(batch)["fake"]
    assert len(drawn) == 6 and not running.equal(both)
    as_batch = system.nets["G"].train()(batch["a"][:1])
    torch.testing.assert_close(as_batch, apart[0])


def test_dropout_halves_and_doubles():
    draws = iter([torch.tensor([0.2, 0.5, 0.7, 0.49])])
    drop = Dropout(lambda shape, like: next(draws))
    assert drop.train()(torch.ones(4)).tolist() == [2, 0, 0, 2]
    assert drop.eval()(torch.ones(4)).tolist() == [1, 1, 1, 1]


def test_cyclegan_goes_back_from_b_alone():
    system = settled("cyclegan", netG="unet_128", crop_size=128, load_size=143)
    batch = unpaired_batch(None, (50, 70))
    forth, back = system.translate(batch)["fake"], system.translate({"b": batch["b"]})["fake"]
    assert forth.shape == back.shape == (2, 3, 50, 70) and not forth.equal(back)


def test_cyclegan_discriminators_see_older_fakes():
    """The pool of one image gives back the first fake, in place of the second."""
    system = tiny("cyclegan", pool_size=1)
    system.rand, system.randint = lambda shape, like: torch.ones(shape), lambda high, shape, like: torch.zeros(shape)
    fakes, seen = [torch.full((1, 3, 64, 64), value) for value in (0.1, 0.2)], []
    system.nets["D_A"].register_forward_pre_hook(lambda module, args: seen.append(args[0][1:]))
    batch = unpaired_batch(None, (64, 64), 1)
    for fake in fakes:
        system.discriminator_loss(batch | {"fake_A": fake, "fake_B": fake})
    assert seen[0].equal(fakes[0]) and seen[1].equal(fakes[0]) and system.pools["fake_B"].images.equal(fakes[1])


@pytest.mark.parametrize(
    ("name", "mean", "std"), [("cyclegan", 0.0, 0.02), ("pix2pix", 0.0, 0.02), ("bicyclegan", 0.0, None)]
)
def test_init_weights(name, mean, std):
    """Normal, or Xavier normal of gain 0.02; biases zero; scales of batch norms around 1."""
    system = tiny(name)
    for module in system.nets.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.BatchNorm2d):
            assert (weight - 1).abs().max() < 0.1 and not module.bias.any()
        elif weight is not None and weight.numel() > 2000:
            fan = weight[0].numel() + weight[:, 0].numel()
            assert weight.std().item() == pytest.approx(std or 0.02 * (2 / fan) ** 0.5, rel=0.1)
            assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("name", NAMES)
def test_files_of_the_original(name, tmp_path):
    """A folder of an epoch, without discriminators; statistics that old files have of instance norms are left out."""
    options = {"norm": "instance"}
    source, target = tiny(name, **options), tiny(name, **options)
    for parameter in source.nets.parameters():
        nn.init.uniform_(parameter)
    for net, module in source.nets.items():
        torch.save(module.state_dict(), tmp_path / f"latest_net_{net}.pth")
    target.load_original(tmp_path)
    assert_same(target.nets.state_dict(), source.nets.state_dict())

    generators = [net for net in source.nets if net.startswith("G")]
    for net in generators:
        state = dict(source.nets[net].state_dict())
        norm = next(
            key for key, module in source.nets[net].named_modules() if type(module).__name__ == "InstanceNormAct"
        )
        state |= {f"{norm}.{key}": torch.zeros(8) for key in ("running_mean", "running_var")}
        torch.save(state, tmp_path / f"200_net_{net}.pth")
    target.init_weights()
    target.load_original(tmp_path, "200")
    for net in generators:
        assert_same(target.nets[net].state_dict(), source.nets[net].state_dict())
    torch.save(state | {"strange": torch.zeros(1)}, tmp_path / f"bad_net_{net}.pth")
    with pytest.raises(ValueError, match="does not fit this .*: unexpected strange"):
        target.load_original(tmp_path / f"bad_net_{net}.pth")


@pytest.mark.parametrize("file", ["latest_net_G.pth", "latest_net_G_B.pth", ""])
def test_cyclegan_takes_a_generator_alone(file, tmp_path: Path):
    """As published models come; a folder of one counts as well."""
    source, target = tiny("cyclegan"), build("cyclegan", "tiny")
    torch.save(source.nets["G_A"].state_dict(), tmp_path / (file or "latest_net_G.pth"))
    target.load_original(tmp_path / file)
    assert_same(target.nets["G_A"].state_dict(), source.nets["G_A"].state_dict())
