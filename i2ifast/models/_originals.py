"""Options and checkpoint files of original repositories."""

from collections.abc import Container, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from i2ifast.nn import InstanceNormAct


def load_nets(
    nets: nn.ModuleDict, path: str | Path, epoch: str, optional: Container[str] = (), unused: Container[str] = ()
) -> None:
    """Load <epoch>_net_<name>.pth for every net of a checkpoint folder, or one such file.

    Files of `optional` nets may be absent from a folder; parts named in `unused` are left out of files.
    """
    path = Path(path)
    if path.is_dir():
        files = {name: path / f"{epoch}_net_{name}.pth" for name in nets}
        files = {name: file for name, file in files.items() if file.exists() or name not in optional}
    else:
        files = {path.stem.rpartition("_net_")[2]: path}
    for name, file in files.items():
        if name not in nets:
            raise ValueError(f"{file}: expected a file name ending in _net_{' or '.join(nets)}.pth")
        load_file(nets[name], file, unused)


def load_file(net: nn.Module, file: Path, unused: Container[str] = ()) -> None:
    """Load a file of one state dict, without the statistics of instance norms that files of PyTorch 0.3 have, and
    without what is in modules named in `unused`."""
    norms = [name for name, module in net.named_modules() if isinstance(module, InstanceNormAct)]
    stale = {f"{name}.{key}" for name in norms for key in ("running_mean", "running_var", "num_batches_tracked")}
    state = torch.load(file, map_location="cpu", weights_only=True)
    stale |= {key for key in state if key.partition(".")[0] in unused}
    load_strictly(net, {key: value for key, value in state.items() if key not in stale}, file)


def load_strictly(net: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """load_state_dict that refuses any difference in keys or shapes, naming the first ones and the file."""
    own = net.state_dict()
    wrong = [f"no {key}" for key in own if key not in state]
    wrong += [f"unexpected {key}" for key in state if key not in own]
    wrong += [
        f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"{file} does not fit this {type(net).__name__}: {'; '.join(wrong[:8])}{more}")
    net.load_state_dict(state)


def require(options: Mapping[str, Any], **values: Any) -> None:
    """ValueError for the first of an original's options that has another value than the one that there is here."""
    for name, value in values.items():
        if options.get(name, value) != value:
            raise ValueError(f"{name} {options[name]!r}: only {value!r} is supported")


def flattened(options: Mapping[str, Any], *sections: str) -> dict[str, Any]:
    """The options that an original nests in sections, which are prefixes of their names here."""
    return {f"{section}_{name}": value for section in sections for name, value in options[section].items()}


def named(config: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an original's options that a config has fields for."""
    return {field.name: options[field.name] for field in fields(config) if field.name in options}
