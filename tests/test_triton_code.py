"""Machine code of the Triton kernels, made without a GPU: registers, shared memory, spills, width of accesses.

Of bfloat16 images with 64 channels, in both layouts, on three architectures. The numbers are those of this table:

* registers per thread, for channels_last and for contiguous images: the largest of the architectures, with some air.
  Many more would leave room for fewer threads, and with them for fewer accesses under way;
* bytes of shared memory per program;
* bits of accesses to global memory on sm_90: all widths that there are, of which the largest must occur. What is
  narrower than 128 are indices, numbers per pixel and partial sums. Contiguous images are read narrower where a kernel
  looks at neighbours, and stored narrower by upsampling.
"""

from pathlib import Path
from typing import NamedTuple

import machine_code
import pytest
from triton_launches import compiled, launches, written

pytest.importorskip("triton", reason="Triton is not installed")


class Budget(NamedTuple):
    """What a kernel may take."""

    registers: int
    registers_contiguous: int
    shared: int
    loads: str
    stores: str
    loads_contiguous: str
    stores_contiguous: str


# Bytes that ptxas may put aside, to fit another block.
PUT_ASIDE = 24

# fmt: off
KERNELS = {name: Budget(*budget) for name, budget in {
    #                                      registers shared  loads         stores    loads             stores
    "_common._add_partials":              ( 64,  56,  1024, "128 32",     "32",     "128 32",         "32"),
    "bias_act._apply":                    ( 64,  56,     0, "128",        "128",    "128 32",         "128"),
    "bias_act._gradient":                 (104,  96,  1024, "128",        "128 32", "128 32",         "128 32"),
    "channel_pool._backward":             ( 40,  40,     0, "32",         "128",    "128",            "128"),
    "channel_pool._pool":                 ( 40,  56,   512, "128",        "32",     "128",            "32"),
    "dynamic_conv._dweight":              ( 40,  72,     0, "128",        "128",    "128 16",         "128"),
    "dynamic_conv._sum":                  ( 96, 104,     0, "128",        "128",    "128 16",         "128"),
    "dynamic_conv._sum adjoint":          ( 96, 136,     0, "128",        "128",    "128 16",         "128"),
    "feature_matching._gradients":        ( 48,  40,  4096, "128 32",     "128",    "128 32",         "128"),
    "feature_matching._sums":             ( 72,  64,   512, "128",        "128 32", "128",            "128 32"),
    "gather_sum._gather":                 ( 48,  48,   512, "128 32",     "32",     "128 32",         "32"),
    "modulate._apply":                    ( 64,  40,     0, "128",        "128",    "128 32",         "128"),
    "modulate._dx":                       ( 80,  48,     0, "128",        "128",    "128 32",         "128"),
    "modulate._sums":                     (152, 144,  1024, "128",        "128 32", "128 32",         "128 32"),
    "modulate_mix._dots":                 (176, 128,  4608, "128",        "128",    "128",            "128"),
    "modulate_mix._dots float32":         (232, 208, 18432, "128",        "128",    "128",            "128"),
    "modulate_mix._mix":                  (176, 176,  8704, "128",        "128",    "128",            "128"),
    "modulate_mix._mix float32":          (192, 176, 16384, "128",        "128",    "128",            "128"),
    "modulate_mix._sums":                 (176, 176,  4096, "128",        "128",    "128",            "128"),
    "modulate_mix._sums float32":         (104,  96, 18432, "128",        "128",    "128",            "128"),
    "modulate_region._apply":             ( 72,  88,  4096, "128 32",     "128",    "128",            "128"),
    "modulate_region._dx":                (112, 144,  4096, "128 32",     "128 32", "128",            "128"),
    "modulate_region._sums":              ( 80,  72,   512, "128 64 32",  "32",     "128 64 32",      "32"),
    "modulate_style._apply":              ( 72,  56,     0, "128",        "128",    "128 32",         "128"),
    "modulate_style._dx":                 (120,  64,     0, "128",        "128",    "128 32",         "128"),
    "modulate_style._sums":               (128,  80,  1024, "128",        "32",     "128 32",         "32"),
    "modulate_table._apply":              ( 64,  56,  4096, "128 32",     "128",    "128 32",         "128"),
    "modulate_table._apply noise":        ( 72,  64,  4096, "128 32",     "128",    "128 32",         "128"),
    "modulate_table._apply pair":         ( 72,  72,  4096, "128 32",     "128",    "128 32",         "128"),
    "modulate_table._apply pair x2":      ( 48, 136,  4096, "128 32",     "128",    "128 64 32",      "16"),
    "modulate_table._apply scales":       ( 64,  64,  4096, "128 32",     "128",    "128 32",         "128"),
    "modulate_table._apply x2":           ( 56,  88,  4096, "128 32",     "128",    "128 64 32",      "16"),
    "modulate_table._dtable":             ( 80,  72,   512, "128 32",     "32",     "128 32",         "32"),
    "modulate_table._dtable noise":       ( 80,  80,   512, "128 32",     "32",     "128 32",         "32"),
    "modulate_table._dtable pair":        (128, 128,   512, "128 32",     "32",     "128 32",         "32"),
    "modulate_table._dtable pair x2":     (128, 120,   512, "128 32",     "32",     "128 32",         "32"),
    "modulate_table._dtable scales":      ( 80,  72,   512, "128 32",     "32",     "128 32",         "32"),
    "modulate_table._dtable x2":          ( 80,  72,   512, "128 32",     "32",     "128 32",         "32"),
    "modulate_table._dx":                 ( 80, 104,  4096, "128 32",     "128",    "128 32",         "128"),
    "modulate_table._dx noise":           ( 96, 120,  4096, "128 32",     "128",    "128 32",         "128"),
    "modulate_table._dx pair":            (104, 144,  4096, "128 32",     "128",    "128 32",         "128"),
    "modulate_table._dx pair x2":         (176, 224,  4096, "128 32",     "128",    "128 64 32 16",   "128"),
    "modulate_table._dx scales":          ( 96, 144,  4096, "128 32",     "128 32", "128 32",         "128 32"),
    "modulate_table._dx x2":              (104, 128,  4096, "128 32",     "128",    "128 64 32 16",   "128"),
    "modulate_table._sums":               (136, 176,  4096, "128 32",     "32",     "128 32",         "32"),
    "modulate_table._sums noise":         (200, 240,  4096, "128 32",     "32",     "128 32",         "32"),
    "modulate_table._sums pair":          (176, 216,  4096, "128 32",     "32",     "128 32",         "32"),
    "modulate_table._sums pair x2":       (144, 216,  4096, "128 32",     "32",     "128 64 32 16",   "32"),
    "modulate_table._sums scales":        (136, 200,  4096, "128 32",     "32",     "128 32",         "32"),
    "modulate_table._sums x2":            (144, 176,  4096, "128 32",     "32",     "128 64 32 16",   "32"),
    "moments._chan":                      ( 56,  48,   512, "128 64",     "32",     "128 16",         "32"),
    "moments._chunks":                    ( 88,  96,  1024, "128",        "32",     "128 16",         "32"),
    "moments._chunks noise":              (104, 120,  2048, "128 32",     "32",     "128 32 16",      "32"),
    "panoptic_conv._add":                 ( 48,  48,  4096, "128 32",     "128",    "128 32",         "128"),
    "panoptic_conv._gather":              ( 32,  32,     0, "128 32",     "128",    "128 32",         "128"),
    "panoptic_conv._put":                 ( 40,  40,   512, "128 32",     "128",    "128 32",         "128"),
    "panoptic_conv._take":                ( 40,  40,   512, "128 32",     "128",    "128 32",         "128"),
    "panoptic_upsample._copy":            ( 32,  48,  4096, "128 32",     "128",    "128 16",         "128"),
    "panoptic_upsample._sum":             ( 64,  96,  4096, "128 32",     "128",    "128 32 16",      "128"),
    "positional_norm._apply":             ( 80,  80,  1024, "128",        "128",    "128",            "128"),
    "positional_norm._gradients":         (152, 136,  1024, "128",        "128",    "128",            "128"),
    "region_moments._sums":               ( 64,  64,   512, "128 64 32",  "32",     "128 64 32",      "32"),
    "spectral_weight._divide":            ( 24,  24,     0, "128 32",     "128",    "128 32",         "128"),
    "spectral_weight._dot":               ( 40,  40,   512, "128",        "32",     "128",            "32"),
    "spectral_weight._dweight":           ( 72,  72,     0, "128 32",     "128",    "128 32",         "128"),
    "spectral_weight._normalise":         ( 80,  72,  4096, "128 64",     "64 32",  "128 64",         "64 32"),
    "spectral_weight._product":           ( 48,  40,   512, "128",        "32",     "128",            "32"),
    "spectral_weight._product transposed":( 40,  40,  1024, "128 32",     "32",     "128 32",         "32"),
    "upfirdn2d._filter":                  ( 56,  56,  1024, "128 32",     "128",    "32 16",          "64"),
}.items()}
# fmt: on


def test_every_kernel_is_here():
    assert {name.split()[0] for name in KERNELS} == written()


def wrong(name: str, code: machine_code.Code, loads: str, stores: str) -> list[str]:
    """What is not as the table says."""
    found = []
    for what, bits, widths in (("loads", code.loads, loads), ("stores", code.stores, stores)):
        wanted = list(map(int, widths.split()))
        if not set(bits) <= set(wanted) or max(bits) != max(wanted):
            found.append(f"{name}: {what} of {bits} bits, expected {widths}")
    if code.divisions:
        found.append(f"{name} divides in 64 bits")
    if code.tensor_cores != (name.startswith("modulate_mix") and "float32" not in name):
        found.append(f"{name}: tensor cores {code.tensor_cores}")
    return found


@pytest.mark.parametrize("capability, channels_last", [(80, True), (90, True), (100, True), (90, False)])
def test_machine_code(capability: int, channels_last: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made, cubin, found = launches(channels_last), tmp_path / "cubin", []
    assert made.keys() == KERNELS.keys()
    for name, launch in made.items():
        result, budget = compiled(launch, capability), KERNELS[name]
        cubin.write_bytes(result.asm["cubin"])
        registers, stack = machine_code.resources(cubin)
        limits = {
            "bytes of stack": (stack, PUT_ASIDE),
            "registers": (registers, budget.registers if channels_last else budget.registers_contiguous),
            "bytes of shared memory": (result.metadata.shared, budget.shared),
        }
        found += [f"{name} takes {n} {what}, at most {most}" for what, (n, most) in limits.items() if n > most]
        if capability == 90:
            (code,) = machine_code.read(cubin).values()
            found += wrong(name, code, *(budget[3:5] if channels_last else budget[5:]))
    assert not found, "\n".join(found)
