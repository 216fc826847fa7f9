"""Maps of what a class is based on, as reductions of the attention and its gradient from the last layer down.

- `relevancy` (Chefer, Gur, Wolf 2021): the pooled row of `(I + Ā_L) … (I + Ā_1)`, `Ā = mean_h relu(∂y/∂A ⊙ A)`.
- `attention`: the last layer's attention of the pooled row, mean over heads.
- `rollout` (Abnar, Zuidema 2020): the pooled row of `Â_L … Â_1`, `Â = (mean_h A + I)` with rows that sum to 1.
- `legrad` (Bousselham et al. 2024), from the gradient of the final score alone: `relu(∂y/∂A)`, mean over layers, heads
  and queries. Their full method sums such a map over scores read at every layer.
- `grad_eclip` (Zhao et al. 2024, Gradient-based Visual Explanation for Transformer-based CLIP): in the last layer,
  `relu(λ_j Σ_c w_c v_jc)` with `w = ∂y/∂o` of the heads' outputs `o` of the pooled row, `v` the values, and `λ` the
  cosines of the row's query and each key over all heads, scaled to [0, 1] over the tokens that the map covers. Since
  `o = Σ_j A_j v_j` in each head, `Σ_c w_c v_jc` is the sum over heads of `∂y/∂A_j`, so `A` and `G` say all but `λ`.
  The layers are the authors' for images; for texts they add up some of the last ones. Their code runs that layer as
  one single head, and so explains another model than the one that classifies; here it keeps its heads.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class LastRow:
    """The pooled row of the last layer.

    Attributes:
      attention: its probabilities `[B, H, N]`.
      cosine: of its query and each key, all heads together, `[B, N]` float32.
      number: the row `[B]`; `None` where it is no token's, but a pooling head's.
      others: which other tokens it sees, bool `[B, N]`.
    """

    attention: jax.Array
    cosine: jax.Array
    number: jax.Array | None
    others: jax.Array


@dataclasses.dataclass(frozen=True)
class Reduction:
    """What is kept of the attention and its gradient, as a function of the layers seen so far. Hashable.

    Attributes:
      first: from the last layer's pooled row and the gradient `[B, H, N]` of its probabilities to a state of any shape
        that starts with `B`.
      step: from the state, and `A` and `G` of the layer below, `[B, H, N, N]` each, to the next state.
      finish: from the state, the number of layers and the number of tokens that have an influence `[B]`, to a map
        `[B, N]`.
    """

    first: Callable[[LastRow, jax.Array], jax.Array]
    step: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    finish: Callable[[jax.Array, int, jax.Array], jax.Array] = lambda state, layers, tokens: state


def _relevancy_first(row: LastRow, gradient: jax.Array) -> jax.Array:
    """`e (I + Ā_L)`: `[B, N]`."""
    return _unit_row(row) + jax.nn.relu(gradient * row.attention).mean(1)


def _relevancy_step(row: jax.Array, attention: jax.Array, gradient: jax.Array) -> jax.Array:
    """`r (I + Ā)`: `[B, N]`."""
    heads = attention.shape[1]
    return row + jnp.einsum("BN,BHNM->BM", row, jax.nn.relu(gradient * attention)) / heads


def _unit_row(row: LastRow) -> jax.Array | float:
    """`e`: `[B, N]`; nothing for a row that is no token's."""
    if row.number is None:
        return 0.0
    return jax.nn.one_hot(row.number, row.attention.shape[-1])


def _with_identity(row: jax.Array | float, passed: jax.Array) -> jax.Array:
    """`r (mean_h A + I) / 2`: attention rows sum to 1, so halving is what normalises."""
    return (row + passed) / 2


def _rollout_first(row: LastRow, gradient: jax.Array) -> jax.Array:
    if row.number is None:
        return row.attention.mean(1)
    return _with_identity(_unit_row(row), row.attention.mean(1))


def _rollout_step(row: jax.Array, attention: jax.Array, gradient: jax.Array) -> jax.Array:
    return _with_identity(row, jnp.einsum("BN,BHNM->BM", row, attention) / attention.shape[1])


def _legrad_first(row: LastRow, gradient: jax.Array) -> jax.Array:
    return jax.nn.relu(gradient).mean(1)


def _legrad_step(total: jax.Array, attention: jax.Array, gradient: jax.Array) -> jax.Array:
    return total + jax.nn.relu(gradient).mean(1).sum(1)


def _grad_eclip(row: LastRow, gradient: jax.Array) -> jax.Array:
    """`relu(λ_j Σ_h ∂y/∂A_hj)` of the other tokens that the row sees; keys that are all alike have λ = 1."""
    low = jnp.where(row.others, row.cosine, jnp.inf).min(-1, keepdims=True)
    high = jnp.where(row.others, row.cosine, -jnp.inf).max(-1, keepdims=True)
    weight = jnp.where(high > low, (row.cosine - low) / jnp.where(high > low, high - low, 1), 1)
    return jnp.where(row.others, jax.nn.relu(weight * gradient.sum(1)), 0)


def _of_last_layer(state: jax.Array, attention: jax.Array, gradient: jax.Array) -> jax.Array:
    """Layers below change nothing."""
    return state


RELEVANCY = Reduction(_relevancy_first, _relevancy_step)
ATTENTION = Reduction(lambda row, gradient: row.attention.mean(1), _of_last_layer)
ROLLOUT = Reduction(_rollout_first, _rollout_step)
LEGRAD = Reduction(_legrad_first, _legrad_step, lambda total, layers, tokens: total / (layers * tokens[:, None]))
GRAD_ECLIP = Reduction(_grad_eclip, _of_last_layer)

REDUCTIONS = {
    "relevancy": RELEVANCY,
    "attention": ATTENTION,
    "rollout": ROLLOUT,
    "legrad": LEGRAD,
    "grad_eclip": GRAD_ECLIP,
}
# Those that depend on the class that is explained.
OF_TARGET = ("relevancy", "legrad", "grad_eclip")
