"""2SFS (Farina et al. 2025, arXiv 2503.11609): LayerNorms are tuned, then a linear classifier on their features."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.checks import Choices, Range
from clipbias.clip import Adaptation, Clip
from clipbias.tuning import on_host
from clipbias.tuning.features import Features, average_texts, unit_length
from clipbias.tuning.method import CONSTANTS, Learnables, Method, Preset
from clipbias.tuning.methods.weight_tuning import BitFit, LayerNormTuning, WeightTuning
from clipbias.tuning.recipe import AUTHORS, Recipe, RecipeName

FIRST_STAGES = {"layer_norm": LayerNormTuning, "bitfit": BitFit}


@dataclasses.dataclass(frozen=True)
class TwoStage(WeightTuning):
    """The first stage tunes weights of both towers; the second tunes class vectors `W [C, d]` on the frozen result.

    The first stage is LayerNorm tuning or BitFit. `W` starts at the unit class features of the tuned text tower, and
    the logits are `exp(logit_scale) · cos(f, W_c)`. Classes that training did not see take the tuned tower's feature.

    Attributes:
      tuned: weights of the first stage: "layer_norm" or "bitfit".
      share: share of the steps (or epochs) in the first stage, rounded down.
      towers, decay: as in `WeightTuning`, in the first stage.
      recipe: the "authors'", in each stage: AdamW at 2e-4 with a cosine to 1e-6, with 32 images a step; or "common".
      steps_per_shot: of the authors' recipe, both stages together.
    """

    presets = {"two_stage": Preset("2SFS", order=640)}

    tuned: Annotated[str, Choices(tuple(FIRST_STAGES))] = "layer_norm"
    share: Annotated[float, Range(0, 1)] = 0.6
    recipe: RecipeName = AUTHORS

    @property
    def first(self) -> WeightTuning:
        # A method of its own, whose optimiser knows no class vectors: these train in the second stage.
        return FIRST_STAGES[self.tuned](towers=self.towers, decay=self.decay)

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        return {**self.first.init(rng, clip, class_names), "classes": _no_classes(clip, class_names)}

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation(**_without_classes(learnables))

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        # A row of zeros marks a class that training did not see; `where` takes its text feature.
        classes = learnables["classes"]
        trained = (classes != 0).any(-1, keepdims=True)
        return _cosines(features, jnp.where(trained, classes, average_texts(features.text)))

    def stages(self, recipe: Recipe) -> Sequence[tuple[Method, Recipe]]:
        total = recipe.steps or recipe.epochs
        assert total is not None, "the recipe has its epochs by now"
        # At least one step in each stage, where there are two.
        first = min(max(int(self.share * total), 1), max(total - 1, 1))
        second = max(total - first, 1)
        if recipe.steps:
            recipes = dataclasses.replace(recipe, steps=first), dataclasses.replace(recipe, steps=second)
        else:
            recipes = dataclasses.replace(recipe, epochs=first), dataclasses.replace(recipe, epochs=second)
        return (self.first, recipes[0]), (SecondStage(self.first), recipes[1])

    def next_stage(self, stage: int, learnables: Learnables, text: np.ndarray | None) -> Learnables:
        # The weights of the first stage are constants of the second: stored with the classes, and changed by no step.
        if stage == 0:
            return _without_classes(learnables)
        if stage == 1:
            return {"classes": np.asarray(unit_length(average_texts(jnp.asarray(text)))), CONSTANTS: learnables}
        return {**learnables[CONSTANTS], "classes": learnables["classes"]}

    def transfer(
        self, learnables: Learnables, labels: np.ndarray, source: np.ndarray, target: np.ndarray
    ) -> Learnables:
        return {**learnables, "classes": on_host.class_rows(learnables["classes"], labels)}


@dataclasses.dataclass(frozen=True)
class SecondStage(Method):
    """Class vectors alone, on the frozen result of the `first` stage, whose weights are constants."""

    first: WeightTuning

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        return {"classes": _no_classes(clip, class_names), CONSTANTS: self.first.init(rng, clip, class_names)}

    def adapt(self, learnables: Learnables) -> Adaptation:
        # Without the tuned text weights: no text is encoded in this stage, since the class vectors stand for them.
        return Adaptation(vision_weights=learnables[CONSTANTS].get("vision_weights"))

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        return _cosines(features, learnables["classes"])


def _cosines(features: Features, classes: jax.Array) -> jax.Array:
    return features.scale * (unit_length(features.image) @ unit_length(classes).T)


def _no_classes(clip: Clip, class_names: Sequence[str]) -> jax.Array:
    return jnp.zeros((len(class_names), clip.config.projection_width))


def _without_classes(learnables: Learnables) -> Learnables:
    return {name: value for name, value in learnables.items() if name != "classes"}
