"""Optimal transport between the features of an image and those of several prompts of a class."""

import jax
import jax.numpy as jnp

ENTROPY, MOST_ROUNDS, TOLERANCE = 0.1, 100, 1e-2


def transport_logits(image: jax.Array, text: jax.Array, scale: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`s Σ_mp Π_mp S_mp`, `S = F Gᵀ`, for every pair of an image and a class: `[B, C]`.

    `Π` is the plan between the `m` features of the image and the `P` of the class, all of equal weight, that Sinkhorn's
    iteration finds for the cost `1 - S` with entropy 0.1. It is held fixed: the gradient is that of `S`.

    Args:
      image: `[B, m, d]`, of unit length.
      text: `[P, C, d]`, of unit length.
      scale: `s`.
      mask: `[B]`, which of the images count for the number of rounds; `None` where all do.
    """
    similarity = jnp.einsum("bmd,pcd->bcmp", image, text)
    kernel = jnp.exp(-(1 - jax.lax.stop_gradient(similarity)) / ENTROPY)
    return scale * (sinkhorn(kernel, mask) * similarity).sum((-2, -1))


def sinkhorn(kernel: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`Π = diag(r) K diag(c)` with rows that sum to `1/m` and columns that sum to `1/P`: `[B, C, m, P]`.

    From `r = c = 1` on, a round is `r ← (1/m) / (K c)`, then `c ← (1/P) / (Kᵀ r)`. Rounds end, for all pairs of the
    batch together, after 100 of them or once the mean of `|r - r_before|` over all pairs is below 0.01, as in the
    program of PLOT's authors: how many there are depends on the other images of the batch.
    """
    batch, classes, m, prompts = kernel.shape
    weights = jnp.ones(batch) if mask is None else mask.astype(kernel.dtype)
    total = jnp.maximum(weights.sum(), 1) * classes * m

    def unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
        number, change = state[2:]
        return (number < MOST_ROUNDS) & ~(change < TOLERANCE)

    def go(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        before, columns, number, _ = state
        rows = 1 / m / jnp.einsum("bcmp,bcp->bcm", kernel, columns)
        columns = 1 / prompts / jnp.einsum("bcmp,bcm->bcp", kernel, rows)
        change = (weights * jnp.abs(rows - before).sum((1, 2))).sum() / total
        return rows, columns, number + 1, change

    ones = jnp.ones((batch, classes, m)), jnp.ones((batch, classes, prompts))
    start: tuple[jax.Array, ...] = (*ones, jnp.zeros((), int), jnp.full((), jnp.inf))
    with jax.default_matmul_precision("highest"):
        rows, columns, _, _ = jax.lax.while_loop(unfinished, go, start)
    return rows[..., None] * kernel * columns[..., None, :]
