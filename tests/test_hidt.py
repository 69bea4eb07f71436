"""What is special about HiDT and INIT: the distribution of styles, enhancement, styles of objects."""

from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from test_models import batch_of, settled, tiny
from torch import Tensor, nn
from toy import assert_same

import i2ifast
from i2ifast.data import procedural
from i2ifast.models import build
from i2ifast.models._hidt import UpsampleSkipConv2d
from i2ifast.models.init_i2i import STYLES, background, objects
from i2ifast.train import main


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (7, 20)])
def test_upsampling_within_the_convolution(size: tuple[int, int]) -> None:
    """Outputs and all gradients are those of the convolution of the large map."""
    conv = UpsampleSkipConv2d(6, 2, 5).double()
    found = []
    for backend in ("auto", "reference"):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(2, 6, *size, dtype=torch.float64, generator=g).requires_grad_()
        skip = torch.randn(2, 2, *(2 * side for side in size), dtype=torch.float64, generator=g).requires_grad_()
        with i2ifast.use_backend(backend):
            y = conv(x, skip)
            inputs = (x, skip, conv.weight, conv.bias)
            found.append([y, *torch.autograd.grad(y.sin().sum(), inputs)])
    torch.testing.assert_close(*found)


def test_style_distribution() -> None:
    """Zero for styles of mean 0 and covariance I, of which there are never more than the pool has."""
    system = tiny("hidt", style_encoder_output_dim=2, style_pool=6)
    normal = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]) * (3 / 4) ** 0.5
    assert system.style_distribution(normal).item() == pytest.approx(0, abs=1e-6)
    styles = torch.tensor([[1.0, 2], [3, 2], [2, 5]], requires_grad=True)
    value = system.style_distribution(styles)
    pool = torch.cat([styles, normal[:3]]).detach()
    assert system.styles.equal(pool) and not system.styles.requires_grad
    difference = torch.cov(pool.T) - torch.eye(2)
    expected = pool.mean(0).abs().sum() + difference.abs().sum() + difference.diag().abs().sum()
    torch.testing.assert_close(value.detach(), expected)
    value.backward()
    assert styles.grad.abs().sum() > 0


def test_terms_of_an_auto_encoder_without_loss() -> None:
    """With perfect codes all but the adversarial terms and those of segmentation vanish."""
    system = tiny("hidt", segmentation_dim=0)

    class Codes(nn.Module):
        """Content is the image without its mean, which is the style."""

        def content_encoder(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
            return images - images.mean((2, 3), keepdim=True), []

        def style_encoder(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))

        def decoder(self, content: Tensor, skips: list[Tensor], style: Tensor) -> tuple[Tensor, Tensor]:
            return content + style[..., None, None], content[:, :0]

    system.nets["gen"] = Codes()
    terms = system.generator_loss(system.prepare(batch_of(system)))
    assert {name for name, term in terms.items() if term > 1e-5} == {"adv", "adv_r", "dist"}
    assert {"rec", "rec_cyc", "rec_r", "c", "c_r", "s", "s_r"} < terms.keys()


def test_unknown_classes_count_for_nothing() -> None:
    system = tiny("hidt", contain_dontcare_label=True)
    batch = batch_of(system)
    assert system.config.num_classes == 13
    system.rand = system.randn = lambda shape, like: torch.full(tuple(shape), 0.5)

    def seg(label: Tensor) -> float:
        return system.generator_loss(system.prepare({**batch, "label": label}))["seg"].item()

    unknown = batch["label"].clone()
    unknown[..., 32:, :] = 12
    assert seg(unknown) != seg(batch["label"]) and seg(unknown) < 100


def test_shifted_copies_lie_where_they_are_of() -> None:
    """As enlarged to their places in the image, with -1 around them, and every fourth pixel of that."""
    system = tiny("hidt")
    g = torch.Generator().manual_seed(0)
    images, made = torch.rand(2, 3, 36, 52, generator=g) * 2 - 1, []

    def translate(small: Tensor) -> Tensor:
        made.append(torch.rand(small.shape, generator=g))
        return made[-1]

    found = system.shifted(images, translate)
    for copy, small, (top, left) in zip(found.split(3, 1), made, product(range(4), repeat=2), strict=True):
        place = torch.full((2, 3, 36, 52), -1.0)
        place[..., top : top + 32, left : left + 48] = F.interpolate(small, scale_factor=4)
        assert copy.equal(place[..., ::4, ::4])


@pytest.mark.parametrize("size", [(64, 64), (50, 131)])
def test_enhancement_keeps_any_size(size: tuple[int, int]) -> None:
    system = build("hidt", "tiny_enhanced").eval()
    system.init_weights()
    fake = system.translate(batch_of(system, size))["fake"]
    assert fake.shape == (2, 3, *size) and fake.isfinite().all()


def test_translation_takes_a_style() -> None:
    system = settled("hidt")
    batch = batch_of(system)
    system.rand = lambda shape, like: torch.zeros(tuple(shape))
    style = system.nets["gen"].style_encoder(batch["b"])
    by_image, by_style = (
        system.translate({"a": batch["a"], **given})["fake"] for given in ({"b": batch["b"]}, {"style": style})
    )
    torch.testing.assert_close(by_image, by_style)
    other = system.translate({"a": batch["a"], "style": -style[:1]})["fake"]
    assert (other - by_style).abs().max() > 1e-3


def test_files_of_hidt(tmp_path: Path) -> None:
    """A generator and an enhancer of a folder, saved in parallel or not; more than one, or other files, are refused."""
    source, target = tiny("hidt"), tiny("hidt")
    for parameter in source.nets.parameters():
        nn.init.uniform_(parameter)
    for folder in ("generator", "enhancer"):
        (tmp_path / folder).mkdir()
    state = source.nets["gen"].state_dict()
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "generator/daytime.pt")
    torch.save(source.nets["enhancer"].state_dict(), tmp_path / "enhancer/enhancer.pth")
    target.load_original(tmp_path)
    for name in ("gen", "enhancer"):
        assert_same(target.nets[name].state_dict(), source.nets[name].state_dict())
    begun = tiny("hidt", load_pretrain=str(tmp_path / "generator/daytime.pt"))
    assert_same(begun.nets["gen"].state_dict(), state)
    save_file({f"nets.{key}": value for key, value in source.nets.state_dict().items()}, tmp_path / "ours.safetensors")
    begun = tiny("hidt", load_pretrain=str(tmp_path / "ours.safetensors"))
    assert_same(begun.nets.state_dict(), source.nets.state_dict())
    torch.save(dict(list(state.items())[1:]), tmp_path / "generator/wikiart.pt")
    with pytest.raises(ValueError, match="expected one generator .pt, and at most one enhancer .pth; found generator"):
        target.load_original(tmp_path)
    with pytest.raises(
        ValueError, match="wikiart.pt does not fit .*no content_encoder.model_preparation.0.conv.weight"
    ):
        target.load_original(tmp_path / "generator/wikiart.pt")
    with pytest.raises(ValueError, match="ours.safetensors: expected a generator .pt or an enhancer .pth"):
        target.load_original(tmp_path / "ours.safetensors")


def test_options_that_hidt_refuses() -> None:
    for options, message in (
        ({"stage": "both"}, "stage 'both': expected one of generator, enhancer"),
        ({"content_encoder_dim": 4}, "content_encoder_dim 4: skip connections take 5 of them"),
        ({"style_pool": 1}, "style_pool 1: a distribution takes at least 2 styles"),
        ({"stage": "enhancer"}, "crop_size 64: an enhancer learns from at least 132, for its copies to have 32 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny("hidt", **options)
    content = {"dim": 8, "num_blocks": 1, "num_downsamples": 3}
    decoder = {"output_data": {"images": {"dim": 3}}, "adain_net": {"dim": 8}, "num_blocks": 1}
    modules = {"content_encoder": content, "style_encoder": {"dim": 8}, "decoder": decoder}
    with pytest.raises(ValueError, match="num_downsamples 3 of content_encoder: only 2 is supported"):
        type(tiny("hidt")).Config.from_original({"gen": {"modules": modules}})


@pytest.mark.parametrize(("name", "preset"), [("hidt", "tiny_enhanced"), ("init_i2i", "tiny")])
def test_they_train_on_unpaired_photographs(tmp_path: Path, name: str, preset: str) -> None:
    procedural.write(tmp_path / "data", 2, 140, kind="unpaired")
    where = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--steps", "2", "--workers", "0"]
    main([name, "--preset", preset, *where])
    assert (tmp_path / "run/samples/00000002.png").exists()


BOXES = torch.tensor([[[8, 16, 40, 48], [0, 0, 0, 0]], [[0, 0, 64, 64], [10, 20, 42, 52]]])  # the second is none


def test_objects_and_backgrounds() -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found, owner = objects(images, BOXES, 32)
    assert owner.tolist() == [0, 1, 1]
    torch.testing.assert_close(found[0], images[0, :, 16:48, 8:40])
    torch.testing.assert_close(found[1], F.avg_pool2d(images[1], 2))
    torch.testing.assert_close(found[2], images[1, :, 20:52, 10:42])
    left = background(images, BOXES)
    expected = images.clone()
    expected[0, :, 16:48, 8:40] = 0
    expected[1] = 0
    assert left.equal(expected)
    assert objects(images, BOXES[:, :0], 32)[0].shape == (0, 3, 32, 32)
    assert background(images, BOXES[:, :0]).equal(images)


class MeanStyle(nn.Module):
    """Content is the image without its mean, which is the style."""

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean = images.mean((2, 3), keepdim=True)
        return images - mean, mean

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        return content + style


def test_styles_go_from_coarse_to_fine() -> None:
    """What takes a style is an image of it; without loss of the codes all terms but the adversarial ones vanish."""
    system = tiny("init_i2i")
    for name in list(system.nets):
        if name.startswith("gen"):
            system.nets[name] = MeanStyle()
    system.styles = lambda like: (torch.ones(2, 3, 1, 1), -torch.ones(2, 3, 1, 1))
    seen = {}
    judged = system.there_and_back

    def record(name: str, side: str, other: str, own, styles: list[Tensor]):
        seen[name, side] = (own, styles)
        return judged(name, side, other, own, styles)

    system.there_and_back = record
    batch = batch_of(system) | {"boxes_a": BOXES, "boxes_b": BOXES[:, :1]}
    terms = system.generator_loss(batch)
    assert all((term < 1e-5) != ("_gan_" in name) for name, term in terms.items())
    assert len(terms) == 2 * (5 + 4 + 5)
    b, gone = batch["b"], background(batch["b"], batch["boxes_b"])
    own, styles = seen["object", "a"]
    assert len(styles) == len(STYLES["object"]) == 3 and own.owner.tolist() == [0, 1, 1]
    for style, images in zip(styles, (b, gone), strict=False):
        torch.testing.assert_close(style, images.mean((2, 3), keepdim=True)[own.owner])
    of_objects = objects(b, batch["boxes_b"], 32)[0].mean((2, 3), keepdim=True)
    assert all(any(style.equal(each) for each in of_objects) for style in styles[2])
    assert len(seen["background", "b"][1]) == 2
    (drawn,) = seen["image", "a"][1]
    assert drawn.equal(-torch.ones(2, 3, 1, 1))  # of domain b
    fake, real = batch["shown"]["dis_o_b"]
    assert len(fake) == 9 and len(real) == 2


def test_images_without_objects() -> None:
    """Boxes that are none leave out the terms of objects; without any, one is drawn for every image."""
    system = tiny("init_i2i")
    batch = batch_of(system)
    none = torch.zeros(2, 0, 4)
    terms = system.generator_loss(batch | {"boxes_a": none, "boxes_b": none})
    assert not any("object" in name for name in terms) and len(terms) == 2 * (5 + 4)
    terms = system.generator_loss(batch | {"boxes_b": none})
    assert {name for name in terms if "object" in name} == {
        f"gen_{of}_object_a" for of in ("gan", "recon", "recon_s", "recon_c", "cyc")
    }
    boxes = system.drawn_boxes(torch.zeros(50, 3, 60, 80))
    low, high = boxes.split(2, -1)
    side = (high - low) / torch.tensor([80.0, 60])
    assert low.min() >= 0 and (high <= torch.tensor([80, 60])).all() and side.min() >= 0.25 and side.max() <= 0.5
    with pytest.raises(ValueError, match="object_size 30: must be at least 32, and a multiple of 4"):
        tiny("init_i2i", object_size=30)
    with pytest.raises(ValueError, match="object_size 32: 2 scales of 5 layers in the discriminators need at least 63"):
        tiny("init_i2i", dis_n_layer=5)
