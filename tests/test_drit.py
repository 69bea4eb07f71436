"""DRIT++ and DMIT: one graph for several steps, schedules, styles to translate in, files of the originals."""

import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_models import batch_of, domain_batch, settled, tiny, unpaired_batch
from torch import nn
from toy import assert_same

from i2ifast._nonfinite import Place, Watch
from i2ifast._state import State
from i2ifast._update import Updater
from i2ifast.models import build
from i2ifast.models._blocks import LayerNormAct, tiled
from i2ifast.models._dmit import ConditionalBatchNorm
from i2ifast.models._drit import ConcatGenerator, SpectralConv2d
from i2ifast.models._shared_graph import recording, through
from i2ifast.models.drit import CLIP, NZ

NAMES = ("dmit", "drit")


def beside(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, tiled(z, x)], 1)


def test_a_shared_graph_meets_new_weights_with_old_activations():
    first, second = (torch.tensor([value], requires_grad=True) for value in (2.0, 3.0))
    with recording([]):
        hidden = first * 5
        made = {"y": (second * hidden).square(), "given": torch.ones(1)}
    for weight in (3.0, 7.0):
        with torch.no_grad():
            second.fill_(weight)
        found = through(made, [first, second.detach()])
        (found["y"] + found["given"]).backward()
        assert first.grad.item() == 2 * 30 * weight * 5 and second.grad is None
        first.grad = None


def test_a_shared_graph_goes_with_its_outputs():
    """Also where a function keeps its own output."""
    with recording([]):
        output = torch.ones(1, requires_grad=True).tanh()
    kept = weakref.ref(output)
    del output
    assert kept() is None


@pytest.mark.parametrize("name", NAMES)
def test_one_forward_for_all_phases(name):
    """Every network that translates runs as often as in a single forward."""
    system, calls = tiny(name).train(), []
    content = system.nets["enc_c" if name == "drit" else "enc_content"]
    content.register_forward_hook(lambda *args: calls.append(1))
    batch = system.prepare(batch_of(system))
    for phase in system.phases:
        system.freeze_all_but(phase)
        sum(phase.loss(batch).values()).backward()
    assert len(calls) == 2  # of images, and of their translations


def test_schedules():
    drit, dmit = tiny("drit", n_ep=5, n_ep_decay=2), tiny("dmit", niter=2, niter_decay=1)
    assert [drit.decay(epoch) for epoch in range(1, 6)] == [1, 1, 1, 0.75, 0.5]
    assert [dmit.decay(epoch) for epoch in range(1, 5)] == [1, 1, 0.5, 0]
    runs = [[phase.name for phase in drit.phases if phase.when(step)] for step in range(6)]
    everything = ["D_content", "D", "EG", "G_alone"]
    assert runs == [["D_content"], ["D_content"], everything] * 2


def test_the_gradient_of_the_content_discriminator_is_clipped():
    system = tiny("drit")
    weights = list(system.nets["disContent"].parameters())
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    Updater(State(system), None, Watch(torch.device("cpu"))).step(Place(1, 1, 0), system.phases[0])
    assert torch.cat([weight.grad.flatten() for weight in weights]).norm().item() == pytest.approx(CLIP, rel=1e-4)


@pytest.mark.parametrize("options", [{"concat": False, "ms": False, "dis_scale": 1}, {"dis_spectral_norm": True}])
def test_other_options_of_drit_learn(options):
    system = tiny("drit", **options).train()
    batch = unpaired_batch(None, system.config.size)
    for phase in system.phases:
        system.freeze_all_but(phase)
        sum(phase.loss(batch).values()).backward()
        learnt = [p.grad for net in phase.nets for p in system.nets[net].parameters()]
        assert any(grad is not None and grad.any() for grad in learnt)
    assert system.eval().translate({"a": batch["a"]})["fake"].isfinite().all()


@pytest.mark.parametrize("norm_type", ["cbin", "cbbn"])
@pytest.mark.parametrize("up_type", ["nearest", "pixelshuffle"])
def test_other_options_of_dmit_learn(norm_type, up_type):
    options = {"content_gan_mode": "hinge", "image_gan_mode": "lsgan", "lambda_cyc": 0.0, "lambda_div": 0.0}
    system = tiny("dmit", norm_type=norm_type, up_type=up_type, use_same_dis=True, use_dropout=True, **options).train()
    batch = system.prepare(batch_of(system))
    for phase in system.phases:
        system.freeze_all_but(phase)
        terms = phase.loss(batch)
        sum(terms.values()).backward()
        assert all(term.isfinite() for term in terms.values())
    state = State(system)
    assert state.optimizers["dis_rand_enc"] is state.optimizers["dis_rand_prior"]


def test_attributes_pass_by_the_residual_blocks():
    """As if they were beside the content from the start."""
    torch.manual_seed(0)
    gen = ConcatGenerator(build("drit", "tiny").config).double()
    shared, z = torch.randn(2, 16, 6, 7, dtype=torch.float64), torch.randn(2, NZ, dtype=torch.float64)
    with_z = gen.decA1(beside(shared, z))
    x = gen.decA3(beside(gen.decA2(beside(with_z, z)), z))
    expected = torch.tanh(F.conv_transpose2d(beside(x, z), gen.decA4[0].weight, gen.decA4[0].bias))
    torch.testing.assert_close(gen(gen.begin(shared, "A"), z, "A"), expected)


def test_spectral_norm_of_drit_evaluates_with_the_last_weight_of_training():
    torch.manual_seed(0)
    conv, x = SpectralConv2d(3, 8, 3, 2, 1), torch.randn(1, 3, 8, 8)
    for _ in range(30):
        trained = conv(x)
    assert torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item() == pytest.approx(1, rel=1e-3)
    with torch.no_grad():
        conv.weight_orig.zero_()
    torch.testing.assert_close(conv.eval()(x), trained)


def test_layer_norm():
    norm, x = LayerNormAct(3).double(), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    torch.testing.assert_close(norm(x), F.relu(F.layer_norm(x, x.shape[1:]) * norm.weight + norm.bias))


def test_conditional_batch_norm():
    norm, x, code = ConditionalBatchNorm(3, 2, 0.2), torch.randn(4, 3, 4, 5), torch.randn(4, 2)
    nn.init.normal_(norm.weight)
    plain = F.batch_norm(x, None, None, training=True)
    y = plain - plain.mean((2, 3), keepdim=True) + norm.ConBias.eval()(code)[..., None, None]
    expected = F.leaky_relu(y * norm.weight[:, None, None] + norm.bias[:, None, None], 0.2)
    torch.testing.assert_close(norm(x, code), expected, rtol=1e-4, atol=1e-5)
    assert norm.num_batches_tracked.item() == 1


def test_targets_are_other_domains():
    system = tiny("dmit", n_attribute=4)
    domain = torch.tensor([0, 1, 2, 0, 3, 2])  # those across: 0, 3, 2
    target = system.targets(domain)
    assert target[[0, 1, 3, 4]].tolist()[1::2] == [3, 1] and (target != domain).all() and target.max() < 4


@pytest.mark.parametrize("name", NAMES)
def test_styles(name):
    """Random, of a reference, and between the two."""
    system = settled(name)
    of_a = name == "drit"
    batch = unpaired_batch(None, (64, 70)) if of_a else domain_batch(None, (64, 70))
    reference = "b" if of_a else "reference"
    alone = {key: value for key, value in batch.items() if key != reference}
    system.randn = lambda shape, like: torch.zeros(shape)
    a, b = (system.translate({**batch, reference: sign * batch[reference]})["fake"] for sign in (1, -1))
    random = system.translate(alone)["fake"]
    assert not a.equal(b) and not a.equal(random)
    styles = [system.random_styles(2), system.reference_styles(batch[reference])]
    images = (batch["a"],) if of_a else (batch["image"], system.attribute(batch["reference_domain"]))
    first, between, last = system.in_styles(*images, [styles[0], (styles[0] + styles[1]) / 2, styles[1]])
    torch.testing.assert_close(first, random)
    torch.testing.assert_close(last, a)
    assert not between.equal(first) and not between.equal(last)


def test_files_of_drit(tmp_path):
    source, target = tiny("drit"), tiny("drit")
    for parameter in source.nets.parameters():
        nn.init.uniform_(parameter)
    states = {name: net.state_dict() for name, net in source.nets.items()}
    torch.save(states | {"disA_opt": {}, "ep": 7, "total_it": 9}, tmp_path / "00007.pth")
    torch.save({}, tmp_path / "00001.pth")
    target.load_original(tmp_path)
    assert_same(target.nets.state_dict(), source.nets.state_dict())
    with pytest.raises(ValueError, match="00001.pth has no network disA, "):
        target.load_original(tmp_path / "00001.pth")
    with pytest.raises(ValueError, match="no <epoch>.pth in it"):
        target.load_original(Path(__file__).parent)


def test_files_of_dmit(tmp_path):
    source, target = tiny("dmit"), tiny("dmit")
    for parameter in source.nets.parameters():
        nn.init.uniform_(parameter)
    states = {name: {"weight": net.state_dict(), "optimizer": {}} for name, net in source.nets.items()}
    torch.save(states | {"epoch": 7}, tmp_path / "resume.pth")
    target.load_original(tmp_path / "resume.pth")
    assert_same(target.nets.state_dict(), source.nets.state_dict())
    for name in ("dec", "enc_style", "enc_content"):
        torch.save(source.nets[name].state_dict(), tmp_path / f"{name}_latest.pth")
    target.init_weights()
    target.load_original(tmp_path)
    assert_same(target.nets["enc_style"].state_dict(), source.nets["enc_style"].state_dict())
    assert not target.nets["dis_content"].head.conv.bias.any()
    torch.save({}, tmp_path / "dis_latest.pth")
    with pytest.raises(ValueError, match="dis_latest.pth: expected resume.pth, or a name dec or enc_style"):
        target.load_original(tmp_path / "dis_latest.pth")


def test_refused_options():
    with pytest.raises(ValueError, match="crop_size 200: the discriminator of contents needs at least 212"):
        tiny("drit", crop_size=200)
    with pytest.raises(ValueError, match="dis_scale 0: must be at least 1"):
        tiny("drit", dis_scale=0)
    with pytest.raises(ValueError, match="lr_policy 'step': only 'lambda' is supported"):
        type(tiny("drit")).Config.from_original({"lr_policy": "step"})
    with pytest.raises(ValueError, match="norm_type 'adain': expected one of cbin, cbbn"):
        tiny("dmit", norm_type="adain")
    with pytest.raises(ValueError, match="crop_size 64: 5 n_content_disblocks need 128"):
        tiny("dmit", n_content_disblocks=5)
    with pytest.raises(ValueError, match="n_attribute 1: there must be at least 2 domains"):
        tiny("dmit", n_attribute=1)
    with pytest.raises(ValueError, match="has no reference_domain: name the domain"):
        tiny("dmit").translate({"image": torch.zeros(1, 3, 64, 64)})
