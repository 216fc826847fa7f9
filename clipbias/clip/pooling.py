"""SigLIP's pooling head: a learned query that attends to the patches (Zhai et al. 2023).

Perception Encoder's attends to `[cls]`, too.

Its weights are those of a block (`layers.py`) without the first LayerNorm and axis `L`, and `probe [D]`, the query.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from clipbias.clip import layers
from clipbias.clip.config import VisionConfig


class Pooled(NamedTuple):
    """What the head makes of an image's patches: its feature `[B, D]`, the attention probabilities `[B, H, M]`, and the
    query `[B, H, K]` and keys `[B, M, H, K]` that they are of.
    """

    feature: jax.Array
    probabilities: jax.Array
    query: jax.Array
    keys: jax.Array


def pool(patches: jax.Array, weights: Mapping[str, Any], config: VisionConfig, tap: jax.Array | float = 0.0) -> Pooled:
    """`h + MLP(LN(h))` with `h = MHA(probe, x, x)`.

    Args:
      patches: `x [B, M, D]`, after the post-LayerNorm.
      weights: of the head.
      config: of the tower.
      tap: added to the probabilities `[B, H, M]`; differentiating by it gives ∂y/∂A.
    """
    batch = patches.shape[0]  # `len` is not for a batch size that is left open, as in exported programs
    query = layers.dense(weights["probe"].astype(patches.dtype)[None], layers.outputs(weights["qkv"], 0, 1))
    keys_values = layers.dense(patches, layers.outputs(weights["qkv"], 1, 3))
    k, v = (layers.split_heads(x, config.pool_heads) for x in jnp.split(keys_values, 2, axis=-1))
    q = jnp.broadcast_to(layers.split_heads(query, config.pool_heads), (batch, 1, *k.shape[2:]))
    probabilities = layers.attention_probabilities(q, k, None)[:, :, 0] + tap
    heads = jnp.einsum("BHM,BMHK->BHK", probabilities.astype(v.dtype), v)
    h = layers.dense(heads.reshape(batch, -1), weights["out"])
    return Pooled(h + layers.mlp(h, weights, config), probabilities, q[:, 0], k)
