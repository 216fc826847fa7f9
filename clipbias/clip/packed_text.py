"""The text tower with every distinct token computed once: the same features, several times less work.

Three exact savings, all from the causal mask:
- Tokens after a text's end-of-text token change nothing, so they are left out: the tokens of all texts lie one after
  another on one axis, almost without padding. Everything in a block but attention acts on single tokens; for attention
  the axis is cut into tiles, each of which holds a few whole texts, and a mask keeps the texts of a tile apart.
- The leading tokens that all texts share (SOS and the context) are the same at every layer: they are computed once, and
  every text attends to the same keys and values.
- The last block is computed at the end-of-text rows only.

In a tower that is not causal nothing is saved: every tile holds one text with its padding, which BERT masks.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from clipbias.clip import layers, scan
from clipbias.clip.adaptation import NOTHING, Adaptation
from clipbias.clip.adaptation_checks import check_inserted, check_text_parts, class_block
from clipbias.clip.block import BlockHooks, bias_rows, put_prompts, row_attention, run_block, self_attention
from clipbias.clip.config import ClipConfig
from clipbias.clip.packing import PackedTokens, grouped, with_inserted, with_leaves
from clipbias.clip.params import Params
from clipbias.clip.precision import cast_weights, with_precision
from clipbias.clip.text import embed_positions, project_text, put_context, text_layers
from clipbias.clip.tower import causal_mask
from clipbias.clip.weight_changes import outside_layers
from clipbias.errors import ClipbiasError


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, tokens: PackedTokens) -> jax.Array:
    """Attention of every token after the shared ones to those and to its own text.

    Args:
      q: `[G, U, H, K]`.
      k, v: `[G, P + U, H, K]`.
    """
    shared = tokens.shared
    tiles = tokens.texts.shape[1:3]
    # Heads before tokens: the axis of all tokens then splits into tiles where it lies.
    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    tile_q, tile_k, tile_v = (x.reshape(*x.shape[:2], *tiles, -1) for x in (q, k[:, :, shared:], v[:, :, shared:]))
    visible = (tokens.texts[..., :, None] == tokens.texts[..., None, :]) & causal_mask(tiles[-1])
    tile = jnp.einsum("GHCSK,GHCTK->GHCST", tile_q, tile_k)
    tile = jnp.where(visible[:, None], tile, -jnp.inf)
    prefix = jnp.einsum("GHUK,GHPK->GHUP", q, k[:, :, :shared]).reshape(*tile.shape[:-1], shared)
    prefix, tile = layers.exponentials(prefix, tile)
    # A token sees fewer tokens than a head is wide, so dividing costs less before the sum over values than after it.
    total = prefix.sum(-1, keepdims=True) + tile.sum(-1, keepdims=True)
    prefix, tile = ((part / total).astype(v.dtype) for part in (prefix, tile))
    values = jnp.einsum("GHCST,GHCTK->GHCSK", tile, tile_v).reshape(q.shape)
    values = values + jnp.einsum("GHUP,GHPK->GHUK", prefix.reshape(*q.shape[:3], shared), v[:, :, :shared])
    return values.swapaxes(1, 2)


@with_precision
def encode_packed_text(
    params: Params,
    config: ClipConfig,
    tokens: PackedTokens,
    adaptation: Adaptation | None = None,
    *,
    chunks: int = 1,
    remat: layers.RematPolicy | None = None,
    dtype: DTypeLike = "float32",
) -> jax.Array:
    """`encode_text` for texts packed by `pack`: features `[C, d]` in float32, not normalised, in class order.

    Args:
      chunks: a divisor of the number of groups; every `G / chunks`-th group is run after another, and again in the
        backward pass, so that the memory of one chunk serves for all.
      remat: as in `tower.run_fused`.
    """
    adaptation = adaptation or NOTHING
    # Whole lengths are checked where texts become tokens.
    check_text_parts(adaptation, config, len(tokens.order), tokens.shared + 1)

    def run(part: PackedTokens) -> jax.Array:
        return _group_features(params, config, part, adaptation, remat=remat, dtype=str(dtype))

    if chunks == 1:
        features = run(tokens)
    else:
        # A device's groups lie side by side, and each chunk takes one of them from every device.
        leaves = {name: getattr(tokens, name) for name in grouped(tokens)}
        split = {name: x.reshape(-1, chunks, *x.shape[1:]).swapaxes(0, 1) for name, x in leaves.items()}
        run_chunk = jax.checkpoint(lambda leaves: run(with_leaves(tokens, leaves)), prevent_cse=False)
        features = jax.lax.map(run_chunk, split).swapaxes(0, 1)
    # Only now, after each device has read out its own classes, so that features alone are exchanged.
    return features.reshape(-1, features.shape[-1])[tokens.order]


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How blocks act on packed tokens `[G, P + U, D]`.

    Attributes:
      tokens: what lies where.
      bias_rows: which row of a layer's bias each token gets, see `block.bias_rows`.
    """

    tokens: PackedTokens
    bias_rows: jax.Array | None

    def replace(self, x: jax.Array, put: Callable[[jax.Array, jax.Array | np.ndarray], jax.Array]) -> jax.Array:
        """`x` with what `put` makes of the tokens and of their context rows, where there are such rows."""
        rows = self.tokens.context_rows
        shared = self.tokens.shared
        if not self.tokens.context_is_shared:
            return put(x, rows)
        return jnp.concatenate([put(x[:, :shared], rows[:, :shared]), x[:, shared:]], axis=1)

    def put_context(self, x: jax.Array, context: jax.Array | None) -> jax.Array:
        """`x` with a context, see `text.put_context`."""
        texts = len(self.tokens.order)
        classes = self.tokens.classes
        if self.tokens.context_is_shared:
            classes = classes[:, : self.tokens.shared]
        return self.replace(x, lambda y, rows: put_context(y, context, rows, classes, texts))

    def hooks(self) -> BlockHooks:
        """Of a block that is computed at all tokens."""
        return BlockHooks(self_attention(self._attend), before=self._put_prompts, bias_rows=self.bias_rows)

    def pooled_hooks(self) -> BlockHooks:
        """Of the last block, computed at the end-of-text rows alone: `[G, Cg, D]`."""
        rows = None if self.bias_rows is None else self._take(self.bias_rows[..., None])[..., 0]
        return BlockHooks(
            row_attention(self._take, self._attend_row), before=self._put_prompts, take=self._take, bias_rows=rows
        )

    def _put_prompts(self, x: jax.Array, layer: scan.LayerInput) -> jax.Array:
        return self.replace(x, lambda y, rows: put_prompts(y, layer, rows))

    def _take(self, x: jax.Array) -> jax.Array:
        return _take_ends(x, self.tokens.ends)

    def _by_text(self, x: jax.Array) -> jax.Array:
        """`[G, U, H, K]` as `[texts, N, H, K]`, of a tower that is not causal."""
        return x.reshape(-1, self.tokens.texts.shape[2], *x.shape[2:])

    @property
    def _visible(self) -> jax.Array | None:
        """Which tokens each text sees, `[texts, N]`."""
        if self.tokens.visible is None:
            return None
        return jnp.asarray(self.tokens.visible).reshape(-1, self.tokens.texts.shape[2])

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if not self.tokens.causal:
            by_text = [self._by_text(x) for x in (q, k, v)]
            return layers.fused_attention(*by_text, causal=False, visible=self._visible).reshape(q.shape)
        shared = self.tokens.shared
        head = layers.fused_attention(q[:, :shared], k[:, :shared], v[:, :shared], causal=True)
        return jnp.concatenate([head, _attend(q[:, shared:], k, v, self.tokens)], axis=1)

    def _attend_row(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if not self.tokens.causal:
            by_text = q.reshape(-1, 1, *q.shape[2:])
            mask = None if self._visible is None else self._visible[:, None, None, :]
            probabilities = layers.attention_probabilities(by_text, self._by_text(k), mask)
            return jnp.einsum("BHNM,BMHK->BNHK", probabilities.astype(v.dtype), self._by_text(v)).reshape(q.shape)
        # Each end-of-text query goes back to its place in its tile: that moves `Cg` rows, not the tiles' keys.
        shared = self.tokens.shared
        ends = self.tokens.ends - shared
        placed = jax.vmap(lambda rows, at: jnp.zeros((k.shape[1] - shared, *q.shape[2:]), q.dtype).at[at].set(rows))
        heads = _attend(placed(q, ends), k, v, self.tokens)
        return _take_ends(heads.reshape(*heads.shape[:2], -1), ends).reshape(q.shape)


def _take_ends(x: jax.Array, ends: jax.Array | np.ndarray) -> jax.Array:
    """`[G, tokens, D]` at `ends [G, Cg]`: `[G, Cg, D]`."""
    return jnp.take_along_axis(x, ends[..., None], axis=1, mode="clip")


def _group_features(
    params: Params,
    config: ClipConfig,
    tokens: PackedTokens,
    adaptation: Adaptation,
    *,
    remat: layers.RematPolicy | None,
    dtype: str,
) -> jax.Array:
    """Features `[G, Cg, d]` in the groups' own order."""
    weights = outside_layers(cast_weights(params["text"], dtype), adaptation.text_weights)
    x = weights["token_embedding"][tokens.ids].astype(jnp.float32)
    is_end = jax.vmap(lambda at: jnp.zeros(x.shape[1], bool).at[at].set(True, mode="drop"))(jnp.asarray(tokens.ends))
    layout = _Layout(tokens, bias_rows(adaptation.text_bias, is_end, tokens.positions))
    x = layout.put_context(x, adaptation.text_context)
    x = embed_positions(x, weights, config.text, jnp.asarray(tokens.positions))

    def step(hooks: BlockHooks, x: jax.Array, layer: scan.LayerInput) -> tuple[jax.Array, None]:
        return run_block(x, layer, config.text, hooks), None

    inputs = text_layers(params, config, adaptation, dtype)
    start = 0
    if adaptation.text_class_prompts is not None:
        start = class_block(adaptation, config.text)
        x, _ = scan.scan_all_but_last(functools.partial(step, layout.hooks()), x, inputs, remat, end=start)
        x = layout.put_context(x, adaptation.text_class_prompts)
    inserted = check_inserted(adaptation, "text", config)
    if inserted is not None:
        if not tokens.causal:
            raise ClipbiasError("text_tokens are shared by all texts, which only a causal text tower allows.")
        start = config.common_blocks - inserted.shape[0]
        x, _ = scan.scan_all_but_last(functools.partial(step, layout.hooks()), x, inputs, remat, end=start)
        x = scan.insert(x, inserted[0], config.text.first_word)
        inputs = scan.with_inserted(inputs, inserted, start)
        layout = dataclasses.replace(layout, tokens=with_inserted(tokens, inserted.shape[1], config.text.first_word))
    x, last = scan.scan_all_but_last(functools.partial(step, layout.hooks()), x, inputs, remat, start=start)
    rows = run_block(x, last, config.text, layout.pooled_hooks())
    features = project_text(params, config, rows.reshape(-1, rows.shape[-1]), adaptation)
    return features.reshape(*tokens.ends.shape, -1)
