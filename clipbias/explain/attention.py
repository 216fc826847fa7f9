"""Attention statistics as observers: shares by token kind (Fig. 4), distance and entropy (Fig. 5), `[cls]` maps.

An observer reduces one layer's `LayerView` to one small array per sample while the forward pass runs, so that a dataset
of any size needs the memory of one batch.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import LayerView
from clipbias.clip.config import VisionConfig
from clipbias.clip.tower import Observe
from clipbias.explain.results import TEXT_KINDS

QUANTITIES = ("distance", "entropy", "cls_entropy")


def patch_distances(config: VisionConfig) -> np.ndarray:
    """Distance between the centres of every two patches in pixels, `[M, M]`."""
    rows, columns = np.divmod(np.arange(config.patches), config.grid)
    return config.patch_size * np.hypot(rows[:, None] - rows, columns[:, None] - columns)


def entropy(probabilities: jax.Array) -> jax.Array:
    """`−Σ a ln a` over the last axis, in nats, with `0 ln 0 = 0`."""
    positive = probabilities > 0  # twice, so that the gradient at 0 is finite too
    return -jnp.where(positive, probabilities * jnp.log(jnp.where(positive, probabilities, 1)), 0).sum(-1)


def renormalise(probabilities: jax.Array) -> jax.Array:
    """Attention to some of the keys, `[…, N]`, with rows that sum to 1 again; a row of zeros stays as it is."""
    return probabilities / jnp.maximum(probabilities.sum(-1, keepdims=True), jnp.finfo(probabilities.dtype).tiny)


def distance_and_entropy(probabilities: jax.Array, config: VisionConfig) -> dict[str, jax.Array]:
    """Statistics of attention `[B, H, N, N]` whose first tokens are `[cls]`, if any, and the patches, `[B, H]` each.

    - distance: mean over patch queries of `Σ_j A_ij · pixels` over patch keys; rows are not renormalised, so what they
      give to `[cls]` and prompts counts 0.
    - entropy: mean over the `[cls]` and patch queries; cls_entropy: of `[cls]` alone, where there is one.
    """
    first = config.first_patch
    inputs = config.tokens
    pixels = jnp.asarray(patch_distances(config), jnp.float32)
    among_patches = probabilities[..., first:inputs, first:inputs]
    of_queries = entropy(probabilities[..., :inputs, :])
    return {
        "distance": jnp.einsum("BHNM,NM->BHN", among_patches, pixels).mean(-1),  # in two sums: each stays exact longer
        "entropy": of_queries.mean(-1),
        **({"cls_entropy": of_queries[..., 0]} if first else {}),
    }


def observe_distance_and_entropy(config: VisionConfig, prompts: int) -> Observe:
    """Fig. 5 in the variants that apply: "clip" without prompts, else "without_prompt" and "with_prompt".

    The observer returns `{variant: {quantity: [B, H]}}`.
    """

    def observe(view: LayerView) -> Mapping[str, Mapping[str, jax.Array]]:
        if not prompts:
            return {"clip": distance_and_entropy(view.probabilities, config)}
        inputs = slice(config.tokens)
        return {
            "without_prompt": distance_and_entropy(renormalise(view.probabilities[..., inputs, inputs]), config),
            "with_prompt": distance_and_entropy(view.probabilities, config),
        }

    return observe


def cls_map(view: LayerView, patches: int) -> jax.Array:
    """Attention of `[cls]` to the patches, mean over heads: `[B, M]`."""
    return view.probabilities[:, :, 0, 1 : 1 + patches].mean(1)


def kind_sums(rows: jax.Array, kinds: jax.Array) -> jax.Array:
    """Rows `[C, …, N]` summed over the tokens of each kind `[C, N]`: `[C, …, 6]`."""
    member = jax.nn.one_hot(kinds, len(TEXT_KINDS), dtype=rows.dtype)
    return jnp.einsum("C...N,CNK->C...K", rows, member, precision="highest")


def observe_text_shares(eos: jax.Array, kinds: jax.Array) -> Observe:
    """Fig. 4: the attention of the EOS query by token kind, `[C, H, 6]` in the order of `TEXT_KINDS`, which sum to 1.

    Args:
      eos: `[C]`, position of EOS.
      kinds: `[C, N]`, from `text_kinds`.
    """

    def observe(view: LayerView) -> jax.Array:
        rows = jnp.take_along_axis(view.probabilities, eos[:, None, None, None], axis=2)[:, :, 0]
        return kind_sums(rows, kinds)

    return observe
