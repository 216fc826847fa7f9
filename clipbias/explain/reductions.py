"""Maps of what a class is based on, as reductions of the attention and its gradient from the last layer down.

- `relevancy` (Chefer, Gur, Wolf 2021): the readout row of `(I + Ā_L) … (I + Ā_1)`, `Ā = mean_h relu(∂y/∂A ⊙ A)`.
- `attention`: the last layer's attention of the readout row, mean over heads.
- `rollout` (Abnar, Zuidema 2020): the readout row of `Â_L … Â_1`, `Â = (mean_h A + I)` with rows that sum to 1.
- `legrad` (Bousselham et al. 2024), from the gradient of the final score alone: `relu(∂y/∂A)`, mean over layers, heads
  and queries. Their full method sums such a map over scores read at every layer.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Reduction:
    """What is kept of the attention and its gradient, as a function of the layers seen so far. Hashable.

    Attributes:
      first: from the readout row's probabilities and gradient in the last layer, `[B, H, N]` each, and the row's
        number `[B]`, to a state of any shape that starts with `B`.
      step: from the state, and `A` and `G` of the layer below, `[B, H, N, N]` each, to the next state.
      finish: from the state, the number of layers and the number of tokens that have an influence `[B]`, to a map
        `[B, N]`.
    """

    first: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    step: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    finish: Callable[[jax.Array, int, jax.Array], jax.Array] = lambda state, layers, tokens: state


def _relevancy_first(attention: jax.Array, gradient: jax.Array, row: jax.Array) -> jax.Array:
    """`e (I + Ā_L)`: `[B, N]`."""
    return jax.nn.one_hot(row, attention.shape[-1]) + jax.nn.relu(gradient * attention).mean(1)


def _relevancy_step(row: jax.Array, attention: jax.Array, gradient: jax.Array) -> jax.Array:
    """`r (I + Ā)`: `[B, N]`."""
    heads = attention.shape[1]
    return row + jnp.einsum("BN,BHNM->BM", row, jax.nn.relu(gradient * attention)) / heads


def _with_identity(row: jax.Array, passed: jax.Array) -> jax.Array:
    """`r (mean_h A + I) / 2`: attention rows sum to 1, so halving is what normalises."""
    return (row + passed) / 2


def _rollout_first(attention: jax.Array, gradient: jax.Array, row: jax.Array) -> jax.Array:
    return _with_identity(jax.nn.one_hot(row, attention.shape[-1]), attention.mean(1))


def _rollout_step(row: jax.Array, attention: jax.Array, gradient: jax.Array) -> jax.Array:
    return _with_identity(row, jnp.einsum("BN,BHNM->BM", row, attention) / attention.shape[1])


def _legrad_first(attention: jax.Array, gradient: jax.Array, row: jax.Array) -> jax.Array:
    return jax.nn.relu(gradient).mean(1)


def _legrad_step(total: jax.Array, attention: jax.Array, gradient: jax.Array) -> jax.Array:
    return total + jax.nn.relu(gradient).mean(1).sum(1)


RELEVANCY = Reduction(_relevancy_first, _relevancy_step)
ATTENTION = Reduction(lambda attention, gradient, row: attention.mean(1), lambda row, attention, gradient: row)
ROLLOUT = Reduction(_rollout_first, _rollout_step)
LEGRAD = Reduction(_legrad_first, _legrad_step, lambda total, layers, tokens: total / (layers * tokens[:, None]))

REDUCTIONS = {"relevancy": RELEVANCY, "attention": ATTENTION, "rollout": ROLLOUT, "legrad": LEGRAD}
