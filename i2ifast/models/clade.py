"""CLADE: SPADE with modulation by the class of a pixel alone, and by where it lies in its object (CLADE-ICPE).

Tan et al. Efficient Semantic Image Synthesis via Class-Adaptive Normalization. TPAMI 2021.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from i2ifast import labels
from i2ifast.nn import CLADEResnetBlock, ClassAffine

from . import spade
from ._system import Batch


@dataclass
class Config(spade.Config):
    """Options of the original: SPADE's, and `add_dist`. nhidden has no effect."""

    add_dist: bool = False  # modulation depends on the pixel's offset from the centre of its object

    @classmethod
    def from_original(cls, options: dict[str, Any]) -> "Config":
        if options["norm_mode"] != "clade":
            raise ValueError(f"norm_mode {options['norm_mode']!r}: only 'clade' is supported")
        return super().from_original(options)


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    **spade.PRESETS,
    "ade20k_dist": spade.PRESETS["ade20k"] | dict(add_dist=True),
}
# fmt: on


class CLADEGenerator(spade.SPADEGenerator):
    """SPADE's generator of CLADE layers."""

    def block(self, fin: int, fout: int) -> nn.Module:
        config = self.config
        return CLADEResnetBlock(fin, fout, config.norm_G, config.num_classes, not config.instance, config.add_dist)

    def forward(self, seg: spade.Semantics, z: Tensor | None = None, dist: Tensor | None = None) -> Tensor:
        return self.decode(self.first(seg, z), seg, dist)


class System(spade.System):
    """SPADE's losses and order of optimisation."""

    Config = Config
    PRESETS = PRESETS
    Generator = CLADEGenerator

    def init_weights(self) -> None:
        """SPADE's, except that the weights of classes are uniform in [0, 1), their biases 0."""
        super().init_weights()
        for module in self.nets.modules():
            if isinstance(module, ClassAffine):
                nn.init.uniform_(module.weight)
                nn.init.zeros_(module.bias)

    @property
    def plan_sizes(self) -> list[tuple[int, int]]:
        return []  # a pixel's modulation depends on no other pixel

    @property
    def plan_windows(self) -> list[labels.PooledWindows]:
        return [*((0, size, 1, 1, 0) for size in super().plan_sizes), *super().plan_windows]

    def prepare(self, batch: Batch) -> Batch:
        """SPADE's, and with add_dist `dist` [N,2,H,W] of the label map, which a loader may have made already."""
        batch = super().prepare(batch)
        if self.config.add_dist and "dist" not in batch:
            batch = {**batch, "dist": labels.centre_offsets(batch["label"])}
        return batch

    def generate(self, batch: Batch, z: Tensor | None) -> Tensor:
        return self.nets["G"](batch["semantics"], z, batch.get("dist"))

    def translate(self, batch: Batch) -> dict[str, Tensor]:
        """As SPADE's. Offsets are those in the map that is given, not in the padded one."""
        if self.config.add_dist and "dist" not in batch:
            batch = {**batch, "dist": labels.centre_offsets(batch["label"])}
        return super().translate(batch)
