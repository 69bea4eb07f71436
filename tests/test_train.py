"""The training loop: exact resume, checkpoints that survive, several processes, what it shows."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from toy import HEADER, Toy, assert_same, batches, newest, run

from i2ifast import translate
from i2ifast._checkpoint import CheckpointError
from i2ifast._runlog import NonFiniteLoss, colours
from i2ifast._state import State
from i2ifast.data import procedural
from i2ifast.data.pixels import images_in
from i2ifast.models import Batch
from i2ifast.train import Loop, main, train


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_run_continues_bit_for_bit(tmp_path: Path, precision: str) -> None:
    whole = run(tmp_path / "a", 10, precision=precision)
    for steps in (5, 7, 10):  # inside an epoch, at its end, and on
        torch.manual_seed(steps)  # what happened before must not matter
        parts = run(tmp_path / "b", steps, resume=True, precision=precision)
    assert_same(whole, parts)
    assert newest(tmp_path / "b")[1] == HEADER | {"step": 10, "epoch": 2, "seen": 6, "processes": 1}
    losses = [json.loads(line)["losses"] for line in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    assert len(losses) == 5 and set(losses[0]) == {"G/gan", "G/l1", "D/fake", "D/real", "D_reg/small"}


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    assert not torch.equal(run(tmp_path / "a", 2)["nets.G.0.weight"], run(tmp_path / "b", 2, seed=1)["nets.G.0.weight"])


def test_each_step_follows_plain_adam(tmp_path: Path) -> None:
    tensors = run(tmp_path, 4, Toy(norm=False, noise=0.0))
    toy = Toy(norm=False, noise=0.0)
    loop_seed = int(np.random.SeedSequence([0, 0, 0]).generate_state(1, np.uint64)[0])
    torch.manual_seed(loop_seed)
    toy.init_weights()
    average = {name: parameter.detach().clone() for name, parameter in toy.nets["G"].named_parameters()}
    adams = {p.name: torch.optim.Adam(toy.nets[p.nets[0]].parameters(), 1e-2, (0.5, 0.9)) for p in toy.phases}
    for step, batch in zip(range(4), batches(2)(1, 0), strict=False):
        batch = toy.prepare(batch)
        for phase in toy.phases:
            if phase.when(step):
                toy.zero_grad()
                sum(phase.loss(batch).values()).backward()
                adams[phase.name].step()
        decay = min(0.999, (2 + step) / (11 + step))
        for name, parameter in toy.nets["G"].named_parameters():
            average[name] = decay * average[name] + (1 - decay) * parameter.detach()
    for name, value in toy.nets.state_dict().items():
        torch.testing.assert_close(tensors[f"nets.{name}"], value, rtol=1e-5, atol=1e-6)
    for name, value in average.items():
        torch.testing.assert_close(tensors[f"ema.G.{name}"], value, rtol=1e-5, atol=1e-6)


def test_refuses_to_start_over_a_run(tmp_path: Path) -> None:
    run(tmp_path, 1)
    with pytest.raises(CheckpointError, match="--resume"):
        run(tmp_path, 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_ends_cleanly(tmp_path: Path, number: int, capsys) -> None:
    class Interrupted(Toy):
        def prepare(self, batch: Batch) -> Batch:
            self.calls += 1
            if self.calls > 3:
                os.kill(os.getpid(), number)
            return super().prepare(batch)

    before = signal.getsignal(number)
    run(tmp_path, 100, Interrupted(), save_every=100)
    header = newest(tmp_path)[1]
    assert 0 < header["step"] < 100 and signal.getsignal(number) is before
    assert f"stopped at step {header['step']} of 100" in capsys.readouterr().out


def test_nan_is_named_and_not_saved(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss, match="loss term 'fake' of phase D is nan at step 6"):
        run(tmp_path, 12, Toy(nan_at=6), save_every=4, log_every=12)
    assert newest(tmp_path)[1]["step"] == 4


def test_epoch_without_a_batch_is_an_error(tmp_path: Path) -> None:
    loop = Loop(3, tmp_path, batch_size=64)
    with pytest.raises(ValueError, match="no batch of 64"):
        train(Toy(), lambda epoch, start: [], loop, torch.device("cpu"), HEADER)


@pytest.mark.parametrize("options", [{"steps": 0}, {"batch_size": 0}, {"ema_decay": 1.0}, {"save_every": -1}])
def test_options_out_of_range_are_named(tmp_path: Path, options: dict) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        Loop(**{"steps": 1, "out": tmp_path, **options})


def test_averaged_networks_are_lent_for_the_block(tmp_path: Path) -> None:
    toy = Toy()
    state, trained = State(toy, 0.9), toy.nets["G"]
    with state.averaged() as system:
        assert system.nets["G"] is state.averages["G"] and not system.training
    assert toy.nets["G"] is trained and toy.training


def test_memory_of_what_lasts_is_told(tmp_path: Path, capsys) -> None:
    toy = Toy()
    sizes = State(toy).sizes()
    tensors = run(tmp_path, 1, toy)  # D_reg has an optimizer of its own; one parameter has no gradient
    unused = toy.nets["D"].unused.nbytes
    for kind, prefix, less in (("averages", "ema.", 0), ("optimizers", "optimizer.", 4 * unused)):
        kept = {name: t for name, t in tensors.items() if name.startswith(prefix) and ".step." not in name}
        assert sizes[kind] - less == sum(t.nbytes for t in kept.values())
    assert sizes["weights"] - sizes["gradients"] == sum(buffer.nbytes for buffer in toy.buffers())
    assert "memory in MiB: " in capsys.readouterr().out


def test_resume_drops_records_of_the_abandoned_future(tmp_path: Path) -> None:
    run(tmp_path, 4, save_every=2)
    (tmp_path / "checkpoint-00000004.safetensors").unlink()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 5, "lo')  # a line cut short
    run(tmp_path, 4, save_every=2, resume=True)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [2, 4]


def test_tensorboard_has_what_the_log_has(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path, 4, save_every=2, tensorboard=True)
    (tmp_path / "checkpoint-00000004.safetensors").unlink()
    run(tmp_path, 6, save_every=2, resume=True, tensorboard=True)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for name in records[0]["losses"]:
        found = [(event.step, event.value) for event in events.Scalars(name)]
        logged = [(record["step"], record["losses"][name]) for record in records if name in record["losses"]]
        assert found == [(step, pytest.approx(value)) for step, value in logged]
    assert [event.step for event in events.Images("samples")] == [2, 4, 6]
    assert "images per second" in events.Tags()["scalars"]


def test_colours_tell_all_labels_apart() -> None:
    assert len(np.unique(colours(np.arange(256)[None]).reshape(-1, 3), axis=0)) == 256


SMALL = "--config.crop-size 64 --config.ngf 2 --config.nhidden 4 --config.ndf 2 --config.num-D 1".split()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    procedural.write(folder, count=5, size=(32, 64))
    return folder


def command(data: Path, out: Path, steps: int, *more: str) -> list[str]:
    """To train a minute SPADE."""
    where = ["--data", str(data), "--out", str(out), "--steps", str(steps), "--batch-size", "2"]
    return [sys.executable, "-m", "i2ifast.train", "spade", "--preset", "tiny", *where, *SMALL, *more]


def spade(data: Path, out: Path, steps: int, *more: str) -> dict[str, Tensor]:
    """Train a minute SPADE by its command line and return the tensors of its newest checkpoint."""
    main(command(data, out, steps, "--workers", "0", *more)[3:])
    return newest(out)[0]


def test_command_lines_train_resume_and_translate(tmp_path: Path, scenes: Path) -> None:
    whole = spade(scenes, tmp_path / "a", 5)
    spade(scenes, tmp_path / "b", 2)
    assert_same(whole, spade(scenes, tmp_path / "b", 5, "--resume"))
    for workers, steps in {1: 2, 2: 5}.items():  # in new processes, with other numbers of loaders
        options = ["--workers", str(workers), "--resume"]
        subprocess.run(command(scenes, tmp_path / "c", steps, *options), check=True, capture_output=True)
    assert_same(whole, newest(tmp_path / "c")[0])
    with pytest.raises(SystemExit, match="its config is"):
        spade(scenes, tmp_path / "b", 6, "--resume", "--config.lr", "1")

    for kind in ("label", "inst"):  # a size that the network does not have
        with Image.open(scenes / f"val_{kind}/00000.png") as image:
            image.crop((0, 0, 51, 29)).save(scenes / f"val_{kind}/odd.png")
    maps = ["--labels", str(scenes / "val_label"), "--instances", str(scenes / "val_inst")]
    for name, weights in {"run": tmp_path / "a", "file": tmp_path / "a/checkpoint-00000005.safetensors"}.items():
        translate.main(["--weights", str(weights), *maps, "--out", str(tmp_path / name), "--batch-size", "3"])
        for label in images_in(scenes / "val_label"):
            with Image.open(label) as source, Image.open(tmp_path / name / label.name) as image:
                assert image.size == source.size and image.mode == "RGB"
    assert (tmp_path / "run/odd.png").read_bytes() == (tmp_path / "file/odd.png").read_bytes()
    nets = translate.load(tmp_path / "a").nets["G"].state_dict()
    assert all(torch.equal(value, whole[f"ema.G.{name}"]) for name, value in nets.items())


@pytest.mark.parametrize("args", [["--help"], ["spade", "--help"], ["spade", "--preset", "tiny", "--help"]])
def test_help_lists_systems_presets_and_options(args: list[str], capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(args)
    text = capsys.readouterr().out
    lines = " ".join(text.split())
    assert "SPADE: " in lines and "[labels; coco, ade20k, cityscapes, tiny]" in lines and "--batch-size" in text
    assert "MUNIT: " in lines and "[unpaired; edges2handbags" in lines
    assert ("--config.ngf" in text) == ("--dataset-mode" in text) == (args[0] == "spade")
    for more, options in {("spade",): "--instances", ("munit",): "--styles", (): "--weights"}.items():
        with pytest.raises(SystemExit, match="0"):
            translate.main(["--help", *(f"--system={name}" for name in more)])
        assert options in capsys.readouterr().out


def test_wrong_command_line_is_explained(tmp_path: Path, scenes: Path) -> None:
    with pytest.raises(SystemExit, match="no system 'spad'; there are .*spade"):
        main(["spad", "--data", str(scenes), "--steps", "1"])
    with pytest.raises(SystemExit, match="no such folder"):
        spade(tmp_path / "nowhere", tmp_path / "run", 1)
    with pytest.raises(SystemExit, match=r"_label/00000.png: label \d+, allowed are 0 to 2"):
        spade(scenes, tmp_path / "run", 1, "--config.label-nc", "3")
