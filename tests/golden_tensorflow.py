"""What the drivers of systems recorded in TensorFlow share: variables by name, as state dicts and back."""

from pathlib import Path

import numpy as np
import torch
from golden_recipe import Case
from golden_system import recorded_outputs
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import System

NAMES = {"weight": "weights", "bias": "biases"}


def variable(key: str) -> str:
    """The name of the variable that an entry of a state dict is."""
    *scopes, leaf = key.split(".")
    return "/".join([*scopes, NAMES.get(leaf, leaf)])


def transposed(value: Tensor) -> Tensor:
    """A kernel [out,in,h,w] as TensorFlow has it, [h,w,in,out]."""
    return value.permute(2, 3, 1, 0) if value.ndim == 4 else value


def load(system: System, case: Case, folder: Path) -> None:
    """Give the generator the case's variables, from a file of them."""
    np.savez(folder / "variables.npz", **{name: value.numpy() for name, value in case.state("W").items()})
    system.load_original(folder / "variables.npz")


def outputs(system: System, case: Case):
    """The outputs of the scopes that the case records, in the block."""
    scopes = [name.removeprefix("out.any.") for name in case.names if name.startswith("out.any.g_")]
    return recorded_outputs(system, [f"G.{scope}" for scope in scopes])


def named(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"out.any.{name.removeprefix('G.')}": value for name, value in values.items()}


def gradients(system: System, kind: str) -> dict[str, Tensor]:
    """Those of the generator's variables, which are left without."""
    net = system.nets["G"]
    found = {f"grad.{kind}.W.{variable(key)}": transposed(p.grad) for key, p in net.named_parameters()}
    net.zero_grad()
    return found


def check(net: nn.Module, recorded: dict[str, list[int]]) -> None:
    """All variables and their shapes."""
    with torch.device("meta"):
        assert {variable(k): list(transposed(v).shape) for k, v in net.state_dict().items()} == recorded


def of_preset(name: str, preset: str) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, preset).nets["G"]
