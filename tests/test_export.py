"""Exported programs and ONNX models give what the system gives, for other inputs and sizes than the example's."""

import importlib.util
from pathlib import Path

import pytest
import torch
from test_models import batch_of, settled
from torch import Tensor

from i2ifast.export import to_program, write_onnx
from i2ifast.models import System

ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
ENTRIES = {"labels": ("label", "instance"), "unpaired": ("a", "b")}
NAMES = ["spade", "ccfpse", "munit", "ugatit", "nicegan"]


def case(name: str, size: tuple[int, int], **options) -> tuple[System, dict[str, Tensor]]:
    """A tiny system and a batch of it, of which styles have the size of training."""
    system = settled(name, **options)
    batch, style = batch_of(system, size), batch_of(system).get("b")
    entries = {entry: batch[entry][:1] for entry in ENTRIES[system.data] if entry in batch}
    return system, entries | ({} if name != "munit" else {"b": style[:1]})


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


LIGHT = {"ugatit": {"light": True}, "nicegan": {"light": True}}


@pytest.mark.parametrize("name", NAMES)
def test_programs_and_onnx_for_any_size(name: str, tmp_path: Path) -> None:
    options = LIGHT.get(name, {})
    system, example = case(name, (64, 128), **options)
    program = to_program(system, example)
    assert not [node for node in program.graph.nodes if "i2ifast" in str(node.target)]
    torch.export.save(program, tmp_path / "model.pt2")
    module = torch.export.load(tmp_path / "model.pt2").module()
    batches = [case(name, size, **options)[1] for size in ((64, 128), (128, 64), (192, 192))]
    truths = [system.translate(batch)["fake"] for batch in batches]
    for batch, truth in zip(batches, truths, strict=True):
        assert_close(module(*batch.values()), truth)
    if not ONNX:
        return
    import onnxruntime

    write_onnx(program, tmp_path / "model.onnx", list(example))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == list(example)
    for batch, truth in zip(batches, truths, strict=True):
        (fake,) = session.run(["fake"], {entry: value.numpy() for entry, value in batch.items()})
        assert_close(torch.from_numpy(fake), truth)
