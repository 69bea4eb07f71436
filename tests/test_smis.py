"""SMIS: grouped layers and blocks are their plain formulation on any map; crops of classes; codes."""

import pytest
import torch
import torch.nn.functional as F
from plain import blocks, gradients, normal
from test_exactness import ROUTES, assert_equal, conditioning, forced
from torch import Tensor, nn

from i2ifast import labels, models
from i2ifast.models.smis import Config, class_crops, interleaved
from i2ifast.nn import GROUP_SPADE, SPADEV2ResnetBlock, bake

CLASSES = 4
MAPS = blocks(2, 16, 12, CLASSES)
# data_mode, group_num, use_instance
KINDS = [
    ("deepfashion", 4, False),
    ("deepfashion", 1, False),
    ("cityscapes", 2, True),
    ("ade20k", 2, False),
    ("ade20k", 1, False),
    ("ade20k", 8, False),
]


def plain_layer(layer: GROUP_SPADE, x: Tensor, seg: Tensor) -> Tensor:
    def conv(module: nn.Conv2d, x: Tensor) -> Tensor:
        return F.conv2d(x, module.weight, module.bias, padding=1, groups=module.groups)

    hidden = conv(layer.mlp_shared[0], F.interpolate(seg, x.shape[2:])).relu()
    return layer.param_free_norm(x) * (1 + conv(layer.mlp_gamma, hidden)) + conv(layer.mlp_beta, hidden)


class Plain(nn.Module):
    """The published formulation of a layer or block, on its own modules."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor, seg: Tensor, upsample: bool = False) -> Tensor:
        x, ours = F.interpolate(x, scale_factor=2) if upsample else x, self.ours
        if isinstance(ours, GROUP_SPADE):
            return plain_layer(ours, x, seg)
        shortcut = ours.conv_s(plain_layer(ours.norm_s, x, seg)) if ours.learned_shortcut else x
        h = ours.conv_0(F.leaky_relu(plain_layer(ours.norm_0, x, seg), 0.2))
        return shortcut + ours.conv_1(F.leaky_relu(plain_layer(ours.norm_1, h, seg), 0.2))


def made(kind: tuple[str, int, bool], block: bool) -> nn.Module:
    mode, groups, instance = kind
    net = GROUP_SPADE(16, CLASSES, groups, instance, mode)
    if block:
        net = SPADEV2ResnetBlock(16, 8, "spadesyncbatch3x3", CLASSES, groups, instance, mode)
    for i, p in enumerate(net.parameters()):
        p.data.copy_(normal(*p.shape, seed=i) / max(1, p[0].numel()) ** 0.5)
    return net.double()


def plan_for(instance: bool) -> labels.LabelPlan:
    plan = labels.plan(MAPS, CLASSES, instances=MAPS // 2 if instance else None)
    return interleaved(plan, CLASSES) if instance else plan


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_is_its_plain_formulation(kind, block, route):
    """Outputs and all gradients in float64, in training and in evaluation."""
    ours, plain = made(kind, block), Plain(made(kind, block))
    plan = plan_for(kind[2])
    x, dense = normal(2, 16, 5, 4, dtype=torch.float64), plan.dense().double().requires_grad_()
    seg = conditioning(route, plan)
    with forced(route):
        for training in (True, False):
            ours.train(training), plain.train(training)
            found, expected = (gradients(net, x, s, upsample=block) for net, s in ((ours, seg), (plain, dense)))
            assert_equal(found, {name.replace("ours.", ""): value for name, value in expected.items()})
    if route == "dense":
        assert_equal({"dseg": seg.grad}, {"dseg": dense.grad})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("route", ["table", "windows"])
def test_baked_blocks_are_those_in_evaluation(kind, route):
    net, plan = made(kind, True).float().eval(), plan_for(kind[2])
    for i, norm in enumerate(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.fill_(0.1 * i), norm.running_var.fill_(1 + i)
    x = normal(2, 16, 16, 12)
    with torch.no_grad(), forced(route):
        torch.testing.assert_close(bake(net)(x, plan), net(x, plan), rtol=1e-4, atol=1e-5)


def test_errors_name_what_was_given():
    with pytest.raises(ValueError, match="data_mode='coco': expected deepfashion"):
        GROUP_SPADE(16, CLASSES, 1, data_mode="coco")
    for options, message in (
        ({"netG": "COCO"}, "netG 'COCO': expected one of deepfashion"),
        ({"instance": True}, "instance True: netG deepfashion has only False"),
        ({"netG": "Cityscapes"}, "instance False: netG Cityscapes has only True"),
        ({"use_vae": False}, "use_vae False"),
        ({"ngf": 3, "group_nums": (1, 1, 1, 1, 1, 7, 1)}, r"up_2 has 12 and 6 channels for 7 groups"),
        ({"encoder_ndf": 12, "label_nc": 8}, "encoder_ndf 12: expected a multiple of the 8 classes"),
        ({"group_nums": (1, 2)}, r"group_nums \(1, 2\): expected one for each of head_0"),
    ):
        with pytest.raises(ValueError, match=message):
            Config(**options)


def crops_one_by_one(images: Tensor, seg: Tensor) -> Tensor:
    """By the definition: sample by sample, class by class."""
    found = []
    for image, masks in zip(images, seg, strict=True):
        for mask in masks:
            crop = image * mask
            at = crop.sum(0).nonzero()
            if len(at):
                (top, left), (bottom, right) = at.min(0).values.tolist(), at.max(0).values.tolist()
                crop = F.interpolate(crop[None, :, top : bottom + 1, left : right + 1], images.shape[2:])[0]
            found.append(crop)
    return torch.stack(found).view(len(images), -1, *images.shape[2:])


@pytest.mark.parametrize("size", [(16, 12), (64, 64), (7, 33)])
def test_class_crops(size):
    """Boxes of every kind, an absent class, and pixels that sum to zero; from a plan and from a dense map."""
    maps = blocks(2, *size, CLASSES)
    maps[0, 0, 0] = CLASSES  # one pixel of a class that the other image does not have
    images = normal(2, 3, *size)
    images[:, :, 1] = 0
    plan = labels.plan(maps, CLASSES + 2)
    expected = crops_one_by_one(images, plan.dense())
    assert class_crops(images, plan, CLASSES + 2).equal(expected)
    assert class_crops(images, plan.dense(), CLASSES + 2).equal(expected)


def test_codes_are_of_classes():
    """Codes follow from the image or from noise; new ones for a class leave those of the others."""
    torch.manual_seed(0)
    system = models.build("smis", "tiny").eval()
    batch = {"label": blocks(1, 128, 256, 12, 32)[:, None], "image": normal(1, 3, 128, 256).clamp(-1, 1)}
    codes = system.codes(batch)
    assert codes.shape == (1, 96, 2, 4)
    new = system.resample(codes, [3])
    changed = (new != codes).flatten(2).any(2)[0]
    assert changed[24:32].all() and changed.sum() == 8
    own, again, other = (system.translate({"label": batch["label"], "codes": z})["fake"] for z in (codes, codes, new))
    assert own.equal(again) and not own.equal(other)
    assert system.codes({"label": batch["label"][..., :100, :200]}).shape == (1, 96, 2, 4)
