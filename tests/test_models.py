"""Every published system: it builds, its phases train what they say, it translates any size, it reads checkpoints."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import Batch, System
from i2ifast.models._losses import GAN_LOSSES, VGG19, feature_matching, kl_divergence, perceptual
from i2ifast.models._pool import ImagePool


def label_batch(config: Any, size: tuple[int, int], n: int = 2) -> Batch:
    """Blocky label maps, instance ids and images."""
    g = torch.Generator().manual_seed(0)
    blocks = torch.randint(config.num_classes, (n, 1, 4, 4), generator=g)
    label = F.interpolate(blocks.float(), size=size).long()
    return {"label": label, "instance": label * 1000, "image": torch.rand((n, 3, *size), generator=g) * 2 - 1}


def exemplar_batch(config: Any, size: tuple[int, int], n: int = 2) -> Batch:
    """Blocky label maps with images, and others as exemplars, the first of which belongs to the same image."""
    batch = label_batch(config, size, n)
    ref = {"label_ref": batch["label"].flip(0), "ref": batch["image"].flip(0), "self_ref": torch.eye(n)[0]}
    return batch | ref


def domain_batch(config: Any, size: tuple[int, int], n: int = 2) -> Batch:
    """Images of domains 0, 1, ..., and two others of the next domain each."""
    g = torch.Generator().manual_seed(0)
    names = ("image", "reference", "reference2")
    batch = {name: torch.rand((n, 3, *size), generator=g) * 2 - 1 for name in names}
    return batch | {"domain": torch.arange(n) % 2, "reference_domain": torch.arange(1, n + 1) % 2}


def unpaired_batch(config: Any, size: tuple[int, int], n: int = 2) -> Batch:
    """Images of two domains."""
    g = torch.Generator().manual_seed(0)
    return {side: torch.rand((n, getattr(config, "input_nc", 3), *size), generator=g) * 2 - 1 for side in "ab"}


def boxes_batch(config: Any, size: tuple[int, int], n: int = 2) -> Batch:
    """Boxes of two classes, and three label maps in place of those retrieved, without what is in the first box."""
    batch, (h, w) = label_batch(config, size, n), size
    boxes = torch.zeros(n, config.num_classes, h, w)
    boxes[:, 1, h // 4 : h // 2, w // 4 : w // 2] = boxes[:, 2, h // 3 :, w // 3 :] = 1
    retrieved = torch.cat([batch["label"].roll(shift, 3) for shift in (5, 10, 15)], 1)
    return batch | {"boxes": boxes, "retrieved": retrieved.masked_fill(boxes[:, 1:2] > 0, -1)}


def inpainting_batch(config: Any, size: tuple[int, int], n: int = 2) -> Batch:
    """Images, and a rectangular hole in each."""
    h, w = size
    mask = torch.zeros(n, 1, h, w)
    mask[:, :, h // 4 : h // 2, w // 4 : w // 2] = 1
    return {"image": torch.rand((n, 3, h, w), generator=torch.Generator().manual_seed(0)) * 2 - 1, "mask": mask}


def segmented_batch(config: Any, size: tuple[int, int], n: int = 2) -> Batch:
    """Images, others in whose styles to put them, and label maps of the first."""
    return unpaired_batch(config, size, n) | {"label": label_batch(config, size, n)["label"]}


def sketches_batch(config: Any, size: tuple[int, int], n: int = 2) -> Batch:
    """Sketches and photographs of the first two classes."""
    a, b = unpaired_batch(config, size, n).values()
    return {"sketch": a, "image": b, "domain": torch.arange(n) % 2}


BATCHES: dict[str, Callable[..., Batch]] = {
    "boxes": boxes_batch,
    "domains": domain_batch,
    "exemplars": exemplar_batch,
    "inpainting": inpainting_batch,
    "labels": label_batch,
    "paired": unpaired_batch,
    "segmented": segmented_batch,
    "sketches": sketches_batch,
    "unpaired": unpaired_batch,
}
OF_LABELS = [name for name in models.names() if models.system(name).data == "labels"]
OF_TENSORFLOW = ["crn", "sims"]  # whose files are of another kind
# Systems of other data have test files of their own, for what is asked of all here.
NAMES = [name for name in models.names() if models.system(name).data in BATCHES]
# Whose networks take no other images than those of their training.
ONE_SIZE = ["attnorm_class", "cogan", "cvaegan", "edgegan"]


def tiny(name: str, **options: Any) -> System:
    torch.manual_seed(0)
    system = models.build(name, "tiny", **options)
    system.init_weights()
    return system


def batch_of(system: System, size: tuple[int, int] | None = None) -> Batch:
    return BATCHES[system.data](system.config, size or system.config.size)


def settled(name: str, **options: Any) -> System:
    """A tiny system in eval mode after one pass in train mode, before which spectral norms are arbitrary."""
    system = tiny(name, **options).train()
    system.phases[0].loss(system.prepare(batch_of(system)))
    return system.eval()


def parameters(system: System) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in system.nets.named_parameters()}


def check_phases(system: System, batch: Batch) -> None:
    """Each phase has finite terms, updates its networks and no others."""
    batch = system.train().prepare(batch)
    for phase in system.phases:
        before = parameters(system)
        system.freeze_all_but(phase)
        system.zero_grad()
        optimizer = replace(phase.optimizer, lr=1e-3).over(system.parameters())
        terms = phase.loss(batch)
        assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
        sum(terms.values()).backward()
        optimizer.step()
        changed = {key.split(".")[0] for key, p in parameters(system).items() if not p.equal(before[key])}
        assert changed == set(phase.nets)


@pytest.mark.parametrize("name", NAMES)
def test_a_phase_updates_its_networks_and_no_other(name: str) -> None:
    system = tiny(name)
    check_phases(system, batch_of(system))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ONE_SIZE])
@pytest.mark.parametrize("size", [(64, 128), (50, 70), (33, 129)])
def test_translate_keeps_any_size(name: str, size: tuple[int, int]) -> None:
    system = settled(name)
    fake = system.translate(batch_of(system, size))["fake"]
    assert fake.shape == (2, 3, *size) and fake.isfinite().all() and not fake.requires_grad


@pytest.mark.parametrize("name", OF_LABELS)
def test_translate_pads_with_the_border(name: str) -> None:
    system = settled(name)
    system.randn = lambda shape, like: torch.ones(shape)
    batch = batch_of(system, (50, 70))
    bottom, right = (-side % system.config.stride for side in (50, 70))
    border = (0, right, 0, bottom)
    padded = {k: F.pad(t.float(), border, mode="replicate").to(t.dtype) for k, t in batch.items() if t.ndim == 4}
    expected = system.translate(padded)["fake"][..., :50, :70]
    torch.testing.assert_close(system.translate(batch)["fake"], expected)


@pytest.mark.parametrize("name", models.names())
def test_every_preset_builds(name: str) -> None:
    for preset in models.system(name).PRESETS:
        with torch.device("meta"):
            assert models.build(name, preset).phases


@pytest.mark.parametrize("name", [name for name in OF_LABELS if name not in OF_TENSORFLOW])
def test_original_checkpoints(name: str, tmp_path: Path) -> None:
    """A folder, a folder of another epoch without discriminator, one file; a file that does not fit is refused."""
    source, target = tiny(name), tiny(name)
    for parameter in source.nets.parameters():
        nn.init.uniform_(parameter)
    for net, module in source.nets.items():
        torch.save(module.state_dict(), tmp_path / f"latest_net_{net}.pth")
    torch.save(source.nets["G"].state_dict(), tmp_path / "7_net_G.pth")

    def equal(*nets: str) -> bool:
        states = [(source.nets[net].state_dict(), target.nets[net].state_dict()) for net in nets]
        return all(a[key].equal(b[key]) for a, b in states for key in a)

    target.load_original(tmp_path)
    assert equal(*source.nets)
    for load in (lambda: target.load_original(tmp_path, "7"), lambda: target.load_original(tmp_path / "7_net_G.pth")):
        target.init_weights()
        load()
        assert equal("G") and not equal("D")

    state = source.nets["G"].state_dict()
    first, second, *_ = state
    state["strange"] = state.pop(first)
    state[second] = state[second][None]
    torch.save(state, tmp_path / "bad_net_G.pth")
    with pytest.raises(ValueError, match=f"bad_net_G.pth does not fit.*no {first}; unexpected strange; {second}"):
        target.load_original(tmp_path / "bad_net_G.pth")
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="bad.pth: expected a file name ending"):
        target.load_original(tmp_path / "bad.pth")


def test_build_refuses_what_does_not_exist() -> None:
    with pytest.raises(ValueError, match="no system 'none'; there are .*spade"):
        models.build("none")
    with pytest.raises(ValueError, match="no preset 'huge'; there are coco"):
        models.build("spade", "huge")
    with pytest.raises(ValueError, match="no option colour; there are label_nc"):
        models.build("spade", "tiny", colour=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gan_mode": "lsgan"}, "gan_mode 'lsgan': expected one of hinge"),
        ({"num_upsampling_layers": "least"}, "num_upsampling_layers 'least': expected one of normal"),
        ({"crop_size": 100, "aspect_ratio": 1.0}, "images of 100x100 .*multiples of 32"),
        ({"use_vae": True}, "crop_size 128: use_vae needs at least 256"),
    ],
)
def test_spade_refuses_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build("spade", "tiny", **options)


def test_spade_init_weights() -> None:
    """Xavier normal with gain 0.02, biases zero."""
    system = tiny("spade")
    weight = system.nets["G"].get_parameter("head_0.conv_0.weight_orig")
    assert weight.std().item() == pytest.approx(0.02 * (2 / (2 * 9 * weight.shape[0])) ** 0.5, rel=0.05)
    assert all(not p.any() for p in system.nets.parameters() if p.ndim == 1)


def test_spade_learning_rate_schedule() -> None:
    system = tiny("spade", niter=3, niter_decay=4)
    assert [system.decay(epoch) for epoch in range(1, 11)] == [1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0]
    assert tiny("spade", niter=3, niter_decay=0).decay(9) == 1
    assert [phase.optimizer.lr for phase in system.phases] == [1e-4, 4e-4]
    assert [phase.optimizer.lr for phase in tiny("spade", ttur=False).phases] == [2e-4, 2e-4]


def test_spade_plan_sizes_are_those_of_its_layers() -> None:
    system = tiny("spade")
    sizes = []
    for name, block in system.nets["G"].named_children():
        if name not in ("fc", "conv_img"):
            block.register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[-2:])))
    system.translate(batch_of(system))
    assert set(sizes) == set(system.plan_sizes) and len(system.plan_sizes) == len(set(sizes))


def test_spade_takes_the_plan_of_the_batch_only_if_it_fits() -> None:
    system = settled("spade")
    batch = batch_of(system)
    expected = system.translate(batch)["fake"]
    plan = system.prepare(batch)["semantics"]
    assert system.prepare({**batch, "plan": plan})["semantics"] is plan
    torch.testing.assert_close(system.translate({**batch, "plan": plan})["fake"], expected)
    with pytest.raises(ValueError, match="plan of 13 channels: the networks take 12 classes and 0 for instance edges"):
        tiny("spade", instance=False).prepare({**batch, "plan": plan})


@pytest.mark.filterwarnings("error")
def test_spade_vae_translates_in_the_style_of_an_image() -> None:
    system = settled("spade", use_vae=True, crop_size=256, ngf=2, instance=False)
    batch = batch_of(system)
    label_only = {"label": batch["label"]}
    assert system.translate(label_only)["fake"].shape == (2, 3, 128, 256)
    drawn = []
    system.randn = lambda shape, like: drawn.append(list(shape)) or torch.zeros(shape)
    a, b = (system.translate(x)["fake"] for x in (batch, {**batch, "image": -batch["image"]}))
    assert drawn == [[2, 256], [2, 256]] and not a.equal(b)
    with pytest.raises(ValueError, match=r"64x128 pixels: with use_vae it must have 128x256"):
        system.translate(batch_of(system, (64, 128)))


@pytest.mark.parametrize("real", [True, False])
def test_gan_losses(real: bool) -> None:
    x = torch.linspace(-3, 3, 24, dtype=torch.float64).view(2, 1, 3, 4)
    target = torch.full_like(x, float(real))
    sign = 1 if real else -1
    expected = {
        "hinge": -torch.minimum(sign * x - 1, torch.zeros(())).mean(),
        "ls": F.mse_loss(x, target),
        "original": F.binary_cross_entropy_with_logits(x, target),
        "w": -sign * x.mean(),
    }
    for name, loss in GAN_LOSSES.items():
        torch.testing.assert_close(loss(x, real), expected[name])
    torch.testing.assert_close(GAN_LOSSES["hinge"](x, True, generator=True), -x.mean())


def test_feature_matching_leaves_out_logits_and_real_gradients() -> None:
    fake = [[torch.full((2, 3), 1.0), torch.full((1,), 9.0)], [torch.full((2, 4), 2.0), torch.full((1,), 9.0)]]
    real = [[torch.zeros(2, 3, requires_grad=True), torch.zeros(1)], [torch.zeros(2, 4), torch.zeros(1)]]
    loss = feature_matching(fake, real)
    assert loss.item() == (1 + 2) / 2 and not loss.requires_grad


def test_image_pool_exchanges_half_once_full() -> None:
    pool, draws = ImagePool(2), iter([0.4, 0.9, 1, 0.6, 0])
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 2, 2)

    def rand(shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.full(shape, next(draws))

    def randint(high: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        assert high == 2
        return torch.full(shape, next(draws))

    given = pool.query(images, rand, randint)  # 0, 1 fill it; 2 passes; 3 for image 1; 4 for image 0
    assert given[:, 0, 0, 0].tolist() == [0, 1, 2, 1, 0] and pool.images[:, 0, 0, 0].tolist() == [4, 3]
    assert next(draws, None) is None
    assert ImagePool(0).query(images, rand, randint) is images
    with pytest.raises(ValueError, match="pool size -1"):
        ImagePool(-1)


def test_kl_divergence() -> None:
    mu, logvar = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = torch.distributions.Normal(mu, (logvar / 2).exp())
    q = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    torch.testing.assert_close(kl_divergence(mu, logvar), torch.distributions.kl_divergence(p, q).sum())


def vgg_state(width: int = 2) -> dict[str, Tensor]:
    """A state dict as torchvision names it, with a classifier, at `width` / 64 of the real widths."""
    g = torch.Generator().manual_seed(0)
    widths = [width, width, 2 * width, 2 * width, *[4 * width] * 4, *[8 * width] * 8]
    layers = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    state = {"classifier.0.weight": torch.zeros(3, 3)}
    for i, fin, fout in zip(layers, [3, *widths], widths, strict=False):
        state[f"features.{i}.weight"] = torch.randn(fout, fin, 3, 3, generator=g) / (9 * fin) ** 0.5
        state[f"features.{i}.bias"] = torch.randn(fout, generator=g) / 10
    return state


def test_vgg19_reads_either_layout_and_keeps_its_order(tmp_path: Path) -> None:
    state = vgg_state()
    torch.save(state, tmp_path / "vgg19.pth")
    vgg = VGG19(tmp_path / "vgg19.pth")
    save_file(vgg.state_dict(), tmp_path / "vgg19.safetensors")

    x = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected, y = [], x
    for i in range(30):
        if f"features.{i}.weight" in state:
            y = F.conv2d(y, state[f"features.{i}.weight"], state[f"features.{i}.bias"], padding=1)
        elif i in (4, 9, 18, 27):
            y = F.max_pool2d(y, 2)
        else:
            y = y.relu()
            if i in (1, 6, 11, 20, 29):
                expected.append(y)
    torch.testing.assert_close(vgg(x), expected)
    torch.testing.assert_close(VGG19(tmp_path / "vgg19.safetensors")(x), expected)
    assert not any(p.requires_grad for p in vgg.parameters())

    other = vgg(-x)
    means = [(a - b).abs().mean() for a, b in zip(expected, other, strict=True)]
    weighted = means[0] / 32 + means[1] / 16 + means[2] / 8 + means[3] / 4 + means[4]
    torch.testing.assert_close(perceptual(vgg, x, -x), weighted)


def test_vgg19_refuses_another_network(tmp_path: Path) -> None:
    state = vgg_state()
    del state["features.28.bias"]
    torch.save(state, tmp_path / "vgg16.pth")
    with pytest.raises(ValueError, match="vgg16.pth is no VGG19: no layers 28.bias"):
        VGG19(tmp_path / "vgg16.pth")


def test_perceptual_term_is_off_without_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    system = tiny("spade", lambda_vgg=10.0)
    assert caplog.messages == ["spade: vgg_weights names no file, so there is no perceptual term"]
    assert "VGG" not in system.phases[0].loss(system.prepare(batch_of(system)))

    torch.save(vgg_state(), tmp_path / "vgg19.pth")
    system = tiny("spade", lambda_vgg=10.0, vgg_weights=str(tmp_path / "vgg19.pth"))
    assert system.phases[0].loss(system.prepare(batch_of(system)))["VGG"] > 0
    assert not any(key.startswith("fixed") for key in system.nets.state_dict())
