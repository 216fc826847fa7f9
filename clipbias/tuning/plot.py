"""PLOT (Chen et al. 2023, arXiv 2210.01253), on a vision transformer: contexts and patches.

The authors' program has a ResNet's positions where this has the patches of the last block; all else is theirs. It is
trained by the project's recipe, or with `recipe="authors"` by its authors'.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax

from clipbias.checks import Range
from clipbias.clip import Adaptation, Clip
from clipbias.tuning.context import context_text, random_prompts
from clipbias.tuning.coop import coop_recipe
from clipbias.tuning.features import Features, unit_length
from clipbias.tuning.method import Kind, Learnables, Method, Preset, PromptText, Tokens
from clipbias.tuning.recipe import AUTHORS, COMMON, Recipe, RecipeName
from clipbias.tuning.transport import transport_logits

Sets = Annotated[int, Range(1, 100)]


@dataclasses.dataclass(frozen=True)
class PLOT(Method):
    """Learns `P` contexts `[P, T, Dt]` for all classes, from N(0, 0.02), each a text with every class name.

    The logits are those of optimal transport between the features of an image's patches and a class's `P` texts
    (`tuning.transport`). The plan has no gradient, and its rounds end for a batch together, so that logits depend in
    their last digits on what else is in the batch.

    Attributes:
      tokens: `T`.
      sets: `P`.
      pooled: whether the cosine of the image's own feature and the mean of the raw text features is added, as the
        authors do on ImageNet.
      recipe: "common", or "authors" for 50 epochs at 0.002 with 128 images a step.
    """

    presets: ClassVar[Mapping[str, Preset]] = {"plot": Preset("PLOT", order=140, colour="yellow", marker="h")}
    kind: ClassVar[Kind | None] = Kind.PROMPTS
    datasets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"imagenet": {"pooled": True}}
    patches: ClassVar[bool] = True

    tokens: Tokens = 16
    sets: Sets = 4
    pooled: bool = False
    recipe: RecipeName = COMMON

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        return {"text_context": random_prompts(rng, self.sets, self.tokens, clip.config.text.width)}

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation(text_context=learnables["text_context"])

    def text(self, template: str, clip: Clip) -> PromptText:
        one = context_text(clip, "", self.tokens)
        return dataclasses.replace(one, templates=one.templates * self.sets)

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        assert features.patches is not None
        image, text = unit_length(features.patches), unit_length(features.text)
        logits = transport_logits(image, text, features.scale, features.mask)
        if self.pooled:
            logits += features.scale * unit_length(features.image) @ unit_length(features.text.mean(0)).T
        return logits

    def recipe_for(self, common: Recipe, shots: int) -> Recipe:
        return coop_recipe(learning_rate=0.002, epochs=50, batch_size=128) if self.recipe == AUTHORS else common
