"""How recorded cases of pix2pixHD run: all losses of one iteration from one set of weights, or several iterations.

In the original one forward pass comes before both steps. The discriminator's phase sees the generator's images of
before its step, and its own weights: the same numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from golden_recipe import Case
from golden_unpaired import Found, build, settled
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import Batch, Phase, System
from i2ifast.models._pix2pixhd import InputConv2d

VARIANTS = ("plan", "dense")
NORMS = tuple(models._pix2pixhd.NORMS.values())


def batch_of(system: System, case: Case, dense: bool, prefix: str = "in.") -> Batch:
    given = case.inputs(prefix)
    names = {"inst": "instance"} if system.config.label_nc else {"inst": "instance", "label": "a", "image": "b"}
    batch = system.prepare({names.get(name, name): value for name, value in given.items()})
    if dense and not isinstance(batch["semantics"], Tensor):
        batch["semantics"] = batch["semantics"].dense()
    return batch


def feed_noise(system: System, case: Case) -> Iterator[Tensor]:
    noise = case.noise("noise.")
    system.rand = lambda shape, like: next(noise)
    system.randint = lambda high, shape, like: next(noise)
    return noise


def backward(system: System, phase: Phase, batch: Batch) -> Found:
    """Terms of a phase and their sum, as the original logs them; leaves gradients."""
    system.freeze_all_but(phase)
    terms = phase.loss(batch)
    total = sum(terms.values())
    total.backward()
    if phase.name == "D":
        terms = {name: term / 0.5 for name, term in terms.items()}
    else:
        terms = {"G_GAN_Feat": torch.zeros(()), "G_VGG": torch.zeros(()), **terms}
    return {name: term.detach() for name, term in {**terms, f"{phase.name}_total": total}.items()}


@contextmanager
def recorded(nets: nn.ModuleDict) -> Iterator[Found]:
    """Outputs of all modules in their first calls in the block."""
    outputs: Found = {}
    handles = [
        module.register_forward_hook(lambda module, args, output, path=path: outputs.setdefault(path, output))
        for path, module in nets.named_modules()
        if path and not path.startswith("D")
    ]
    yield outputs
    for handle in handles:
        handle.remove()


def numbered_outputs(nets: nn.ModuleDict, outputs: Found, semantics: Tensor) -> Found:
    """Outputs by the original's numbers, those of paddings and activations that are part of a module here too.

    Activations work in place: a norm's output is recorded as they leave it. The generator of global images has one
    module for all of them, recorded when it is first called.
    """
    found = dict(outputs)
    for path, sequence in nets.named_modules():
        if path not in outputs or not isinstance(sequence, nn.Sequential) or "conv_block" in path:
            continue
        layers = {int(name): layer for name, layer in sequence.named_children()}
        for i in range(max(layers)):
            if isinstance(layers.get(i), NORMS):
                found[f"{path}.{i + 1}"] = outputs[f"{path}.{2 if path == 'G.model' else i}"]
            elif getattr(layers.get(i + 1), "kernel_size", None) == (7, 7):
                padded = semantics if isinstance(layers[i + 1], InputConv2d) else outputs.get(f"{path}.{i - 2}")
                found |= {} if padded is None else {f"{path}.{i}": F.pad(padded, [3] * 4, mode="reflect")}
    return found


def run_phases(case: Case, folder: Path, dense: bool, seed: int) -> Found:
    """What one iteration computes, in every mode, without optimiser steps."""
    found: Found = {}
    for mode in case.meta["modes"]:
        system = build(case, folder, seed).train(mode != "eval")
        if mode == "eval" and case.options.get("eval_state") == "after_train":
            for key, buffer in system.nets.named_buffers():
                buffer.copy_(found[f"post.train.{key}"])
        start = {key: buffer.clone() for key, buffer in system.nets.named_buffers()}
        batch, judge = batch_of(system, case, dense), system.nets["D"]
        seg = batch["semantics"]
        maps = seg if isinstance(seg, Tensor) else seg.dense()
        with torch.no_grad(), recorded(system.nets) as outputs:
            features = system.encode(batch)
            fake = system.nets["G"](seg, features)
            judged = {"D_fake_pool": judge(seg, fake), "D_real": judge(seg, batch["image"]), "D_fake": judge(seg, fake)}
        found |= {f"post.{mode}.{key}": buffer.clone() for key, buffer in system.nets.named_buffers()}
        for name, scales in judged.items():
            for i, layers in enumerate(scales):
                if not system.config.ganFeat:
                    layers = layers[-1:] if system.config.lsgan else [layers[-1].sigmoid()]
                found |= {f"out.{mode}.{name}.{i}.{j}": layer for j, layer in enumerate(layers)}
        found[f"mid.{mode}.input_label"] = found["mid.input_label"] = maps
        if features is not None:
            found |= {f"out.{mode}.{name}": features for name in ("E", "feat", "feat_map", "features")}
            found |= {"mid.feat_map": features, "mid.input_concat": torch.cat([maps, features], 1)}
            maps = torch.cat([maps, features], 1)
        found |= {f"out.{mode}.{name}": y for name, y in numbered_outputs(system.nets, outputs, maps).items()}
        found[f"out.{mode}.fake"] = fake
        for phase in system.phases:
            for key, buffer in system.nets.named_buffers():
                buffer.copy_(start[key])
            with recorded(system.nets) as outputs:
                keep = system.nets["G"].register_forward_hook(lambda module, args, y: y.retain_grad())
                found |= {f"loss.{mode}.{name}": term for name, term in backward(system, phase, batch).items()}
                keep.remove()
            if phase.name == "G":
                found[f"grad.{mode}.fake"] = outputs["G"].grad
            for net in phase.nets:
                found |= {f"grad.{mode}.{net}.{key}": p.grad for key, p in system.nets[net].named_parameters()}
    return found


def run_training(case: Case, folder: Path, dense: bool, seed: int) -> Found:
    """Iterations: series of terms, and the networks after them."""
    system = build(case, folder, seed).train()
    noise, series, adams = feed_noise(system, case), {}, {}
    for phase in system.phases:
        parameters = [p for net in phase.nets for p in system.nets[net].parameters()]
        adams[phase.name] = phase.optimizer.kind(parameters, **vars(phase.optimizer))
    for it in range(len({name.split(".")[1] for name in case.meta["inputs"]})):
        batch = batch_of(system, case, dense, f"in.{it}.")
        for phase in system.phases:
            adams[phase.name].zero_grad()
            for name, value in backward(system, phase, batch).items():
                series.setdefault(f"traj.{name}", []).append(value)
            adams[phase.name].step()
    assert next(noise, None) is None, "noise was left over"
    found = {name: torch.stack(values) for name, values in series.items()} | {"out.train.fake_last": batch["fake"]}
    return found | {f"traj.after.{key}": value for key, value in system.nets.state_dict().items()}


def found(case: Case, variant: str, backend: str, folder: Path) -> Found:
    dense = variant == "dense"
    run = run_training if case.trains else run_phases
    if dense and backend == "reference":
        return run(case, folder, dense, 0)
    return settled(case, lambda seed: run(case, folder, dense, seed))
