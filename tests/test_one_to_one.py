"""DiscoGAN, CoGAN, GcGAN and UNIT, which translate without pairs and without styles: what is special about each."""

from pathlib import Path

import pytest
import torch
from test_models import batch_of, settled, tiny, unpaired_batch
from torch import Tensor, nn
from toy import assert_same

from i2ifast.models import System
from i2ifast.models._cyclegan import Dropout
from i2ifast.models._munit import Config as AutoEncoderConfig
from i2ifast.models.gcgan import GEOMETRIES


def scrambled(name: str, **options) -> System:
    """A tiny system whose weights are those of no other."""
    system = tiny(name, **options)
    for parameter in system.nets.parameters():
        nn.init.uniform_(parameter)
    return system


@pytest.mark.parametrize("name", ["discogan", "unit"])
def test_both_directions(name: str) -> None:
    """An image is translated as the networks of its own domain would do it alone."""
    system = settled(name)
    batch = unpaired_batch(None, (64, 64))
    there, back = (system.translate(batch, direction)["fake"] for direction in ("AtoB", "BtoA"))
    assert_same({"fake": system.translate({"a": batch["a"]})["fake"]}, {"fake": there})
    assert_same({"fake": system.translate({"b": batch["b"]}, "BtoA")["fake"]}, {"fake": back})
    assert not there.equal(system.translate({"b": batch["a"]}, "BtoA")["fake"])


def test_discogan_trains_discriminators_in_one_of_three_iterations() -> None:
    system = tiny("discogan", gan_curriculum=3)
    ran = [[phase.name for phase in system.phases if phase.when(step)] for step in range(7)]
    assert ran == [["D"], ["G_start"], ["G_start"], ["D"], ["G"], ["G"], ["D"]]
    assert system.phases[2].shares == "G_start"
    early, late = (phase.loss(system.prepare(batch_of(system)))["recon_A"] for phase in system.phases[1:])
    assert late.item() == pytest.approx(early.item() * 0.5 / 0.01)


def test_discogan_takes_blue_first() -> None:
    system = settled("discogan")
    batch = unpaired_batch(None, (64, 64))
    blue_first = torch.stack([(batch["a"][:, 2 - i] + 1) / 2 for i in range(3)], 1)
    torch.testing.assert_close(system.prepare(batch)["A"], blue_first)
    expected = system.nets["generator_B"](blue_first)[:, [2, 1, 0]]
    torch.testing.assert_close((system.translate(batch)["fake"] + 1) / 2, expected)


def test_discogan_with_extra_layers_translates_any_size() -> None:
    fake = settled("discogan", extra_layers=True).translate(unpaired_batch(None, (50, 70)))["fake"]
    assert fake.shape == (2, 3, 50, 70)


def test_files_of_discogan(tmp_path: Path) -> None:
    """Those of the largest number; discriminators may be missing, generators not; whole modules are refused."""
    source, target = scrambled("discogan"), tiny("discogan")
    names = {net: f"model_{net[:3]}_{net[-1]}" for net in source.nets}
    for net, name in names.items():
        torch.save(source.nets[net].state_dict(), tmp_path / f"{name}-10.pt")
        torch.save({}, tmp_path / f"{name}-9")
    target.load_original(tmp_path)
    assert_same(target.nets.state_dict(), source.nets.state_dict())
    for file in tmp_path.glob("model_dis*"):
        file.unlink()
    target.load_original(tmp_path)
    torch.save(source.nets["generator_A"].main[0], tmp_path / "model_gen_A-11")
    with pytest.raises(ValueError, match="model_gen_A-11 is a whole module: save its state_dict"):
        target.load_original(tmp_path)
    for file in tmp_path.glob("model_gen_A*"):
        file.unlink()
    with pytest.raises(ValueError, match="no model_gen_A-<number> in it"):
        target.load_original(tmp_path)


def test_cogan_finds_the_pair_of_an_image() -> None:
    """Images that it made itself are found again, and so are their partners; either way."""
    system = settled("cogan")
    nn.init.normal_(system.nets["gen"].dconv4_a.weight)
    nn.init.normal_(system.nets["gen"].dconv4_b.weight)
    a, b = (2 * images.detach() - 1 for images in system.nets["gen"](torch.randn(3, 8)))
    for batch, direction, wanted in (({"a": a}, "AtoB", b), ({"b": b}, "BtoA", a)):
        torch.manual_seed(0)
        first = system.translate(batch, direction, steps=1)["fake"]
        found = system.translate(batch, direction, steps=80)["fake"]
        assert found.shape == (3, 3, 28, 28) and not found.requires_grad
        assert (found[:, :1] - wanted).abs().mean() < 0.5 * (first[:, :1] - wanted).abs().mean()
    assert all(p.grad is None for p in system.nets.parameters())
    with pytest.raises(ValueError, match=r"images of \[1, 28, 30\]: this system takes \[1, 28, 28\] only"):
        system.translate({"a": torch.zeros(1, 1, 28, 30)})


def test_cogan_learns_classes_where_there_are_labels() -> None:
    system = tiny("cogan")
    batch = batch_of(system)
    assert set(system.discriminator_loss(batch)) == {"true", "fake", "mse"}
    assert set(system.discriminator_loss(batch | {"label_a": torch.tensor([3, 7])})) == {"true", "fake", "mse", "cls"}
    assert set(tiny("cogan", variant="mnistedge").discriminator_loss(batch)) == {"true", "fake"}
    with pytest.raises(ValueError, match="writes no checkpoints"):
        system.load_original("somewhere")


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gcgan_turns_images_and_back(geometry: str) -> None:
    turn, back = GEOMETRIES[geometry]
    x = torch.arange(6.0).view(1, 1, 2, 3)
    wanted = {"rot": [[3, 0], [4, 1], [5, 2]], "vf": [[3, 4, 5], [0, 1, 2]]}
    assert turn(x)[0, 0].tolist() == wanted[geometry]
    assert back(turn(x)).equal(x) and turn(back(x)).equal(x)


def test_gcgan_shows_its_discriminators_earlier_fakes() -> None:
    system = tiny("gcgan", pool_size=2).train()
    system.rand = lambda shape, like: torch.ones(shape)  # always one of the pool, and nothing dropped but everything
    system.randint = lambda high, shape, like: torch.zeros(shape, dtype=torch.long)
    batches = [batch_of(system) for _ in range(2)]
    seen = []
    system.nets["netD_B"].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    for batch in batches:
        batch["fake"], batch["fake_gc"] = (torch.rand(2, 3, 32, 32) for _ in range(2))
        system.discriminator_loss(batch)
    (_, first), (_, second) = (images.split(2) for images in seen)
    assert first.equal(batches[0]["fake"])
    assert second[:1].equal(batches[0]["fake"][:1]) and second[1:].equal(batches[1]["fake"][:1])
    assert {name for name, _ in system.named_buffers() if "pool" in name} == {"pool.images", "gc_pool.images"}


@pytest.mark.parametrize("model", ["gc_gan_share", "gc_gan_cross"])
def test_gcgan_runs_a_generator_once(model: str) -> None:
    system = tiny("gcgan", model=model, dropout=False).train()
    makers = [net for name, net in system.nets.items() if name.startswith("netG")]
    counts = [0] * len(makers)

    def count(i: int) -> None:
        counts[i] += 1

    for i, net in enumerate(makers):
        net.register_forward_hook(lambda module, args, output, i=i: count(i))
    terms = system.generator_loss(batch_of(system))
    assert counts == [1] * len(makers) and len(terms) == 5
    assert len(tiny("gcgan", model=model, identity=0.0).generator_loss(batch_of(system))) == 3


@pytest.mark.parametrize("generator", ["resnet_6blocks", "unet_128"])
def test_gcgan_drops_in_training_only(generator: str) -> None:
    side = 128 if generator == "unet_128" else 32
    system = tiny("gcgan", which_model_netG=generator, fineSize=side)
    assert sum(isinstance(module, Dropout) for module in system.nets["netG_AB"].modules()) in (2, 6)
    batch, net = batch_of(system), system.nets["netG_AB"]
    one, two = (net.train()(batch["a"]) for _ in range(2))
    assert not one.equal(two)
    one, two = (system.eval().translate(batch)["fake"] for _ in range(2))
    assert one.equal(two)
    dropped = Dropout(lambda shape, like: torch.tensor([0.1, 0.5, 0.49, 0.9])).train()(torch.ones(4))
    assert dropped.tolist() == [2, 0, 2, 0]


def test_gcgan_learning_rate() -> None:
    """The original's counts an epoch more than were done, so that the last one of `niter` is on the line already."""
    system = tiny("gcgan", niter=3, niter_decay=4)
    assert [system.decay(epoch) for epoch in range(1, 10)] == pytest.approx([1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0])


def test_files_of_gcgan(tmp_path: Path) -> None:
    source, target = scrambled("gcgan"), tiny("gcgan")
    for name, net in source.nets.items():
        torch.save(net.state_dict(), tmp_path / f"latest_net_{name.removeprefix('net')}.pth")
        torch.save(net.state_dict(), tmp_path / f"5_net_{name.removeprefix('net')}.pth")
    target.load_original(tmp_path)
    assert_same(target.nets.state_dict(), source.nets.state_dict())
    target.init_weights()
    (tmp_path / "5_net_D_B.pth").unlink()
    target.load_original(tmp_path, "5")
    assert target.nets["netG_AB"].model[0].weight.equal(source.nets["netG_AB"].model[0].weight)
    with pytest.raises(ValueError, match="other.pth: expected a file name ending in _net_G_AB or D_B or D_gc_B.pth"):
        target.load_original(tmp_path / "other.pth")


def test_files_of_unit(tmp_path: Path) -> None:
    source, target = scrambled("unit"), tiny("unit")
    for kind in ("gen", "dis"):
        states = {side: source.nets[f"{kind}_{side}"].state_dict() for side in "ab"}
        torch.save(states, tmp_path / f"{kind}_00020000.pt")
    target.load_original(tmp_path)
    assert_same(target.nets.state_dict(), source.nets.state_dict())


def test_unit_adds_the_same_noise_for_reconstruction_and_translation() -> None:
    system, drawn = tiny("unit"), []

    def randn(shape: tuple[int, ...], like: Tensor) -> Tensor:
        drawn.append(tuple(shape))
        return torch.randn(shape)

    system.randn = randn
    batch = batch_of(system)
    for loss, draws in ((system.discriminator_loss, 2), (system.generator_loss, 4)):
        drawn.clear()
        loss(batch)
        assert drawn == [(2, 32, 16, 16)] * draws
    drawn.clear()
    system.translate(batch)
    assert not drawn


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("discogan", {"image_size": 72}, "image_size 72: must be a multiple of 16, and 64 at least"),
        ("discogan", {"update_interval": 1}, "update_interval 1: must be at least 2"),
        ("cogan", {"variant": "faces"}, "variant 'faces': expected mnistedge or mnist2usps"),
        ("gcgan", {"geometry": "hf"}, "geometry 'hf': expected one of rot, vf"),
        ("gcgan", {"model": "gc_gan_mix"}, "model 'gc_gan_mix': expected one of gc_gan_share, gc_gan_cross"),
        ("gcgan", {"fineSize": 30}, "fineSize 30: resnet_6blocks takes multiples of 4"),
        ("gcgan", {"output_nc": 1}, "identity 0.5: needs as many channels of both domains"),
        ("unit", {"gen_activ": "selu"}, "gen_activ 'selu': expected one of relu, lrelu"),
    ],
)
def test_options_that_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(name, **options)


def test_options_of_originals_that_are_refused() -> None:
    with pytest.raises(ValueError, match="norm 'batch': only 'instance' is supported"):
        type(tiny("gcgan").config).from_original({"norm": "batch"})
    with pytest.raises(ValueError, match="model_arch 'gan': only 'discogan' is supported"):
        type(tiny("discogan").config).from_original({"model_arch": "gan"})
    with pytest.raises(ValueError, match="dis_norm 'sn': only 'none' is supported"):
        AutoEncoderConfig.from_original({"gen": {}, "dis": {"norm": "sn"}})
