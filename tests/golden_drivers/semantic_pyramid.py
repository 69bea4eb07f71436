"""How recorded cases of Semantic Pyramid run."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from golden_recipe import Case
from golden_system import recorded_outputs
from torch import Tensor, nn

from i2ifast import models
from i2ifast.models import semantic_pyramid

VARIANTS = ("",)
LEVELS = 7
GIVEN = ("z", "class", "features", "masks")  # to the generator


def keyed(recorded: dict[str, Any]) -> dict[str, nn.Module]:
    nets = models.build("semantic_pyramid", n_class=365).nets
    return {"generator": nets["G"], "discriminator": nets["D"]}


def batch_of(case: Case) -> dict[str, Any]:
    given = case.inputs("in.")
    n, maps = len(given["real"]), semantic_pyramid.SPATIAL
    features = [given[f"feat{i}"].relu() if i < LEVELS - 1 else given[f"feat{i}"] for i in range(LEVELS)]
    fake = [0.5 * features[i] + 0.1 * given[f"feat_fake{i}"] for i in range(LEVELS)]
    of_vectors = (torch.arange(n) % 2 == 0).float().view(n, 1, 1)
    return {
        "image": given["real"],
        "z": [given[f"z{i}"].requires_grad_() for i in (1, 2)],
        "features": [feature.requires_grad_() for feature in features],
        "fake": [feature.detach().requires_grad_() for feature in fake],
        "masks": [(given[f"mask{i}"] < 0.5).float() for i in range(maps)] + [of_vectors] * (LEVELS - maps),
        "class": torch.arange(n) % case.options["n_class"],
    }


def found(case: Case, variant: str, backend: str, folder: Path) -> dict[str, Tensor]:
    system = models.build("semantic_pyramid", **vars(semantic_pyramid.Config.from_original(case.options)))
    for name, net in system.nets.items():
        assert {key: (list(v.shape), v.dtype) for key, v in net.state_dict().items()} == case.keys(name), name
        net.load_state_dict(case.state(name))
    system.train()
    batch, found, before = batch_of(case), {}, []
    draws = iter(batch["z"])
    system.randn = lambda shape, like: next(draws)
    system.extract = lambda images: batch["fake"]
    system.nets["G"].colorize[0].register_forward_hook(lambda module, args, output: before.append((module, args[0])))
    names = [
        name.removeprefix("out.train.") for name in case.names if name.startswith(("out.train.G.", "out.train.D."))
    ]
    heads = {net: module.register_forward_hook(lambda _, args, output, net=net: calls[net].append(output))
             for net, module in system.nets.items()}  # fmt: skip
    calls: dict[str, list[Tensor]] = {net: [] for net in heads}
    prepared = system.prepare(batch)
    with recorded_outputs(system, names) as outputs:
        for phase in system.phases:
            system.freeze_all_but(phase)
            terms = phase.loss(prepared)
            found |= {f"loss.train.{name}": term for name, term in terms.items()}
            found[f"loss.train.{phase.name.lower()}"] = sum(terms.values())
            sum(terms.values()).backward()
            parameters = system.nets[phase.name].named_parameters()
            found |= {f"grad.train.{phase.name}.{key}": p.grad for key, p in parameters}
            # In losses they are constants: gradients are those through the generator.
            prepared |= {name: [t.detach() for t in prepared[name]] for name in ("z", "features")}
    for name in ("rec", "div"):
        found[f"loss.train.{name}"] = found[f"loss.train.{name}"] / getattr(system.config, f"{name}_weight")
    values = outputs | dict(zip(("fake1", "fake2"), calls["G"], strict=True))
    values |= {"d_real": calls["D"][0], "d_fake": calls["D"][1]}
    norm, x = before[0]  # whose activation is in it
    values["G.colorize.1"] = outputs["G.colorize.0"]
    values["G.colorize.0"] = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)
    for name, kind in {"feat": "features", "feat_fake": "fake"}.items():
        found |= {f"grad.train.in.{name}{i}": feature.grad for i, feature in enumerate(batch[kind])}
    found |= {f"grad.train.in.z{i}": z.grad for i, z in enumerate(batch["z"], 1)}
    for net, module in system.nets.items():
        found |= {f"post.train.{net}.{key}": buffer.clone() for key, buffer in module.named_buffers()}
    found |= {f"out.train.{name}": value for name, value in values.items()}
    with torch.no_grad():
        generator = system.eval().nets["G"]
        found["out.eval.fake1_after"] = generator(*(batch[k] if k != "z" else batch[k][0] for k in GIVEN))
    return found
