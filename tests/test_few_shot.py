"""FUNIT, COCO-FUNIT and SEMIT: classes known from a few images, octave convolutions, labels that are learned."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_drivers.semit import whole
from PIL import Image
from test_models import batch_of, domain_batch, settled, tiny
from torch import Tensor, nn
from toy import assert_same, newest

from i2ifast.data.kinds import domains
from i2ifast.models import Batch, System, build
from i2ifast.models._octave import AdaptiveOctNorm, FirstOctConv, LastOctConv, Octave, OctConv, split
from i2ifast.models.semit import noise_tolerant
from i2ifast.train import main

NAMES = ("coco_funit", "funit", "semit")


def shots(count: int) -> Batch:
    """Two images, and `count` references of each."""
    batch = domain_batch(None, (64, 64))
    references = torch.rand((2, count, 3, 64, 64), generator=torch.Generator().manual_seed(1)) * 2 - 1
    return {"image": batch["image"], "references": references}


@pytest.mark.parametrize("name", NAMES)
def test_codes_of_several_references(name: str) -> None:
    """Their mean, or as they are weighted; a single one is as a reference."""
    system, batch = settled(name), shots(3)
    each = [system.codes({"reference": images}) for images in batch["references"].unbind(1)]
    torch.testing.assert_close(system.codes(batch), sum(each) / 3)
    torch.testing.assert_close(system.codes(batch, [0.5, 0.0, 0.5]), (each[0] + each[2]) / 2)
    one = {"image": batch["image"], "reference": batch["references"][:, 1]}
    torch.testing.assert_close(system.translate(batch, [0, 1, 0])["fake"], system.translate(one)["fake"])
    assert not each[0].allclose(each[1])
    with pytest.raises(ValueError, match="2 weights for 3 references"):
        system.translate(batch, [0.5, 0.5])
    with pytest.raises(ValueError, match="no reference"):
        system.translate({"image": batch["image"]})


@pytest.mark.parametrize("name", ["funit", "semit"])
def test_files_of_the_original(name: str, tmp_path: Path) -> None:
    """The newest of a folder, with the averaged generator; the discriminator may be absent; one file; another one."""
    source, target = tiny(name), tiny(name)
    for parameter in source.nets.parameters():
        nn.init.uniform_(parameter)
    gen, dis = (source.nets[net].state_dict() for net in ("gen", "dis"))
    start = target.nets["dis"].state_dict()["cnn_c.0.conv.bias"].clone()
    torch.save({"gen": {}, "gen_test": gen}, tmp_path / "gen_00020000.pt")
    torch.save({"gen": {}, "gen_test": {}}, tmp_path / "gen_00010000.pt")
    torch.save({"dis": {}}, tmp_path / "dis_00010000.pt")
    target.load_original(tmp_path)
    assert_same(target.nets["gen"].state_dict(), gen)
    assert target.nets["dis"].state_dict()["cnn_c.0.conv.bias"].equal(start)
    torch.save({"dis": dis}, tmp_path / "dis_00020000.pt")
    target.load_original(tmp_path)
    assert_same(target.nets.state_dict(), source.nets.state_dict())
    with pytest.raises(ValueError, match="gen_00010000.pt does not fit this FewShotGen: no "):
        target.load_original(tmp_path / "gen_00010000.pt")
    torch.save({"vgg": {}}, tmp_path / "vgg.pt")
    with pytest.raises(ValueError, match="vgg.pt has no network gen_test or dis"):
        target.load_original(tmp_path / "vgg.pt")
    with pytest.raises(ValueError, match="no gen_<iteration>.pt in it"):
        target.load_original(Path(__file__).parent)


def test_files_of_coco_funit(tmp_path: Path) -> None:
    """The averaged generator, else the one there is."""
    source, target = tiny("coco_funit"), tiny("coco_funit")
    state = source.nets["gen"].state_dict()
    for prefix in ("module.averaged_model.generator.", "module.generator."):
        other = {f"module.module.generator.{key}": value * 0 for key, value in state.items()}
        named = {f"{prefix}{key}": value for key, value in state.items()}
        torch.save({"net_G": (other if "averaged" in prefix else {}) | named, "net_D": {}}, tmp_path / "one.pt")
        target.init_weights()
        target.load_original(tmp_path / "one.pt")
        assert_same(target.nets["gen"].state_dict(), state)
    torch.save({"net_D": {}}, tmp_path / "one.pt")
    with pytest.raises(ValueError, match="one.pt has no network net_G"):
        target.load_original(tmp_path / "one.pt")


@pytest.mark.parametrize("name", ["funit", "semit"])
def test_learning_rates_are_exchanged(name: str) -> None:
    dis, gen = tiny(name, lr_gen=1.0, lr_dis=2.0).phases
    assert (dis.nets, dis.optimizer.lr, gen.nets, gen.optimizer.lr) == (("dis",), 1.0, ("gen",), 2.0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("funit", {"dis_n_res_blks": 7}, "dis_n_res_blks 7: must be an even number"),
        ("funit", {"gen_n_downs_class": 1}, "gen_n_downs_class 1: must be at least 2"),
        ("semit", {"octave_alpha": 1.5}, r"octave_alpha 1.5: must be in \[0, 1\]"),
        ("semit", {"num_images": 9, "label_steps": 3, "label_warm_up": 3}, "label_warm_up 3: must be less than"),
        ("coco_funit", {"dis_num_layers": 0}, "dis_num_layers 0: must be at least 1"),
    ],
)
def test_options_out_of_range(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, "tiny", **options)


def masked(high: Tensor, low: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Both parts with all channels, those that do not belong there zero."""
    kept = torch.arange(high.size(1))[:, None, None] < split(high.size(1), alpha)
    return high * kept, low * ~kept


def plain(conv: OctConv, high: Tensor, low: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The octave convolution of parts with all channels."""
    if conv.upsample:
        high, low = (F.interpolate(part, scale_factor=2) for part in (high, low))
    L2L, L2H, H2L, H2H = (getattr(conv, name).weight for name in ("L2L", "L2H", "H2L", "H2H"))
    options = {"stride": conv.stride, "padding": (H2H.size(-1) - 1) // 2}
    of_low = F.interpolate(F.conv2d(low, L2H, **options), scale_factor=2)
    to_low = F.conv2d(low, L2L, **options) + F.conv2d(F.avg_pool2d(high, 2), H2L, **options)
    return masked(F.conv2d(high, H2H, **options) + of_low, to_low, alpha)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize(("kernel", "stride", "upsample"), [(3, 1, False), (4, 2, False), (3, 1, True)])
def test_octave_convolutions_are_those_of_all_channels(alpha, kernel, stride, upsample) -> None:
    """Values and gradients, also of planes that adaptive norms leave at a constant, on maps that are nearly borders."""
    torch.manual_seed(0)
    first, conv = FirstOctConv(3, 5, 3), OctConv(5, 7, kernel, stride, upsample)
    last, norm = LastOctConv(7, 2, 3), AdaptiveOctNorm(5, "relu")
    x, styles = torch.randn(2, 3, 8, 12), torch.randn(2, 20)

    def through_octaves() -> list[Tensor]:
        y = first(x, alpha)
        y = norm(y, styles) if kernel == 3 else y
        y = conv(y, alpha)
        return [*whole(y), last(y)]

    def through_all() -> list[Tensor]:
        high, low = masked(first.convh(F.pad(x, (1,) * 4)), first.convl(F.pad(F.avg_pool2d(x, 2), (1,) * 4)), alpha)
        if kernel == 3:
            bias_h, scale_h, bias_l, scale_l = (each[..., None, None] for each in styles.chunk(4, 1))
            high = (F.instance_norm(high) * scale_h + bias_h).relu()
            low = (F.instance_norm(low) * scale_l + bias_l).relu()
        high, low = plain(conv, high, low, alpha)
        low_up = F.interpolate(low, scale_factor=2)
        return [high, low, last.convh(F.pad(high, (1,) * 4)) + last.convl(F.pad(low_up, (1,) * 4))]

    weights = [*first.parameters(), *conv.parameters(), *last.parameters()]
    ours, theirs = through_octaves(), through_all()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    sums = [sum(t.square().sum() for t in found) for found in (ours, theirs)]
    gradients = [torch.autograd.grad(each, weights, materialize_grads=True) for each in sums]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-2)


def test_the_split_of_channels_is_rounded_as_float32() -> None:
    assert split(5, 0.6) == 1 and split(5, 0.0) == 5 and split(5, 1.0) == 0 and split(16, 0.37) == 10


def test_semit_draws_alpha_in_every_iteration() -> None:
    system = tiny("semit")
    drawn = iter([0.25, 0.75])
    system.rand = lambda shape, like: torch.full(shape, next(drawn))
    assert [system.prepare(batch_of(system))["alpha"] for _ in range(2)] == [0.25, 0.75]
    assert tiny("semit", octave_alpha=0.5).prepare({})["alpha"] == 0.5
    batch = shots(1)
    a, b = (system.translate({**batch, "alpha": alpha})["fake"] for alpha in (0.0, 1.0))
    assert isinstance(system.nets["gen"].encode(batch["image"], 0.5), Octave) and not a.allclose(b)


def test_labels_that_may_be_wrong() -> None:
    """A label that the classifier is sure is another one becomes that; one it agrees with stays."""
    logits, first = torch.tensor([[8.0, 0.0, 0.0], [0.0, 8.0, 0.0]]), torch.tensor([1, 1])
    soft = torch.tensor([[0.0, 10.0, 0.0]] * 2, requires_grad=True)
    terms = noise_tolerant(logits, soft, first)
    p, q = logits.softmax(1), soft.softmax(1)
    torch.testing.assert_close(terms["label_kl"], (p * (p / q).log()).sum(1) / 3)
    torch.testing.assert_close(terms["label_first"], 0.1 * F.cross_entropy(soft, first, reduction="none"))
    torch.testing.assert_close(terms["label_entropy"], 0.8 * torch.distributions.Categorical(p).entropy() / 3)
    values = soft
    for _ in range(20):
        terms = noise_tolerant(logits, values, first)
        (gradient,) = torch.autograd.grad(sum(term.sum() for term in terms.values()), values)
        values = (values - 5 * gradient).detach().requires_grad_()
    assert values.argmax(1).tolist() == [0, 1]


def unlabelled(system: System) -> Batch:
    """A batch whose second image and first reference have no label."""
    numbers = {"index": torch.tensor([0, 1]), "reference_index": torch.tensor([3, 2])}
    return batch_of(system) | numbers | {"domain": torch.tensor([2, -1]), "reference_domain": torch.tensor([-1, 3])}


def test_semit_learns_labels_before_it_translates() -> None:
    system = tiny("semit", num_images=5, label_warm_up=2, label_steps=4).train()
    ran = [[phase.name for phase in system.phases if phase.when(step)] for step in (1, 2, 3, 4)]
    assert ran == [["labels_warm_up"], ["labels"], ["labels"], ["dis", "gen"]]
    learn, warm_up, *_ = system.phases
    batch = system.prepare(unlabelled(system))
    assert set(warm_up.loss(batch)) == {"label_given"} and system.first.tolist() == [-1] * 5
    for _ in range(2):
        terms = learn.loss(system.prepare(unlabelled(system)))
        sum(terms.values()).backward()
        learn.after()
    assert (system.first >= 0).tolist() == [True, True, True, True, False]
    predicted = system.soft.argmax(1)
    found = system.prepare(unlabelled(system))
    assert found["domain"].tolist() == [2, predicted[1]] and found["reference_domain"].tolist() == [predicted[3], 3]
    one_hot = 10.0 * F.one_hot(system.first[:4], 4)
    moved = (system.soft[:4] != one_hot).any(1)
    assert moved.tolist() == [False, True, False, True]  # given labels are not learned


def partly_labelled(root: Path) -> None:
    """Two classes of two and one pictures, and two pictures of no class; reds 0, 50, ... in this order."""
    for n, name in enumerate(("train/a/0", "train/a/1", "train/b/0", "train_unlabelled/0", "train_unlabelled/x/1")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (72, 72), (50 * n, 0, 0)).save(root / f"{name}.png")


def test_photographs_without_a_domain(tmp_path: Path) -> None:
    """Have domain -1, and all have their numbers; references are drawn from all."""
    partly_labelled(tmp_path)
    settings = domains.Settings(crop_size=16, load_size=16, num_domains=2, num_images=5)
    data = domains.folder(tmp_path, "train", settings, train=True)
    items = [data[epoch, index] for epoch in range(20) for index in range(5)]
    assert [item["index"].item() for item in items[:5]] == list(range(5))
    assert [item["domain"].item() for item in items[:5]] == [0, 0, 1, -1, -1]
    assert {item["reference_index"].item() for item in items} == set(range(5))
    for item in items:
        for name, end in (("image", ""), ("reference", "reference_")):
            number = item[f"{end}index"].item()
            assert round((item[name][0, 0, 0].item() + 1) * 127.5) == 50 * number
            assert item[f"{end}domain"].item() == (0, 0, 1, -1, -1)[number]
    held_out = domains.folder(tmp_path, "train", settings)
    assert len(held_out) == 3 and "index" not in held_out[0]
    wrong = domains.Settings(crop_size=16, num_images=9)
    with pytest.raises(ValueError, match="5 photographs, 2 of them without a domain, but num_images is 9"):
        domains.folder(tmp_path, "train", wrong, train=True)
    (tmp_path / "train").rename(tmp_path / "other")
    assert list(domains.find(tmp_path, "train")) == ["other"]  # and not those without


def test_semit_learns_labels_from_the_command_line(tmp_path: Path) -> None:
    partly_labelled(tmp_path)
    run = tmp_path / "run"
    where = ["--data", str(tmp_path), "--out", str(run), "--steps", "4", "--batch-size", "2", "--workers", "0"]
    options = {"dis-num-classes": "2", "num-images": "5", "label-steps": "3", "label-warm-up": "1"}
    main(["semit", "--preset", "tiny", *where, *(w for k, v in options.items() for w in (f"--config.{k}", v))])
    tensors, header = newest(run)
    (first,) = (value for name, value in tensors.items() if name.endswith("first"))
    assert header["step"] == 4 and (first >= 0).sum() >= 2
    assert any(name.endswith("soft") and value.any() for name, value in tensors.items())
