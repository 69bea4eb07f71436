"""TSIT and CC-FPSE beyond what holds for all systems: style transfer, options, and what the parts depend on."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_models import batch_of, settled, tiny

from i2ifast import models
from i2ifast.models import Batch
from i2ifast.nn import bake

AST = {"task": "AST", "ss": True, "n_layers_D": 3}


def images(n: int = 1, size: tuple[int, int] = (128, 256)) -> Batch:
    g = torch.Generator().manual_seed(0)
    return {name: torch.rand((n, 3, *size), generator=g) * 2 - 1 for name in ("a", "b")}


def style_transfer(**options: Any) -> models.System:
    torch.manual_seed(0)
    system = tiny("tsit", **AST, **options).train()
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    system.phases[0].loss(system.prepare(images()))
    return system.eval()


def test_style_transfer_trains_its_networks() -> None:
    system = tiny("tsit", **AST).train()
    batch = system.prepare(images())
    for phase in system.phases:
        system.zero_grad()
        system.freeze_all_but(phase)
        sum(phase.loss(batch).values()).backward()
        for name in phase.nets:
            assert all(p.grad is not None and p.grad.isfinite().all() for p in system.nets[name].parameters())


@pytest.mark.parametrize("size", [(128, 128), (100, 140)])
def test_style_transfer_keeps_any_size(size: tuple[int, int]) -> None:
    fake = style_transfer().translate(images(2, size))["fake"]
    assert fake.shape == (2, 3, *size) and fake.isfinite().all()


def test_fakes_depend_on_the_style_as_far_as_alpha_says() -> None:
    for alpha in (0.0, 0.5):
        system, batch = style_transfer(alpha=alpha), images()
        system.randn = lambda shape, like: torch.ones(shape)
        a, b = (system.translate({**batch, "b": style})["fake"] for style in (batch["b"], -batch["b"] / 2))
        assert torch.allclose(a, b, atol=1e-6) == (alpha == 0)


def test_the_discriminator_of_images_sees_no_content() -> None:
    system, batch = style_transfer(), images()
    discriminate = system.nets["D"]
    a, b = (discriminate(content, batch["b"]) for content in (batch["a"], -batch["a"]))
    assert all(torch.equal(x, y) for s, t in zip(a, b, strict=True) for x, y in zip(s, t, strict=True))


def test_batch_statistics_translate_as_in_training() -> None:
    system, batch = style_transfer(batch_statistics=True), images(2)
    seen = []
    system.nets["G"].register_forward_hook(lambda net, args, output: seen.append(net.training))
    system.translate(batch)
    assert seen == [True] and not system.nets["G"].training


@pytest.mark.parametrize("name", ["tsit", "ccfpse"])
def test_baked_generators_translate_the_same(name: str) -> None:
    system = settled(name)
    batch = batch_of(system)
    expected = system.translate(batch)["fake"]
    system.nets["G"] = bake(system.nets["G"])
    torch.testing.assert_close(system.translate(batch)["fake"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["tsit", "ccfpse"])
def test_dense_maps_give_what_plans_give(name: str) -> None:
    system = settled(name)
    plan = system.prepare(batch_of(system))["semantics"]
    with torch.no_grad():
        torch.testing.assert_close(system.nets["G"](plan), system.nets["G"](plan.dense()), rtol=1e-3, atol=1e-4)


def test_embedding_of_means_is_mean_of_embeddings() -> None:
    discriminator = settled("ccfpse").nets["D"]
    system = settled("ccfpse")
    plan = system.prepare(batch_of(system))["semantics"]
    expected = F.avg_pool2d(discriminator.embedding(plan.dense()), 4)
    torch.testing.assert_close(discriminator.embedded(plan), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "I2I"}, "task 'I2I': expected one of AST, SIS, MMIS"),
        ({"ss": True}, "the task SIS has no style stream"),
        ({"num_upsampling_layers": "most"}, "only 'more' is supported"),
        ({"crop_size": 192}, "multiples of 128"),
    ],
)
def test_tsit_refuses_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build("tsit", "tiny", **options)


def test_feature_matching_of_ccfpse_averages_layers() -> None:
    fake, real = torch.ones(2, 3, 1, 1), torch.zeros(2, 3, 1, 1)
    outputs = [[torch.cat([fake, real]), torch.cat([3 * fake, real])], [torch.cat([100 * fake, real])]]
    assert tiny("ccfpse").matching(outputs).item() == 2
