"""StarGAN of attributes and classes from two data sets: what the generator is told, its steps, its data."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_models import check_phases, domain_batch, tiny
from torch import Tensor
from toy import newest

from i2ifast import translate
from i2ifast._state import State
from i2ifast.data.kinds import domains
from i2ifast.models import Batch, System, build
from i2ifast.train import main

ATTRIBUTES = torch.tensor([[1.0, 0], [0, 0]])


def both(**options: int) -> System:
    return tiny("stargan", dataset="Both", c_dim=2, c2_dim=3, **options)


def batch() -> Batch:
    """Images with attributes, and references of the classes 1 and 0."""
    given = domain_batch(None, (32, 32))
    del given["domain"]
    return given | {"attributes": ATTRIBUTES}


def test_the_generator_is_told_labels_and_of_which_set_they_are() -> None:
    system = both()
    told = system.condition(ATTRIBUTES, "CelebA"), system.condition(F.one_hot(torch.tensor([2, 0])).float(), "RaFD")
    assert told[0].tolist() == [[1, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1, 0]]
    assert told[1].tolist() == [[0, 0, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0, 1]]
    with torch.device("meta"):
        published = build("stargan", "both")
    assert published.nets["G"].main[0].in_channels == 18 and published.nets["D"].conv2.out_channels == 13


def test_each_set_has_its_own_labels() -> None:
    """Of the logits, and in another order among its images."""
    system = both()
    logits = torch.randn(2, 5)
    expected = F.binary_cross_entropy_with_logits(logits[:, :2], ATTRIBUTES, reduction="sum") / 2
    torch.testing.assert_close(system.classification(logits, ATTRIBUTES, "CelebA"), expected)
    classes = torch.tensor([2, 0])
    found = system.classification(logits, F.one_hot(classes).float(), "RaFD")
    torch.testing.assert_close(found, F.cross_entropy(logits[:, 2:], classes))
    given = batch()
    sets = system.prepare(given)["sets"]
    assert sets["CelebA"]["real"] is given["image"] and sets["RaFD"]["real"] is given["reference"]
    assert sorted(sets["CelebA"]["target"].tolist()) == sorted(ATTRIBUTES.tolist())
    assert sorted(sets["RaFD"]["target"].argmax(1).tolist()) == [0, 1]


def test_a_step_of_each_network_for_each_set() -> None:
    system = both(n_critic=2)
    check_phases(system, batch())
    assert [phase.name for phase in system.phases] == ["D", "G", "D_RaFD", "G_RaFD"]
    assert [[phase.name for phase in system.phases if phase.when(step)] for step in (0, 1)] == [
        ["D", "D_RaFD"],
        ["D", "G", "D_RaFD", "G_RaFD"],
    ]
    optimizers = State(system).optimizers
    assert optimizers["D_RaFD"] is optimizers["D"] and optimizers["G_RaFD"] is optimizers["G"]


def told(system: System, given: Batch) -> Tensor:
    """What the generator is told for a translation."""
    calls = []
    handle = system.nets["G"].register_forward_pre_hook(lambda module, args: calls.append(args[1]))
    assert system.translate(given)["fake"].shape == given["image"].shape
    handle.remove()
    return calls[0]


def test_translation_to_attributes_or_a_class() -> None:
    system, image = both().eval(), torch.rand(2, 3, 30, 34)
    classes = {"reference_domain": torch.tensor([2, 1])}
    assert told(system, {"image": image, **classes})[:, 2:].tolist() == [[0, 0, 1, 0, 1], [0, 1, 0, 0, 1]]
    wanted = {"image": image, "reference_attributes": ATTRIBUTES}
    torch.testing.assert_close(told(system, wanted), system.condition(ATTRIBUTES, "CelebA"))
    own = told(system, {"image": image, "attributes": ATTRIBUTES})  # the next
    torch.testing.assert_close(own, system.condition(ATTRIBUTES.flip(1), "CelebA"))


def faces(root: Path, size: int = 40) -> None:
    """CelebA's layout, and two classes beside it."""
    rows = [f"{n}.jpg {1 if n % 2 else -1} -1" for n in range(6)]
    (root / "list_attr_celeba.txt").write_text("\n".join(["6", "Odd Never", *rows]) + "\n")
    for file in [*(f"images/{n}.jpg" for n in range(6)), "train/happy/0.png", "train/sad/0.png"]:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size + 4), "red").save(root / file)


def test_items_are_of_both_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains, "HELD_OUT", 2)
    faces(tmp_path)
    settings = domains.Settings(
        crop_size=16, load_size=40, preprocess_mode="crop_and_resize", selected_attrs=("Odd",), num_domains=2
    )
    data = domains.folder(tmp_path, "train", settings, train=True)
    drawn = {data[epoch, 0]["reference_domain"].item() for epoch in range(20)}
    assert len(data) == 4 and drawn == {0, 1} and data[0]["reference"].shape == data[0]["image"].shape == (3, 16, 16)
    with pytest.raises(FileNotFoundError, match="val: no such folder, which has a folder for each domain"):
        domains.folder(tmp_path, "val", settings)


@pytest.mark.parametrize("dataset", ["Both", "CelebA"])
def test_from_the_command_line(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains, "HELD_OUT", 2)
    faces(tmp_path, 180)
    run, out = tmp_path / "run", tmp_path / "out"
    options = {"dataset": dataset, "c-dim": "2", "c2-dim": "2"}
    config = [word for name, value in options.items() for word in (f"--config.{name}", value)]
    where = ["--data", str(tmp_path), "--out", str(run), "--steps", "1", "--batch-size", "2", "--workers", "0"]
    main(["stargan", "--preset", "tiny", *where, *config, "--config.selected-attrs", "Odd", "Never"])
    assert newest(run)[1]["step"] == 1
    inputs = ["--weights", str(run), "--out", str(out), "--images", str(tmp_path / "images")]
    of_class = ["--domain", "sad", "--data", str(tmp_path)]
    for asked in (["--attributes", "Odd"], [], *([of_class] if dataset == "Both" else [])):
        translate.main([*inputs, *asked])
        assert len([*out.iterdir()]) == 6
    message = "name either it or attributes" if dataset == "Both" else "name attributes"
    with pytest.raises(SystemExit, match=message):
        translate.main([*inputs, *of_class, "--attributes", "Odd"])
