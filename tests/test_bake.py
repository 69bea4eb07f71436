"""bake(): a copy for inference gives the results of the network in evaluation, whatever comes in."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from plain import blocks, normal, one_hot
from torch import Tensor, nn

from i2ifast import labels, models
from i2ifast.nn import SPADE, AdaIN, InstanceNormAct, SPADEResnetBlock, bake

CLASSES = 4
SEG = one_hot(blocks(2, 16, 12, CLASSES), CLASSES)


class Encoder(nn.Sequential):
    """Convolutions of every kind that is packed or left as it is, with the norms between them."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(6, 8, 4, 2, 1, bias=False),
            InstanceNormAct(8, 0.2, affine=True),
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2),
            nn.Conv2d(8, 6, 3, padding="same"),
            nn.Conv2d(6, 16, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(16, 64, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(64, 6, 1),
            nn.ConvTranspose2d(6, 6, 2, 2),
        )

    def forward(self, x: Tensor, seg: Tensor | None = None) -> Tensor:
        return super().forward(x)


class Stylised(nn.Module):
    """AdaIN between two convolutions, in the style of the input upside down."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.norm, self.after = nn.Conv2d(6, 8, 3), AdaIN("relu"), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor, seg: Tensor | None = None) -> Tensor:
        features = self.before(x)
        return self.after(self.norm(features, features.flip(0)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: SPADE("spadebatch3x3", 6, CLASSES, 8),
    "block": lambda: SPADEResnetBlock(6, 6, "spectralspadesyncbatch3x3", CLASSES, 8),
    "learned shortcut": lambda: SPADEResnetBlock(6, 4, "spectralspadesyncbatch3x3", CLASSES, 8),
    "instance": lambda: SPADEResnetBlock(6, 4, "spectralspadeinstance5x5", CLASSES, 8),
    "encoder": Encoder,
    "stylised": Stylised,
}


def trained(kind: str) -> nn.Module:
    """A network whose spectral norms and running buffers, different ones in every norm, are those of training."""
    torch.manual_seed(0)
    net = NETWORKS[kind]()
    with torch.no_grad():
        for seed in range(10):
            net(2 + 3 * normal(2, 6, 16, 12, seed=seed), SEG)
        for i, m in enumerate(net.modules()):
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.add_(normal(len(m.running_mean), seed=i))
                m.running_var.mul_(1 + i / 10)
    return net


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-5 of the largest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def state(net: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(net.state_dict())


@pytest.mark.parametrize("kind", NETWORKS)
def test_same_results_for_any_size_and_layout(kind):
    """The first call lays the weights out for its size; others, soft maps and plans have to work as well."""
    net = trained(kind).train()
    before = state(net)
    baked = bake(net)
    assert net.training and not baked.training and not any(p.requires_grad for p in baked.parameters())
    assert all(p.requires_grad for p in net.parameters())
    net.eval()
    with torch.no_grad():
        for n, h, w in [(2, 16, 12), (1, 16, 12), (3, 7, 9), (2, 32, 40)]:
            x, maps = 1 + 2 * normal(n, 6, h, w, seed=h), blocks(n, h, w, CLASSES, seed=w)
            soft = normal(n, CLASSES, h, w).softmax(1)
            for seg in (one_hot(maps, CLASSES), labels.plan(maps, CLASSES), soft):
                for layout in (torch.contiguous_format, torch.channels_last):
                    assert_close(baked(x.contiguous(memory_format=layout), seg), net(x, seg))
    assert all(before[name].equal(t) for name, t in net.state_dict().items())


@pytest.mark.parametrize("kind", ["block", "learned shortcut", "instance"])
def test_upsampling(kind):
    net = trained(kind).eval()
    x = normal(2, 6, 8, 6)
    with torch.no_grad():
        assert_close(bake(net)(x, SEG, upsample=True), net(x, SEG, upsample=True))


@pytest.mark.parametrize("kind", NETWORKS)
def test_copy_and_original_are_independent(kind):
    net = trained(kind).eval()
    x = normal(2, 6, 16, 12)
    with torch.no_grad():
        used, unused, expected = bake(net), bake(net), net(x, SEG)
        used(x, SEG)
        for tensor in [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]:
            tensor.add_(0.5)
        assert_close(used(x, SEG), expected)
        assert_close(unused(x, SEG), expected)
        changed = net(x, SEG)
        assert_close(bake(net)(x, SEG), changed)
        assert not torch.allclose(changed, expected)


def test_float64_keeps_its_precision():
    net = trained("learned shortcut").double().eval()
    x = normal(2, 6, 16, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(bake(net)(x, SEG.double()), net(x, SEG.double()), rtol=1e-11, atol=1e-11)


def test_gradients_are_refused():
    """oneDNN's convolutions have none: without an error they would be silently wrong."""
    baked, x = bake(trained("learned shortcut")), normal(2, 6, 16, 12).requires_grad_()
    with pytest.raises(RuntimeError, match="a baked network has no gradients"):
        baked(x, SEG)
    with torch.no_grad():
        assert baked(x, SEG).isfinite().all()


@pytest.mark.parametrize("kind", ["block", "encoder"])
@pytest.mark.parametrize(
    "duplicate",
    [
        pytest.param(copy.deepcopy, id="copy"),
        pytest.param(lambda net: pickle.loads(pickle.dumps(net)), id="pickle"),
        pytest.param(bake, id="bake"),
    ],
)
@pytest.mark.parametrize(
    "used",
    [False, True],
)
def test_baked_networks_can_be_copied(kind, duplicate, used):
    baked, x = bake(trained(kind)), normal(2, 6, 16, 12)
    with torch.no_grad():
        if used:
            baked(x, SEG)
        assert_close(duplicate(baked)(x, SEG), baked(x, SEG))


def test_the_tiny_generator():
    torch.manual_seed(0)
    system = models.build("spade", "tiny")
    maps = blocks(2, 64, 128, 12, cell=16)
    batch = {"label": maps[:, None], "instance": maps[:, None]}
    generator = system.nets["G"]
    with torch.no_grad():
        seg = system.prepare(batch)["semantics"]
        for _ in range(3):
            generator.train()(seg)
        baked = bake(generator)
        generator.eval()
        for given in (seg, seg.dense(), seg.dense()[:1]):
            assert_close(baked(given), generator(given))
        system.nets["G"], expected = baked, system.translate(batch)["fake"]
        assert_close(system.translate(batch)["fake"], expected)
