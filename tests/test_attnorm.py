"""Filling of holes by attentive normalisation: its losses by their definitions, its steps, its files."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_drivers.attnorm import of_convolutions, of_layer
from test_models import inpainting_batch, tiny, vgg_state
from torch import Tensor

from i2ifast.models import System
from i2ifast.models._attnorm import Confidence, id_mrf


def test_id_mrf_is_what_it_says() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 5, 3, 4, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mean = y.mean((0, 2, 3), keepdim=True)
    expected = []
    for n in range(2):
        a, b = (F.normalize((t - mean)[n].flatten(1), dim=0).t() for t in (x, y))
        best = torch.zeros(12, dtype=torch.float64)
        for i in range(12):
            d = torch.stack([(1 - a[i] @ b[j]) / 2 for j in range(12)])
            w = torch.exp((1 - d / (d.min() + 1e-5)) / 0.5)
            best = torch.maximum(best, w / w.sum())
        expected.append(-best.mean().log())
    torch.testing.assert_close(id_mrf(x, y), torch.stack(expected))
    assert id_mrf(y, y).max() < 0.1 < id_mrf(x, y).min()


def test_confidence_spreads_from_the_border() -> None:
    mask = torch.zeros(1, 1, 48, 48)
    mask[..., 8:40, 8:40] = 1
    line = torch.exp(-0.5 * ((torch.arange(64) - 31.5) / 40) ** 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    weights = torch.zeros_like(mask)
    for _ in range(7):
        weights = mask * F.conv2d(F.pad(1 - mask + weights, (31, 32, 31, 32)), kernel[None, None])
    torch.testing.assert_close(Confidence()(mask), weights)


def batch() -> dict[str, Tensor]:
    return inpainting_batch(None, (64, 64))


def test_generator_steps_every_few_and_has_a_texture_term(tmp_path: Path) -> None:
    torch.save(vgg_state(), tmp_path / "vgg19.pth")
    system = tiny("attnorm", D_max_iters=3, vgg_weights=str(tmp_path / "vgg19.pth"))
    assert [step for step in range(9) if system.phases[1].when(step)] == [2, 5, 8]
    terms = system.phases[1].loss(system.prepare(batch()))
    assert set(terms) == {"L1", "AE", "orth", "GAN_global", "GAN_patch", "MRF"}
    assert all(term.isfinite() for term in terms.values()) and terms["MRF"] > 0


def test_no_hole_and_nothing_but_one_give_finite_gradients() -> None:
    system = tiny("attnorm")
    for filling in (0.0, 1.0):
        of = batch() | {"mask": torch.full((2, 1, 64, 64), filling)}
        for phase in system.phases:
            system.freeze_all_but(phase)
            system.zero_grad()
            sum(phase.loss(of).values()).backward()
            assert all(p.grad.isfinite().all() for net in phase.nets for p in system.nets[net].parameters())


def variables(system: System) -> dict[str, Tensor]:
    generator, patches = system.nets["G"], system.nets["D_patch"]
    found = of_convolutions(generator, "inpaint_net/", Tensor.detach) | of_layer(
        generator.sn, "inpaint_net/sn/", Tensor.detach
    )
    return found | of_convolutions(patches, "discriminator_local/", Tensor.detach)


def test_variables_of_the_original(tmp_path: Path) -> None:
    source, target = tiny("attnorm"), tiny("attnorm")
    for parameter in source.nets.parameters():
        torch.nn.init.uniform_(parameter)
    found = variables(source)
    torch.save(found, tmp_path / "variables.pth")
    target.load_original(tmp_path / "variables.pth")
    assert all(value.equal(found[name]) for name, value in variables(target).items())
    del found["inpaint_net/conv5/bias"]
    torch.save(found, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"less\.pth has no variable inpaint_net/conv5/bias"):
        target.load_original(tmp_path / "less.pth")
