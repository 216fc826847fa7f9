"""TPT (Shu et al. 2022, arXiv 2209.07511, Test-Time Prompt Tuning): a context that is tuned for each test image alone.

Nothing that one image taught is kept for the next.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from clipbias.checks import Range
from clipbias.tuning.method import Learnables
from clipbias.tuning.methods.coop import CoOp
from clipbias.tuning.preset import Kind, Preset
from clipbias.tuning.test_time_method import TestTimeMethod


@dataclasses.dataclass(frozen=True)
class TPT(CoOp, TestTimeMethod):
    """Steps of AdamW on the entropy of the mean probabilities `p̄` of an image's most certain views:

        L = -Σ_c p̄_c log p̄_c,    p̄ the mean of softmax(logits) over the views with the smallest entropy

    The views are the image as it is evaluated and random crops of the whole image, flipped or not; all compete. The
    choice has no gradient, and later steps keep that of the first. The image itself is then classified with the tuned
    context. Each image starts from the same context and an optimiser without a past.

    Attributes:
      augmix: whether each crop is mixed with distortions of it (Hendrycks et al. 2020), as the authors do on their
        datasets other than ImageNet and its variants; `None` for that.
      crops: of each image, beside the image itself.
      share: of the views that counts, rounded down, but one at least.
      steps: of the optimiser.
      rate, decay: its learning rate and weight decay.
    """

    presets: ClassVar[Mapping[str, Preset]] = {"tpt": Preset("TPT", order=107)}
    kind: ClassVar[Kind | None] = Kind.TEST_TIME
    trains: ClassVar[bool] = False
    first_view: ClassVar[bool] = True
    datasets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {"augmix": True}
        for name in (
            *("caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397"),
            *("dtd", "eurosat", "ucf101"),
        )
    }

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
        optimizer = optax.adamw(self.rate, weight_decay=self.decay)

        def step(learned: Learnables, state: Any, chosen: jax.Array | None) -> tuple[Learnables, Any, jax.Array]:
            gradients, chosen = jax.grad(lambda one: self.loss(logits, one, chosen), has_aux=True)(learned)
            updates, state = optimizer.update(gradients, state, learned)
            return optax.apply_updates(learned, updates), state, chosen

        first = step(learnables, optimizer.init(learnables), None)
        return jax.lax.fori_loop(1, self.steps, lambda _, last: step(*last), first)[0] if self.steps > 1 else first[0]

    def loss(
        self, logits: Callable[[Learnables], jax.Array], learnables: Learnables, chosen: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """`L`, and the views that it is of, `[K]`: those of smallest entropy where they are not `chosen` yet."""
        each = jax.nn.log_softmax(logits(learnables))
        if chosen is None:
            kept = max(1, int(self.share * len(each)))
            _, chosen = jax.lax.top_k(jax.lax.stop_gradient((jnp.exp(each) * each).sum(-1)), kept)
        mean = jax.nn.logsumexp(each[chosen], axis=0) - jnp.log(len(chosen))
        return -(jnp.exp(mean) * mean).sum(), chosen


@dataclasses.dataclass(frozen=True)
class TPTOnCoOp(TPT):
    """The same from a context that CoOp trained: `TPT` tunes it further for each test image."""

    presets: ClassVar[Mapping[str, Preset]] = {"tpt_coop": Preset("CoOp and TPT", order=108)}
    trains: ClassVar[bool] = True
