"""Optimal transport between the features of an image and those of several prompts of a class."""

import jax
import jax.numpy as jnp

ENTROPY = 0.1
MAX_ITERATIONS = 100
TOLERANCE = 1e-2


def transport_logits(image: jax.Array, text: jax.Array, scale: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`s Σ_mp Π_mp S_mp`, `S = F Gᵀ`, for every pair of an image and a class: `[B, C]`.

    `Π` is the transport plan between the `m` features of the image and the `P` features of the class, with equal
    weights, the cost `1 - S` and entropy 0.1, from Sinkhorn's iteration. `Π` has no gradient.

    Args:
      image: `[B, m, d]`, of unit length.
      text: `[P, C, d]`, of unit length.
      scale: `s`.
      mask: `[B]`, the images that count for the number of iterations; `None` for all.
    """
    similarity = jnp.einsum("bmd,pcd->bcmp", image, text)
    kernel = jnp.exp(-(1 - jax.lax.stop_gradient(similarity)) / ENTROPY)
    return scale * (sinkhorn(kernel, mask) * similarity).sum((-2, -1))


def sinkhorn(kernel: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`Π = diag(r) K diag(c)` with rows that sum to `1/m` and columns that sum to `1/P`: `[B, C, m, P]`.

    It starts at `r = c = 1`. An iteration sets `r ← (1/m) / (K c)`, then `c ← (1/P) / (Kᵀ r)`. It stops for all pairs
    of the batch together: after 100 iterations, or once the mean of `|r - r_before|` over all pairs is below 0.01. So
    the number of iterations depends on the other images of the batch, as in the code of PLOT's authors.
    """
    batch, classes, m, prompts = kernel.shape
    weights = jnp.ones(batch) if mask is None else mask.astype(kernel.dtype)
    total = jnp.maximum(weights.sum(), 1) * classes * m

    def unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
        _, _, iteration, change = state
        return (iteration < MAX_ITERATIONS) & ~(change < TOLERANCE)

    def iterate(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        before, columns, iteration, _ = state
        rows = 1 / m / jnp.einsum("bcmp,bcp->bcm", kernel, columns)
        columns = 1 / prompts / jnp.einsum("bcmp,bcm->bcp", kernel, rows)
        change = (weights * jnp.abs(rows - before).sum((1, 2))).sum() / total
        return rows, columns, iteration + 1, change

    start: tuple[jax.Array, ...] = (
        jnp.ones((batch, classes, m)),
        jnp.ones((batch, classes, prompts)),
        jnp.zeros((), int),
        jnp.full((), jnp.inf),
    )
    with jax.default_matmul_precision("highest"):
        rows, columns, _, _ = jax.lax.while_loop(unfinished, iterate, start)
    return rows[..., None] * kernel * columns[..., None, :]
