"""The text tower with every distinct token computed once: the same features with a fraction of the work.

Three exact savings follow from the causal mask:
- Tokens behind the end of a text influence no feature and are left out. The tokens of all texts lie on one axis, almost
  without padding; attention cuts this axis into tiles of a few whole texts, which a mask keeps apart.
- The leading tokens that all texts share (SOS and the context) are equal at every layer. They are computed once, and
  every text attends to their keys and values.
- The last block is computed at the end-of-text rows only.

A tower that is not causal has none of these: every tile holds one text with its padding, which BERT masks. `pack` lays
out the tokens in groups of equal work, the axis that is sharded over devices.
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
from clipbias.clip.adaptation import NOTHING, Adaptation, check_inserted, check_text_parts, class_block, outside_layers
from clipbias.clip.block import BlockHooks, bias_rows, put_prompts, row_attention, run_block, self_attention
from clipbias.clip.config import ClipConfig
from clipbias.clip.params import Params
from clipbias.clip.precision import with_precision
from clipbias.clip.text import TextTokens, embed_positions, project_text, put_context
from clipbias.clip.tower import causal_mask
from clipbias.errors import ClipbiasError

# Minimum length of a tile: several short class names share a tile, and its products are large enough to be fast.
MIN_TILE = 16


@struct.dataclass
class PackedTokens:
    """Prompt texts of `C` classes in `G` groups: `P` leading tokens that all share, then `U` others in tiles.

    Attributes:
      ids, positions, context_rows, classes: int32 `[G, P + U]`: token id, position in its text, context row (-1: none)
        and class of every token; a shared token has the first class of its set.
      texts: int32 `[G, tiles, S]`, `tiles · S = U`: the class of each token behind the shared ones, -1 for padding.
      ends: int32 `[G, Cg]`: the place among the `P + U` of the end-of-text token of each of the group's `Cg` classes;
        `P + U` for a missing class of a smaller group.
      visible: bool `[G, U]`: all tokens but BERT's padding; `None` for other towers.
      order: int32 `[C]`: each class's index into the flattened `[G, Cg]`.
      shared: `P`.
      context_is_shared: whether all context tokens are among the first `P`.
      causal: whether a token sees only those before it; if not, `P` is 0 and each tile is one whole text.
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
    """Deals texts to groups of nearly equal numbers of tokens."""
    # Longest first, back and forth: a group that gets the longer text of one lap gets the shorter text of the next.
    members: list[list[int]] = [[] for _ in range(groups)]
    for turn, index in enumerate(np.argsort(-lengths, kind="stable")):
        lap, place = divmod(turn, groups)
        members[place if lap % 2 == 0 else groups - 1 - place].append(int(index))
    return members


def pack(tokens: TextTokens, *, groups: int = 1, class_specific: bool = False, sets: int = 1) -> PackedTokens:
    """Packs concrete `TextTokens` on the host.

    Args:
      groups: the number of devices that share the classes.
      class_specific: whether contexts differ between classes, so that only the tokens before them are shared.
      sets: the number of contexts, each for equally many neighbouring texts. Tokens are then shared within a set, and
        each of the `groups` becomes one per set, side by side.
    """
    ids, rows, eos = (np.asarray(x) for x in (tokens.ids, tokens.context_rows, tokens.eos))
    each = len(ids) // sets
    spans = [slice(start, start + each) for start in range(0, len(ids), each)]
    causal = tokens.ends is None
    # The common prefix of all texts of a set; under a causal mask no later token changes it. It ends before the first
    # EOS, since each text reads out its own.
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
    # No text is cut: a tile holds the longest one, in a multiple of 8 for the device's matrix units.
    size = max(MIN_TILE, -(-int(lengths.max()) // 8) * 8) if causal else ids.shape[1]
    starts = [first_fit(lengths[group], size) for group in members]
    # All groups get as many tiles as the fullest one, since an array has one shape on all devices.
    unique = (1 + max(int(start.max(initial=0)) for start in starts) // size) * size
    per_group = -(-each // (groups // sets))

    def grid(fill: int, *shape: int) -> np.ndarray:
        return np.full(shape, fill, np.int32)

    packed_ids, positions, classes = (grid(0, groups, shared + unique) for _ in range(3))
    context_rows = grid(-1, groups, shared + unique)
    texts = grid(-1, groups, unique)
    # Missing classes of a smaller group have an index beyond all tokens: `mode="drop"` and "clip" handle it later.
    ends = grid(shared + unique, groups, per_group)
    order = grid(0, len(ids))
    visible = None if tokens.visible is None else np.ones((groups, unique), bool)
    firsts = np.tile([span.start for span in spans], groups // sets)
    # Shared tokens are copied from the first text of each set.
    packed_ids[:, :shared] = ids[firsts, :shared]
    context_rows[:, :shared] = rows[firsts, :shared]
    positions[:, :shared] = np.arange(shared)
    classes[:, :shared] = firsts[:, None]
    for g, group in enumerate(members):
        # Each text's other tokens go to its place in the group's tiles.
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
    """Selects sets of `pack` by `numbers`, int32 `[Q]`, which may be traced."""
    count = numbers.shape[0]
    each = tokens.order.shape[0] // sets
    leaves: dict[str, Any] = {}
    for name, leaf in _grouped(tokens).items():
        leaf = jnp.asarray(leaf)
        # Groups of the sets lie side by side (`pack`), so that this axis splits into groups and sets.
        by_set = leaf.reshape(-1, sets, *leaf.shape[1:])[:, numbers]
        if name == "classes":
            # Classes are numbered anew: those of the first selected set come first.
            places = jnp.expand_dims(jnp.arange(count), (0, *range(2, leaf.ndim + 1)))
            by_set = by_set % each + each * places
        leaves[name] = by_set.reshape(-1, *leaf.shape[1:])
    # Group `g` of the `n`-th of `sets` has index `g · sets + n`; now it is the `n`-th of `count`. Places inside stay.
    groups, places = jnp.divmod(jnp.asarray(tokens.order).reshape(sets, each)[numbers], tokens.ends.shape[1])
    groups = groups // sets * count + jnp.arange(count)[:, None]
    return dataclasses.replace(tokens, order=(groups * tokens.ends.shape[1] + places).reshape(-1), **leaves)


def _grouped(tokens: PackedTokens) -> dict[str, jax.Array | np.ndarray]:
    """Returns the arrays with a leading axis of groups, by field."""
    arrays = {field.name: getattr(tokens, field.name) for field in dataclasses.fields(tokens)}
    return {name: x for name, x in arrays.items() if name != "order" and np.ndim(x)}


def first_fit(lengths: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """Places texts into tiles of `size` tokens, each text into the first tile with room: their starts, int `[n]`."""
    starts = np.zeros(len(lengths), int)
    used: list[int] = []
    # By length, the first tile that may have room. Tiles only fill up, so the search goes on where it ended: linear for
    # a thousand classes, instead of quadratic.
    first = dict.fromkeys(range(size + 1), 0)
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
    """Adds `count` shared tokens from `first` on; from now on, only these are replaced."""
    rows = np.full((tokens.ids.shape[0], tokens.ids.shape[1] + count), -1)
    rows[:, first : first + count] = np.arange(count)
    return dataclasses.replace(
        tokens, context_rows=rows, ends=tokens.ends + count, shared=tokens.shared + count, context_is_shared=True
    )


# The tower over packed texts.


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, tokens: PackedTokens) -> jax.Array:
    """Computes attention of queries `[G, U, H, K]` to shared tokens and their text, `k` and `v [G, P + U, H, K]`."""
    shared = tokens.shared
    tiles = tokens.texts.shape[1:3]
    # Heads before tokens: the axis of tokens then splits into tiles without a copy.
    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    tile_q, tile_k, tile_v = (x.reshape(*x.shape[:2], *tiles, -1) for x in (q, k[:, :, shared:], v[:, :, shared:]))
    visible = (tokens.texts[..., :, None] == tokens.texts[..., None, :]) & causal_mask(tiles[-1])
    tile = jnp.einsum("GHCSK,GHCTK->GHCST", tile_q, tile_k)
    tile = jnp.where(visible[:, None], tile, -jnp.inf)
    # Two arrays of scores and one softmax over both: joining them would copy the shared keys for every tile.
    prefix = jnp.einsum("GHUK,GHPK->GHUP", q, k[:, :, :shared]).reshape(*tile.shape[:-1], shared)
    # Groups and heads on one axis, since XLA's CPU compiler splits the first axis over threads.
    prefix, tile = layers.exponentials(*(part.reshape(-1, *part.shape[2:]) for part in (prefix, tile)))
    # A token sees fewer tokens than a head has channels, so it is cheaper to divide before the sum over values.
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
    """Computes `encode_text` for packed texts: features `[C, d]` in float32, not normalised, in class order.

    Groups run in `chunks`, a divisor of their number, one after another: less memory for more time.
    """
    adaptation = adaptation or NOTHING
    # The tokenizer has checked whole lengths; packed texts no longer know them.
    check_text_parts(adaptation, config, len(tokens.order), tokens.shared + 1)

    def run(part: PackedTokens) -> jax.Array:
        return _group_features(params, config, part, adaptation, remat=remat, dtype=str(dtype))

    if chunks == 1:
        features = run(tokens)
    else:
        # A device's groups lie side by side, and each chunk takes one of them from every device.
        split = {name: x.reshape(-1, chunks, *x.shape[1:]).swapaxes(0, 1) for name, x in _grouped(tokens).items()}
        run_chunk = jax.checkpoint(lambda leaves: run(dataclasses.replace(tokens, **leaves)), prevent_cse=False)
        features = jax.lax.map(run_chunk, split).swapaxes(0, 1)
    # Reordered last, after each device has read out its own classes: devices exchange features and no tokens.
    return features.reshape(-1, features.shape[-1])[tokens.order]


def _replace(
    tokens: PackedTokens, x: jax.Array, put: Callable[[jax.Array, jax.Array | np.ndarray], jax.Array]
) -> jax.Array:
    rows = tokens.context_rows
    shared = tokens.shared
    # A shared context stands in the first `P` tokens; the others, nearly all, are not touched in either pass.
    if not tokens.context_is_shared:
        return put(x, rows)
    return jnp.concatenate([put(x[:, :shared], rows[:, :shared]), x[:, shared:]], axis=1)


def _put_context(tokens: PackedTokens, x: jax.Array, context: jax.Array | None) -> jax.Array:
    classes = tokens.classes[:, : tokens.shared] if tokens.context_is_shared else tokens.classes
    return _replace(tokens, x, lambda y, rows: put_context(y, context, rows, classes, len(tokens.order)))


def _hooks(tokens: PackedTokens, bias_rows: jax.Array | None, *, pooled: bool) -> BlockHooks:
    """Returns hooks for packed tokens `[G, P + U, D]`; `pooled` ones for the end-of-text rows `[G, Cg, D]`."""
    shared = tokens.shared
    length = tokens.texts.shape[2]

    # Without a causal mask a tile is a text: `[G, U, H, K]` to `[texts, N, H, K]`.
    def by_text(x: jax.Array) -> jax.Array:
        return x.reshape(-1, length, *x.shape[2:])

    def visible() -> jax.Array | None:  # `[texts, N]`
        return None if tokens.visible is None else jnp.asarray(tokens.visible).reshape(-1, length)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if not tokens.causal:
            parts = [by_text(x) for x in (q, k, v)]
            return layers.fused_attention(*parts, causal=False, visible=visible()).reshape(q.shape)
        # Shared tokens see only one another, since everything else comes later.
        head = layers.fused_attention(q[:, :shared], k[:, :shared], v[:, :shared], causal=True)
        return jnp.concatenate([head, _attend(q[:, shared:], k, v, tokens)], axis=1)

    def attend_row(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if not tokens.causal:
            queries = q.reshape(-1, 1, *q.shape[2:])
            seen = visible()
            mask = None if seen is None else seen[:, None, None, :]
            probabilities = layers.attention_probabilities(queries, by_text(k), mask)
            return jnp.einsum("BHNM,BMHK->BNHK", probabilities.astype(v.dtype), by_text(v)).reshape(q.shape)
        # Each end-of-text query returns to its place in its tile: this moves `Cg` queries instead of all keys.
        ends = tokens.ends - shared
        placed = jax.vmap(lambda rows, at: jnp.zeros((k.shape[1] - shared, *q.shape[2:]), q.dtype).at[at].set(rows))
        heads = _attend(placed(q, ends), k, v, tokens)
        return _take_ends(heads.reshape(*heads.shape[:2], -1), ends).reshape(q.shape)

    def before(x: jax.Array, layer: block.LayerInput) -> jax.Array:
        return _replace(tokens, x, lambda y, rows: put_prompts(y, layer, rows))

    if not pooled:
        return BlockHooks(self_attention(attend), before=before, bias_rows=bias_rows)
    select_rows = functools.partial(_take_ends, ends=tokens.ends)
    rows = None if bias_rows is None else select_rows(bias_rows[..., None])[..., 0]
    return BlockHooks(row_attention(select_rows, attend_row), before=before, select_rows=select_rows, bias_rows=rows)


def _take_ends(x: jax.Array, ends: jax.Array | np.ndarray) -> jax.Array:
    """Selects `ends [G, Cg]` of `x [G, tokens, D]`: `[G, Cg, D]`."""
    # Clipped: the default would fill the rows of missing classes with NaN, whose gradient would spoil all others.
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
    """Computes features `[G, Cg, d]` in the order of the groups."""
    prompts, bias = adaptation.text_prompts, adaptation.text_bias
    weights = outside_layers(params, adaptation, "text", dtype)
    # Tokens are float32 in every compute type: the residual sums of all blocks would lose small changes otherwise.
    x = weights["token_embedding"][tokens.ids].astype(jnp.float32)
    # Marks of the end-of-text tokens; ends of missing classes lie beyond and are dropped.
    is_end = jax.vmap(lambda at: jnp.zeros(x.shape[1], bool).at[at].set(True, mode="drop"))(jnp.asarray(tokens.ends))
    rows_of_bias = bias_rows(bias, is_end, tokens.positions)
    x = _put_context(tokens, x, adaptation.text_context)
    x = embed_positions(x, weights, config.text, jnp.asarray(tokens.positions))

    def step(tokens: PackedTokens, x: jax.Array, layer: block.LayerInput) -> tuple[jax.Array, None]:
        return run_block(x, layer, config.text, _hooks(tokens, rows_of_bias, pooled=False)), None

    inputs = block.layer_inputs(params, config, adaptation, "text", prompts=prompts, bias=bias, dtype=dtype)
    start = 0
    # Class prompts and inserted tokens act at the input of one block: the scan stops there and continues.
    if adaptation.text_class_prompts is not None:
        start = class_block(adaptation, config.text)
        x, _ = block.scan_all_but_last(functools.partial(step, tokens), x, inputs, remat, end=start)
        x = _put_context(tokens, x, adaptation.text_class_prompts)
    if (inserted := check_inserted(adaptation, "text", config)) is not None:
        if not tokens.causal:
            raise ClipbiasError("text_tokens are shared by all texts, which only a causal text tower allows.")
        start = config.common_blocks - inserted.shape[0]
        x, _ = block.scan_all_but_last(functools.partial(step, tokens), x, inputs, remat, end=start)
        x = block.insert(x, inserted[0], config.text.first_word)
        inputs = block.with_inserted(inputs, inserted, start)
        tokens = with_inserted(tokens, inserted.shape[1], config.text.first_word)
    x, last = block.scan_all_but_last(functools.partial(step, tokens), x, inputs, remat, start=start)
    rows = run_block(x, last, config.text, _hooks(tokens, rows_of_bias, pooled=True))
    # Projected before the exchange between devices: features are narrower than tokens.
    return project_text(params, config, rows.reshape(-1, rows.shape[-1]), adaptation).reshape(*tokens.ends.shape, -1)
