"""CLADE: layers and blocks are their plain formulation on any map; offsets from objects' centres; the system."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from plain import blocks, gradients, normal, one_hot
from test_exactness import assert_equal
from torch import Tensor, nn

from i2ifast import labels, models
from i2ifast.data.kinds.labels import Files, LabelDataset, Settings
from i2ifast.data.pixels import Geometry
from i2ifast.nn import CLADEResnetBlock, ClassAffine, SPADELight, bake

CLASSES = 4
MAPS = blocks(2, 16, 12, CLASSES)
PLAN = labels.plan(MAPS, CLASSES, instances=MAPS // 2)
DIST = labels.centre_offsets(MAPS).double()


def plain_layer(layer: SPADELight, x: Tensor, seg: Tensor, dist: Tensor | None) -> Tensor:
    """SPADELight around the parameters of ours; dense maps as large as x."""
    y = F.instance_norm(x) if isinstance(layer.param_free_norm, nn.InstanceNorm2d) else layer.param_free_norm(x)
    seg = F.interpolate(seg, x.shape[2:])
    affine, classes = layer.class_specified_affine, seg[:, :CLASSES].argmax(1)
    weight, bias = (F.embedding(classes, table).permute(0, 3, 1, 2) for table in (affine.weight, affine.bias))
    if affine.add_dist:
        dist = F.interpolate(dist, x.shape[2:])
        weight, bias = weight * (1 + affine.dist_conv_w(dist)), bias * (1 + affine.dist_conv_b(dist))
    y = y * weight + bias
    return y if layer.inst_conv is None else torch.cat([y, layer.inst_conv(seg[:, -1:])], 1)


class Plain(nn.Module):
    """The published formulation of a layer or block, on its own modules."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor, seg: Tensor, dist: Tensor | None = None, upsample: bool = False) -> Tensor:
        x, ours = F.interpolate(x, scale_factor=2) if upsample else x, self.ours
        if isinstance(ours, SPADELight):
            return plain_layer(ours, x, seg, dist)

        def conv(module: nn.Conv2d, x: Tensor) -> Tensor:
            return F.conv2d(x, module.weight, module.bias, padding=module.padding)

        shortcut = conv(ours.conv_s, plain_layer(ours.norm_s, x, seg, dist)) if ours.learned_shortcut else x
        h = conv(ours.conv_0, F.leaky_relu(plain_layer(ours.norm_0, x, seg, dist), 0.2))
        return shortcut + conv(ours.conv_1, F.leaky_relu(plain_layer(ours.norm_1, h, seg, dist), 0.2))


def made(kind: str, norm: str, no_instance: bool, add_dist: bool) -> nn.Module:
    torch.manual_seed(0)
    if kind == "layer":
        net = SPADELight(f"spade{norm}3x3", 6, CLASSES, no_instance, add_dist)
    else:
        net = CLADEResnetBlock(6, 4 if kind == "shortcut" else 6, f"spade{norm}3x3", CLASSES, no_instance, add_dist)
    for i, p in enumerate(net.parameters()):
        p.data.copy_(normal(*p.shape, seed=i) / max(1, p[0].numel()) ** 0.5)
    return net.double()


OPTIONS = [*product(["layer", "block", "shortcut"], ["batch", "instance"], [True, False], [True, False])]


@pytest.mark.parametrize(("kind", "norm", "no_instance", "add_dist"), OPTIONS)
@pytest.mark.parametrize("route", ["plan", "dense"])
@pytest.mark.parametrize("upsample", [False, True])
def test_is_its_plain_formulation(kind, norm, no_instance, add_dist, route, upsample):
    """Outputs and all gradients in float64, in training, then in evaluation with different running statistics."""
    ours, twin = (made(kind, norm, no_instance, add_dist) for _ in range(2))
    plain = Plain(twin)
    plan = PLAN if not no_instance else labels.plan(MAPS, CLASSES)
    dense = plan.dense().double().requires_grad_()
    seg = plan if route == "plan" else plan.dense().double().requires_grad_()
    x, dist = normal(2, 6, 5, 4, dtype=torch.float64), DIST if add_dist else None
    for training in (True, False):
        ours.train(training), plain.train(training)
        found = gradients(ours, x, seg, dist=dist, upsample=upsample)
        expected = gradients(plain, x, dense, dist=dist, upsample=upsample)
        assert_equal(found, {name.replace("ours.", ""): value for name, value in expected.items()})
        for net in (ours, plain):
            for i, module in enumerate(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
                module.running_mean.fill_(0.1 * i), module.running_var.fill_(1 + i)
    if route == "dense" and not no_instance:
        assert_equal({"dseg": seg.grad}, {"dseg": dense.grad})


def test_classes_are_the_first_of_the_largest_channels():
    """A pixel without a class is class 0, soft maps take their largest channel, and noise is no exception."""
    layer = ClassAffine(CLASSES, 6)
    layer.bias.data.copy_(normal(CLASSES, 6))
    x = normal(2, 6, 16, 12)
    for seg in (torch.zeros(2, CLASSES, 16, 12), normal(2, CLASSES, 16, 12, seed=1), one_hot(MAPS, CLASSES)):
        k = seg.argmax(1)
        expected = x * layer.weight[k].permute(0, 3, 1, 2) + layer.bias[k].permute(0, 3, 1, 2)
        torch.testing.assert_close(layer(x, seg), expected)
    with pytest.raises(ValueError, match="segmap has 3 channels, fewer than the 4 classes"):
        layer(x, seg[:, :3])
    with pytest.raises(ValueError, match="dist is None"):
        ClassAffine(CLASSES, 6, add_dist=True)(x, seg)


@pytest.mark.parametrize("no_instance", [True, False])
@pytest.mark.parametrize("add_dist", [True, False])
def test_baked_blocks_are_those_in_evaluation(no_instance, add_dist):
    net = made("shortcut", "batch", no_instance, add_dist).float().eval()
    plan = labels.plan(MAPS, CLASSES) if no_instance else PLAN
    x, dist = normal(2, 6, 16, 12), DIST.float() if add_dist else None
    with torch.no_grad():
        expected = net(x, plan, dist)
        torch.testing.assert_close(bake(net)(x, plan, dist), expected, rtol=1e-5, atol=1e-5)


def flood(maps: np.ndarray) -> np.ndarray:
    """Objects of one map by filling them one after another."""
    found, count = np.full(maps.shape, -1), 0
    for start in np.ndindex(*maps.shape):
        if found[start] < 0:
            todo, found[start] = [start], count
            while todo:
                y, x = todo.pop()
                for at in product(range(max(0, y - 1), y + 2), range(max(0, x - 1), x + 2)):
                    if at[0] < maps.shape[0] and at[1] < maps.shape[1] and found[at] < 0 and maps[at] == maps[y, x]:
                        found[at] = count
                        todo.append(at)
            count += 1
    return found


SPIRAL = """
#########
........#
#######.#
#.....#.#
#.###.#.#
#.#...#.#
#.#####.#
#.......#
#########
"""


@pytest.mark.parametrize("kind", ["noise", "blocks", "spiral", "one", "row"])
def test_objects_are_what_a_flood_fills(kind):
    spiral = torch.tensor([[c == "#" for c in row] for row in SPIRAL.split()]).long()[None]
    maps = {
        "noise": torch.randint(3, (2, 9, 11), generator=torch.Generator().manual_seed(0)),
        "blocks": blocks(2, 16, 12, 2),
        "spiral": torch.cat([spiral, spiral.transpose(1, 2)]),
        "one": torch.ones(1, 5, 4).long(),
        "row": torch.tensor([[[1, 1, 0, 1]]]),
    }[kind]
    ours = labels.objects(maps)
    for i, each in enumerate(maps.numpy()):
        pairs = np.stack([ours[i].numpy().ravel(), flood(each).ravel()], 1)
        distinct = np.unique(pairs, axis=0)
        assert len(distinct) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1]))
    assert len(maps) == 1 or not set(ours[0].unique().tolist()) & set(ours[1].unique().tolist())


def test_centre_offsets():
    maps = torch.tensor([[[0, 0, 2, 2, 2], [0, 1, 0, 0, 0], [0, 0, 1, 0, 2]]])
    offsets = labels.centre_offsets(maps, normalise=False)
    assert offsets.shape == (1, 2, 3, 5) and offsets.dtype is torch.float32
    assert not offsets[:, :, maps[0] == 0].any()
    assert offsets[0, 1, 0, 2:].tolist() == [-1, 0, 1] and not offsets[0, 0, 0].any()
    assert [offsets[0, :, 1, 1].tolist(), offsets[0, :, 2, 2].tolist()] == [[-0.5, -0.5], [0.5, 0.5]]
    assert offsets[0, :, 2, 4].tolist() == [0, 0]
    scaled = labels.centre_offsets(maps[:, None])
    torch.testing.assert_close(scaled[0, 1, 0, 2:], torch.tensor([-1.0, 0, 1]) / (1 + 1e-5))
    with pytest.raises(TypeError, match="labels: expected integers"):
        labels.centre_offsets(maps.float())


def test_offsets_reach_the_generator():
    """Of the map as it is given, also where that is padded; those that a loader made are taken."""
    torch.manual_seed(0)
    system = models.build("clade", "tiny", add_dist=True).eval()
    for parameter in system.nets["G"].parameters():
        nn.init.normal_(parameter, 0, 0.1)
    batch = {"label": blocks(1, 50, 70, 12)[:, None], "instance": blocks(1, 50, 70, 12)[:, None]}
    own = system.translate(batch)["fake"]
    given = system.translate({**batch, "dist": labels.centre_offsets(batch["label"])})["fake"]
    other = system.translate({**batch, "dist": torch.zeros(1, 2, 50, 70)})["fake"]
    assert own.shape == (1, 3, 50, 70) and own.equal(given) and not own.equal(other)


def test_items_have_the_offsets_of_the_whole_map(tmp_path):
    """Cut with the label map; where that is mirrored, those of the mirrored map."""
    maps = blocks(1, 32, 32, CLASSES, 8)
    Image.fromarray(maps[0].byte().numpy()).save(tmp_path / "a.png")
    settings = Settings(label_nc=CLASSES, instance=False, add_dist=True, crop_size=16, preprocess_mode="crop")
    data = LabelDataset([Files(tmp_path / "a.png")], settings)
    item = data[0]
    offsets = labels.centre_offsets(maps)[0]
    assert item["dist"].equal(offsets[:, 8:24, 8:24]) and item["label"][0].equal(maps[0, 8:24, 8:24])
    assert data.collate([item, item])["dist"].shape == (2, 2, 16, 16)
    mirrored = Geometry((32, 32), (0, 0, 32, 32), True).offsets(offsets)
    torch.testing.assert_close(mirrored, labels.centre_offsets(maps.flip(2))[0])


def test_weights_start_uniform():
    system = models.build("clade", "tiny", add_dist=True)
    system.init_weights()
    affine = system.nets["G"].head_0.norm_0.class_specified_affine
    assert 0 <= affine.weight.min() and affine.weight.max() < 1 and 0.4 < affine.weight.mean() < 0.6
    assert not affine.bias.any() and affine.dist_conv_w.weight.any() and not affine.dist_conv_w.bias.any()
    with pytest.raises(ValueError, match="norm_mode 'spade': only 'clade' is supported"):
        type(system).Config.from_original({"norm_mode": "spade"})
