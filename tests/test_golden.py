"""Systems against recorded cases of the originals, from `--golden DIR`: keys, outputs, losses, gradients, training.

Everything goes through `models.build` and the System contract. A label-map system runs twice: with its label plan, and
with the dense map, whose gradient is checked too.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_recipe import Case
from safetensors.torch import save_file
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import Batch, System

FILES = {"VGG": "vgg_weights"}  # fixed network -> option naming the file it comes from
DRAWS = 24  # weights within rounding of the recorded ones that are tried, see Case.state
OUTPUTS = {"fake": "G"}  # recorded output that is a whole network's


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("golden"))
    files = {"case": sorted(folder.rglob("*.safetensors")), "keys_file": sorted(folder.rglob("*keys.json"))}
    if not any(files.values()):
        raise pytest.UsageError(f"--golden {folder}: no *.safetensors and no *keys.json in it")
    for argument in files.keys() & set(metafunc.fixturenames):
        ids = [str(file.relative_to(folder).with_suffix("")) for file in files[argument]]
        metafunc.parametrize(argument, files[argument], ids=ids)


def build(case: Case, folder: Path) -> System:
    """The system of a case, with the case's fixed networks in files of `folder`."""
    name, options = case.meta["system"], {}
    for net in FILES.keys() & case.meta["nets"].keys():
        options[FILES[net]] = str(folder / f"{net}.safetensors")
        save_file(case.state(net), options[FILES[net]])
    config = models.system(name).Config.from_original(case.options)
    return models.build(name, **vars(replace(config, **options)))


def networks(system: System) -> dict[str, nn.Module]:
    return {**system.nets, **system.fixed}


def load(system: System, case: Case) -> None:
    for name, net in networks(system).items():
        net.load_state_dict(case.state(name))


def feed_noise(system: System, case: Case, prefix: str) -> Iterator[Tensor]:
    """Make the system draw the case's noise; returns what is left of it."""
    noise = case.noise(prefix)

    def randn(shape, like: Tensor) -> Tensor:
        drawn = next(noise)
        assert list(drawn.shape) == list(shape)
        return drawn.to(like)

    system.randn = randn
    return noise


def prepare(system: System, batch: Batch, dense: bool) -> Batch:
    """The prepared batch; if `dense`, with a dense label map that requires grad in place of the label plan."""
    batch = system.prepare(batch)
    if dense:
        batch["semantics"] = batch["semantics"].dense().clone().requires_grad_()
    return batch


@contextmanager
def recorded_outputs(system: System, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of the modules' first calls in the block. A name is <net>.<module path>.<indices into its output>."""
    outputs, handles = {}, []

    def record(name: str, indices: list[str]):
        def hook(module: nn.Module, args: tuple, output) -> None:
            for index in indices:
                output = output[int(index)]
            outputs.setdefault(name, output.detach().clone())

        return hook

    for name in names:
        module, path = networks(system), OUTPUTS.get(name, name).split(".")
        module = module[path.pop(0)]
        while path and path[0] in dict(module.named_children()):
            module = module.get_submodule(path.pop(0))
        handles.append(module.register_forward_hook(record(name, path)))
    yield outputs
    for handle in handles:
        handle.remove()


def run_phases(system: System, case: Case, dense: bool) -> dict[str, Tensor]:
    """Every phase from the case's weights in every mode, without optimiser steps: name -> value."""
    found = {}
    for mode in case.meta["modes"]:
        wanted = [name.split(".", 2)[2] for name in case.names if name.startswith(f"out.{mode}.")]
        for phase in system.phases:
            first = phase is system.phases[0]
            load(system, case)
            system.train(mode == "train").zero_grad()
            noise = feed_noise(system, case, f"noise.{mode}.{phase.name.lower()}.")
            batch = prepare(system, case.inputs("in."), dense)
            system.freeze_all_but(phase)
            with recorded_outputs(system, wanted if first else []) as outputs:
                terms = phase.loss(batch)
            total = sum(terms.values())
            total.backward()
            assert next(noise, None) is None, "noise was left over"

            found |= {f"loss.{mode}.{name}": value for name, value in terms.items()}
            found[f"loss.{mode}.{phase.name}_total"] = total
            found |= {f"out.{mode}.{name}": value for name, value in outputs.items()}
            for name in phase.nets:
                found |= {f"grad.{mode}.{name}.{key}": p.grad for key, p in system.nets[name].named_parameters()}
            if first:
                for name, net in system.nets.items():
                    found |= {f"post.{mode}.{name}.{key}": buffer.clone() for key, buffer in net.named_buffers()}
                semantics = batch["semantics"]
                found[f"grad.{mode}.in.semantics"] = semantics.grad if dense else None
                found["mid.input_semantics"] = semantics if dense else semantics.dense()
    return found


def run_training(system: System, case: Case, dense: bool) -> dict[str, Tensor]:
    """The case's training iterations: series of loss terms, and the state of the networks after them."""
    load(system, case)
    system.train()
    adams = {}
    for phase in system.phases:
        parameters = [p for name in phase.nets for p in system.nets[name].parameters()]
        adams[phase.name] = torch.optim.Adam(parameters, **vars(phase.optimizer))
    noise = feed_noise(system, case, "noise.traj.")
    series: dict[str, list[Tensor]] = {}
    for it in range(len({name.split(".")[1] for name in case.meta["inputs"]})):
        batch = prepare(system, case.inputs(f"in.{it}."), dense)
        for phase in system.phases:
            if it % phase.every == 0:
                system.freeze_all_but(phase)
                terms = phase.loss(batch)
                adams[phase.name].zero_grad()
                sum(terms.values()).backward()
                adams[phase.name].step()
                for name, value in terms.items():
                    series.setdefault(f"traj.{name}", []).append(value.detach())
    assert next(noise, None) is None, "noise was left over"

    found = {name: torch.stack(values) for name, values in series.items()}
    for name, net in system.nets.items():
        found |= {f"traj.after.{name}.{key}": value for key, value in net.state_dict().items()}
    return found


def errors_of(case: Case, dense: bool, folder: Path) -> dict[str, float]:
    """Error of everything recorded, in units of its tolerance."""
    system = build(case, folder)
    for name, net in networks(system).items():
        assert {key: (list(v.shape), v.dtype) for key, v in net.state_dict().items()} == case.keys(name), name
    assert networks(system).keys() == case.meta["keys"].keys()

    trained = any(name.startswith("traj.") for name in case.names)
    found = (run_training if trained else run_phases)(system, case, dense)
    wanted = {name for name in case.names if dense or not (name.startswith("grad.") and ".in." in name)}
    missing = [name for name in sorted(wanted) if found.get(name) is None]
    assert wanted and not missing

    errors = {name: case.error(name, found[name]) for name in wanted}
    for name in wanted:
        if name.startswith("traj.after."):
            net, key = name.removeprefix("traj.after.").split(".", 1)
            update = case.update_error(name, found[name], replace(case, draw=0).state(net)[key])
            errors[name] = max(errors[name], update)
    return errors


def failures(errors: dict[str, float]) -> str:
    """What is beyond its tolerance, worst first."""
    worst_first = sorted(errors.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {error:.3g}" for name, error in worst_first if error > 1)


@pytest.mark.parametrize("dense", [False, True], ids=["plan", "dense"])
def test_case(case: Path, dense: bool, tmp_path: Path) -> None:
    """Everything recorded agrees within its tolerance: with the case's weights, or in a draw of `Case.state`."""
    first = errors = errors_of(Case(case), dense, tmp_path)
    draw = 0
    while failures(errors) and draw < DRAWS:
        draw += 1
        drawn = errors_of(Case(case, draw), dense, tmp_path)
        errors = {name: min(error, drawn[name]) for name, error in errors.items()}
    assert not failures(errors), f"units of tolerance: {failures(errors)}; with the case's weights: {failures(first)}"
    if draw:
        warnings.warn(f"{case.stem} took {draw} draws; with the case's weights: {failures(first)}", stacklevel=1)


def test_keys(keys_file: Path) -> None:
    """state_dict keys and shapes at the originals' own widths; the system is the name of the file's folder."""
    recorded = json.loads(keys_file.read_text())
    name = keys_file.parent.name
    with torch.device("meta"):
        system = models.build(name, **vars(models.system(name).Config.from_original(recorded["_config"])))
    for net, module in system.nets.items():
        assert {key: list(value.shape) for key, value in module.state_dict().items()} == recorded[net]
        assert sum(p.numel() for p in module.parameters()) == recorded["_param_count"][net]
    assert set(system.nets) == {key for key in recorded if not key.startswith("_")}
