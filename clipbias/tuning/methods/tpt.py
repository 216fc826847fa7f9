"""TPT (Shu et al. 2022, arXiv 2209.07511, Test-Time Prompt Tuning): a context that is tuned on each test image."""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from clipbias.checks import Range
from clipbias.data.catalog import ELEVEN
from clipbias.tuning.method import Kind, Learnables, Preset, TestTimeMethod
from clipbias.tuning.methods.coop import CoOp

# The tuned context, the state of the optimiser and the selected views.
_StepState = tuple[Learnables, optax.OptState, jax.Array]


@dataclasses.dataclass(frozen=True)
class TPT(CoOp, TestTimeMethod):
    """Minimises the entropy of the mean probabilities `p̄` of an image's most certain views, with AdamW:

        L = -Σ_c p̄_c log p̄_c,    p̄ the mean of softmax(logits) over the views with the smallest entropy

    The views are the image as it is evaluated, and random crops of the whole image, flipped or not. The tuned context
    then classifies the image itself. Every image starts from the same context and a new optimiser state.

    Attributes:
      augmix: mixes each crop with distortions of it (Hendrycks et al. 2020). The authors do so on all datasets but
        ImageNet and its variants; `None` follows them.
      crops: random crops per image.
      share: share of the views that are selected, rounded down, at least one view.
      steps, rate, decay: of the optimiser: steps, learning rate and weight decay.
    """

    presets = {"tpt": Preset("TPT", order=107)}
    kind = Kind.TEST_TIME
    trains = False
    first_view = True
    datasets = {name: {"augmix": True} for name in ELEVEN if name != "imagenet"}

    augmix: bool | None = None
    crops: Annotated[int, Range(1, 10_000)] = 63
    share: Annotated[float, Range(0, 1)] = 0.1
    steps: Annotated[int, Range(1, 1000)] = 1
    rate: Annotated[float, Range(0)] = 0.005
    decay: Annotated[float, Range(0)] = 0.01

    def crops_at_test(self) -> int:
        return self.crops

    def augmix_at_test(self) -> bool:
        return bool(self.augmix)

    def at_test(self, learnables: Learnables, logits: Callable[[Learnables], jax.Array]) -> Learnables:
        # The decay is torch's default, which the authors' AdamW keeps.
        optimizer = optax.adamw(self.rate, weight_decay=self.decay)

        def step(learned: Learnables, state: optax.OptState, views: jax.Array | None) -> _StepState:
            gradients, views = jax.grad(lambda tree: self.loss(logits, tree, views), has_aux=True)(learned)
            updates, state = optimizer.update(gradients, state, learned)
            return optax.apply_updates(learned, updates), state, views

        # The first step selects the views; the loop of the others has them in its state. One step needs no loop.
        first = step(learnables, optimizer.init(learnables), None)
        return first[0] if self.steps == 1 else jax.lax.fori_loop(1, self.steps, lambda _, last: step(*last), first)[0]

    def loss(
        self, logits: Callable[[Learnables], jax.Array], learnables: Learnables, views: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """`L` and the selected views `[K]`: `views`, or those of smallest entropy if `views` is `None`."""
        log_probabilities = jax.nn.log_softmax(logits(learnables))
        if views is None:
            count = max(1, int(self.share * len(log_probabilities)))
            # The selection is a constant of the gradient, as in the authors' code.
            negative_entropy = (jnp.exp(log_probabilities) * log_probabilities).sum(-1)
            _, views = jax.lax.top_k(jax.lax.stop_gradient(negative_entropy), count)
        # `log p̄` in log space: a probability that underflows to 0 would give `0 · log 0`.
        mean = jax.nn.logsumexp(log_probabilities[views], axis=0) - jnp.log(len(views))
        return -(jnp.exp(mean) * mean).sum(), views


@dataclasses.dataclass(frozen=True)
class TPTOnCoOp(TPT):
    """TPT that starts from a context trained by CoOp."""

    presets = {"tpt_coop": Preset("CoOp and TPT", order=108)}
    trains = True
