"""Systems against recorded cases of the originals, from `--golden DIR`: keys, outputs, losses, gradients, training.

A case runs on every backend of the CPU, or of `--device`, through the public API: by `golden_drivers/<system>.py`
where there is one (a system that is an operation, or does not fit the System contract), else by `golden_system.py`.
Either has

    VARIANTS: tuple[str, ...]                            the ways to run a case, each on every backend
    found(case, variant, backend, folder) -> dict[str, Tensor | None]
    keyed(recorded) -> dict[str, nn.Module]              where keys files have no options: their networks, by name

    nets_of(system, options) -> dict[str, nn.Module]         optional: the networks of a file of keys, at its options

`found` gives a value for every name that the case records, None for what this variant does not have. `folder` is a
place for files. A driver may give an empty dict for a trajectory that it compared in a way of its own, and may have a
`check_keys(recorded)` for a system that is no System.
"""

import importlib
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import golden_system
import pytest
import torch
from golden_recipe import Case

import i2ifast
from i2ifast import _backend, models

DRIVERS = Path(__file__).with_name("golden_drivers")
CPU = torch.device("cpu")
# Their drivers make modules of their own, on a device where they are to run there.
OF_MODULES = ("attnorm", "imaginaire", "panoptic", "partialconv")


def driver_of(system: str) -> ModuleType:
    own = (DRIVERS / f"{system}.py").exists()
    return importlib.import_module(f"golden_drivers.{system}") if own else golden_system


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Convolutions round differently with the number of threads, and a trajectory goes on from that."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where the case runs: its inputs and noise, and every system that is built, are moved there."""
    device, build = torch.device(request.config.getoption("device")), models.build
    if device != CPU:
        monkeypatch.setattr(Case, "device", device)
        monkeypatch.setattr(models, "build", lambda *args, **options: build(*args, **options).to(device))
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return device


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("golden"))
    files = {"case": sorted(folder.rglob("*.safetensors")), "keys_file": sorted(folder.rglob("*keys.json"))}
    if not any(files.values()):
        raise pytest.UsageError(f"--golden {folder}: no *.safetensors and no *keys.json in it")

    def name_of(file: Path) -> str:
        return str(file.relative_to(folder).with_suffix(""))

    if "case" in metafunc.fixturenames:
        runs = [(file, v) for file in files["case"] for v in driver_of(Case(file).meta["system"]).VARIANTS]
        metafunc.parametrize(("case", "variant"), runs, ids=[f"{name_of(file)}-{v}".rstrip("-") for file, v in runs])
        on_cpu = metafunc.config.getoption("device") == "cpu"
        backends = [name for name in ("reference", "cpu" if on_cpu else "auto") if not _backend.missing.get(name)]
        metafunc.parametrize("backend", backends)
    if "keys_file" in metafunc.fixturenames:
        metafunc.parametrize("keys_file", files["keys_file"], ids=map(name_of, files["keys_file"]))


def failures(errors: dict[str, float]) -> str:
    """What is beyond its tolerance, worst first."""
    worst_first = sorted(errors.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {error:.3g}" for name, error in worst_first if error > 1)


def test_case(case: Path, variant: str, backend: str, device: torch.device, tmp_path: Path) -> None:
    """Everything recorded agrees within its tolerance."""
    recorded = Case(case)
    system = recorded.meta["system"]
    if recorded.trains and device != CPU:
        pytest.skip("training goes on from the rounding of the CPU")
    made_there = device if device != CPU and system in OF_MODULES else nullcontext()
    with i2ifast.use_backend(backend), made_there:
        found = driver_of(system).found(recorded, variant, backend, tmp_path)
    if not found and recorded.trains:
        return
    missing = [name for name in sorted(recorded.names) if name not in found]
    assert recorded.names and not missing
    errors = {}
    for name in recorded.names:
        if found[name] is None:
            continue
        errors[name] = recorded.error(name, found[name])
        if name.startswith("traj.after."):
            net, key = name.removeprefix("traj.after.").split(".", 1)
            errors[name] = max(errors[name], recorded.update_error(name, found[name], recorded.state(net)[key]))
    wrong = failures(errors)
    assert errors and not wrong, f"units of tolerance: {wrong}"


def test_keys(keys_file: Path) -> None:
    """state_dict keys and shapes at the originals' own widths; the system is the name of the file's folder.

    Of a file without options, `keyed(recorded)` of the driver gives the networks by name.
    """
    recorded = json.loads(keys_file.read_text())
    name = keys_file.parent.name
    if check := getattr(driver_of(name), "check_keys", None):
        check(recorded)
        return
    nets_of = getattr(driver_of(name), "nets_of", golden_system.nets_of)
    with torch.device("meta"):
        if "_config" in recorded:
            nets = nets_of(name, recorded["_config"])
        else:
            nets = driver_of(name).keyed(recorded)
    for net, module in nets.items():
        keys = dict(recorded[net])
        count = keys.pop("__total_params__") if "__total_params__" in keys else recorded["_param_count"][net]
        assert {key: list(value.shape) for key, value in module.state_dict().items()} == keys
        assert sum(p.numel() for p in module.parameters()) == count
    trained = {key for key in recorded if not key.startswith("_")} - golden_system.FILES.keys()
    assert set(nets) == trained
