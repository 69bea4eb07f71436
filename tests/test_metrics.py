"""Scores of images and features against their formulas, written out in NumPy's float64, and against other libraries
where those are installed."""

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

from i2ifast import metrics
from i2ifast.metrics.inception import Branches, Inception, block_e, tensorflow_resize
from i2ifast.metrics.labels import UNKNOWN
from i2ifast.metrics.swd import laplacian_pyramid
from i2ifast.nn.vgg import positions_of


def images(count: int, height: int = 24, width: int = 32, seed: int = 0) -> Tensor:
    """Smooth noise, uint8."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, height // 4, width // 4, generator=draw)
    fine = torch.rand(count, 3, height, width, generator=draw)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (255 * (0.8 * smooth + 0.2 * fine)).round().byte()


def features(count: int, size: int = 16, seed: int = 0, shift: float = 0.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=torch.Generator().manual_seed(9)) / size**0.5
    return torch.randn(count, size, generator=draw) @ mix + shift


def array(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


def plain_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Of two planes: biased moments under Gaussian weights of 11x11 pixels, where those fit."""
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights = np.outer(taps, taps) / taps.sum() ** 2

    def mean(values: np.ndarray) -> np.ndarray:
        return (sliding_window_view(values, (11, 11)) * weights).sum((2, 3))

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def test_ssim():
    x, y = images(3), images(3, seed=1)
    y[0] = x[0]
    planes = zip(array(x).reshape(-1, 24, 32), array(y).reshape(-1, 24, 32), strict=True)
    expected = np.reshape([plain_ssim(a, b) for a, b in planes], (3, 3)).mean(1)
    assert metrics.ssim(x, y).tolist() == pytest.approx(expected, abs=1e-9)
    assert expected[0] == pytest.approx(1) and expected[1] < 0.9
    with pytest.raises(ValueError, match="32x10: SSIM takes at least 11"):
        metrics.ssim(x[:, :, :10], y[:, :, :10])


def test_psnr_and_squared_error():
    x, y = images(3), images(3, seed=1)
    squared = ((array(x) - array(y)) ** 2).mean((1, 2, 3))
    assert metrics.psnr(x, y).tolist() == pytest.approx(10 * np.log10(255**2 / squared), abs=1e-5)
    assert metrics.squared_error(x, y).tolist() == pytest.approx(squared, rel=1e-12)
    assert metrics.psnr(x, x).isposinf().all()


def test_pairs_agree_with_scikit_image():
    skimage = pytest.importorskip("skimage.metrics")
    x, y = images(1)[0].permute(1, 2, 0).numpy(), images(1, seed=1)[0].permute(1, 2, 0).numpy()
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    ssim = skimage.structural_similarity(x, y, channel_axis=2, **options)
    assert metrics.ssim(images(1), images(1, seed=1)).item() == pytest.approx(ssim, abs=1e-5)
    psnr = skimage.peak_signal_noise_ratio(x, y, data_range=255)
    assert metrics.psnr(images(1), images(1, seed=1)).item() == pytest.approx(psnr, abs=1e-5)


def test_domain_invariant_distance():
    def network(x: Tensor) -> list[Tensor]:
        return [x, x.double() ** 2]

    x, y = (t.double() / 255 for t in (images(2), images(2, seed=1)))
    a, b = (array(t) ** 2 for t in (x, y))
    a, b = (
        (t - t.mean((2, 3), keepdims=True)) / np.sqrt(t.var((2, 3), keepdims=True) + 1e-5) for t in (a, b)
    )  # eps of instance norm
    found = metrics.domain_invariant_distance(network, x, y)
    assert found.tolist() == pytest.approx(((a - b) ** 2).mean((1, 2, 3)), rel=1e-9)


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


@pytest.mark.parametrize("count", [60, 10], ids=["more images than features", "fewer"])
def test_frechet_distance(count):
    x, y = features(count), features(count + 3, seed=1, shift=0.5)
    a, b = (np.cov(array(t), rowvar=False) for t in (x, y))
    middle = root(root(a) @ b @ root(a))
    expected = ((array(x).mean(0) - array(y).mean(0)) ** 2).sum() + np.trace(a + b - 2 * middle)
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, abs=1e-5)
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="1 and 60 images|1 and 10 images"):
        metrics.frechet_distance(x[:1], x)


def plain_kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Mean of k over different pairs of each set, less twice that over pairs across."""
    size = len(x)
    kxx, kyy, kxy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    off = ~np.eye(size, dtype=bool)
    return kxx[off].mean() + kyy[off].mean() - 2 * kxy.mean()


def test_kernel_distance():
    x, y = features(30), features(40, seed=1, shift=0.5)
    draw = np.random.RandomState(2020)
    parts = [
        [array(t)[draw.choice(len(t), 20, replace=False)] for t in (x, y)] for _ in range(5)
    ]  # as torch-fidelity draws them
    expected = [plain_kernel_distance(*part) for part in parts]
    mean, deviation = metrics.kernel_distance(x, y, subsets=5, subset_size=20)
    assert mean == pytest.approx(np.mean(expected), rel=1e-9) and deviation == pytest.approx(np.std(expected), rel=1e-9)
    with pytest.raises(ValueError, match="kid_subset_size 31: expected 2 to 30"):
        metrics.kernel_distance(x, y, subset_size=31)


def test_inception_score():
    logits = 2 * features(23)
    p = np.exp(array(logits))[np.random.RandomState(2020).permutation(23)]
    p /= p.sum(1, keepdims=True)
    parts = [p[23 * i // 4 : 23 * (i + 1) // 4] for i in range(4)]
    expected = [np.exp((part * np.log(part / part.mean(0))).sum(1).mean()) for part in parts]
    mean, deviation = metrics.inception_score(logits, splits=4)
    assert mean == pytest.approx(np.mean(expected), rel=1e-9) and deviation == pytest.approx(np.std(expected), rel=1e-9)
    with pytest.raises(ValueError, match="23 images for 24 splits"):
        metrics.inception_score(logits, splits=24)


def test_sets_agree_with_torch_fidelity():
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = features(60), features(60, seed=1, shift=0.5)
    fid = fid_statistics_to_metric(*map(fid_features_to_statistics, (x, y)), verbose=False)
    assert metrics.frechet_distance(x, y) == pytest.approx(fid["frechet_inception_distance"], abs=1e-3)
    kid = kid_features_to_metric(x, y, kid_subsets=5, kid_subset_size=20, verbose=False)
    assert metrics.kernel_distance(x, y, 5, 20) == pytest.approx(tuple(kid.values()), abs=1e-3)
    assert metrics.inception_score(x) == pytest.approx(tuple(isc_features_to_metric(x).values()), abs=1e-3)


def test_neighbours():
    fake, real = features(30, 4, seed=1), features(25, 4)

    def distance(x: Tensor, y: Tensor) -> np.ndarray:
        return np.sqrt(((array(x)[:, None] - array(y)[None]) ** 2).sum(2))

    k, across = 3, distance(real, fake)
    reach_fake, reach_real = (np.sort(distance(x, x), 1)[:, k] for x in (fake, real))
    inside = across < reach_real[:, None]
    assert metrics.neighbours(fake, real, k) == pytest.approx(
        {
            "precision": inside.any(0).mean(),
            "recall": (across < reach_fake).any(1).mean(),
            "density": inside.sum(0).mean() / k,
            "coverage": (across.min(1) < reach_real).mean(),
        }
    )
    assert metrics.neighbours(real, real, k)["coverage"] == 1
    with pytest.raises(ValueError, match="3 and 25 images: expected more than nearest_k = 3"):
        metrics.neighbours(fake[:3], real, k)


def test_laplacian_pyramid():
    x = images(2, 35, 64).double()
    levels = laplacian_pyramid(x)
    assert [tuple(level.shape[2:]) for level in levels] == [(35, 64), (18, 32)]
    taps = np.array([1, 4, 6, 4, 1]) / 16
    weights = np.outer(taps, taps)

    def blur(values: np.ndarray) -> np.ndarray:
        padded = np.pad(values, [(0, 0), (0, 0), (2, 2), (2, 2)], mode="reflect")
        return (sliding_window_view(padded, (5, 5), axis=(2, 3)) * weights).sum((4, 5))

    half = blur(array(x))[:, :, ::2, ::2]
    spread = np.zeros(x.shape)
    spread[:, :, ::2, ::2] = half
    assert np.allclose(array(levels[1]), half) and np.allclose(array(levels[0]), array(x) - 4 * blur(spread))


def test_sliced_wasserstein():
    x, y = (metrics.patch_descriptors(images(6, 32, 64, seed), 0, seed) for seed in (0, 1))
    assert list(x) == ["64x32", "32x16"] and x["64x32"].shape == (6, 128, 3, 7, 7)
    one, other = x["64x32"], 1.5 * y["64x32"] ** 3
    distance = metrics.sliced_wasserstein(one, other)
    assert metrics.sliced_wasserstein(one, one) == 0 < metrics.sliced_wasserstein(one, y["64x32"]) < distance
    assert metrics.sliced_wasserstein(3 * one + 5, other) == pytest.approx(distance, rel=1e-4)  # normalised
    assert metrics.sliced_wasserstein(one[:4], other) == metrics.sliced_wasserstein(one[:4], other[:4])
    # The distance of normal distributions in 1 + 146 dimensions, of deviation 1 in all but one, to themselves is small.
    noise = [torch.randn(40, 128, 3, 7, 7, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    assert metrics.sliced_wasserstein(*noise) < 30
    again = metrics.patch_descriptors(images(6, 32, 64)[4:], 4, 0)
    assert (again["32x16"] == x["32x16"][4:]).all()  # the same places, whoever has the images


def plain_resize(plane: np.ndarray, side: int) -> np.ndarray:
    """Bilinear between the pixels at i * size / side and after it."""
    found = np.empty((side, side))
    for i in range(side):
        for j in range(side):
            (top, y), (left, x) = ((int(at), at % 1) for at in (i * len(plane) / side, j * plane.shape[1] / side))
            low, right = min(top + 1, len(plane) - 1), min(left + 1, plane.shape[1] - 1)
            above = plane[top, left] * (1 - x) + plane[top, right] * x
            below = plane[low, left] * (1 - x) + plane[low, right] * x
            found[i, j] = above * (1 - y) + below * y
    return found


def test_tensorflow_resize():
    x = images(1, 12, 8).double()
    for side in (5, 17):
        found = tensorflow_resize(x, side)[0]
        assert np.allclose(array(found), np.stack([plain_resize(plane, side) for plane in array(x[0])]))


def test_inception_is_the_published_network(tmp_path):
    torch.manual_seed(0)
    network = Inception()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.05, 0.2)
    state = network.state_dict()
    assert sum(p.numel() for p in network.parameters()) == 23_850_960  # torchvision's without side output, 1008 classes
    assert sum(key.endswith(".conv.weight") for key in state) == 94
    for name, shape in {
        "Mixed_5b.branch_pool.conv": (32, 192, 1, 1),
        "Mixed_6b.branch7x7dbl_3.conv": (128, 128, 1, 7),
        "Mixed_6e.branch7x7_3.conv": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv": (192, 192, 3, 3),
        "Mixed_7c.branch3x3dbl_3b.conv": (384, 384, 3, 1),
        "fc": (1008, 2048),
    }.items():
        assert state[f"{name}.weight"].shape == shape
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, tmp_path / "inception.pth")
    loaded = metrics.inception(tmp_path / "inception.pth")
    sizes = []
    loaded.Mixed_5d.register_forward_hook(lambda module, args, output: sizes.append(output.shape[1:]))
    loaded.Mixed_6e.register_forward_hook(lambda module, args, output: sizes.append(output.shape[1:]))
    loaded.Mixed_7c.register_forward_hook(lambda module, args, output: sizes.append(output.shape[1:]))
    found, logits = loaded(images(1))
    assert torch.allclose(found, network.eval()(images(1))[0], rtol=1e-3)  # not folded
    assert sizes == [(288, 35, 35), (768, 17, 17), (2048, 8, 8)]
    assert torch.allclose(logits, found @ state["fc.weight"].T) and found.shape == (1, 2048)

    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: not the FID Inception"):
        metrics.inception(tmp_path / "other.pth")


@pytest.mark.parametrize("pooling", ["average", "maximum"])
def test_inception_block_is_its_plain_formulation(pooling):
    torch.manual_seed(0)
    block = Branches(8, block_e(pooling)).eval()
    x = torch.randn(1, 8, 5, 5)
    if pooling == "average":
        pooled = nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    else:
        pooled = nn.functional.max_pool2d(x, 3, 1, 1)
    three, twice = block.branch3x3_1(x), block.branch3x3dbl_2(block.branch3x3dbl_1(x))
    parts = [block.branch1x1(x), block.branch3x3_2a(three), block.branch3x3_2b(three)]
    parts += [block.branch3x3dbl_3a(twice), block.branch3x3dbl_3b(twice), block.branch_pool(pooled)]
    assert torch.equal(block(x), torch.cat(parts, 1))


class FeaturesOnly(nn.Module):
    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        return x.float().mean((2, 3)) if return_features else torch.zeros(len(x), 1)


def test_inception_reads_torchscript(tmp_path):
    torch.jit.script(FeaturesOnly()).save(tmp_path / "features.pt")
    assert metrics.is_torchscript(tmp_path / "features.pt")
    found, logits = metrics.inception(tmp_path / "features.pt")(images(2))
    assert torch.equal(found, images(2).float().mean((2, 3))) and logits is None


def convolutions(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the convolutions of torchvision's networks."""
    if name == "alex":
        return {"0": (64, 3, 11, 11), "3": (192, 64, 5, 5), "6": (384, 192, 3, 3), "8": (256, 384, 3, 3)} | {
            "10": (256, 256, 3, 3)
        }
    shapes, inputs = {}, 3
    for number, conv in positions_of(16).items():
        outputs = {"1": 64, "2": 128, "3": 256, "4": 512, "5": 512}[conv[4]]
        shapes[str(number)], inputs = (outputs, inputs, 3, 3), outputs
    return shapes


def stacked(name: str, state: dict[str, Tensor]) -> nn.Sequential:
    """torchvision's `features` of AlexNet or VGG16."""
    layers: list[nn.Module] = []
    pools = {"alex": (2, 5, 12), "vgg": (4, 9, 16, 23, 30)}[name]
    for number in range(pools[-1] + 1):
        if number in pools:
            layers.append(nn.MaxPool2d(*{"alex": (3, 2), "vgg": (2, 2)}[name]))
        elif f"features.{number}.weight" in state:
            weight = state[f"features.{number}.weight"]
            step = {11: {"stride": 4, "padding": 2}, 5: {"padding": 2}, 3: {"padding": 1}}[weight.shape[2]]
            layers.append(nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], **step))
            layers[-1].load_state_dict({"weight": weight, "bias": state[f"features.{number}.bias"]})
        else:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


@pytest.mark.parametrize("name", ["alex", "vgg"])
def test_lpips_is_torchmetrics(name, tmp_path, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    state = {}
    for number, shape in convolutions(name).items():
        scale = (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        state[f"features.{number}.weight"] = scale * torch.randn(shape, generator=draw)
        state[f"features.{number}.bias"] = 0.1 * torch.randn(shape[0], generator=draw)
    torch.save(state, tmp_path / "net.pth")
    theirs = torchmetrics.functional.image.lpips
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained: stacked(name, state))
    x, y = (t / 127.5 - 1 for t in (images(2, 64, 72), images(2, 64, 72, seed=1)))
    ours = metrics.LPIPS(tmp_path / "net.pth")
    for spatial in (False, True):
        expected = theirs._LPIPS(net=name, spatial=spatial)(x, y)
        found = ours.maps(x, y) if spatial else ours(x, y)
        assert torch.allclose(found, expected.reshape(found.shape), rtol=1e-4)
    assert (ours(x, x) == 0).all() and (ours(x, y) > 0.01).all()


def test_lpips_refuses_other_networks(tmp_path):
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="net.pth: neither AlexNet nor VGG16"):
        metrics.LPIPS(tmp_path / "net.pth")


class ByBrightness(nn.Module):
    """Class 1 where red is above a half, at half the resolution; class 2 nowhere."""

    def forward(self, x: Tensor) -> Tensor:
        red = nn.functional.avg_pool2d(x[:, :1], 2)
        return torch.cat([0.5 - red, red - 0.5, red - 9], 1)


def test_scores_of_label_maps():
    x = torch.zeros(1, 3, 4, 8)
    x[..., 4:] = 1
    labels = torch.zeros(1, 4, 8, dtype=torch.long)
    labels[:, :, 4:] = 1
    labels[:, 0] = UNKNOWN
    labels[:, 1, :2] = 1  # two of 24 are wrong
    matrix = metrics.confusion(ByBrightness(), x, labels)
    assert matrix.tolist() == [[10, 0, 0], [2, 12, 0], [0, 0, 0]]
    assert metrics.mean_iou(matrix) == pytest.approx((10 / 12 + 12 / 14) / 2)
    assert metrics.pixel_accuracy(matrix) == pytest.approx(22 / 24)
    labels[:, 3] = 3
    with pytest.raises(ValueError, match="label 3: the segmentation network has classes 0 to 2"):
        metrics.confusion(ByBrightness(), x, labels)


def test_inside_and_outside():
    maps = torch.arange(8.0).view(2, 2, 2)
    region = torch.tensor([[[True, False], [False, False]], [[False, False], [False, False]]])
    found = metrics.inside_and_outside(maps, region)
    assert found[:, 0].tolist() == [0, 2] and found[0, 1].isnan() and found[1, 1] == 5.5
