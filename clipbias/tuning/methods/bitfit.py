"""BitFit (Ben Zaken et al. 2021, arXiv 2106.10199): the biases that CLIP has are tuned, and nothing else.

Which biases, and how they are trained with `recipe="authors"`, follows the program of Farina et al. 2025, who tune
CLIP's towers that way: it leaves the biases of queries, keys and values alone. By default the project's recipe holds.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import jax

from clipbias.checks import Choices
from clipbias.clip import Clip
from clipbias.tuning.frozen_weights import OUTER_NORMS, WeightTuning, no_changes
from clipbias.tuning.method import Learnables
from clipbias.tuning.preset import Preset

# The parts of a block that have a bias, and the LayerNorms before and after the blocks.
BLOCK_PARTS = ("out", "fc1", "fc2", "norm1", "norm2")
OUTER, QKV = "outer_norms", "qkv"
Part = Annotated[str, Choices((*BLOCK_PARTS, OUTER, QKV))]


@dataclasses.dataclass(frozen=True)
class BitFit(WeightTuning):
    """Changes of the biases of both towers' output projections, MLPs and LayerNorms, zero at the start.

    With `only=("fc2",)` it tunes what bias tuning tunes, the output bias of every MLP; `decay="changes"` then makes the
    same training of it.

    Attributes:
      only: parts of `BLOCK_PARTS`, "outer_norms" (pre-, post- and final LayerNorm) and "qkv" whose biases are tuned;
        empty for all but "qkv".
      qkv: tunes the biases of queries, keys and values besides.
      towers, decay, recipe: as of `WeightTuning`.
    """

    presets: ClassVar[Mapping[str, Preset]] = {"bitfit": Preset("BitFit", order=620)}

    only: tuple[Part, ...] = ()
    qkv: bool = False

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        parts = {*(self.only or (*BLOCK_PARTS, OUTER)), *((QKV,) if self.qkv else ())}
        paths = [("layers", part, "bias") for part in (*BLOCK_PARTS, QKV) if part in parts]
        outer = [(norm, "bias") for norm in OUTER_NORMS if OUTER in parts]
        return no_changes(clip, [*paths, *outer], self.towers)
