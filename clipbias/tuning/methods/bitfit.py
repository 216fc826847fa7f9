"""BitFit (Ben Zaken et al. 2021, arXiv 2106.10199): CLIP's own biases are tuned, and nothing else.

The choice of biases and `recipe="authors"` follow the code of Farina et al. 2025, which tunes CLIP's towers and leaves
out the biases of queries, keys and values. The project's recipe is the default.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import jax

from clipbias.checks import Choices
from clipbias.clip import Clip
from clipbias.tuning.frozen_weights import OUTER_NORMS, WeightTuning, no_changes
from clipbias.tuning.method import Learnables, Preset

# The parts of a block that have a bias, and the LayerNorms before and after the blocks.
BLOCK_PARTS = ("out", "fc1", "fc2", "norm1", "norm2")
OUTER = "outer_norms"
QKV = "qkv"
Part = Annotated[str, Choices((*BLOCK_PARTS, OUTER, QKV))]


@dataclasses.dataclass(frozen=True)
class BitFit(WeightTuning):
    """Changes of the biases of both towers' output projections, MLPs and LayerNorms, zero at the start.

    With `only=("fc2",)` it tunes the output bias of every MLP, as bias tuning does. With `decay="changes"` the training
    is then the same.

    Attributes:
      only: parts whose biases are tuned, from `BLOCK_PARTS`, "outer_norms" (pre-, post- and final LayerNorm) and "qkv";
        empty for all but "qkv".
      qkv: also tunes the biases of queries, keys and values.
      towers, decay, recipe: as of `WeightTuning`.
    """

    presets: ClassVar[Mapping[str, Preset]] = {"bitfit": Preset("BitFit", order=620)}

    only: tuple[Part, ...] = ()
    qkv: bool = False

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        parts = set(self.only or (*BLOCK_PARTS, OUTER))
        if self.qkv:
            parts.add(QKV)
        paths: list[tuple[str, ...]] = [("layers", part, "bias") for part in (*BLOCK_PARTS, QKV) if part in parts]
        if OUTER in parts:
            paths += [(norm, "bias") for norm in OUTER_NORMS]
        return no_changes(clip, paths, self.towers)
