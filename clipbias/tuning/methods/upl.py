"""UPL (Huang et al. 2022, arXiv 2204.03649, Unsupervised Prompt Learning): CoOp on labels that plain CLIP gives.

The training images are those of the whole dataset that plain CLIP is surest of; their true labels are not used
(`data.few_shot.most_confident`). The protocol `pseudo_labels` trains any other method on the same images.
"""

import dataclasses

import jax
import jax.numpy as jnp

from clipbias.tuning.features import Features, cross_entropy, unit_length
from clipbias.tuning.method import Learnables, Preset, Terms
from clipbias.tuning.prompts import ContextSets, Sets
from clipbias.tuning.recipe import COMMON, Recipe, RecipeName


@dataclasses.dataclass(frozen=True)
class UPL(ContextSets):
    """Learns `S` contexts `[S, T, Dt]` from N(0, 0.02), each an independent CoOp, and averages their logits.

    The loss is the sum of the contexts' cross-entropies. All contexts see the same batches; the authors train them in
    separate runs.

    Attributes:
      tokens, sets: `T` and `S`.
      recipe: "common", or "authors" for 50 epochs at 0.002 with 32 images a step.
    """

    presets = {"upl": Preset("UPL", order=105)}
    authors = Recipe(learning_rate=0.002, epochs=50, batch_size=32)
    unlabelled = True

    sets: Sets = 16
    recipe: RecipeName = COMMON

    def losses(self, learnables: Learnables, features: Features, logits: jax.Array, labels: jax.Array) -> Terms:
        image = unit_length(features.image)
        text = unit_length(features.text)
        # Not the given logits, their mean: each context has a cross-entropy of its own. In their sum the gradient of a
        # context depends on no other context.
        logits = features.scale * jnp.einsum("bd,scd->sbc", image, text)
        return {"cross_entropy": cross_entropy(logits, labels[None]).sum(0)}
