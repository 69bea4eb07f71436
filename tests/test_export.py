"""Exported programs and ONNX models give what the system gives, for other inputs and sizes than the example's."""

import importlib.util
from pathlib import Path

import pytest
import torch
from test_models import batch_of, settled
from torch import Tensor

from i2ifast import export
from i2ifast.export import example_of, to_program, write_onnx
from i2ifast.models import System

ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
ENTRIES = {"labels": ("label", "instance"), "unpaired": ("a", "b")}


def case(name: str, size: tuple[int, int], **options) -> tuple[System, dict[str, Tensor]]:
    """A tiny system and a batch of it, of which styles have the size of training."""
    system = settled(name, **options)
    batch, style = batch_of(system, size), batch_of(system).get("b")
    entries = {entry: batch[entry][:1] for entry in ENTRIES[system.data] if entry in batch}
    return system, entries | ({} if name != "munit" else {"b": style[:1]})


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


OPTIONS = {"spade": {}, "munit": {}, "ugatit": {"light": True}, "nicegan": {"light": True}}
USED = {"spade": {"G"}, "munit": {"gen_a", "gen_b"}, "ugatit": {"genA2B"}, "nicegan": {"disA", "gen2B"}}


@pytest.mark.parametrize("name", OPTIONS)
def test_programs_and_onnx_for_any_size(name: str, tmp_path: Path) -> None:
    options = OPTIONS[name]
    system, example = case(name, (64, 128), **options)
    before = {key: value.clone() for key, value in system.state_dict().items()}
    program = to_program(system, example)
    assert not [node for node in program.graph.nodes if "i2ifast" in str(node.target)]
    used = {key.split(".")[2] for key in program.state_dict}  # of system.nets.<name>
    assert (
        used == {"spade": {"G"}, "ugatit": {"genA2B"}, "nicegan": {"disA", "gen2B"}, "munit": {"gen_a", "gen_b"}}[name]
    )
    module = program.module()
    batches = [case(name, size, **options)[1] for size in ((64, 128), (128, 64), (192, 192))]
    truths = [system.translate(batch)["fake"] for batch in batches]
    for batch, truth in zip(batches, truths, strict=True):
        assert_close(module(*batch.values()), truth)
    assert all(value.equal(before[key]) for key, value in system.state_dict().items())
    if name == "nicegan":  # of the parts that U-GAT-IT has too
        return
    if not ONNX:
        pytest.skip("the program is right; onnx, onnxscript or onnxruntime is not installed to compare a model too")
    import onnxruntime

    write_onnx(program, tmp_path / "model.onnx", list(example))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == list(example)
    for batch, truth in zip(batches, truths, strict=True):
        (fake,) = session.run(["fake"], {entry: value.numpy() for entry, value in batch.items()})
        assert_close(torch.from_numpy(fake), truth)


def test_sides_that_are_not_free() -> None:
    """Without `light` U-GAT-IT's linear layers take maps of one size."""
    system, example = case("ugatit", (96, 96), light=False)
    with pytest.raises(ValueError, match=r"a cannot be but of shape \[1, 3, 96, 96\], .* dynamic=False"):
        to_program(system, example)


def test_examples() -> None:
    shapes = {name: tuple(entry.shape) for name, entry in example_of(settled("spade"), (64, 128)).items()}
    assert shapes == dict.fromkeys(("label", "instance"), (1, 1, 64, 128))
    assert list(example_of(settled("spade", instance=False), (64, 128))) == ["label"]
    assert list(example_of(settled("munit"), (64, 64))) == ["a"]
    assert example_of(settled("munit"), (64, 64), ["b"])["b"].shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match="style: what is taken of this data is a, b"):
        example_of(settled("munit"), (64, 64), ["style"])


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    system = settled("munit")
    torch.save({side: system.nets[f"gen_{side}"].state_dict() for side in "ab"}, tmp_path / "gen_00000001.pt")
    command = ["--system", "munit", "--preset", "tiny", "--weights", str(tmp_path), "--out"]
    with pytest.raises(SystemExit, match="model.pb: expected a name ending in .onnx or .pt2"):
        export.main([*command, str(tmp_path / "model.pb")])
    export.main([*command, str(tmp_path / "new/model.pt2"), "--entries", "b", "--no-dynamic", "--size", "32", "64"])
    assert "a [1, 3, 32, 64], b [1, 3, 32, 64] -> fake" in capsys.readouterr().out
    example = {side: torch.rand(1, 3, 32, 64) for side in "ab"}
    fake = torch.export.load(tmp_path / "new/model.pt2").module()(*example.values())
    assert_close(fake, system.translate(example)["fake"])
