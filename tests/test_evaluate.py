"""`python -m i2ifast.evaluate`: folders to scores, protocol and messages. All files and networks are made here."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import run_processes
from torch import Tensor, nn

from i2ifast import metrics, models, translate
from i2ifast.data import procedural
from i2ifast.evaluate import Arguments, evaluate, main
from i2ifast.nn.vgg import VGG, imagenet, positions_of

CPU = torch.device("cpu")
COUNT = 12


class Features(nn.Module):
    """Eight numbers of an image, and three logits."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = nn.functional.adaptive_avg_pool2d(x.float() / 255, (2, 4)).mean(1).flatten(1)
        return found, found[:, :3]


class RedOrNot(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0.5 - x[:, :1], x[:, :1] - 0.5], 1)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """fake, real and labels of the same names, two draws of classes 0 and 1, and networks."""
    root = tmp_path_factory.mktemp("scores")
    draw = np.random.default_rng(0)
    for index in range(COUNT):
        real = np.kron(draw.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        fake = (real + draw.normal(0, 8, real.shape)).clip(0, 255).astype(np.uint8)
        save(root / "real" / f"{index}_leftImg8bit.png", real)
        save(root / "fake" / f"{index}_labelIds.png", fake)
        label = (real[..., 0] >= 128).astype(np.uint8)
        label[:2] = 255
        save(root / "labels" / f"{index}_labelIds.png", label)
    torch.jit.script(Features()).save(root / "features.pt")
    torch.jit.script(RedOrNot()).save(root / "segmentation.pt")
    return root


def arguments(root: Path, **given) -> Arguments:
    folders = {name: root / name for name in ("fake", "real", "labels")}
    networks = {"inception": root / "features.pt", "segmentation": root / "segmentation.pt"}
    return Arguments(**folders | networks | {"workers": 0, "batch_size": 5} | given)


def read(folder: Path) -> Tensor:
    files = sorted(folder.iterdir(), key=lambda file: int(file.name.partition("_")[0]))
    return torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])


def test_scores_are_those_of_the_functions(root):
    report = evaluate(arguments(root, kid_subsets=3), CPU)
    fake, real = read(root / "fake"), read(root / "real")
    (x, logits), (y, _) = (Features()(images) for images in (fake, real))
    kid, is_ = metrics.kernel_distance(x, y, 3, COUNT), metrics.inception_score(logits)
    expected = {
        "ssim": metrics.ssim(fake, real).mean(),
        "psnr": metrics.psnr(fake, real).mean(),
        "rmse": metrics.squared_error(fake, real).mean().sqrt(),
        "fid": metrics.frechet_distance(x, y),
        **{"kid": kid[0], "kid_std": kid[1], "is": is_[0], "is_std": is_[1]},
        **metrics.neighbours(x, y),
    }
    scores = report["scores"]
    assert {name: scores[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert set(scores) == {*expected, "swd", "swd_32x32", "swd_16x16", "miou", "accuracy"}
    assert scores["swd"] == (scores["swd_32x32"] + scores["swd_16x16"]) / 2
    assert 0.9 < scores["miou"] < scores["accuracy"] < 1
    assert set(report["left_out"]) == {"lpips", "dipd", "mcsd", "mocd"}
    assert report["notes"] == ["kid: subsets of 12 images, not of 1000"]


def test_the_protocol_is_written(root, tmp_path):
    given = ["--fake", root / "fake", "--real", root / "real", "--inception", root / "features.pt", "--size", 48, 40]
    given += ["--workers", 0, "--out", tmp_path / "new" / "scores.json", "--scores", "fid", "psnr"]
    main([str(word) for word in given])
    report = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert set(report["scores"]) == {"fid", "psnr"} and not report["left_out"]
    protocol = report["protocol"]
    assert protocol["images"] == {"fake": COUNT, "real": COUNT} and protocol["size"] == [48, 40]
    assert protocol["resize"] == "bicubic" and protocol["folders"]["fake"] == str(root / "fake")
    digest = subprocess.run(["sha256sum", root / "features.pt"], capture_output=True, text=True, check=True).stdout
    assert protocol["networks"] == {"inception": {"file": "features.pt", "sha256": digest.split()[0]}}
    assert protocol["versions"]["torch"] == torch.__version__ and "torchmetrics" in protocol["versions"]


def test_what_needs_no_network_runs_without(root, tmp_path, capsys):
    given = ["--fake", str(root / "fake"), "--real", str(root / "real"), "--workers", "0", "--out", str(tmp_path / "s")]
    with pytest.raises(SystemExit, match="error: without fid, lpips"):
        main([*given, "--scores", "fid", "ssim", "lpips"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "needs --inception, pt_inception-2015-12-05-6726825d.pth" in shown and "alexnet-owt-7be5be79.pth" in shown
    assert set(json.loads((tmp_path / "s").read_text())["scores"]) == {"ssim"}
    main(given)  # all that the files allow: nothing is asked for that is missing
    assert {"ssim", "psnr", "rmse", "swd"} < set(json.loads((tmp_path / "s").read_text())["scores"])


def test_too_few_images_for_one_score_keep_the_others(root):
    report = evaluate(arguments(root, scores=("is", "fid", "recall"), splits=COUNT + 1, nearest_k=COUNT), CPU)
    assert set(report["scores"]) == {"fid"}
    assert report["left_out"]["is"] == "12 images for 13 splits: expected at least one each"
    assert "nearest_k = 12" in report["left_out"]["recall"]


def test_infinite_scores_are_words_in_the_file(root):
    report = evaluate(arguments(root, fake=root / "real", scores=("psnr",)), CPU)
    assert report["scores"] == {"psnr": "inf"} and json.dumps(report, allow_nan=False)


def test_errors_name_files(root, tmp_path):
    def error(match: str, **given) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            evaluate(arguments(root, **given), CPU)

    for index in range(COUNT):
        save(tmp_path / "sizes" / f"{index}.png", np.zeros((32, 30 if index == 7 else 32, 3), np.uint8))
    error(r"7_labelIds.png and .*sizes/7.png: 32x32 and 30x32", scores=("ssim",), real=tmp_path / "sizes")
    error("sizes: images of 2 sizes; swd", scores=("swd",), real=tmp_path / "sizes")
    (tmp_path / "sizes" / "3.png").unlink()
    error(r"3_labelIds.png: no file of that name .*sizes \(--scores chooses", scores=("ssim",), real=tmp_path / "sizes")
    error("nothing: no such folder, or no images", scores=("fid",), real=tmp_path / "nothing")
    save(tmp_path / "labels" / "0.png", np.full((32, 32), 7, np.uint8))
    save(tmp_path / "one" / "0.png", np.zeros((32, 32, 3), np.uint8))
    error("labels/0.png: label 7: .* 0 to 1", scores=("miou",), fake=tmp_path / "one", labels=tmp_path / "labels")
    error("none.pth: no such file; --inception takes pt_inception", scores=("fid",), inception=tmp_path / "none.pth")
    (tmp_path / "text").write_text("no network")
    error("text: .*; --segmentation takes TorchScript", scores=("miou",), segmentation=tmp_path / "text")
    error("text: .*; --inception takes pt_inc", scores=("fid",), inception=tmp_path / "text")
    error("text: .*; --lpips takes alexnet", scores=("lpips",), lpips=tmp_path / "text")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    error("other.pth: .*; --vgg takes vgg16", scores=("dipd",), vgg=tmp_path / "other.pth")
    save(tmp_path / "small" / "0.png", np.zeros((8, 8, 3), np.uint8))
    small = {name: tmp_path / "small" for name in ("fake", "real")}
    error("small/0.png: images of 8x8: SSIM takes at least 11", scores=("ssim",), **small)
    error("small/0.png: images of 8x8: SWD takes at least 16", scores=("swd",), **small)
    error("no score to compute: lpips needs --lpips", scores=("lpips",))
    error("nearest_k is 0", nearest_k=0)


def alexnet(path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    state = {}
    for number, shape in shapes.items():
        state[f"features.{number}.weight"] = 0.05 * torch.randn(shape, generator=draw)
        state[f"features.{number}.bias"] = torch.zeros(shape[0])
    torch.save(state, path)


def test_perceptual_scores_of_pairs(root, tmp_path):
    alexnet(tmp_path / "alexnet.pth")
    state, channels = {}, 3
    for number in positions_of(16):
        state[f"features.{number}.weight"] = 0.5 * torch.randn(4, channels, 3, 3)
        state[f"features.{number}.bias"], channels = torch.zeros(4), 4
    torch.save(state, tmp_path / "vgg.pth")
    given = {"lpips": tmp_path / "alexnet.pth", "vgg": tmp_path / "vgg.pth"}
    found = evaluate(arguments(root, scores=("lpips", "dipd"), **given), CPU)["scores"]
    fake, real = read(root / "fake"), read(root / "real")
    lpips, vgg = metrics.LPIPS(given["lpips"]), VGG(given["vgg"], ("relu5_3",), imagenet)
    assert found["lpips"] == pytest.approx(lpips(fake / 127.5 - 1, real / 127.5 - 1).mean().item(), rel=1e-5)
    dipd = metrics.domain_invariant_distance(vgg, fake / 255, real / 255).mean().item()
    assert found["dipd"] == pytest.approx(dipd, rel=1e-4)


def test_diversity_of_classes(tmp_path):
    """Class 1, the right half, changes alone; class 0 changes everything."""
    draw = np.random.default_rng(0)
    label = np.zeros((64, 64), np.uint8)
    label[:, 32:] = 1
    for name in "ab":
        save(tmp_path / "labels" / f"{name}.png", label)
        base = draw.integers(0, 256, (64, 64, 3))
        for number in range(3):
            changed = draw.integers(0, 256, (64, 64, 3))
            half = np.where(label[..., None] == 1, changed, base)
            save(tmp_path / "classes" / "1" / f"{number}" / f"{name}.png", half.astype(np.uint8))
            save(tmp_path / "classes" / "0" / f"{number}" / f"{name}.png", changed.astype(np.uint8))
    alexnet(tmp_path / "alexnet.pth")
    options = {"lpips": tmp_path / "alexnet.pth", "labels": tmp_path / "labels", "workers": 0}

    def diversity() -> dict[str, float]:
        return evaluate(Arguments(classes=tmp_path / "classes", **options), CPU)["scores"]

    both = diversity()
    (tmp_path / "classes" / "0").rename(tmp_path / "other")
    one = diversity()
    assert one["mcsd"] > 3 * one["mocd"] > 0  # the distances are blurred across the border
    assert both["mcsd"] == pytest.approx(one["mcsd"], rel=0.2) and both["mocd"] > 2 * one["mocd"]
    (tmp_path / "other").rename(tmp_path / "classes" / "5")  # a class that no label map has
    assert diversity() == pytest.approx(one, rel=1e-9)


def worker(rank: int, given: dict[str, object], folder: Path) -> None:
    run(**given, out=folder / f"{rank}.json")


def run(**given: object) -> None:
    main([str(word) for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)])


def two_processes(folder: Path, **given: object) -> None:
    run_processes(worker, given, folder)


def test_two_processes_equal_one(root, tmp_path):
    given = {name: root / name for name in ("fake", "real", "labels")} | {"segmentation": root / "segmentation.pt"}
    two_processes(tmp_path, **given, inception=root / "features.pt", kid_subset_size=7, workers=0, batch_size=5)
    assert not (tmp_path / "1.json").exists()  # the first process writes
    found = json.loads((tmp_path / "0.json").read_text())
    alone = json.loads(json.dumps(evaluate(arguments(root, kid_subset_size=7), CPU)))
    assert found.pop("scores") == pytest.approx(alone.pop("scores"), rel=1e-6)
    assert found == alone


def test_workers_read_the_same(root):
    alone = evaluate(arguments(root, scores=("psnr",)), CPU)
    assert evaluate(arguments(root, scores=("psnr",), workers=1), CPU) == alone


def test_weights_are_translated_first(tmp_path):
    """In one process or two: the same images as of `translate`, with the same scores."""
    procedural.write(tmp_path / "scenes", count=3, size=(64, 128))
    system = models.build("spade", "tiny")
    (tmp_path / "weights").mkdir()
    for name, net in system.nets.items():
        torch.save(net.state_dict(), tmp_path / f"weights/latest_net_{name}.pth")
    weights = {"weights": tmp_path / "weights", "system": "spade", "preset": "tiny"}
    inputs = {"labels": tmp_path / "scenes/train_label", "instances": tmp_path / "scenes/train_inst"}
    words = [f"--{name}={value}" for name, value in (weights | inputs | {"out": tmp_path / "plain"}).items()]
    translate.main(words)
    scored = {"real": tmp_path / "scenes/train_img", "workers": 0, "batch_size": 1}
    run(fake=tmp_path / "plain", **scored, out=tmp_path / "plain.json")
    given = scored | weights | {f"inputs.{name}": folder for name, folder in inputs.items()}
    run(fake=tmp_path / "one", **given, out=tmp_path / "one.json")
    two_processes(tmp_path, fake=tmp_path / "two", **given)
    expected = json.loads((tmp_path / "plain.json").read_text())["scores"]
    for name in ("one", "two"):
        for file in (tmp_path / "plain").iterdir():
            assert (tmp_path / name / file.name).read_bytes() == file.read_bytes()
    report, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "0"))
    assert report["scores"] == expected and two["scores"] == pytest.approx(expected, rel=1e-6)
    assert report["protocol"]["translation"]["inputs"]["labels"] == str(inputs["labels"])
    with pytest.raises(SystemExit, match="one: has images already"):
        run(fake=tmp_path / "one", **given)
    with pytest.raises(SystemExit, match="weights need --fake"):
        run(**given)
