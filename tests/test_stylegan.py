"""StyleGAN2: its layers against the formulas, its training, and what it refuses."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from plain import normal

from i2ifast import models, ops
from i2ifast.models import _stylegan2_ada
from i2ifast.models.stylegan2 import gradient_penalty, path_lengths
from i2ifast.nn import StyledConv, minibatch_std
from i2ifast.nn.flow import correlation, resample2d
from i2ifast.nn.modulated_conv import downsample2d, fir, modulated_conv2d, resampled_conv2d
from i2ifast.nn.stylegan_ada import Conv2dLayer

F4 = fir([1, 3, 3, 1])


@pytest.mark.parametrize("act", ["relu", "selu", "sigmoid"])
def test_activations_that_have_no_case(act):
    x, b = normal(2, 5, 4, 3).double().requires_grad_(), normal(5, seed=1).double().requires_grad_()
    plain = {"relu": F.relu, "selu": F.selu, "sigmoid": torch.sigmoid}[act]
    expected = plain(x + b[:, None, None]) * (math.sqrt(2) if act == "relu" else 1)
    torch.testing.assert_close(ops.bias_act(x, b, act=act), expected)
    assert torch.autograd.gradgradcheck(lambda x, b: ops.bias_act(x, b, act=act), [x, b])


@pytest.mark.parametrize(
    ("shape", "dim"), [((3, 4), 1), ((3, 4, 5), 1), ((3, 4, 5, 6), -1), ((4,), 0), ((2, 3, 4, 5, 6), 2)]
)
def test_a_bias_along_any_dimension(shape, dim):
    x, b = normal(*shape), normal(shape[dim], seed=1)
    along = [-1 if i == dim % len(shape) else 1 for i in range(len(shape))]
    torch.testing.assert_close(ops.bias_act(x, b, dim, act="lrelu", gain=1), F.leaky_relu(x + b.view(along), 0.2))


def test_bias_act_keeps_y_and_not_x_where_that_is_enough():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        x = normal(2, 3, 4, 5).requires_grad_()
        y = ops.bias_act(x, torch.ones(3), act="lrelu")
    assert [t.data_ptr() for t in kept] == [y.data_ptr()]


def test_errors_name_value_and_limit():
    x = normal(1, 3, 4, 4)
    with pytest.raises(ValueError, match="act='gelu': expected one of linear, relu"):
        ops.bias_act(x, act="gelu")
    with pytest.raises(ValueError, match=r"b has shape \[4\], expected \[3\]"):
        ops.bias_act(x, torch.ones(4))
    with pytest.raises(ValueError, match="clamp=-1"):
        ops.bias_act(x, clamp=-1)
    with pytest.raises(
        ValueError, match=r"x of 4x4 pixels, padded by \[-1, -1, -1, -1\]: smaller than the filter \[4, 4\]"
    ):
        ops.upfirdn2d(x, F4, padding=-1)
    with pytest.raises(ValueError, match="down=0: expected a number of at least 1"):
        ops.upfirdn2d(x, F4, down=0)
    with pytest.raises(ValueError, match="kernel_size=2: expected an odd number"):
        correlation(x, x, kernel_size=2)
    with pytest.raises(ValueError, match=r"flow has shape \[1, 3, 4, 4\], expected \[1, 2, H, W\]"):
        resample2d(x, x)
    with pytest.raises(ValueError, match="size 48: expected a power of 2"):
        models.build("stylegan2", "tiny", size=48)


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("k", [1, 3])
def test_resampled_convolution_skips_nothing(k, up, down):
    """Filter, convolution and every pixel in between, in float64."""
    x, weight, f = normal(2, 3, 8, 6).double(), normal(4, 3, k, k, seed=1).double(), F4.double()
    if up == 2:
        zeros = x.new_zeros(2, 3, 16, 12)
        zeros[:, :, ::2, ::2] = x
        full = F.conv2d(F.pad(zeros, [k - 1] * 4), weight.flip([2, 3]))
        expected = ops.upfirdn2d(full, f, padding=[k // 2 + 2 - (k - 1), k // 2 + 1 - (k - 1)] * 2, gain=4)
    else:
        expected = F.conv2d(ops.upfirdn2d(x, f, padding=[k // 2 + 1] * 4), weight, stride=2)
        expected = F.conv2d(x, weight, padding=k // 2) if down == 1 else expected
    torch.testing.assert_close(resampled_conv2d(x, weight, f, up, down, 4.0 if up == 2 else 1.0), expected)


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution_is_that_of_scaled_weights(up, demodulate):
    x, weight, style = normal(2, 3, 6, 5).double(), normal(4, 3, 3, 3, seed=1).double(), normal(2, 3, seed=2).double()
    noise = normal(2, 1, 6 * up, 5 * up, seed=3).double()
    rows = []
    for xi, si in zip(x, style, strict=True):
        own = weight * si[:, None, None]
        own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt() if demodulate else own
        rows.append(resampled_conv2d(xi[None], own, F4.double(), up, gain=up**2))
    y = modulated_conv2d(x, weight, style, noise, demodulate, F4.double(), up, gain=up**2)
    torch.testing.assert_close(y, torch.cat(rows) + noise)


def test_downsampling_keeps_constants():
    torch.testing.assert_close(downsample2d(torch.ones(1, 2, 8, 8), F4)[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))


def test_standard_deviations_are_of_strided_groups():
    x = normal(8, 6, 2, 2).double()
    groups = x.view(4, 2, 2, 3, 2, 2)
    expected = (groups.var(0, correction=0) + 1e-8).sqrt().mean((2, 3, 4))  # [2 groups, 2 features]
    torch.testing.assert_close(minibatch_std(x, 4, 2)[:, 6:, 0, 0], expected.repeat(4, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampling_along_a_flow_is_exact_at_pixels(dtype):
    """Of images wider than the halves' integers, too; outside there is the border."""
    image = torch.arange(600.0).view(1, 1, 1, 600).to(dtype).expand(1, 2, 3, 600)
    flow = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 3, 600)
    y = resample2d(image, flow.to(dtype))
    assert y.dtype is dtype and torch.allclose(y[..., :-1], image[..., 1:], rtol=1e-5) and y[0, 0, 0, -1] == image.max()


def test_correlation_is_its_definition():
    a, b = normal(1, 3, 6, 7).double(), normal(1, 3, 6, 7, seed=1).double()
    y = correlation(a, b, 4, 1, 4, 1, 2)
    assert y.shape == (1, 25, 6, 7)
    padded = F.pad(b, [4] * 4)
    for i, (dy, dx) in enumerate((dy, dx) for dy in range(-4, 5, 2) for dx in range(-4, 5, 2)):
        shifted = padded[:, :, 4 + dy : 10 + dy, 4 + dx : 11 + dx]
        torch.testing.assert_close(y[:, i], (a * shifted).mean(1))
    assert torch.autograd.gradcheck(
        lambda a, b: correlation(a, b, 2, 3, 2, 2, 1), [a.requires_grad_(), b.requires_grad_()], fast_mode=True
    )


@pytest.mark.parametrize("upsample", [False, True])
def test_layers_compile_into_one_graph(upsample):
    torch.compiler.reset()
    torch.manual_seed(0)
    layer, x, style, noise = StyledConv(3, 4, 3, 5, upsample), normal(2, 3, 6, 5), normal(2, 5), normal(2, 1, 12, 10)
    noise = noise if upsample else noise[..., :6, :5]
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager", dynamic=False)
    (y, found), (expected, gradients) = (
        (y := net(x, style, noise), torch.autograd.grad(y.square().sum(), list(net.parameters())))
        for net in (compiled, layer)
    )
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("of_d", ["orig", "skip", "resnet"])
@pytest.mark.parametrize("of_g", ["orig", "skip", "resnet"])
def test_architectures_of_ada(of_g, of_d):
    torch.manual_seed(0)
    sizes = {"img_resolution": 16, "img_channels": 3, "channel_base": 64, "channel_max": 8, "conv_clamp": 256}
    generator = _stylegan2_ada.Generator(6, 4, 5, num_layers=2, architecture=of_g, **sizes)
    discriminator = _stylegan2_ada.Discriminator(4, architecture=of_d, mapping_layers=2, **sizes)
    z, c = normal(4, 6), torch.eye(4)
    images = generator(z, c, truncation_psi=0.7, truncation_cutoff=2)
    logits = discriminator(images, c)
    assert images.shape == (4, 3, 16, 16) and logits.shape == (4, 1) and logits.isfinite().all()
    names = {name.rpartition(".")[0] for name in [*generator.state_dict(), *discriminator.state_dict()]}
    assert ("synthesis.b8.torgb" in names) == (of_g == "skip") and "synthesis.b16.torgb" in names
    assert ("synthesis.b8.skip" in names) == (of_g == "resnet") and ("b8.skip" in names) == (of_d == "resnet")
    assert ("b8.fromrgb" in names) == ("b4.fromrgb" in names) == (of_d == "skip") and "b16.fromrgb" in names
    assert generator.mapping.w_avg.any() and all(p.grad is None for p in generator.parameters())
    logits.sum().backward()
    unused = {name for name, p in generator.named_parameters() if p.grad is None}
    assert not unused


def test_clamps_of_ada_scale_with_the_gain():
    layer = Conv2dLayer(3, 4, 1, activation="lrelu", conv_clamp=0.5)
    y = layer(100 * normal(2, 3, 4, 4), gain=2.0)
    assert y.max() == 1 and y.min() == -1


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(0)
    system = models.build("stylegan2", "tiny")
    system.init_weights()
    return system


def test_lazy_phases_share_an_optimizer_with_their_own(system):
    from i2ifast._state import State

    state = State(system, 0.999)
    optimizers = state.optimizers
    assert optimizers["D"] is optimizers["D_reg"] and optimizers["G"] is optimizers["G_path"]
    assert [group["lr"] for group in optimizers["G"].param_groups] == [0.002 * 2 / 3]


def test_training_goes_on_from_its_state(system):
    from i2ifast._state import State

    system.mean_path_length.fill_(3.5)
    kept = {name: t.clone() for name, t in State(system, 0.999).tensors().items()}
    other = State(models.build("stylegan2", "tiny"), 0.999)
    other.load(kept, {"step": 1, "epoch": 1, "seen": 0})
    assert other.system.mean_path_length == 3.5 and not any("D_reg" in name for name in kept)
    system.mean_path_length.zero_()


def test_every_phase_has_finite_terms_and_gradients(system):
    batch = system.prepare({"image": normal(4, 3, 32, 32)})
    for phase in system.phases:
        system.freeze_all_but(phase)
        system.zero_grad()
        terms = phase.loss(batch)
        assert all(term.isfinite() for term in terms.values())
        sum(terms.values()).backward()
        trained = {name for name, p in system.nets.named_parameters() if p.grad is not None}
        assert {name.split(".")[0] for name in trained} == set(phase.nets)
        assert all(p.grad.isfinite().all() for p in system.nets.parameters() if p.grad is not None)
    assert system.mean_path_length > 0


def test_penalties_are_their_definitions():
    x = normal(3, 2, 4, 4).double().requires_grad_()
    torch.testing.assert_close(gradient_penalty((x**2).sum((1, 2, 3)), x), (2 * x).square().sum((1, 2, 3)).mean())
    w, noise = normal(3, 5, 7, seed=1).double().requires_grad_(), normal(3, 2, 4, 4, seed=2).double()
    images = w.sum((1, 2))[:, None, None, None].expand(3, 2, 4, 4)
    expected = (noise.sum((1, 2, 3)) / 4).abs() * math.sqrt(7)
    torch.testing.assert_close(path_lengths(images, w, noise), expected)


def test_translate_is_a_function_of_the_latents(system):
    z = normal(2, 16)
    a, b = (system.translate({"latent": z})["fake"] for _ in range(2))
    assert a.equal(b) and a.shape == (2, 3, 32, 32)
    assert system.translate({"image": torch.zeros(3, 3, 32, 32)})["fake"].shape == (3, 3, 32, 32)


def test_layouts_of_weights_change_no_numbers(system):
    z = normal(2, 16)
    expected = system.translate({"latent": z})["fake"]
    last = copy.deepcopy(system).to(memory_format=torch.channels_last)
    assert last.nets["G"].convs[0].conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert last.nets["G"].state_dict()["convs.0.conv.weight"].shape == (1, 16, 16, 3, 3)
    torch.testing.assert_close(last.translate({"latent": z})["fake"], expected, rtol=1e-4, atol=1e-5)


def test_original_checkpoints(system, tmp_path):
    other = models.build("stylegan2", "tiny")
    nets = {"g_ema": system.nets["G"].state_dict(), "d": system.nets["D"].state_dict()}
    torch.save(nets, tmp_path / "550000.pt")
    other.load_original(tmp_path / "550000.pt")
    z = {"latent": normal(2, 16)}
    assert other.translate(z)["fake"].equal(system.translate(z)["fake"])
