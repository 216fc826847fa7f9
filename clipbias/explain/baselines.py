"""What relevancy is compared with, from the same forward and backward pass.

- `attention`: the last layer's attention of the readout row, mean over heads.
- `rollout` (Abnar, Zuidema 2020): the readout row of `Â_L … Â_1`, `Â = (mean_h A + I)` with rows that sum to 1.
- `legrad` (Bousselham et al. 2024), from the gradient of the final score alone: `relu(∂y/∂A)`, mean over layers, heads
  and queries. Their full method sums such a map over scores read at every layer.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from clipbias.clip.params import Params
from clipbias.errors import ClipbiasError
from clipbias.explain.relevancy import RELEVANCY, explain
from clipbias.explain.streaming import Reduction, Relevancy
from clipbias.tuning import Learnables, Task


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


ATTENTION = Reduction(lambda attention, gradient, row: attention.mean(1), lambda row, attention, gradient: row)
ROLLOUT = Reduction(_rollout_first, _rollout_step)
LEGRAD = Reduction(_legrad_first, _legrad_step, lambda total, layers, tokens: total / (layers * tokens[:, None]))

REDUCTIONS = {"relevancy": RELEVANCY, "attention": ATTENTION, "rollout": ROLLOUT, "legrad": LEGRAD}


def explanations(
    task: Task,
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    targets: jax.Array | Sequence[int],
    *,
    maps: Sequence[str] = tuple(REDUCTIONS),
    start_layer: int = 0,
    chunk: int | None = None,
    recompute: int = 0,
) -> dict[str, Relevancy]:
    """Several maps of the same images and targets by name, from one pass; arguments as in `relevancy`.

    Args:
      maps: some of "relevancy", "attention", "rollout", "legrad".
    """
    unknown = sorted(set(maps) - set(REDUCTIONS))
    if unknown:
        raise ClipbiasError(f"unknown map {unknown[0]!r}; choose from {', '.join(REDUCTIONS)}.")
    reductions = tuple((name, REDUCTIONS[name]) for name in maps)
    options: dict[str, Any] = dict(start_layer=start_layer, chunk=chunk, recompute=recompute)
    return explain(task, reductions, params, learnables, images, targets, **options)
