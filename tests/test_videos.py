"""Videos: clips, their flows, what is refused, and optical flow itself."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from i2ifast.data import procedural
from i2ifast.data._optical_flow import estimate, read_flow, warp, write_flow
from i2ifast.data.kinds import videos
from i2ifast.data.pixels import Geometry

OPTIONS = {"label_nc": 12, "crop_size": 64, "load_size": 64, "preprocess_mode": "scale_width"}


@pytest.fixture(scope="module")
def drive(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("drive")
    procedural.write(root, 2, (32, 64), seed=3, kind="videos")
    return root


def test_clips_are_drawn_and_all_frames_are_placed_alike(drive: Path) -> None:
    settings = videos.Settings(**OPTIONS, n_frames_total=3)
    data = videos.folder(drive, "train", settings, train=True)
    assert len(data) == 2 and settings.frames == 5
    clips = [data[epoch, 0] for epoch in range(30)]
    starts = {Path(clip["path"]).stem for clip in clips}
    assert starts == {f"{n:05d}" for n in range(procedural.FRAMES - 4)}
    whole = np.stack([np.asarray(Image.open(drive / f"train_label/00000/{n:05d}.png")) for n in range(10)])
    for clip in clips:
        start, mirrored = int(Path(clip["path"]).stem), clip["flow"][0, 0, 0, 0] < 0
        labels = clip["label"].flip(-1) if mirrored else clip["label"]
        assert (labels[:, 0].numpy() == whole[start : start + 5]).all()
        assert clip["image"].shape == (5, 3, 32, 64) and clip["instance"].shape == (5, 1, 32, 64)
        assert clip["flow"].shape == (3, 2, 32, 64) and clip["confidence"].mean() > 0.9
    assert len({clip["flow"][0, 0, 0, 0].sign().item() for clip in clips}) == 2
    held_out = videos.folder(drive, "val", settings)
    assert Path(held_out[0]["path"]).stem == "00000" and held_out[0]["image"].equal(held_out[1, 0]["image"])


def test_flows_are_estimated_where_there_are_none(tmp_path: Path, drive: Path, caplog) -> None:
    for name in ("label", "inst", "img"):
        (tmp_path / f"train_{name}").symlink_to(drive / f"train_{name}")
    settings = videos.Settings(**OPTIONS, n_frames_total=3)
    given, made = (videos.folder(root, "train", settings, train=True)[0] for root in (drive, tmp_path))
    assert "flows are estimated" in caplog.text
    assert given["image"].equal(made["image"]) and made["confidence"].mean() > 0.9
    assert (given["flow"] - made["flow"]).abs().mean() < 0.3 * given["flow"].abs().mean()


def test_estimate_finds_a_shift() -> None:
    g = torch.Generator().manual_seed(0)
    wide = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 20, generator=g), (96, 160), mode="bicubic")
    image, other = wide[..., 4:84, 6:134], wide[..., 7:87, 3:131]
    flow = estimate(image, other)
    inner = flow[0, :, 10:-10, 10:-10]
    torch.testing.assert_close(inner.mean((1, 2)), torch.tensor([3.0, -3.0]), atol=0.1, rtol=0)
    assert (warp(other, flow) - image).abs().mean() < 0.2 * (other - image).abs().mean()
    assert estimate(image, image).abs().max() < 1e-4


def test_flow_files(tmp_path: Path) -> None:
    flow = np.random.default_rng(0).normal(size=(5, 7, 2)).astype(np.float32)
    write_flow(tmp_path / "a.flo", flow)
    assert (read_flow(tmp_path / "a.flo") == flow).all()
    data = (tmp_path / "a.flo").read_bytes()
    for bad in (b"", b"xxxx" + data[4:]):
        (tmp_path / "a.flo").write_bytes(bad)
        with pytest.raises(ValueError, match=r"a\.flo: not a \.flo file"):
            read_flow(tmp_path / "a.flo")
    (tmp_path / "a.flo").write_bytes(data[:-4])
    with pytest.raises(ValueError, match="288 bytes, but a flow of 7x5 has 292"):
        read_flow(tmp_path / "a.flo")


def test_flows_are_scaled_cut_and_mirrored() -> None:
    flow = np.zeros((10, 20, 2), np.float32)
    flow[..., 0], flow[..., 1] = 2, 3
    placed = Geometry((40, 10), (5, 0, 25, 10), True).flow(flow)
    assert placed.shape == (2, 10, 20)
    torch.testing.assert_close(placed.mean((1, 2)), torch.tensor([-4.0, 3.0]))


def test_what_is_refused(tmp_path: Path, drive: Path) -> None:
    with pytest.raises(ValueError, match="00000: 10 frames, but a clip has 12"):
        videos.folder(drive, "train", videos.Settings(**OPTIONS, n_frames_total=10))
    with pytest.raises(FileNotFoundError, match="no folders of label maps in test_label or test_A"):
        videos.folder(drive, "test", videos.Settings(**OPTIONS))
    procedural.write(tmp_path, 1, 32, kind="videos")
    settings = videos.Settings(**OPTIONS)
    Image.new("RGB", (9, 9)).save(tmp_path / "train_img/00000/00003.png")
    with pytest.raises(ValueError, match=r"00003\.png: 9x9 pixels, other than .*00000\.png"):
        videos.folder(tmp_path, "train", settings)[0]
    (tmp_path / "train_flow/00000/00002.flo").unlink()
    with pytest.raises(FileNotFoundError, match=r"00002\.png: no flow of that name"):
        videos.folder(tmp_path, "train", settings)


def test_sequences_to_translate(drive: Path) -> None:
    config = SimpleNamespace(crop_size=64, label_nc=12, n_frames_G=3)
    system = SimpleNamespace(config=config, data_settings={})
    folders = {name: drive / f"val_{what}" for name, what in (("labels", "label"), ("instances", "inst"))}
    batches = list(videos.Inputs(**folders, images=drive / "val_img").batches(system, 1))
    assert len(batches) == 4 and batches[1]["label"].shape == (1, 10, 1, 32, 64)
    assert batches[1]["image"].shape == (1, 2, 3, 32, 64)
    assert [path.name for path in batches[1]["path"]] == [f"00001_{n:05d}.png" for n in range(2, 10)]
    one = videos.Inputs(labels=folders["labels"] / "00000", instances=folders["instances"] / "00000")
    (batch,) = one.batches(system, 1)
    assert batch["path"][0].name == "00002.png" and (batch["image"] == -1).all()
    with pytest.raises(ValueError, match="this system takes instance maps"):
        next(videos.Inputs(labels=folders["labels"]).batches(system, 1))


def test_references_are_other_frames_of_the_sequence(drive: Path) -> None:
    settings = videos.Settings(**OPTIONS, instance=False, n_frames_total=2, n_shot=3)
    data = videos.folder(drive, "train", settings, train=True)
    clip = data[4, 0]
    assert clip["image"].shape == (2, 3, 32, 64) and clip["image_refs"].shape == (3, 3, 32, 64)
    assert clip["label_refs"].shape == (3, 1, 32, 64) and clip["flow"].shape == (1, 2, 32, 64)
    assert clip["flow_refs"].shape == (2, 3, 2, 32, 64) and clip["confidence_refs"].shape == (2, 3, 1, 32, 64)
    sure = clip["confidence_refs"].bool().expand(-1, -1, 3, -1, -1)
    for t, k in np.ndindex(2, 3):
        moved = warp(clip["image_refs"][k : k + 1], clip["flow_refs"][t, k : k + 1])[0]
        assert (moved - clip["image"][t])[sure[t, k]].square().mean() < videos.SURE
    assert not clip["image_refs"].equal(data[5, 0]["image_refs"])
    held_out = videos.folder(drive, "val", settings)[0]
    whole = videos.folder(drive, "val", videos.Settings(**OPTIONS, instance=False, n_frames_total=8))[0]
    assert held_out["image_refs"].equal(whole["image"][-3:]) and held_out["image"].equal(whole["image"][:2])
    one = videos.Settings(**OPTIONS, n_frames_total=1, n_shot=1)
    assert videos.folder(drive, "train", one, train=True)[0]["flow"].shape == (0, 2, 32, 64)
    with pytest.raises(ValueError, match="10 frames, fewer than n_shot 11"):
        videos.folder(drive, "train", videos.Settings(**OPTIONS, n_frames_total=1, n_shot=11))


def test_sequences_to_translate_like_references(drive: Path) -> None:
    config = SimpleNamespace(crop_size=64, label_nc=12, n_shot=2, instance=False)
    system = SimpleNamespace(config=config, data_settings={})
    refs = {"references": drive / "train_img/00000", "reference_labels": drive / "train_label/00000"}
    (batch, *_) = videos.Inputs(labels=drive / "val_label", **refs).batches(system, 1)
    assert batch["label"].shape == (1, 10, 1, 32, 64) and len(batch["path"]) == 10 and "image" not in batch
    assert batch["label_refs"].shape == (1, 2, 1, 32, 64) and batch["image_refs"].shape == (1, 2, 3, 32, 64)
    with pytest.raises(ValueError, match="name folders of --references and --reference-labels"):
        next(videos.Inputs(labels=drive / "val_label").batches(system, 1))
    config.n_shot = 11
    with pytest.raises(ValueError, match="10 label maps, but n_shot is 11"):
        next(videos.Inputs(labels=drive / "val_label", **refs).batches(system, 1))
