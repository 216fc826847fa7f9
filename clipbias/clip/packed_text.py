"""The text tower with every distinct token computed once: the same features, several times less work.

Three exact savings, all from the causal mask:
- Tokens after a text's end-of-text token change nothing, so they are left out: the tokens of all texts lie one after
  another on one axis, almost without padding. Everything in a block but attention acts on single tokens; for attention
  the axis is cut into tiles, each of which holds a few whole texts, and a mask keeps the texts of a tile apart.
- The leading tokens that all texts share (SOS and the context) are the same at every layer: they are computed once, and
  every text attends to the same keys and values.
- The last block is computed at the end-of-text rows only.

In a tower that is not causal nothing is saved: every tile holds one text with its padding, which BERT masks. `pack`
deals the classes to groups of equal work, the axis that is sharded over devices, and lays out their tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike

from clipbias.clip import block, layers
from clipbias.clip.adaptation import NOTHING, Adaptation, check_inserted, check_text_parts, class_block
from clipbias.clip.block import BlockHooks, bias_rows, put_prompts, row_attention, run_block, self_attention
from clipbias.clip.config import ClipConfig
from clipbias.clip.layers import outside_layers
from clipbias.clip.params import Params
from clipbias.clip.precision import cast_weights, with_precision
from clipbias.clip.text import TextTokens, embed_positions, project_text, put_context, text_layers
from clipbias.clip.tower import causal_mask
from clipbias.errors import ClipbiasError

# Least length of a tile: class names of a few tokens share one, and the products of a tile are large enough to be fast.
TILE = 16

# Fields of `PackedTokens` with a leading axis of groups.
GROUPED = ("ids", "positions", "context_rows", "classes", "texts", "ends", "visible")


@struct.dataclass
class PackedTokens:
    """Prompt texts of `C` classes without repetition. `G` groups, `P` shared leading tokens, then `U` others in tiles.

    Attributes:
      ids, positions, context_rows, classes: int32 `[G, P + U]`: token id, position in its text, context row (-1: none)
        and class of every token; of the shared ones, a class of the group's.
      texts: int32 `[G, tiles, S]`, `tiles · S = U`: the class of each token after the shared ones, -1 for padding.
      ends: int32 `[G, Cg]`: where among the `P + U` each of the group's `Cg` classes has its end-of-text token; `P + U`
        where a group has fewer classes than another.
      visible: bool `[G, U]`, of BERT: the tokens that their text sees, all but padding; else `None`.
      order: int32 `[C]`: each class's index into the flattened `[G, Cg]`.
      shared: `P`.
      context_is_shared: whether all context tokens are among the first `P`.
      causal: whether a token sees those before it alone; if not, `P` is 0 and each tile is one whole text.
    """

    ids: jax.Array | np.ndarray
    positions: jax.Array | np.ndarray
    context_rows: jax.Array | np.ndarray
    classes: jax.Array | np.ndarray
    texts: jax.Array | np.ndarray
    ends: jax.Array | np.ndarray
    order: jax.Array | np.ndarray
    shared: int = struct.field(pytree_node=False)
    context_is_shared: bool = struct.field(pytree_node=False)
    causal: bool = struct.field(pytree_node=False, default=True)
    visible: jax.Array | np.ndarray | None = None


def _deal(lengths: np.ndarray, groups: int) -> list[list[int]]:
    """Longest first, dealt back and forth, so that groups end up with nearly equal numbers of tokens."""
    members: list[list[int]] = [[] for _ in range(groups)]
    for turn, index in enumerate(np.argsort(-lengths, kind="stable")):
        lap, place = divmod(turn, groups)
        members[place if lap % 2 == 0 else groups - 1 - place].append(int(index))
    return members


def pack(tokens: TextTokens, *, groups: int = 1, class_specific: bool = False, sets: int = 1) -> PackedTokens:
    """Packs concrete `TextTokens` (on the host).

    Args:
      groups: the number of devices that share the classes.
      class_specific: contexts differ between classes, so only what stands before them is shared.
      sets: the number of contexts, each of as many texts in a row. Every group is then one of each set, side by side,
        and what is shared is so within a set.
    """
    ids, rows, eos = (np.asarray(x) for x in (tokens.ids, tokens.context_rows, tokens.eos))
    each = len(ids) // sets
    spans = [slice(start, start + each) for start in range(0, len(ids), each)]
    causal = tokens.ends is None
    # The leading tokens that all texts of a set have in common, which no later token changes.
    shared = int(eos.min()) if causal else 0
    for span in spans:
        same = (ids[span] == ids[span][0]).all(0) & (rows[span] == rows[span][0]).all(0)
        if class_specific:
            same &= (rows[span] < 0).all(0)
        shared = min([shared, *np.flatnonzero(~same)[:1].tolist()])
    lengths = eos + 1 - shared if causal else np.full(len(ids), ids.shape[1])
    dealt = [[[span.start + i for i in group] for group in _deal(lengths[span], groups)] for span in spans]
    members = [group for side_by_side in zip(*dealt, strict=True) for group in side_by_side]
    groups *= sets
    size = max(TILE, -(-int(lengths.max()) // 8) * 8) if causal else ids.shape[1]
    starts = [first_fit(lengths[group], size) for group in members]
    unique = (1 + max(int(start.max(initial=0)) for start in starts) // size) * size
    per_group = -(-each // (groups // sets))

    def grid(fill: int, *shape: int) -> np.ndarray:
        return np.full(shape, fill, np.int32)

    packed_ids, positions, classes = (grid(0, groups, shared + unique) for _ in range(3))
    context_rows = grid(-1, groups, shared + unique)
    texts = grid(-1, groups, unique)
    ends = grid(shared + unique, groups, per_group)
    order = grid(0, len(ids))
    visible = None if tokens.visible is None else np.ones((groups, unique), bool)
    firsts = np.tile([span.start for span in spans], groups // sets)
    packed_ids[:, :shared] = ids[firsts, :shared]
    context_rows[:, :shared] = rows[firsts, :shared]
    positions[:, :shared] = np.arange(shared)
    classes[:, :shared] = firsts[:, None]
    for g, group in enumerate(members):
        for place, (index, start) in enumerate(zip(group, starts[g], strict=True)):
            length = int(lengths[index])
            span = slice(shared + start, shared + start + length)
            source = slice(shared, shared + length)
            packed_ids[g, span] = ids[index, source]
            context_rows[g, span] = rows[index, source]
            positions[g, span] = np.arange(shared, shared + length)
            classes[g, span] = index
            texts[g, start : start + length] = index
            ends[g, place] = start + eos[index]
            if visible is not None:
                visible[g, start : start + length] = np.asarray(tokens.visible)[index]
            order[index] = g * per_group + place
    return PackedTokens(
        ids=packed_ids,
        positions=positions,
        context_rows=context_rows,
        classes=classes,
        texts=texts.reshape(groups, -1, size),
        ends=ends,
        order=order,
        shared=shared,
        context_is_shared=bool((rows[:, shared:] < 0).all()),
        causal=causal,
        visible=visible,
    )


def take_sets(tokens: PackedTokens, sets: int, numbers: jax.Array) -> PackedTokens:
    """The texts of some of the sets that `pack` was given, by `numbers`, int32 `[Q]`, which may be traced."""
    count = numbers.shape[0]
    each = tokens.order.shape[0] // sets
    leaves: dict[str, Any] = {}
    for name in grouped(tokens):
        leaf = jnp.asarray(getattr(tokens, name))
        by_set = leaf.reshape(-1, sets, *leaf.shape[1:])[:, numbers]
        if name == "classes":  # those of the first set taken come first now
            places = jnp.expand_dims(jnp.arange(count), (0, *range(2, leaf.ndim + 1)))
            by_set = by_set % each + each * places
        leaves[name] = by_set.reshape(-1, *leaf.shape[1:])
    # A text's group is one of each set's, and its place in there stays.
    groups, places = jnp.divmod(jnp.asarray(tokens.order).reshape(sets, each)[numbers], tokens.ends.shape[1])
    groups = groups // sets * count + jnp.arange(count)[:, None]
    order = (groups * tokens.ends.shape[1] + places).reshape(-1)
    return dataclasses.replace(tokens, order=order, **leaves)


def grouped(tokens: PackedTokens) -> list[str]:
    """The names of the fields `GROUPED` that these tokens have."""
    return [name for name in GROUPED if getattr(tokens, name) is not None]


def first_fit(lengths: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """Where texts of these lengths start if each goes into the first tile of `size` tokens that has room: int `[n]`."""
    starts = np.zeros(len(lengths), int)
    used: list[int] = []
    first = dict.fromkeys(range(size + 1), 0)  # tiles before this one have no room for a text of that length
    for turn, length in enumerate(lengths):
        tile = first[length]
        while tile < len(used) and used[tile] + length > size:
            tile += 1
        if tile == len(used):
            used.append(0)
        starts[turn] = tile * size + used[tile]
        used[tile] += length
        first[length] = tile
    return starts


def with_inserted(tokens: PackedTokens, count: int, first: int) -> PackedTokens:
    """The same with `count` more shared tokens from `first` on, which are the only ones to be replaced from now on."""
    rows = np.full((tokens.ids.shape[0], tokens.ids.shape[1] + count), -1)
    rows[:, first : first + count] = np.arange(count)
    return dataclasses.replace(
        tokens, context_rows=rows, ends=tokens.ends + count, shared=tokens.shared + count, context_is_shared=True
    )


# The tower over packed texts.


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, tokens: PackedTokens) -> jax.Array:
    """Attention of all tokens after the shared ones, `q [G, U, H, K]`, to these and to their own text's, `k`, `v`.

    Keys and values are `[G, P + U, H, K]`.
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
    # Groups and heads on one axis, since XLA's CPU compiler splits the first one over threads.
    prefix, tile = layers.exponentials(*(part.reshape(-1, *part.shape[2:]) for part in (prefix, tile)))
    # A token sees fewer tokens than a head is wide, so dividing costs less before the sum over values than after it.
    total = prefix.sum(-1, keepdims=True) + tile.sum(-1, keepdims=True)
    prefix, tile = ((part / total).astype(v.dtype).reshape(*q.shape[:2], *part.shape[1:]) for part in (prefix, tile))
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

    With `chunks`, a divisor of the number of groups, every `G / chunks`-th group is run after another, and again in the
    backward pass, so that the memory of one chunk serves for all.
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
        run_chunk = jax.checkpoint(lambda leaves: run(dataclasses.replace(tokens, **leaves)), prevent_cse=False)
        features = jax.lax.map(run_chunk, split).swapaxes(0, 1)
    # Only now, after each device has read out its own classes, so that features alone are exchanged.
    return features.reshape(-1, features.shape[-1])[tokens.order]


def _replace(
    tokens: PackedTokens, x: jax.Array, put: Callable[[jax.Array, jax.Array | np.ndarray], jax.Array]
) -> jax.Array:
    """`x` with what `put` makes of the tokens and of their context rows, where there are such rows."""
    rows = tokens.context_rows
    shared = tokens.shared
    if not tokens.context_is_shared:
        return put(x, rows)
    return jnp.concatenate([put(x[:, :shared], rows[:, :shared]), x[:, shared:]], axis=1)


def _put_context(tokens: PackedTokens, x: jax.Array, context: jax.Array | None) -> jax.Array:
    """`x` with a context, see `text.put_context`."""
    classes = tokens.classes[:, : tokens.shared] if tokens.context_is_shared else tokens.classes
    return _replace(tokens, x, lambda y, rows: put_context(y, context, rows, classes, len(tokens.order)))


def _hooks(tokens: PackedTokens, bias_rows: jax.Array | None, *, pooled: bool) -> BlockHooks:
    """How a block acts on packed tokens `[G, P + U, D]`; the last one at the end-of-text rows alone, `[G, Cg, D]`."""
    shared = tokens.shared
    length = tokens.texts.shape[2]

    def by_text(x: jax.Array) -> jax.Array:  # `[G, U, H, K]` as `[texts, N, H, K]`, of a tower that is not causal
        return x.reshape(-1, length, *x.shape[2:])

    def visible() -> jax.Array | None:  # the tokens that each text sees, `[texts, N]`
        return None if tokens.visible is None else jnp.asarray(tokens.visible).reshape(-1, length)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if not tokens.causal:
            parts = [by_text(x) for x in (q, k, v)]
            return layers.fused_attention(*parts, causal=False, visible=visible()).reshape(q.shape)
        head = layers.fused_attention(q[:, :shared], k[:, :shared], v[:, :shared], causal=True)
        return jnp.concatenate([head, _attend(q[:, shared:], k, v, tokens)], axis=1)

    def attend_row(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if not tokens.causal:
            queries = q.reshape(-1, 1, *q.shape[2:])
            seen = visible()
            mask = None if seen is None else seen[:, None, None, :]
            probabilities = layers.attention_probabilities(queries, by_text(k), mask)
            return jnp.einsum("BHNM,BMHK->BNHK", probabilities.astype(v.dtype), by_text(v)).reshape(q.shape)
        # Each end-of-text query goes back to its place in its tile: that moves `Cg` rows, not the tiles' keys.
        ends = tokens.ends - shared
        placed = jax.vmap(lambda rows, at: jnp.zeros((k.shape[1] - shared, *q.shape[2:]), q.dtype).at[at].set(rows))
        heads = _attend(placed(q, ends), k, v, tokens)
        return _take_ends(heads.reshape(*heads.shape[:2], -1), ends).reshape(q.shape)

    def before(x: jax.Array, layer: block.LayerInput) -> jax.Array:
        return _replace(tokens, x, lambda y, rows: put_prompts(y, layer, rows))

    if not pooled:
        return BlockHooks(self_attention(attend), before=before, bias_rows=bias_rows)
    take = functools.partial(_take_ends, ends=tokens.ends)
    rows = None if bias_rows is None else take(bias_rows[..., None])[..., 0]
    return BlockHooks(row_attention(take, attend_row), before=before, take=take, bias_rows=rows)


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
    rows_of_bias = bias_rows(adaptation.text_bias, is_end, tokens.positions)
    x = _put_context(tokens, x, adaptation.text_context)
    x = embed_positions(x, weights, config.text, jnp.asarray(tokens.positions))

    def step(tokens: PackedTokens, x: jax.Array, layer: block.LayerInput) -> tuple[jax.Array, None]:
        return run_block(x, layer, config.text, _hooks(tokens, rows_of_bias, pooled=False)), None

    inputs = text_layers(params, config, adaptation, dtype)
    start = 0
    if adaptation.text_class_prompts is not None:
        start = class_block(adaptation, config.text)
        x, _ = block.scan_all_but_last(functools.partial(step, tokens), x, inputs, remat, end=start)
        x = _put_context(tokens, x, adaptation.text_class_prompts)
    inserted = check_inserted(adaptation, "text", config)
    if inserted is not None:
        if not tokens.causal:
            raise ClipbiasError("text_tokens are shared by all texts, which only a causal text tower allows.")
        start = config.common_blocks - inserted.shape[0]
        x, _ = block.scan_all_but_last(functools.partial(step, tokens), x, inputs, remat, end=start)
        x = block.insert(x, inserted[0], config.text.first_word)
        inputs = block.with_inserted(inputs, inserted, start)
        tokens = with_inserted(tokens, inserted.shape[1], config.text.first_word)
    x, last = block.scan_all_but_last(functools.partial(step, tokens), x, inputs, remat, start=start)
    rows = run_block(x, last, config.text, _hooks(tokens, rows_of_bias, pooled=True))
    features = project_text(params, config, rows.reshape(-1, rows.shape[-1]), adaptation)
    return features.reshape(*tokens.ends.shape, -1)
