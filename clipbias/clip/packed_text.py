"""The text tower with every distinct token computed once: the same features, several times less work.

Three exact savings, all from the causal mask:
- Tokens after a text's end-of-text token change nothing, so they are left out, text by text: the tokens of all texts
  lie one after another on one axis, without padding. Everything in a block but attention acts on single tokens.
- The leading tokens that all texts share (SOS and the context) are the same at every layer: they are computed once, and
  every text attends to the same keys and values.
- The last block is computed at the end-of-text rows only.

Classes are dealt to `groups` of equal work, the axis that is sharded over devices.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import layers, tower
from clipbias.clip.adaptation import NOTHING, Adaptation
from clipbias.clip.config import ClipConfig
from clipbias.clip.precision import with_precision
from clipbias.clip.text import TextTokens, check_text, put_context, read_text, text_layers

# Up to this many classes the layout is rounded up, so that one compiled program serves datasets with like names.
SMALL = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedTokens:
    """Prompt texts of `C` classes without repetition or padding. `G` groups, `P` shared leading tokens, then `U`
    others.

    Attributes:
      ids, positions, context_rows, classes: int32 `[G, P + U]`: token id, position in its text, context row (-1: none)
        and class of every token.
      slots: int32 `[G, Cg, S]`: where token `P + s` of each of the group's `Cg` classes lies among the `U`; free slots
        hold 0.
      places: int32 `[G, U]`: the inverse, an index into the flattened `[Cg, S]`.
      eos: int32 `[G, Cg]`: the slot `s` of each class's end-of-text token, -1 where a group has fewer classes than
        another.
      order: int32 `[C]`: each class's index into the flattened `[G, Cg]`.
      shared: `P`.
      context_is_shared: whether all context tokens are among the first `P`.
    """

    ids: jax.Array
    positions: jax.Array
    context_rows: jax.Array
    classes: jax.Array
    slots: jax.Array
    places: jax.Array
    eos: jax.Array
    order: jax.Array
    shared: int = dataclasses.field(metadata={"static": True})
    context_is_shared: bool = dataclasses.field(metadata={"static": True})


def pack(tokens: TextTokens, *, groups: int = 1, class_specific: bool = False) -> PackedTokens:
    """Packs concrete `TextTokens` (on the host).

    Args:
      groups: the number of devices that share the classes.
      class_specific: contexts differ between classes, so only what stands before them is shared.
    """
    ids, rows, eos = (np.asarray(x) for x in (tokens.ids, tokens.context_rows, tokens.eos))
    count = len(ids)
    same = (ids == ids[0]).all(0) & (rows == rows[0]).all(0)
    if class_specific:
        same &= (rows < 0).all(0)
    differs = np.flatnonzero(~same)
    shared = int(min(eos.min(), differs[0] if len(differs) else ids.shape[1]))
    lengths = eos + 1 - shared
    per_group = -(-count // groups)
    # Longest first, dealt back and forth, so that groups end up with nearly equal numbers of tokens.
    longest_first = np.argsort(-lengths, kind="stable")
    members: list[list[int]] = [[] for _ in range(groups)]
    for turn, index in enumerate(longest_first):
        lap, place = divmod(turn, groups)
        members[place if lap % 2 == 0 else groups - 1 - place].append(int(index))
    unique = int(max(sum(lengths[i] for i in group) for group in members))
    width = int(lengths.max())
    if count <= SMALL:
        unique, width = -(-unique // 32) * 32, -(-width // 4) * 4

    def grid(fill: int, *shape: int) -> np.ndarray:
        return np.full(shape, fill, np.int32)

    packed_ids, positions, classes = (grid(0, groups, shared + unique) for _ in range(3))
    context_rows = grid(-1, groups, shared + unique)
    slots, places = grid(0, groups, per_group, width), grid(0, groups, unique)
    last, order = grid(-1, groups, per_group), grid(0, count)
    packed_ids[:, :shared], context_rows[:, :shared] = ids[0, :shared], rows[0, :shared]
    positions[:, :shared] = np.arange(shared)
    for g, group in enumerate(members):
        start = 0
        for place, index in enumerate(group):
            length = int(lengths[index])
            span = slice(shared + start, shared + start + length)
            source = slice(shared, shared + length)
            packed_ids[g, span], context_rows[g, span] = ids[index, source], rows[index, source]
            positions[g, span], classes[g, span] = np.arange(shared, shared + length), index
            slots[g, place, :length] = np.arange(start, start + length)
            places[g, start : start + length] = place * width + np.arange(length)
            last[g, place], order[index] = length - 1, g * per_group + place
            start += length
    return PackedTokens(
        *(packed_ids, positions, context_rows, classes, slots, places, last, order),
        shared=shared,
        context_is_shared=bool((rows[:, shared:] < 0).all()),
    )


@jax.custom_vjp
def _gather(x: jax.Array, at: jax.Array, back: jax.Array, used: jax.Array) -> jax.Array:
    """`x [G, n, F]` at `at [G, m]`. Every used output comes from a row of its own, so the gradient is a gather too."""
    return jnp.take_along_axis(x, at[..., None], axis=1)


def _gather_forward(x: jax.Array, at: jax.Array, back: jax.Array, used: jax.Array) -> tuple[jax.Array, Any]:
    return _gather(x, at, back, used), (back, used)


def _gather_backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, None, None, None]:
    back, used = saved
    return (
        jnp.where(used[..., None], jnp.take_along_axis(gradient, back[..., None], axis=1), 0),
        None,
        None,
        None,
    )


_gather.defvjp(_gather_forward, _gather_backward)


def _unpack(x: jax.Array, tokens: PackedTokens) -> jax.Array:
    """Tokens `[G, U, H, K]` as texts `[G, Cg, S, H, K]`; free slots repeat token 0 and are never read."""
    groups, unique = x.shape[:2]
    flat = tokens.slots.reshape(groups, -1)
    out = _gather(x.reshape(groups, unique, -1), flat, tokens.places, _real(tokens))
    return out.reshape(*tokens.slots.shape, *x.shape[2:])


def _repack(x: jax.Array, tokens: PackedTokens) -> jax.Array:
    """The inverse of `_unpack`."""
    groups = x.shape[0]
    flat = tokens.slots.reshape(groups, -1)
    slot = jnp.arange(tokens.slots.shape[2])
    filled = (slot <= tokens.eos[..., None]).reshape(groups, -1)
    out = _gather(x.reshape(groups, flat.shape[1], -1), tokens.places, flat, filled)
    return out.reshape(groups, -1, *x.shape[3:])


def _real(tokens: PackedTokens) -> jax.Array:
    """`[G, U]`: False for the filler at the end of a group that has fewer tokens than another."""
    group = tokens.slots.reshape(tokens.slots.shape[0], -1)
    return jnp.take_along_axis(group, tokens.places, axis=1) == jnp.arange(tokens.places.shape[1])


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, tokens: PackedTokens) -> jax.Array:
    """Causal attention of every token to the shared tokens and to its own text. `[G, P + U, H, K]` each."""
    shared = tokens.shared
    head = layers.attention_probabilities(q[:, :shared], k[:, :shared], tower.causal_mask(shared))
    head = jnp.einsum("GHNM,GMHK->GNHK", head.astype(v.dtype), v[:, :shared])
    own_q, own_k, own_v = (_unpack(x[:, shared:], tokens) for x in (q, k, v))
    own_q = own_q * q.shape[-1] ** -0.5
    own = jnp.einsum("GCSHK,GCTHK->GCHST", own_q, own_k).astype(jnp.float32)
    own = jnp.where(tower.causal_mask(own.shape[-1]), own, -jnp.inf)
    out = _mix(own_q, own, own_v, k[:, :shared], v[:, :shared])
    return jnp.concatenate([head, _repack(out, tokens)], axis=1)


def _mix(q: jax.Array, own: jax.Array, own_v: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax over shared keys `k [G, P, H, K]` and own scores `[G, C, H, S, T]` together, applied to both values."""
    prefix = jnp.einsum("GCSHK,GPHK->GCHSP", q, k).astype(jnp.float32)
    weights = jax.nn.softmax(jnp.concatenate([prefix, own], axis=-1), axis=-1).astype(v.dtype)
    shared = k.shape[1]
    return jnp.einsum("GCHSP,GPHK->GCSHK", weights[..., :shared], v) + jnp.einsum(
        "GCHST,GCTHK->GCSHK", weights[..., shared:], own_v
    )


@with_precision
def encode_packed_text(
    params: Mapping[str, Any],
    config: ClipConfig,
    tokens: PackedTokens,
    adaptation: Adaptation | None = None,
    *,
    remat: Callable[..., Any] | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """`encode_text` for texts packed by `pack`: features `[C, d]` in float32, not normalised, in class order."""
    adaptation = adaptation or NOTHING
    check_text(adaptation, config, tokens.order.shape[0], tokens.shared + tokens.slots.shape[-1])
    weights, shared = params["text"], tokens.shared
    x = weights["token_embedding"].astype(dtype)[tokens.ids]
    scope = slice(0, shared) if tokens.context_is_shared else slice(None)

    def in_scope(x: jax.Array, put: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        if not tokens.context_is_shared:
            return put(x, tokens.context_rows)
        return jnp.concatenate([put(x[:, scope], tokens.context_rows[:, scope]), x[:, shared:]], axis=1)

    classes = tokens.classes[:, scope]
    x = in_scope(x, lambda y, rows: put_context(y, adaptation.text_context, rows, classes))
    x = x + weights["position_embedding"].astype(dtype)[tokens.positions]

    def step(x: jax.Array, inputs: tower.LayerInput) -> tuple[jax.Array, None]:
        x = in_scope(x, lambda y, rows: tower.put_prompts(y, inputs, rows))
        x = layers.block(x, inputs.weights, config.text, lambda q, k, v: _attend(q, k, v, tokens))
        return tower.add_bias(x, inputs), None

    x, last = tower.scan_all_but_last(step, x, text_layers(params, adaptation, dtype), remat)
    x = in_scope(x, lambda y, rows: tower.put_prompts(y, last, rows))
    ends = shared + jnp.take_along_axis(tokens.slots, tokens.eos[..., None], axis=2)[..., 0]

    def take(y: jax.Array) -> jax.Array:
        return jnp.take_along_axis(y, ends[..., None], axis=1)

    def attend_row(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        own_k, own_v = (_unpack(y[:, shared:], tokens) for y in (k, v))
        q = (q * q.shape[-1] ** -0.5)[:, :, None]
        own = jnp.einsum("GCSHK,GCTHK->GCHST", q, own_k).astype(jnp.float32)
        visible = jnp.arange(own.shape[-1]) <= tokens.eos[..., None]
        own = jnp.where(visible[:, :, None, None], own, -jnp.inf)
        return _mix(q, own, own_v, k[:, :shared], v[:, :shared])[:, :, 0]

    rows = tower.add_bias(layers.block_rows(x, last.weights, config.text, take, attend_row), last)
    return read_text(params, config, rows.reshape(-1, rows.shape[-1])[tokens.order])
