"""Checkpoints: whatever happens to them, a whole one is found, or the reason why not."""

import json
import os
import pickle
import random
import re
import resource
import shutil
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from toy import HEADER, Toy, assert_same, newest, run

from i2ifast import _checkpoint, models
from i2ifast._checkpoint import CheckpointError
from i2ifast._state import State
from i2ifast.models import Batch


def test_keeps_the_newest_two(tmp_path: Path) -> None:
    run(tmp_path, 10, save_every=2)
    names = sorted(file.name for file in tmp_path.glob("*checkpoint*"))
    assert names == [f"checkpoint-{step:08d}.{kind}" for step in (8, 10) for kind in ("json", "safetensors")]


@pytest.mark.parametrize("keep", [1, 3])
def test_keeps_as_many_as_asked(tmp_path: Path, keep: int) -> None:
    run(tmp_path, 10, save_every=2, keep=keep)
    assert [int(path.stem[-8:]) for path in _checkpoint.manifests(tmp_path)] == [10, 8, 6][:keep]


@pytest.mark.parametrize("name", models.names())
def test_every_system_is_saved_and_found_again(tmp_path: Path, name: str) -> None:
    """Those with a module under two names too."""
    saved, found = (State(models.build(name, "tiny")) for _ in range(2))
    _checkpoint.save(tmp_path, 1, saved.tensors(), saved.position)
    _checkpoint.load_newest(tmp_path, found.load, print)
    assert_same(found.tensors(), saved.tensors())


class Graded(Toy):
    """Its loss D/fake has the marks of a list, step by step."""

    MARKS = (3.0, 5.0, 2.0, 1.0, 4.0, 4.0, 1.6, 1.6)  # means of two: 4, 1.5, 4, 1.6

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        terms = super().discriminator_loss(batch)
        return terms | {"fake": terms["fake"] * 0 + self.MARKS[(self.calls - 1) % len(self.MARKS)]}


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    """By the mean since the save before, also over a resumption."""
    run(tmp_path, 6, Graded(), save_every=2, log_every=1, keep=1, best="D/fake")
    tensors, header = _checkpoint.read(tmp_path / "best.safetensors")
    assert header["step"] == 4 and header["best"] == {"D/fake": 1.5}
    resumed = Graded()
    resumed.calls = 6
    run(tmp_path, 8, resumed, save_every=2, log_every=1, keep=1, best="D/fake", resume=True)
    assert_same(_checkpoint.read(tmp_path / "best.safetensors")[0], tensors)
    names = {file.name for file in tmp_path.glob("*.safetensors")}
    assert names == {"best.safetensors", "checkpoint-00000008.safetensors"}
    assert "ema.G.0.weight" in translate_tensors(tmp_path / "best.safetensors")


def translate_tensors(path: Path) -> dict[str, Tensor]:
    return _checkpoint.read(path, lambda name: name.startswith("ema."))[0]


def test_best_of_a_term_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="best 'D/false': there is no such loss term; there are .*D/fake"):
        run(tmp_path, 2, best="D/false")


def test_best_needs_no_links(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    for step, best in ((1, True), (2, False)):
        _checkpoint.save(tmp_path, step, {"a": torch.full((3,), step)}, {}, keep=1, best=best)
    assert _checkpoint.read(tmp_path / "best.safetensors")[0]["a"].tolist() == [1, 1, 1]


def rewrite(path: Path, tensors: dict[str, Tensor], header: object) -> None:
    """A checkpoint with a manifest that vouches for it."""
    save_file(tensors, path, metadata={"i2ifast": json.dumps(header)})
    vouch(path)


def vouch(path: Path) -> None:
    manifest = {"bytes": path.stat().st_size, "sha256": _checkpoint._digest(path)}
    path.with_suffix(".json").write_text(json.dumps(manifest))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


def replaced_by(data: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(data)
        vouch(path)

    return damage


def manifest_of(text: str) -> Callable[[Path], object]:
    return lambda path: path.with_suffix(".json").write_text(text)


def without_a_tensor(path: Path) -> None:
    tensors, header = _checkpoint.read(path)
    rewrite(path, {name: value for name, value in tensors.items() if name != "nets.G.0.weight"}, header)


def without_half_an_adam(path: Path) -> None:
    tensors, header = _checkpoint.read(path)
    rewrite(path, {name: v for name, v in tensors.items() if name != "optimizer.G.exp_avg.G.0.weight"}, header)


def with_a_wrong_shape(path: Path) -> None:
    tensors, header = _checkpoint.read(path)
    rewrite(path, tensors | {"optimizer.G.exp_avg.G.0.weight": torch.zeros(1)}, header)


def with_header(header: object) -> Callable[[Path], None]:
    return lambda path: rewrite(path, _checkpoint.read(path)[0], header)


ABSURD = b'{"a":{"dtype":"F32","shape":[4000000000,4000000000],"data_offsets":[0,4]}}'

DAMAGE = {
    "truncated": (truncate, "truncated"),
    "bit flipped": (flip_a_bit, "SHA-256"),
    "empty": (lambda path: path.write_bytes(b""), "0 bytes"),
    "tensors missing": (lambda path: path.unlink(), "No such file"),
    "pickle": (replaced_by(pickle.dumps({"step": 3})), "not a whole checkpoint"),
    "absurd header size": (replaced_by(b"\xff" * 64), "not a whole checkpoint"),
    "absurd shape": (replaced_by(len(ABSURD).to_bytes(8, "little") + ABSURD + b"0000"), "not a whole checkpoint"),
    "manifest empty": (manifest_of(""), "not a whole checkpoint"),
    "manifest not an object": (manifest_of("[]"), "not a whole checkpoint"),
    "manifest nested": (manifest_of("[" * 4000), "not a whole checkpoint"),
    "header not an object": (with_header([1]), "not a JSON object"),
    "header of another system": (with_header(HEADER | {"system": "other", "step": 3}), "its system is other, not toy"),
    "header without step": (with_header(HEADER), "step"),
    "a tensor missing": (without_a_tensor, "Missing key.*G.0.weight"),
    "half an optimizer": (without_half_an_adam, "exp_avg of G.0.weight is None"),
    "a wrong shape": (with_a_wrong_shape, r"exp_avg of G.0.weight is \(1,\), not \(6, 1, 3, 3\)"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoint_is_refused_and_the_one_before_taken(tmp_path: Path, kind: str, capsys) -> None:
    damage, reason = DAMAGE[kind]
    whole = run(tmp_path, 3, save_every=2)
    newest_path = tmp_path / "checkpoint-00000003.safetensors"
    damage(newest_path)
    again = run(tmp_path, 3, save_every=2, resume=True)
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"refused {re.escape(str(newest_path))}.*{reason}", said), said
    assert "resumed" in said and "at step 2, epoch 1" in said
    assert_same(whole, again)


def test_without_a_whole_checkpoint_nothing_starts_over(tmp_path: Path) -> None:
    run(tmp_path, 1)
    truncate(tmp_path / "checkpoint-00000001.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint can be used.*truncated"):
        run(tmp_path, 2, resume=True)


def test_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    _checkpoint.save(tmp_path, 1, {"a": torch.ones(1000)}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(CheckpointError, match="checkpoint-00000002.*cannot be written.*earlier .* untouched"):
            _checkpoint.save(tmp_path, 2, {"a": torch.ones(1000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in _checkpoint.manifests(tmp_path)] == ["checkpoint-00000001.json"]
    assert newest(tmp_path)[0]["a"].sum() == 1000
    assert len(list(tmp_path.iterdir())) == 2  # no temporary file is left to fill the disk


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file/checkpoint-00000001.*cannot be written"):
        _checkpoint.save(tmp_path / "file", 1, {"a": torch.ones(1)}, {})


KILLS = int(os.environ.get("I2IFAST_KILLS", 20))


def save_forever(folder: Path) -> None:
    torch.set_num_threads(1)
    for step in range(1, 10**6):
        tensors = {name: torch.full((100_000,), float(step)) for name in "ab"}
        _checkpoint.save(folder, step, tensors, {"step": step}, best=step % 2 == 0)


def test_killed_while_saving_always_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """I2IFAST_KILLS=200 kills more often."""
    rng = random.Random(0)
    loaded: list[int] = []

    def load(tensors: dict[str, Tensor], header: dict) -> None:
        assert all((tensor == header["step"]).all() for tensor in tensors.values())
        loaded.append(header["step"])

    for trial in range(KILLS):
        folder = tmp_path / str(trial)
        saver = get_context("fork").Process(target=save_forever, args=(folder,))
        saver.start()
        while not list(folder.glob("checkpoint-*.json")):
            assert saver.is_alive()
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        saver.kill()
        saver.join()
        _checkpoint.load_newest(folder, load, pytest.fail)  # which refuses none
        for manifest in _checkpoint.manifests(folder):
            load(*_checkpoint.read(manifest))
        _checkpoint.save(folder, loaded[-1] + 10, {"a": torch.ones(1)}, {}, best=True)
        _checkpoint.save(folder, loaded[-1] + 11, {"a": torch.ones(1)}, {})
        assert len(list(folder.iterdir())) == 6  # two checkpoints and the best; what the killed process left is gone
        shutil.rmtree(folder)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not saved, a has values that are not finite"):
        _checkpoint.save(tmp_path, 1, {"a": torch.tensor([1.0, float("inf")])}, {})
    assert not _checkpoint.manifests(tmp_path)
