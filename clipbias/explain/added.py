"""What a tuned run adds to its input tokens, beyond the frozen model with the same attention; on average, by kind.

Three parts in which *values* come:

    start    what tokens have before the first block, where a method changes pixels or weights before it
    slots    `s`, what slots add to the output of attention
    blocks   what else a tuned block gives beyond the frozen one on the same tokens, with the same attention and slots

Without slots the second is zero, and with prompts alone the others are. The frozen blocks with the tuned run's
attention, scale and all three are the tuned run, token by token. *Kinds* are the token that is read out and all others.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.clip import Adaptation, TextTokens, block, tower
from clipbias.clip.config import ClipConfig
from clipbias.clip.params import Params
from clipbias.explain.run_pair import RunPair, image_pair, text_pair
from clipbias.explain.statistics import Moments, Totals, merge
from clipbias.explain.targets import of_texts

# Texts that run at once, with their attention.
_TEXTS_AT_ONCE = 32
_TEXT_KINDS = 2


@struct.dataclass
class Added:
    """A constant in the place of what a tuned run adds, a row for each of the `K` kinds of token.

    Attributes:
      start: `[K, D]`.
      slots: `[L, K, D]`.
      blocks: `[L, K, D]`, or `None` where a method changes no block.
    """

    start: Any
    slots: Any
    blocks: Any

    @classmethod
    def mean(cls, totals: Totals) -> "Added":
        """Of the sums of `added_to_images` or `added_to_texts`, float32."""
        means = {name: np.asarray(moments.mean, np.float32) for name, moments in totals.items()}
        return cls(means["start"], means["slots"], means.get("blocks"))


def by_kind(constant: jax.Array, kinds: jax.Array) -> jax.Array:
    """What each token gets of a constant `[K, D]`: `[..., N, D]` for `kinds [..., N]`, 0 for slots."""
    return jnp.where((kinds >= 0)[..., None], jnp.asarray(constant)[jnp.maximum(kinds, 0)], 0)


@jax.jit(static_argnums=0)
def added_to_images(
    config: ClipConfig, params: Params, images: jax.Array, mask: jax.Array, tuned: Adaptation
) -> Totals:
    """Sums by kind, of normalised images `[B, R, R, 3]` where `mask [B]` is true; in float32 always.

    Args:
      config: geometry.
      params: the frozen weights.
      images: of the training set.
      mask: which of them count.
      tuned: what the method adds, with one set of prompts at most.

    Returns:
      "start" (`mean [K, D]`), "slots" (`[L, K, D]`), and "blocks" where the method changes blocks.
    """
    with jax.default_matmul_precision("highest"):
        pair = image_pair(params, config, images, tuned, Adaptation(), "float32")
        counted = jnp.broadcast_to(mask[:, None], (len(images), pair.inputs))
        return _sum_added(pair, counted, config.vision.kinds)


def added_to_texts(
    config: ClipConfig, params: Params, tokens: TextTokens, tuned: Adaptation, reference: Adaptation
) -> Totals:
    """`added_to_images` of texts `[C, N]` up to their ends; `reference` has the context that training started from."""
    count = len(tokens.ids)
    size = min(count, _TEXTS_AT_ONCE)
    totals: Totals = {}
    for start in range(0, count, size):
        numbers = np.arange(start, start + size)
        texts = np.minimum(numbers, count - 1)
        of_batch: TextTokens = jax.tree.map(lambda x, texts=texts: np.asarray(x)[texts], tokens)
        runs = [of_texts(adaptation, texts, count) for adaptation in (tuned, reference)]
        totals = merge(totals, jax.device_get(_some_texts(config, params, of_batch, *runs, numbers < count)))
    return totals


@jax.jit(static_argnums=0)
def _some_texts(
    config: ClipConfig,
    params: Params,
    tokens: TextTokens,
    tuned: Adaptation,
    reference: Adaptation,
    mask: jax.Array,
) -> Totals:
    with jax.default_matmul_precision("highest"):
        pair = text_pair(params, config, tokens, tuned, reference, "float32")
        return _sum_added(pair, tokens.counted & mask[:, None], _TEXT_KINDS)


def _sum_added(pair: RunPair, counted: jax.Array, kinds: int) -> Totals:
    """Sums over the tokens that `counted [B, N]` says, by kind."""

    def sums(values: jax.Array) -> Moments:
        rows = values.reshape(-1, values.shape[-1])
        moments = [Moments.of(rows, (counted & (pair.kinds == kind)).reshape(-1)) for kind in range(kinds)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *moments)

    def step(tokens: jax.Array, inputs: tuple[block.LayerInput, block.LayerInput]) -> tuple[jax.Array, Totals]:
        frozen, layer = inputs
        tokens, seen = tower.observe_block(tokens, layer, pair.tuned, pair.config)
        parts = pair.part(seen)
        added = {"slots": parts.slots, "blocks": pair.beyond(frozen, seen, parts, tokens)}
        return tokens, {name: sums(values) for name, values in added.items() if values is not None}

    totals = jax.lax.scan(step, pair.tuned.tokens, (pair.reference.layers, pair.tuned.layers))[1]
    return totals | {"start": sums(pair.start)}
