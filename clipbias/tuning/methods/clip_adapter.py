"""CLIP-Adapter (Gao et al. 2021, arXiv 2110.04544): a small network after the vision tower.

It is the visual adapter of the authors' code, with the ratio 0.2 for every dataset. That code has CoOp's settings only:
they are the authors' recipe.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax

from clipbias.checks import Range
from clipbias.clip import Clip
from clipbias.tuning.features import Features, Sampling, cosines
from clipbias.tuning.method import FeatureMethod, Learnables, Preset
from clipbias.tuning.prompts import FrozenTowers
from clipbias.tuning.recipe import COMMON, Recipe, RecipeName


@dataclasses.dataclass(frozen=True)
class ClipAdapter(FrozenTowers, FeatureMethod):
    """`s · unit(u) Tᵀ` with `u = r relu(W2 relu(W1 f)) + (1 - r) f` of the image feature `f [d]` before normalisation.

    `W1 [d/4, d]` and `W2 [d, d/4]` have no bias and start uniform within ±1/√(columns).

    Attributes:
      ratio: `r`.
      reduction: the hidden width is `d` divided by it.
      templates: a choice of `tuning.prompts` ("dataset" for the dataset's own), or templates with `{}`.
      recipe: "common", or the "authors'": SGD at 0.002, 200 epochs in batches of 32.
    """

    presets = {"clip_adapter": Preset("CLIP-Adapter", order=510)}
    authors = Recipe(learning_rate=0.002, epochs=200, batch_size=32)

    ratio: Annotated[float, Range(0, 1)] = 0.2
    reduction: Annotated[int, Range(1)] = 4
    recipe: RecipeName = COMMON

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        width = clip.config.projection_width
        hidden = max(1, width // self.reduction)
        down, up = jax.random.split(rng)
        # Uniform within ±1/√fan-in, torch's default. No array depends on the classes, so new ones need no transfer.
        return {
            "vision_down": jax.random.uniform(down, (hidden, width), minval=-1, maxval=1) / width**0.5,
            "vision_up": jax.random.uniform(up, (width, hidden), minval=-1, maxval=1) / hidden**0.5,
        }

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        # On the raw feature: the authors normalise after the residual sum `r relu(W2 relu(W1 f)) + (1 - r) f`.
        hidden = jax.nn.relu(features.image @ learnables["vision_down"].T)
        adapted = jax.nn.relu(hidden @ learnables["vision_up"].T)  # never negative
        image = self.ratio * adapted + (1 - self.ratio) * features.image
        return features.scale * cosines(dataclasses.replace(features, image=image))

    def sampling(self) -> Sampling:
        # Nothing for `support`. Each epoch has fresh augmentations, whose features are computed once: both towers are
        # frozen, and no step runs them.
        return Sampling(passes=0)
