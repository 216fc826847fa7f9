"""LayerNorm tuning (as in Farina et al. 2025, arXiv 2503.11609): scale and bias of CLIP's LayerNorms are tuned.

The authors' program means to tune the three LayerNorms outside the blocks, too, but freezes them again before training:
the published numbers are without them, and so is the default. By default the project's recipe holds; `recipe="authors"`
takes theirs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax

from clipbias.clip import Adaptation, Clip
from clipbias.clip.params import Params
from clipbias.tuning.frozen_weights import (
    OUTER_NORMS,
    WEIGHTS,
    Decay,
    TowerNames,
    authors_recipe,
    check_towers,
    no_changes,
    tuned_weights,
)
from clipbias.tuning.method import Learnables, Method, Preset
from clipbias.tuning.recipe import COMMON, Recipe, RecipeName


@dataclasses.dataclass(frozen=True)
class LayerNormTuning(Method):
    """Changes of scale and bias of the two LayerNorms of every block of both towers, zero at the start.

    Attributes:
      outer: tunes pre-, post- and final LayerNorm besides.
      towers: which towers are tuned.
      decay: what weight decay draws towards zero: the whole scales and biases ("weights"), as the authors' AdamW does,
        or the "changes" alone.
      recipe: "common", or the "authors'": AdamW at 2e-4, 300 steps of 32 images per shot.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "layer_norm": Preset("LayerNorm tuning", order=610, colour="green", marker="^")
    }

    outer: bool = False
    towers: TowerNames = ("vision", "text")
    decay: Decay = WEIGHTS
    recipe: RecipeName = COMMON

    def __post_init__(self) -> None:
        super().__post_init__()
        check_towers(self.towers)

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        norms = [("layers", "norm1"), ("layers", "norm2"), *((norm,) for norm in OUTER_NORMS if self.outer)]
        return no_changes(clip, [(*norm, leaf) for norm in norms for leaf in ("scale", "bias")], self.towers)

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation(**learnables)

    def decayed(self, learnables: Learnables, params: Params) -> Learnables:
        return tuned_weights(learnables, params) if self.decay == WEIGHTS else learnables

    def recipe_for(self, common: Recipe, shots: int) -> Recipe:
        return authors_recipe(self.recipe, common, shots, 300)
