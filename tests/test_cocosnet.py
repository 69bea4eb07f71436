"""CoCosNet: its options train, samples do not see each other, and its terms are their definitions."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_losses import vgg_state
from test_models import exemplar_batch, tiny
from torch import Tensor

from i2ifast import models
from i2ifast.models import Batch, System
from i2ifast.models.cocosnet import Config

OPTIONS: dict[str, dict[str, Any]] = {
    "celebahq": dict(glasses=True, contain_dontcare_label=False, adaptor_kernel=4, warp_bilinear=True,
                     warp_cycle_w=0.1, which_perceptual="4_2"),
    "everything": dict(PONO=False, PONO_C=False, match_kernel=1, use_coordconv=True, warp_mask_losstype="cycle",
                       warp_cycle_w=1.0, two_cycle=True, warp_self_w=1.0, use_22ctx=True, adaptor_se=True,
                       adaptor_nonlocal=True, adaptor_res_deeper=True, ttur=False),
    "patches": dict(warp_patch=True, warp_cycle_w=1.0, maskmix=False, warp_mask_losstype="none", weight_mask=0.0),
    "half": dict(warp_stride=2, dilation_conv=True, adaptor_res_deeper=True, CBN_intype="warp",
                 use_attention=False, vgg_normal_correct=False),
}  # fmt: skip
TERMS = {
    "celebahq": {"G_warp_cycle", "mask"},
    "everything": {"G_warp_cycle", "G_warp_self", "mask"},
    "patches": {"G_warp_cycle"},
    "half": {"mask"},
}


def batch_of(config: Config, n: int = 2) -> Batch:
    batch = exemplar_batch(config, config.size, n)
    if config.glasses:
        empty = config.semantic_nc - 3
        for name in ("label", "label_ref"):
            label = batch[name].where(batch[name] != empty, 0)
            batch[name] = torch.cat([label, (label == 1).long()], 1)
    return batch


@pytest.mark.parametrize("name", OPTIONS)
def test_options_train(name, tmp_path):
    torch.save(vgg_state(19), tmp_path / "vgg.pth")
    system = tiny("cocosnet", crop_size=64, aspect_ratio=1.0, vgg_weights=str(tmp_path / "vgg.pth"), **OPTIONS[name])
    system.train()
    batch = system.prepare(batch_of(system.config))
    for phase in system.phases:
        system.freeze_all_but(phase)
        terms = phase.loss(batch)
        sum(terms.values()).backward()
        if phase.name == "G":
            always = {"GAN", "GAN_Feat", "fm", "perc", "contextual", "no_vgg_feat"}
            assert terms.keys() == always | TERMS[name]
        nets = [system.nets[net] for net in phase.nets]
        unused = {key for net in nets for key, p in net.named_parameters() if p.grad is None}
        assert all(".dec." in key for key in unused)
        assert all(p.grad.isfinite().all() for net in nets for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", OPTIONS)
def test_samples_do_not_see_each_other(name):
    torch.manual_seed(0)
    system = tiny("cocosnet", crop_size=64, aspect_ratio=1.0, **OPTIONS[name]).eval()
    batch = batch_of(system.config)
    both = system.translate(batch)
    for i in range(2):
        one = system.translate({key: t[i : i + 1] for key, t in batch.items()})
        for key in ("fake", "warp"):
            torch.testing.assert_close(one[key], both[key][i : i + 1], rtol=1e-3, atol=1e-4)


def test_an_exemplar_of_another_size():
    system = tiny("cocosnet").eval()
    batch = exemplar_batch(system.config, (64, 96))
    ref = {key: F.interpolate(batch[key].float(), (96, 64)).to(batch[key].dtype) for key in ("label_ref", "ref")}
    assert system.translate(batch | ref)["fake"].shape == (2, 3, 64, 96)


def mask_loss_by_loops(warp_mask: Tensor, label: Tensor, label_ref: Tensor) -> Tensor:
    total = count = torch.zeros(())
    for n, small in enumerate(label[:, 0, ::4, ::4]):
        for i, j in torch.cartesian_prod(*map(torch.arange, small.shape)).tolist():
            k = int(small[i, j])
            if k and (label_ref[n] == k).any():
                total, count = total - torch.log(warp_mask[n, k, i, j] + 1e-10), count + 1
    return total / (count + 1e-5)


def test_mask_loss_leaves_out_labels_that_the_exemplar_has_not():
    system: System = models.build("cocosnet", "tiny")
    config = system.config
    label, label_ref = (torch.randint(config.semantic_nc, (2, 1, 4, 8)).repeat_interleave(4, 3) for _ in range(2))
    label, label_ref = (t.repeat_interleave(4, 2) for t in (label, label_ref % 5))
    batch = system.prepare({"label": label, "label_ref": label_ref})
    warp_mask = torch.rand(2, config.semantic_nc, 4, 8)
    found = system.mask_loss(warp_mask, batch)
    torch.testing.assert_close(found, mask_loss_by_loops(warp_mask, label, label_ref))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warp_stride": 8}, "warp_stride 8: expected one of 2, 4"),
        ({"crop_size": 100}, "images of 50x100 pixels: expected multiples of 32"),
        ({"which_perceptual": "3_2"}, "which_perceptual '3_2': expected one of 4_2, 5_2"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        models.build("cocosnet", "tiny", **options)
