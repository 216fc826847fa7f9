"""PLOT (Chen et al. 2023, arXiv 2210.01253) on a vision transformer: several contexts, matched with patches.

The authors' code matches positions of a ResNet; here they are patches of the last block. The rest is as in their code.
It is trained by the project's recipe, or with `recipe="authors"` by its authors'.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax

from clipbias.tuning.features import Features, transport_logits, unit_length
from clipbias.tuning.method import DatasetOptions, Learnables, Preset
from clipbias.tuning.methods.coop import coop_recipe
from clipbias.tuning.prompts import ContextSets
from clipbias.tuning.recipe import AUTHORS, COMMON, Recipe, RecipeName


@dataclasses.dataclass(frozen=True)
class PLOT(ContextSets):
    """Learns `P` contexts `[P, T, Dt]` for all classes, from N(0, 0.02), each a text with every class name.

    The logits come from optimal transport between the features of an image's patches and a class's `P` texts
    (`tuning.features`). The plan has no gradient. Its iterations end for the whole batch together, so the last digits
    of an image's logits depend on the other images of its batch.

    Attributes:
      tokens: `T`.
      sets: `P`.
      pooled: adds the cosine of the image's feature and the mean of the raw text features, as the authors do on
        ImageNet.
      recipe: "common", or "authors" for 50 epochs at 0.002 with 128 images a step.
    """

    presets: ClassVar[Mapping[str, Preset]] = {"plot": Preset("PLOT", order=140)}
    datasets: ClassVar[DatasetOptions] = {"imagenet": {"pooled": True}}
    patches: ClassVar[bool] = True

    pooled: bool = False
    recipe: RecipeName = COMMON

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        assert features.patches is not None
        image = unit_length(features.patches)
        text = unit_length(features.text)
        logits = transport_logits(image, text, features.scale, features.mask)
        if self.pooled:
            logits += features.scale * unit_length(features.image) @ unit_length(features.text.mean(0)).T
        return logits

    def recipe_for(self, common: Recipe, shots: int | None) -> Recipe:
        return coop_recipe(learning_rate=0.002, epochs=50, batch_size=128) if self.recipe == AUTHORS else common
