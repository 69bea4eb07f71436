"""Systems that translate between two domains without pairs: schedules, files of the originals, what they refuse."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from test_models import settled, tiny, unpaired_batch
from torch import Tensor, nn
from toy import Toy, assert_same, run

from i2ifast.models import Phase, build
from i2ifast.models._losses import VGG16
from i2ifast.models._modulation import AttentionConv2d

PARAMS = ("nicegan", "ugatit")  # with one file for all networks


@pytest.mark.parametrize("name", PARAMS)
def test_linear_decay(name):
    """Constant in the first half of the iterations, to 0 in the last one."""
    rates = [tiny(name, iteration=8).rate(step) for step in range(9)]
    assert rates == [1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert tiny(name, iteration=8, decay_flag=False).rate(7) == 1


def test_step_decay_counts_the_iteration_at_hand():
    assert [tiny("munit", step_size=2, gamma=0.1).rate(step) for step in range(4)] == [1, 0.1, 0.1, 0.1**2]


class Settled(Toy):
    """Its learning rates end after the first step, and it counts what comes after the steps of its first phase."""

    def __init__(self) -> None:
        super().__init__(noise=0.0)
        self.calls = 0
        first, *rest = self.phases
        self.phases = [Phase(first.name, first.nets, first.loss, first.optimizer, after=self.count), *rest]

    def count(self) -> None:
        self.calls += 1

    def rate(self, step: int) -> float:
        return float(step == 0)


def test_the_loop_follows_rates_and_calls_what_comes_after_a_step(tmp_path):
    counted = Settled()
    one, five = run(tmp_path / "one", 1, Settled()), run(tmp_path / "five", 5, counted)
    assert counted.calls == 5 + 5  # Toy counts the losses of D itself
    trained = [name for name in one if name.startswith("nets.") and name.endswith("weight")]
    assert_same({name: one[name] for name in trained}, {name: five[name] for name in trained})


@pytest.mark.parametrize("name", PARAMS)
def test_files_of_the_original(name, tmp_path):
    """The latest of a folder, without what a profiler left; one file; a file without a network is refused."""
    source, target = tiny(name), tiny(name)
    for parameter in source.nets.parameters():
        nn.init.uniform_(parameter)
    states = {net: dict(module.state_dict()) for net, module in source.nets.items()}
    first = next(iter(states))
    states[first] |= {"total_ops": torch.zeros(1), "FC.0.total_params": torch.zeros(1)}
    torch.save(states | {"start_iter": 7}, tmp_path / "cat2dog_params_latest.pt")
    torch.save({}, tmp_path / "cat2dog_params_0001000.pt")
    target.load_original(tmp_path)
    assert_same(target.nets.state_dict(), source.nets.state_dict())
    target.init_weights()
    target.load_original(tmp_path / "cat2dog_params_latest.pt")
    assert_same(target.nets.state_dict(), source.nets.state_dict())
    with pytest.raises(ValueError, match=f"0001000.pt has no network {first}, "):
        target.load_original(tmp_path / "cat2dog_params_0001000.pt")
    with pytest.raises(ValueError, match="no <dataset>_params_<iteration>.pt in it"):
        target.load_original(Path(__file__).parent)


def test_files_of_munit(tmp_path):
    """The newest of a folder; statistics that old files have of instance norms are left out."""
    source, target = tiny("munit"), tiny("munit")
    for parameter in source.nets.parameters():
        nn.init.uniform_(parameter)
    for kind in ("gen", "dis"):
        states = {side: dict(source.nets[f"{kind}_{side}"].state_dict()) for side in "ab"}
        torch.save(states, tmp_path / f"{kind}_00020000.pt")
        torch.save({}, tmp_path / f"{kind}_00010000.pt")
        if kind == "gen":
            states["a"]["enc_content.model.0.norm.running_mean"] = torch.zeros(8)
            torch.save(states, tmp_path / "gen_old.pt")
    target.load_original(tmp_path)
    assert_same(target.nets.state_dict(), source.nets.state_dict())
    target.load_original(tmp_path / "gen_old.pt")
    torch.save({}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt: expected a file name gen_<iteration>.pt or dis_<iteration>.pt"):
        target.load_original(tmp_path / "other.pt")


@pytest.mark.parametrize("name", PARAMS)
def test_init_weights_starts_anew(name):
    """Also after a forward, behind which the normalised weights are no parameters."""
    system = settled(name)
    for parameter in system.nets.parameters():
        nn.init.constant_(parameter, 9.0)
    system.init_weights()
    fresh = build(name, "tiny").nets.state_dict()
    for key, value in system.nets.state_dict().items():
        if not key.endswith(("_u", "_v")):
            assert value.abs().max() < 4, key
            if value.numel() > 200:
                assert value.std().item() == pytest.approx(fresh[key].std().item(), rel=0.2), key


@pytest.mark.parametrize("name", PARAMS)
def test_sizes_without_light(name):
    system = settled(name, light=False)
    assert system.translate(unpaired_batch(None, (94, 95)))["fake"].shape == (2, 3, 94, 95)
    with pytest.raises(ValueError, match="map of 16x24 pixels: without light it must have 24x24"):
        system.translate(unpaired_batch(None, (64, 96)))
    with pytest.raises(ValueError, match="img_size 90: must be a multiple of 4"):
        tiny(name, img_size=90)


def test_options_that_munit_refuses():
    with pytest.raises(ValueError, match="dis_gan_type 'wgan': expected one of lsgan, nsgan"):
        tiny("munit", dis_gan_type="wgan")
    with pytest.raises(ValueError, match="60: 3 scales of 4 layers in the discriminators need at least 61"):
        tiny("munit", crop_image_width=60, dis_num_scales=3, dis_n_layer=4)
    config = type(tiny("munit")).Config
    with pytest.raises(ValueError, match="dis_norm 'sn': only 'none' is supported"):
        config.from_original({"gen": {}, "dis": {"norm": "sn"}})
    with pytest.raises(ValueError, match="n_dis 5: must be at least 6"):
        tiny("nicegan", n_dis=5)


def test_munit_translates_in_the_style_of_an_image():
    system = settled("munit")
    batch = unpaired_batch(None, (64, 64))
    drawn = []
    system.randn = lambda shape, like: drawn.append(shape) or torch.zeros(shape)
    a = system.translate(batch)["fake"]
    b = system.translate(batch | {"b": -batch["b"]})["fake"]
    assert not drawn and not a.equal(b)
    random = system.translate({"a": batch["a"]})["fake"]
    assert drawn == [(2, 8, 1, 1)] * 2 and not random.equal(a)


def test_attention_is_a_convolution_of_the_map_taken_twice():
    conv = AttentionConv2d(3).double()
    x, scales = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    twice = torch.cat([x * scale.view(1, 3, 1, 1) for scale in scales], 1)
    torch.testing.assert_close(conv(x, scales), F.conv2d(twice, conv.weight, conv.bias))


def vgg_state(own: bool) -> dict[str, Tensor]:
    """A state dict of narrow convolutions under this library's names or torchvision's."""
    g, fin, state = torch.Generator().manual_seed(0), 3, {}
    for block, layers in VGG16.BLOCKS.items():
        for i, layer in enumerate(layers, 1):
            name = f"conv{block}_{i}" if own else f"features.{layer}"
            state[f"{name}.weight"] = torch.randn(2 + block, fin, 3, 3, generator=g) / (9 * fin) ** 0.5
            state[f"{name}.bias"] = torch.randn(2 + block, generator=g)
            fin = 2 + block
    return state


def test_vgg16(tmp_path):
    """Three poolings, BGR of 0..255 minus the mean; either names of layers."""
    own = vgg_state(own=True)
    save_file(own, tmp_path / "own.safetensors")
    torch.save(vgg_state(own=False), tmp_path / "torchvision.pth")
    images = torch.rand(1, 3, 32, 24) * 2 - 1
    x = torch.stack([127.5 * (images[:, 2 - i] + 1) - mean for i, mean in enumerate(VGG16.MEAN)], 1)
    for name in [key.removesuffix(".weight") for key in own if key.endswith("weight")]:
        x = F.relu(F.conv2d(x, own[f"{name}.weight"], own[f"{name}.bias"], padding=1))
        x = F.max_pool2d(x, 2) if name in ("conv1_2", "conv2_2", "conv3_3") else x
    for file in ("own.safetensors", "torchvision.pth"):
        vgg = VGG16(tmp_path / file)
        torch.testing.assert_close(vgg(images), x)
        assert not any(p.requires_grad for p in vgg.parameters())
    system = tiny("munit", vgg_w=1.0, vgg_weights=str(tmp_path / "own.safetensors"))
    terms = system.generator_loss(unpaired_batch(None, (64, 64)))
    assert terms["gen_vgg_a"].item() > 0 and "VGG" not in system.nets
    del own["conv4_2.weight"]
    save_file(own, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="bad.safetensors is no VGG16: no layer conv4_2 or features.19"):
        VGG16(tmp_path / "bad.safetensors")
