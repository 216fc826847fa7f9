"""ProDA (Lu et al. 2022, arXiv 2205.03340): many contexts, whose class features are a distribution.

The authors' code is not available: details that the paper lacks follow unofficial copies of it.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from clipbias.checks import Range
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.tuning.features import Features, cross_entropy, unit_length
from clipbias.tuning.method import Learnables, Preset, PromptText, Terms
from clipbias.tuning.prompts import ContextSets
from clipbias.tuning.recipe import COMMON, Recipe, RecipeName

Sets = Annotated[int, Range(1, 1000)]


@dataclasses.dataclass(frozen=True)
class ProDA(ContextSets):
    """Learns `P` contexts `[P, T, Dt]` for all classes, from N(0, 0.02); logits are `s unit(f) · μ_c`.

    `μ_c` is the mean of the unit text features `G_cp` and is not normalised. The class name stands before a quarter of
    the contexts, in the middle of the next quarter, and after the others. A step takes `Q` contexts. All contexts take
    turns, in an order that is drawn anew for each cycle. The loss is the cross-entropy of

        s unit(f_b) · μ_c + (s²/2) Σ_k unit(f_b)_k² v_k(y_b, c),
        v(y, c) = 1/(Q+1) Σ_q ((G_yq - μ_y) - (G_cq - μ_c))²

    which bounds the cross-entropy of normally distributed class features, plus `λ` times the mean of `|h_p · h_q|` over
    all pairs of different contexts, with `h` their unit features without a class name.

    Attributes:
      tokens, sets, weight: `T`, `P` and `λ`.
      sets_per_step: `Q`, a divisor of `P`.
      recipe: "common", or "authors" for 100 epochs at 0.001 with 4 images a step.
    """

    presets = {"proda": Preset("ProDA", order=150)}
    authors = Recipe(learning_rate=0.001, epochs=100, batch_size=4)
    reads_templates = True

    sets: Sets = 32
    sets_per_step: Sets = 4
    weight: Annotated[float, Range(0)] = 0.1
    recipe: RecipeName = COMMON

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sets % self.sets_per_step:
            raise ClipbiasError(
                f"ProDA's {self.sets} contexts cannot be taken {self.sets_per_step} at a time; choose a sets_per_step "
                "that divides sets."
            )

    def text(self, template: str, clip: Clip) -> PromptText:
        quarter = self.sets // 4
        position = ("front",) * quarter + ("middle",) * quarter + ("end",) * (self.sets - 2 * quarter)
        return dataclasses.replace(super().text(template, clip), position=position)

    def templates_in_training(self, rng: jax.Array, step: jax.Array) -> jax.Array:
        # Every context has one turn in a cycle. The order comes from the run's key and the cycle alone, so that a run
        # that continues from a checkpoint draws the same.
        cycle, turn = jnp.divmod(step, self.sets // self.sets_per_step)
        order = jax.random.permutation(jax.random.fold_in(rng, cycle), self.sets)
        return jax.lax.dynamic_slice(order, (turn * self.sets_per_step,), (self.sets_per_step,))

    def losses(self, learnables: Learnables, features: Features, logits: jax.Array, labels: jax.Array) -> Terms:
        assert features.templates is not None
        # The mean and the variance are over the `Q` contexts of this step, not over all `P`.
        text = unit_length(features.text)
        variance = _weighted_variance(jnp.square(unit_length(features.image)), text - text.mean(0), labels)
        # Jensen's bound on the expected cross-entropy: a margin for all classes but the label, where `v` is 0.
        margin = features.scale**2 / 2 * variance
        contexts = unit_length(features.templates)
        different = 1 - jnp.eye(len(contexts))
        overlap = (different * jnp.abs(contexts @ contexts.T)).sum() / max(1, len(contexts) * (len(contexts) - 1))
        return {"bound": cross_entropy(logits + margin, labels), "orthogonality": self.weight * overlap}


def _weighted_variance(squares: jax.Array, centred: jax.Array, labels: jax.Array) -> jax.Array:
    """`Σ_k unit(f_b)_k² v_k(y_b, c)`, `[B, C]`, from the squares `[B, d]` and the centred text features `[Q, C, d]`."""
    # The square in `v` is expanded to three products: `[B, Q, C, d]` would be large, and a loop over images would make
    # devices communicate for each image. Products are float32, because the three terms may nearly cancel.
    labelled = centred[:, labels]  # [Q, B, d]
    weighted = squares * labelled
    both = jnp.einsum("qbd,qcd->bc", weighted, centred, precision="highest")
    classes = jnp.einsum("bd,cd->bc", squares, jnp.square(centred).sum(0), precision="highest")
    return ((weighted * labelled).sum((0, 2))[:, None] + classes - 2 * both) / (len(centred) + 1)
