"""The library's systems as users of plain PyTorch have them: every fused layer by its formula in torch's functions.

    with formulas():
        system.translate(batch)

`LAYERS` has what stands for the methods of a class, `FUNCTIONS` what stands for a function. Parameters, state-dict keys
and results stay the same, and so does what systems and networks do besides: which forwards phases share, for example.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

import i2ifast.models
from i2ifast import _backend, labels, ops
from i2ifast.models import _blocks, _crn, _fs_vid2vid, _stackgan
from i2ifast.nn import (
    _norm,
    ccfpse,
    clade,
    conv,
    correspondence,
    downsample_conv,
    fade,
    instance,
    label_conv,
    layer,
    losses,
    modulated_conv,
    panoptic,
    positional,
    region_norm,
    sean,
    smis,
    spade,
    spectral,
    upsample_conv,
)
from i2ifast.nn import batch as batch_norm

from . import convs, maps, norms

LAYERS: dict[type, dict[str, Any]] = {
    _blocks.LayerNormAct: {"forward": norms.group_layer_norm_act},
    _fs_vid2vid.LabelEmbedder: {"forward": maps.label_embedder},
    _fs_vid2vid.SPADE: {"layer": maps.generated_layer, "more": maps.more_maps},
    _stackgan.VectorNormAct: {"forward": norms.vector_norm_act},
    _crn.LayerNorm: {"forward": norms.group_layer_norm},
    batch_norm.BatchNormAct: {"forward": norms.batch_norm_act},
    ccfpse.DepthsepCCBlock: {"forward": maps.depthsep_block},
    clade.EdgeConv2d: {"forward": maps.edge_conv},
    clade.SPADELight: {"layer": maps.clade_layer},
    conv.Conv2d: {"_conv_forward": nn.Conv2d._conv_forward},
    conv.ConvTranspose2d: {"forward": nn.ConvTranspose2d.forward},
    conv.NarrowConv2d: {"_conv_forward": nn.Conv2d._conv_forward},
    conv.ValidConv2d: {"_conv_forward": nn.Conv2d._conv_forward},
    downsample_conv.DownsampleConv2d: {"forward": convs.downsample_module},
    fade.FADE: {"gamma_beta": maps.fade_maps},
    instance.InstanceNormAct: {"forward": norms.instance_norm_module},
    instance.TrackedInstanceNormAct: {"forward": norms.tracked_instance_norm_act},
    layer.AdaILN: {"forward": norms.adaptive_instance_layer_norm},
    layer.ILN: {"forward": norms.instance_layer_norm},
    layer.LayerNorm: {"forward": norms.layer_norm},
    panoptic.PanopticConv2d: {"forward": maps.panoptic_conv},
    panoptic.PanopticUpsample: {"forward": maps.panoptic_upsample},
    positional.ReflectionSPADE: {"forward": maps.reflection_spade},
    region_norm.RN_B: {"forward": norms.basic_region_norm},
    region_norm.RN_L: {"forward": norms.learned_region_norm},
    sean.ACE: {"forward": maps.ace},
    smis.GROUP_SPADE: {"layer": property(maps.spade_layer)},
    spade.SPADE: {"layer": property(maps.spade_layer)},
    spectral.SpectralNorm: {"compute_weight": SpectralNorm.compute_weight},
    upsample_conv.UpsampleConv2d: {"forward": convs.upsample_module},
    # What is asked of a label plan, of the map itself.
    Tensor: {"dense": lambda self: self, "num_channels": property(lambda self: self.size(1))},
}


def refuse(stem: str, name: str, x: Tensor) -> str:
    """In the place of the chooser of backends: no op of the library runs."""
    raise RuntimeError(f"i2ifast::{name} has no plain formula where it was called")


FUNCTIONS: dict[Callable, Callable] = {
    _backend.choose: refuse,
    _backend.fast: lambda: False,
    _norm.statistics_of: norms.statistics_of,
    conv.convolve: convs.convolve,
    conv.halved: convs.halved,
    correspondence.attend: convs.attend,
    downsample_conv.downsample_conv2d: convs.downsample_conv2d,
    instance.adain: norms.adain,
    instance.instance_norm_act: norms.instance_norm_act,
    instance.mean_and_deviation: norms.mean_and_deviation,
    label_conv.plan_of: lambda seg: None,
    labels.plan: maps.one_hot,
    labels.plan_dense: lambda segmap, limit=None: None,
    losses.contextual: convs.contextual,
    modulated_conv.modulated_conv2d: convs.modulated_conv2d,
    ops.bias_act: convs.bias_act,
    ops.conv3x3: convs.conv3x3,
    ops.feature_matching: convs.feature_matching,
    ops.instance_statistics: norms.instance_statistics,
    ops.mix_sums: norms.mix_sums,
    ops.modulate_mix: norms.modulate_mix,
    ops.modulate_style: norms.modulate_style,
    ops.positional_norm: norms.positional_norm,
    ops.spectral_weight: norms.spectral_weight,
    ops.upfirdn2d: convs.upfirdn2d,
    region_norm.region_average_pool: norms.region_average_pool,
    spade.modulated: maps.modulated,
    spade.modulated_twice: maps.modulated_twice,
    upsample_conv.upsample_conv2d: convs.upsample_conv2d,
}


@cache
def places() -> list[tuple[object, str, Any]]:
    """Where something is replaced: an object, the name of its attribute, and the new one."""
    for name in i2ifast.models.names():
        importlib.import_module(f"i2ifast.models.{name}")
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "i2ifast"]
    instead = {id(function): formula for function, formula in FUNCTIONS.items()}
    found = [(m, name, instead[id(v)]) for m in modules for name, v in vars(m).items() if id(v) in instead]
    return found + [(kind, name, formula) for kind, methods in LAYERS.items() for name, formula in methods.items()]


@contextmanager
def formulas(
    layout: torch.memory_format = torch.contiguous_format, dtype: torch.dtype = torch.float32
) -> Iterator[None]:
    """Inside, systems and layers compute by plain formulas; one-hot maps have this layout and dtype."""
    before = [(at, name, vars(at).get(name, places)) for at, name, _ in places()]
    for at, name, formula in places():
        setattr(at, name, partial(formula, layout=layout, dtype=dtype) if formula is maps.one_hot else formula)
    try:
        yield
    finally:
        for at, name, value in before:
            if value is places:  # it was inherited
                delattr(at, name)
            else:
                setattr(at, name, value)
