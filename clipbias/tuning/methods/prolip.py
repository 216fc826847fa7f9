"""ProLIP (Fahes et al. 2024, arXiv 2410.05270): the vision tower's projection is tuned, and nothing else.

The tuned projection is a weight of a plain CLIP.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp

from clipbias.checks import Range
from clipbias.clip import Adaptation, Clip
from clipbias.tuning.features import COSINE_SCALE, Features, Samples, Sampling, cross_entropy
from clipbias.tuning.method import CONSTANTS, FeatureMethod, Kind, Learnables, Preset, PromptText, Terms
from clipbias.tuning.prompts import choose_templates
from clipbias.tuning.recipe import AUTHORS, MOST, Recipe, RecipeName

CHANGE = "vision_projection"


@dataclasses.dataclass(frozen=True)
class ProLip(FeatureMethod):
    """`CE(100 unit(z (W⁰ + Δ)) Tᵀ) + λ Σ Δ²`: the change `Δ [Dv, d]` of the projection `W⁰`, zero at the start.

    `z [Dv]` is the vision tower's output after the last LayerNorm and `T` the zero-shot classifier. Epoch `e` uses pass
    `e` modulo `passes`, with all images in one step.

    Attributes:
      strength: `λ`; `None` for `1/K`, K the images per class.
      passes: augmented passes over the training images.
      templates: a choice of `tuning.prompts` ("dataset" for the dataset's own), or templates with `{}`.
      recipe: the "authors'": Adam at 1e-5 with epsilon 1e-4 and without decay, 300 steps of all images; or "common".
    """

    presets = {"prolip": Preset("ProLIP", order=570)}
    kind = Kind.WEIGHTS
    datasets = {"imagenet": {"templates": "imagenet_select"}}
    scale = COSINE_SCALE

    strength: Annotated[float, Range(0)] | None = None
    passes: Annotated[int, Range(1, 10_000)] = 300
    templates: str | tuple[str, ...] = "dataset"
    recipe: RecipeName = AUTHORS

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        shape = (clip.config.vision.width, clip.config.projection_width)
        # The change is learned, not the projection, so that weight decay pulls towards the frozen weights.
        return {CHANGE: jnp.zeros(shape), CONSTANTS: {"strength": jnp.zeros(())}}

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation(vision_weights={"projection": learnables[CHANGE]})

    def text(self, template: str, clip: Clip) -> PromptText:
        return PromptText(choose_templates(self.templates, template))

    def sampling(self) -> Sampling:
        # The tower's output before the projection, once for all passes, stays in memory: a step runs neither tower.
        return Sampling(passes=self.passes, crop=0.5, training="again", projected=False)

    def support(self, learnables: Learnables, samples: Samples) -> Learnables:
        # A constant of the run: the shots are known only once the images are.
        strength = 1 / samples.shots if self.strength is None else self.strength
        return {**learnables, CONSTANTS: {"strength": jnp.float32(strength)}}

    def losses(self, learnables: Learnables, features: Features, logits: jax.Array, labels: jax.Array) -> Terms:
        # A sum, not a mean: the authors' `λ = 1/K` belongs to the sum over all entries.
        penalty = learnables[CONSTANTS]["strength"] * jnp.square(learnables[CHANGE]).sum()
        return {"cross_entropy": cross_entropy(logits, labels), "penalty": penalty}

    def authors_recipe(self, common: Recipe, shots: int | None) -> Recipe:
        # A batch of the largest size takes all images in one step.
        return dataclasses.replace(
            common,
            learning_rate=1e-5,
            epochs=300,
            batch_size=MOST,
            optimizer="adam",
            epsilon=1e-4,
            weight_decay=0.0,
            schedule="steps",
            final_learning_rate=0.0,
            steps=None,
            crop=0.5,
        )
