"""LayerNorm tuning (as in Farina et al. 2025, arXiv 2503.11609): scale and bias of CLIP's LayerNorms are tuned.

The authors' code intends to tune the three LayerNorms outside the blocks as well, but freezes them before training. The
published numbers are without them, and so is the default. The project's recipe is the default; `recipe="authors"`
selects the authors'.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax

from clipbias.clip import Clip
from clipbias.tuning.frozen_weights import OUTER_NORMS, WeightTuning, no_changes
from clipbias.tuning.method import Learnables, Preset


@dataclasses.dataclass(frozen=True)
class LayerNormTuning(WeightTuning):
    """Changes of scale and bias of the two LayerNorms of every block of both towers, zero at the start.

    Attributes:
      outer: also tunes the pre-, post- and final LayerNorm.
      towers, decay, recipe: as of `WeightTuning`.
    """

    presets: ClassVar[Mapping[str, Preset]] = {"layer_norm": Preset("LayerNorm tuning", order=610)}

    outer: bool = False

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        norms: list[tuple[str, ...]] = [("layers", "norm1"), ("layers", "norm2")]
        if self.outer:
            norms += [(norm,) for norm in OUTER_NORMS]
        return no_changes(clip, [(*norm, leaf) for norm in norms for leaf in ("scale", "bias")], self.towers)
