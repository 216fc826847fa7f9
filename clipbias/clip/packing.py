"""Texts of many classes as rows of distinct tokens: what lies where, for `packed_text`.

Classes are dealt to `groups` of equal work, the axis that is sharded over devices. The tokens of a group's texts lie
one after another on one axis, in tiles of a few whole texts each.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.clip.text import TextTokens

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


def shared_tokens(tokens: TextTokens, *, class_specific: bool = False) -> int:
    """The number of leading tokens that all texts have in common, which no later token changes."""
    if tokens.ends is not None:
        return 0
    ids, rows, eos = (np.asarray(x) for x in (tokens.ids, tokens.context_rows, tokens.eos))
    same = (ids == ids[0]).all(0) & (rows == rows[0]).all(0)
    if class_specific:
        same &= (rows < 0).all(0)
    differs = np.flatnonzero(~same)
    return int(min(eos.min(), differs[0] if len(differs) else ids.shape[1]))


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
    shared = min(
        shared_tokens(jax.tree.map(lambda leaf, span=span: leaf[span], tokens), class_specific=class_specific)
        for span in spans
    )
    causal = tokens.ends is None
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
    leaves = {}
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
    return with_leaves(dataclasses.replace(tokens, order=order), leaves)


def grouped(tokens: PackedTokens) -> list[str]:
    """The names of the fields `GROUPED` that these tokens have."""
    return [name for name in GROUPED if getattr(tokens, name) is not None]


def with_leaves(tokens: PackedTokens, leaves: Mapping[str, jax.Array]) -> PackedTokens:
    """The same with other arrays of the fields `GROUPED`."""
    return dataclasses.replace(
        tokens,
        ids=leaves["ids"],
        positions=leaves["positions"],
        context_rows=leaves["context_rows"],
        classes=leaves["classes"],
        texts=leaves["texts"],
        ends=leaves["ends"],
        visible=leaves.get("visible"),
    )


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
