"""SEAN: layers against the published formulation, a loop over samples and regions; the system's own promises."""

import pytest
import torch
import torch.nn.functional as F
from plain import blocks, gradients, normal, one_hot
from torch import Tensor, nn

from i2ifast import labels, models, ops
from i2ifast.data.kinds.labels import LabelDataset, Settings
from i2ifast.models.sean import mix
from i2ifast.nn import ACE, SEANResnetBlock, bake
from i2ifast.nn.styles import region_means

CLASSES, STYLE = 5, 12


class PlainACE(nn.Module):
    """ACE as published, on the parameters of ours."""

    def __init__(self, ace: ACE) -> None:
        super().__init__()
        self.ace = ace

    def style_map(self, segmap: Tensor, styles: Tensor) -> Tensor:
        n, regions, h, w = segmap.shape
        out = torch.zeros(n, styles.size(2), h, w, dtype=styles.dtype)
        for i in range(n):
            for j in range(regions):
                mask = segmap[i, j] != 0
                if mask.any():
                    mu = F.relu(getattr(self.ace, f"fc_mu{j}")(styles[i, j]))
                    out[i] = torch.where(mask, mu[:, None, None], out[i])
        return out

    def forward(self, x, segmap, styles, act="none", upsample=False, noise=None) -> Tensor:
        ace = self.ace
        x = F.interpolate(x, scale_factor=2) if upsample else x
        n, c, h, w = x.shape
        x = x + (noise((n, w, h, 1), x) * ace.noise_var).transpose(1, 3)
        segmap = F.interpolate(segmap, size=(h, w))
        hidden = F.relu(F.conv2d(segmap, *ace.Spade.mlp_shared[0].parameters(), padding=1))
        gamma, beta = (F.conv2d(hidden, m.weight, m.bias, padding=1) for m in (ace.Spade.mlp_gamma, ace.Spade.mlp_beta))
        if ace.use_rgb:
            style = self.style_map(segmap, styles)
            a, b = torch.sigmoid(ace.blending_gamma), torch.sigmoid(ace.blending_beta)
            gamma = a * F.conv2d(style, ace.conv_gamma.weight, ace.conv_gamma.bias, padding=1) + (1 - a) * gamma
            beta = b * F.conv2d(style, ace.conv_beta.weight, ace.conv_beta.bias, padding=1) + (1 - b) * beta
        y = ace.param_free_norm(x) * (1 + gamma) + beta
        return y if act == "none" else F.leaky_relu(y, act)


class Draws:
    """The same noise for everyone who asks for it first, second, ..."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, shape, like: Tensor) -> Tensor:
        self.shapes.append(tuple(shape))
        return normal(*shape, seed=7 + len(self.shapes), dtype=like.dtype)


def ace(channels: int = 6, use_rgb: bool = True, classes: int = CLASSES) -> ACE:
    torch.manual_seed(0)
    params = ["spadesyncbatch3x3", channels, classes]
    layer = ACE("spadesyncbatch3x3", channels, 3, "ACE", "train", params, use_rgb, 8, STYLE)
    with torch.no_grad():
        for p in (layer.noise_var, layer.blending_gamma, layer.blending_beta):
            nn.init.normal_(p)
    return layer


def compare(layer: ACE, x: Tensor, seg, dense: Tensor, styles: Tensor, **options) -> None:
    """Output, all gradients (also of styles) and buffers, in float64."""
    layer = layer.double()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    ours, plain = styles.clone().requires_grad_(), styles.clone().requires_grad_()
    found = gradients(layer, x, seg, ours, noise=Draws(), **options)
    layer.load_state_dict(before)
    expected = gradients(PlainACE(layer), x, dense, plain, noise=Draws(), **options)
    expected = {k.replace("ace.", "", 1): v for k, v in expected.items()}
    for name, value in expected.items():
        got = found[name]
        if value is None:  # of regions that are nowhere, and of what is not used
            assert got is None or not got.any(), name
            continue
        torch.testing.assert_close(got, value, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    if layer.use_rgb:
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-8, atol=1e-9)


def styles_of(n: int, classes: int = CLASSES) -> Tensor:
    styles = normal(n, classes, STYLE, seed=3, dtype=torch.float64)
    styles[0, 1] = 0  # a region that the image of the style does not have
    return styles


@pytest.mark.parametrize("given", ["plan", "map", "map with gradient", "soft map", "small"])
@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("use_rgb", [True, False])
def test_ace_is_the_published_layer(given: str, upsample: bool, use_rgb: bool) -> None:
    size = (6, 4) if given == "small" else (24, 16)  # there tables do not pay
    maps = blocks(2, *size, CLASSES - 1)  # the last class is nowhere
    dense = one_hot(maps, CLASSES).double()
    x = normal(2, 6, *(s // 2 if upsample else s for s in size), dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last)
    if given == "soft map":
        dense = dense * (0.5 + normal(2, 1, *size, seed=9, dtype=torch.float64).abs())
    if given == "map with gradient":
        dense.requires_grad_()
    seg = labels.plan(maps, CLASSES) if given in ("plan", "small") else dense
    compare(ace(use_rgb=use_rgb), x, seg, dense, styles_of(2), act=0.2, upsample=upsample)


def test_ace_of_maps_with_edges_and_unknown_pixels() -> None:
    """Later channels overwrite: the edge channel is a class; pixels of no class have no style."""
    maps = blocks(2, 24, 16, CLASSES)
    instances = blocks(2, 24, 16, 9, cell=5)
    plan = labels.plan(maps, CLASSES - 1, instances=instances, ignore_index=CLASSES - 1)
    compare(ace(), normal(2, 6, 24, 16, dtype=torch.float64), plan, plan.dense().double(), styles_of(2))


def test_ace_of_an_eval_mode_and_of_larger_label_maps() -> None:
    maps = blocks(1, 48, 64, CLASSES)
    seg = one_hot(maps, CLASSES).double()
    compare(ace().eval(), normal(1, 6, 24, 32, dtype=torch.float64), seg, seg, styles_of(1))


@pytest.mark.parametrize("learned", [True, False])
def test_block(learned: bool) -> None:
    """conv_s(ace_s) draws first, then ace_0, then ace_1."""
    torch.manual_seed(0)
    block = SEANResnetBlock(6, 4 if learned else 6, "spectralspadesyncbatch3x3", CLASSES, True, 8, STYLE).double()
    maps = blocks(2, 24, 16, CLASSES)
    x, styles, noise = normal(2, 6, 12, 8, dtype=torch.float64), styles_of(2), Draws()
    found = block.eval()(x, labels.plan(maps, CLASSES), styles, noise, True)
    assert noise.shapes == [(2, 16, 24, 1)] * (3 if learned else 2)

    seg, draws = one_hot(maps, CLASSES).double(), Draws()
    x = F.interpolate(x, scale_factor=2)
    shortcut = block.conv_s(PlainACE(block.ace_s)(x, seg, styles, noise=draws)) if learned else x
    h = block.conv_0(PlainACE(block.ace_0)(x, seg, styles, 0.2, noise=draws))
    expected = shortcut + block.conv_1(PlainACE(block.ace_1)(h, seg, styles, 0.2, noise=draws))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("use_rgb", [True, False])
@pytest.mark.parametrize("size", [(24, 16), (6, 4)])
def test_bake(size: tuple[int, int], use_rgb: bool) -> None:
    torch.manual_seed(0)
    block = SEANResnetBlock(6, 4, "spectralspadesyncbatch3x3", CLASSES, use_rgb, 8, STYLE)
    with torch.no_grad():
        for layer in (block.ace_0, block.ace_1, block.ace_s):
            nn.init.normal_(layer.noise_var)
            nn.init.normal_(layer.blending_beta)
        plan = labels.plan(blocks(2, *size, CLASSES), CLASSES)
        x, styles = normal(2, 6, *size), styles_of(2).float()
        for _ in range(3):  # in training spectral norms find their weights' size
            block(x, plan, styles)
        expected = block.eval()(x, plan, styles, noise=Draws())
        baked = bake(block)
        for _ in range(2):
            torch.testing.assert_close(baked(x, plan, styles, noise=Draws()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_images(dtype: torch.dtype) -> None:
    layer, maps = ace(), blocks(2, 24, 16, CLASSES)
    x, styles = normal(2, 6, 24, 16), styles_of(2).float()
    y = layer.eval()(x.to(dtype), labels.plan(maps, CLASSES), styles, noise=Draws())
    assert y.dtype is dtype
    torch.testing.assert_close(
        y.float(), layer(x, labels.plan(maps, CLASSES), styles, noise=Draws()), rtol=0.05, atol=0.1
    )


def test_refusals() -> None:
    with pytest.raises(ValueError, match="20 regions, spadesyncbatch3x3: expected at most 19"):
        ace(classes=20)
    layer = ace()
    with pytest.raises(ValueError, match="styles of 3 regions, expected 5"):
        layer(normal(1, 6, 8, 8), labels.plan(blocks(1, 8, 8, CLASSES), CLASSES), styles_of(1, 3).float())
    x, noise = normal(1, 6, 8, 8), {"noise": normal(1, 8, 8), "strength": normal(6)}
    patches = torch.zeros(1, 8, 8, dtype=torch.int32)
    with pytest.raises(ValueError, match="noise goes with strength, and with neither act2 nor scales"):
        ops.modulate_table(x, normal(1, 12), patches, scales=normal(1, 2, 8, 8), **noise)


@pytest.mark.parametrize("given", ["plan", "separate plan", "map"])
def test_region_means(given: str) -> None:
    maps = blocks(2, 16, 12, CLASSES - 1)
    seg = one_hot(maps, CLASSES)
    seg[1, 0] = 0
    x = normal(2, 7, 8, 6).requires_grad_()
    plan = labels.plan_dense(seg)
    codes = region_means(x, {"plan": plan, "separate plan": plan.per_sample(), "map": seg}[given])
    small = F.interpolate(seg, size=(8, 6))
    for i in range(2):
        for j in range(CLASSES):
            inside = x[i][:, small[i, j] != 0]
            expected = inside.mean(1) if inside.numel() else torch.zeros(7)
            torch.testing.assert_close(codes[i, j], expected, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(codes.sum(), x)[0].isfinite().all()


def test_mix_gives_regions_the_style_of_another_image() -> None:
    a, b = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    mixed = mix(a, b, torch.tensor([0.0, 1.0, 0.25]))
    torch.testing.assert_close(mixed, torch.stack([a[:, 0], b[:, 1], 0.75 * a[:, 2] + 0.25 * b[:, 2]], 1))
    torch.testing.assert_close(mix(a, b, 0.5), (a + b) / 2)


def tiny() -> models.System:
    torch.manual_seed(0)
    system = models.build("sean", "tiny")
    system.init_weights()
    with torch.no_grad():
        for p in system.nets["G"].parameters():
            p.mul_(4)  # so that images differ
    return system.eval()


def batch(system: models.System, size: tuple[int, int] = (64, 64)) -> dict[str, Tensor]:
    maps = blocks(2, *size, system.config.label_nc, cell=8)[:, None]
    return {"label": maps, "image": normal(2, 3, *size).clamp(-1, 1)}


@pytest.mark.parametrize("dense", [False, True])
def test_autocast_trains(dense: bool) -> None:
    system = tiny().train()
    given = system.prepare(batch(system))
    if dense:
        given["semantics"] = given["semantics"].dense().clone().requires_grad_()
    before = {key: value.clone() for key, value in system.state_dict().items()}
    expected = system.phases[0].loss(given)
    system.load_state_dict(before)
    with torch.autocast("cpu", torch.bfloat16):
        terms = system.phases[0].loss(given)
    sum(terms.values()).backward()
    for name, term in terms.items():
        torch.testing.assert_close(term.float(), expected[name], rtol=0.1, atol=0.1)
    assert all(p.grad.isfinite().all() for p in system.nets["G"].parameters() if p.grad is not None)


def test_translate_in_given_styles() -> None:
    system = tiny()
    given = batch(system)
    styles = system.codes(given)
    assert styles.shape == (2, system.config.label_nc, system.config.style_length)
    expected = system.translate(given)["fake"]
    torch.testing.assert_close(system.translate({"label": given["label"], "styles": styles})["fake"], expected)
    other = system.translate({**given, "styles": mix(styles, styles.flip(0), 1.0)})["fake"]
    assert not torch.allclose(other, expected)


def test_a_baked_generator_translates_alike() -> None:
    system = tiny()
    given = batch(system, (50, 70))
    expected = system.translate(given)["fake"]
    system.nets["G"] = bake(system.nets["G"])
    torch.testing.assert_close(system.translate(given)["fake"], expected, rtol=1e-4, atol=1e-5)


def test_loader_workers_keep_samples_apart() -> None:
    system = tiny()
    items = [{"label": maps, "path": "map.png"} for maps in batch(system)["label"]]
    plan = LabelDataset([], Settings.of(system)).collate(items)["plan"]
    assert plan.separate and {size for size, _ in plan.levels} == set(system.plan_sizes)
    assert system.prepare({"plan": plan})["semantics"] is plan


def test_all_noise_is_the_systems() -> None:
    system, drawn = tiny(), Draws()
    system.randn = drawn
    system.translate(batch(system))
    assert len(drawn.shapes) == 18 and drawn.shapes[0] == (2, 2, 2, 1) and drawn.shapes[-1] == (2, 64, 64, 1)


def test_networks_of_the_original_alone() -> None:
    with pytest.raises(ValueError, match="networks that the original does not have"):
        models.build("sean", "tiny", num_upsampling_layers="most", crop_size=256)
