"""The order of a transformer block's parts. It stands here and nowhere else.

Towers, packed texts, the backward pass of relevancy, and the streams of the causal test all run this
block. Hooks say what differs between them:

    before      puts prompts in
    attention   LN1's output to what is added to the tokens
    take        the rows that the rest of the block is computed for
    keep        sees every named intermediate, and may put another value in its place
    bias_rows   which row of the layer's bias each token gets
    after       changes the block's output

BERT's LayerNorms behind the residuals and Perception Encoder's rotary positions are chosen here by the tower's
configuration. `layer_inputs` stacks what each block needs, for the scan that feeds it to them.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from clipbias.clip import layers
from clipbias.clip.config import TowerConfig, VisionConfig
from clipbias.clip.layers import ATTENDED, HIDDEN, INPUT, QKV, Changes, Weights, changed, rotate
from clipbias.clip.precision import cast_weights


@struct.dataclass
class LayerInput:
    """What one block needs besides its tokens; stacked on a leading axis `L` in `TowerInput`.

    Attributes:
      index: the layer's number, from 0.
      frozen: the block's weights (`layers.py`).
      prompts: `[T, D]` rows that may replace tokens at the block's input, `[B, T, D]` where each of the `B` rows of
        tokens has its own copy, or `None`.
      replace: whether this block replaces them (a prompt depth smaller than the tower).
      bias: added after the block: `[D]` to every token, or of the rows `[2, D]` or `[N, D]` the one that
        `TowerInput.bias_rows` gives to each; `[B, 1, D]` or `[B, 2, D]` where each of the `B` rows of tokens has its
        own copy; or `None`.
      changes: changes of the block's weights (`layers.changed`), or `None`; with a leading axis of `B` where each of
        the `B` rows of tokens has its own copy.
      adapters: a network beside the block (`layers.network`), or `None`; likewise with an axis of `B`.
      adapted_from: the first block that has one; before it adapters are zero.
      dtype: compute type by name.
    """

    index: jax.Array
    frozen: layers.Weights | None
    prompts: jax.Array | None
    replace: jax.Array
    bias: jax.Array | None
    changes: Changes | None = None
    adapters: layers.Weights | None = None
    adapted_from: int = struct.field(pytree_node=False, default=0)
    dtype: str = struct.field(pytree_node=False, default="float32")

    @property
    def weights(self) -> layers.Weights:
        """The weights that the block computes with: the frozen ones, in the compute type, with their changes."""
        frozen = cast_weights(self.frozen, self.dtype)
        return frozen if self.changes is None else changed(frozen, self.changes)


def layer_inputs(
    weights: layers.Weights,
    *,
    prompts: jax.Array | None = None,
    bias: jax.Array | None = None,
    changes: Changes | None = None,
    adapters: layers.Weights | None = None,
    adapters_end: int | None = None,
    dtype: str,
) -> LayerInput:
    """Stacks what every layer needs.

    Args:
      weights, changes: of the blocks, with leading axis `L`.
      prompts: `[depth - 1, T, D]`: row `i - 1` is put in at block `i`.
      bias: `[L, D]`, `[L, 2, D]` or `[L, N, D]`, see `bias_rows`.
      adapters: networks beside `n` blocks in a row, with leading axis `n`.
      adapters_end: the number of the block behind the last of these; `None` for the tower's end.
      dtype: compute type by name, see `precision`.
    """
    depth = jax.tree.leaves(weights)[0].shape[0]
    index = jnp.arange(depth)
    if prompts is None or prompts.shape[0] == 0:
        prompts = None
        replace = jnp.zeros(depth, bool)
    else:
        replace = (index >= 1) & (index <= prompts.shape[0])
        prompts = jnp.pad(prompts, ((1, depth - 1 - prompts.shape[0]), (0, 0), (0, 0))).astype(jnp.float32)
    # A NumPy array takes no traced index, which is how a bias by token is read.
    bias = None if bias is None else jnp.asarray(bias).astype(jnp.float32)
    end = depth if adapters_end is None else adapters_end
    first = 0 if adapters is None else end - jax.tree.leaves(adapters)[0].shape[0]
    adapters = jax.tree.map(lambda leaf: _padded(leaf, first, depth), adapters)
    return LayerInput(index, weights, prompts, replace, bias, changes, adapters, first, dtype)


def _padded(stacked: jax.Array, first: int, depth: int) -> jax.Array:
    """`[n, …]` of the blocks from `first` on as `[depth, …]`, zeros for the others."""
    widths = np.zeros((stacked.ndim, 2), int)
    widths[0] = first, depth - first - stacked.shape[0]
    return jnp.pad(stacked, widths)


def with_inserted(inputs: LayerInput, tokens: jax.Array, start: int) -> LayerInput:
    """The stacked inputs with tokens `[n, T, D]` as prompts of `n` blocks from `start` on, which inserts them."""
    depth = inputs.index.shape[0]
    end = start + tokens.shape[0]
    replace = inputs.index > start
    if end < depth:
        replace &= inputs.index < end
    return dataclasses.replace(inputs, prompts=_padded(tokens, start, depth), replace=replace)


def insert(tokens: jax.Array, new: jax.Array, at: int) -> jax.Array:
    """`tokens [B, N, D]` with `new [T, D]` behind the first `at` of them."""
    new = jnp.broadcast_to(new, (tokens.shape[0], *new.shape))
    return jnp.concatenate([tokens[:, :at], new, tokens[:, at:]], axis=1)


def scan_all_but_last(
    step: Callable[[jax.Array, LayerInput], tuple[jax.Array, None]],
    tokens: jax.Array,
    inputs: LayerInput,
    remat: layers.RematPolicy | None,
    *,
    start: int = 0,
    end: int = -1,
) -> tuple[jax.Array, LayerInput]:
    """Scans `step` over the layers from `start` to the one before `end`, by default the last, whose inputs it returns.

    Returns:
      The tokens that reach layer `end`, and the last layer's inputs.
    """
    count = tokens.shape[0]
    others = jax.tree.map(lambda leaf: leaf[start:end], dataclasses.replace(inputs, frozen=None))

    # What a method adds is copied for each of the `B` rows of `tokens [B, N, D]`. Gradients are then summed over `B`
    # once, behind the loop: where `B` is split over devices, that is one exchange instead of one per layer.
    def per_row(stacked: jax.Array) -> jax.Array:  # `[L, n, D]` as `[L, B, n, D]`, a vector `[L, D]` as `[L, B, 1, D]`
        stacked = stacked[:, None] if stacked.ndim == 2 else stacked
        return jnp.broadcast_to(stacked[:, None], (stacked.shape[0], count, *stacked.shape[1:]))

    prompts = others.prompts
    bias = others.bias
    others = dataclasses.replace(
        others,
        prompts=prompts if prompts is None or prompts.ndim == 4 else per_row(prompts),  # a class's have that axis
        bias=bias if bias is None or (bias.ndim == 3 and bias.shape[1] > 2) else per_row(bias),  # each token's is large
        # So is a whole kernel `[L, inputs, outputs]`, and numbers `[L]` are not learned.
        changes=jax.tree.map(lambda x: x if x.ndim in (1, 3) else per_row(x), others.changes),
        adapters=jax.tree.map(per_row, others.adapters),
    )

    # Slicing the stacked weights `[:-1]` would copy them all at every call, and so would a backward pass that keeps
    # each layer's slice: the scan runs over layer numbers, and both passes read the weights where they lie.
    def numbered(tokens: jax.Array, layer: LayerInput) -> tuple[jax.Array, None]:
        weights = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer.index, keepdims=False), inputs.frozen
        )
        return step(tokens, dataclasses.replace(layer, frozen=weights))

    # Where no prompts are put in, nothing before the first block is learned: it runs ahead of the loop, since a loop
    # would take gradients through it all the same. So do the blocks before the first adapter without bias and changes.
    learns = others.bias is not None or others.changes is not None
    ahead = (learns or others.adapters is not None) and others.prompts is None and remat is not layers.no_gradient
    if ahead and others.index.shape[0]:
        at = 0 if learns else min(max(others.adapted_from - start, 0), others.index.shape[0] - 1)
        if at:
            before = jax.tree.map(lambda leaf: leaf[:at], dataclasses.replace(others, adapters=None))
            tokens, _ = jax.lax.scan(numbered, tokens, before)
        first = jax.tree.map(lambda leaf: leaf[at], others)
        first = dataclasses.replace(first, frozen=jax.tree.map(lambda leaf: leaf[start + at], inputs.frozen))
        tokens, _ = step(tokens, first)
        others = jax.tree.map(lambda leaf: leaf[at + 1 :], others)
    numbered = jax.checkpoint(numbered, policy=layers.keep_products if remat is None else remat, prevent_cse=False)
    tokens, _ = jax.lax.scan(numbered, tokens, others)
    return tokens, jax.tree.map(lambda leaf: leaf[-1], inputs)


# The block itself.

Keep = Callable[[jax.Array, str], jax.Array]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Attention = Callable[[jax.Array, Weights, TowerConfig, Keep], jax.Array]
Take = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class BlockHooks:
    """What differs between those who run a block.

    Attributes:
      attention: from the tokens after the first LayerNorm to the attention's output `[..., D]` at the rows of `take`:
        `self_attention`, `row_attention`, or another one.
      before: from the tokens and the layer to the tokens with its prompts put in.
      take: from all tokens `[..., D]` to the rows that are computed behind the attention.
      bias_rows: which row of the layer's bias each of these rows gets, see `bias_of_tokens`.
      keep: called with each of the `layers` names `INPUT`, `QKV`, `ATTENDED` and `HIDDEN` and its value; the block goes
        on with what it returns. By default it names them for policies of `jax.checkpoint`.
      after: from the block's output and its input, both at the rows of `take`, to the output.
    """

    attention: Attention
    before: Callable[[jax.Array, LayerInput], jax.Array] = lambda tokens, layer: tokens
    take: Take = lambda tokens: tokens
    bias_rows: jax.Array | None = None
    keep: Keep = checkpoint_name
    after: Callable[[jax.Array, jax.Array], jax.Array] = lambda output, inputs: output


class Record(dict[str, jax.Array]):
    """A `keep` hook that remembers every intermediate by its name."""

    def __call__(self, value: jax.Array, name: str) -> jax.Array:
        self[name] = value
        return value


def run_block(tokens: jax.Array, layer: LayerInput, config: TowerConfig, hooks: BlockHooks) -> jax.Array:
    """`x += MHA(LN1(x)); x += MLP(LN2(x))`, then what a network beside the block and the layer's bias add.

    Of a tower whose LayerNorms come behind the residuals, `x = LN1(x + MHA(x)); x = LN2(x + MLP(x))`. Attention alone
    knows how tokens `[..., D]` are laid out; all else acts on single tokens. Returns those at the rows of `hooks.take`.
    """
    weights = layer.weights
    inputs = hooks.keep(hooks.before(tokens, layer), INPUT)
    rows = hooks.take(inputs)
    if config.norm_first:
        normed = layers.layer_norm(inputs, weights["norm1"], config.layer_norm_epsilon)
        middle = hooks.keep(rows + hooks.attention(normed, weights, config, hooks.keep), ATTENDED)
        hidden = hooks.keep(layers.mlp_hidden(middle, weights, config), HIDDEN)
        output = middle + layers.mlp_output(hidden, weights, config)
    else:  # the block's input has gone through a LayerNorm already
        attended = hooks.keep(rows + hooks.attention(inputs, weights, config, hooks.keep), ATTENDED)
        middle = layers.layer_norm(attended, weights["norm1"], config.layer_norm_epsilon)
        hidden = hooks.keep(layers.dense(middle, weights["fc1"]), HIDDEN)
        output = middle + layers.mlp_output(hidden, weights, config)
        output = layers.layer_norm(output, weights["norm2"], config.layer_norm_epsilon)
    if layer.adapters is not None:
        normed_rows = rows
        if config.norm_first:
            normed_rows = layers.layer_norm(rows, weights["norm1"], config.layer_norm_epsilon)
        output = output + layers.network(normed_rows, layer.adapters)
    if layer.bias is not None:
        output = output + bias_of_tokens(layer.bias, hooks.bias_rows)
    return hooks.after(output, rows)


def self_attention(attend: Attend) -> Attention:
    """Attention of all tokens; `attend` maps queries, keys and values `[..., H, K]` to heads' outputs `[..., H, K]`."""

    def attention(normed: jax.Array, weights: Weights, config: TowerConfig, keep: Keep) -> jax.Array:
        qkv = keep(layers.dense(normed, weights["qkv"]), QKV)
        q, k, v = (layers.split_heads(part, config.heads) for part in jnp.split(qkv, 3, axis=-1))
        if isinstance(config, VisionConfig) and config.rotary:
            q, k = (rotate(part, config) for part in (q, k))
        return layers.dense(attend(q, k, v).reshape(normed.shape), weights["out"])

    return attention


def row_attention(take: Take, attend: Attend) -> Attention:
    """Attention of a block that is read at the rows of `take`, `[..., D]` to `[B, D]`, of all keys and values.

    Not for rotary positions, whose towers are read by a pooling head.
    """

    def attention(normed: jax.Array, weights: Weights, config: TowerConfig, keep: Keep) -> jax.Array:
        query = layers.dense(take(normed), layers.outputs(weights["qkv"], 0, 1))
        keys_values = layers.dense(normed, layers.outputs(weights["qkv"], 1, 3))
        k, v = (layers.split_heads(part, config.heads) for part in jnp.split(keys_values, 2, axis=-1))
        heads = attend(layers.split_heads(query, config.heads), k, v)
        return layers.dense(heads.reshape(query.shape), weights["out"])

    return attention


def put_prompts(tokens: jax.Array, layer: LayerInput, prompt_rows: jax.Array | np.ndarray | None) -> jax.Array:
    """Replaces the rows of `tokens [..., N, D]` that `prompt_rows [..., N]` names, where this layer replaces any."""
    if layer.prompts is None or prompt_rows is None:
        return tokens
    if isinstance(prompt_rows, np.ndarray) and prompt_rows.ndim == 1:
        # Known before tracing: the other tokens, and their gradients, are left alone.
        (places,) = np.nonzero(prompt_rows >= 0)
        span = slice(places[0], places[-1] + 1)
        if len(places) == span.stop - span.start:
            old = tokens[..., span, :]
            new = jnp.where(layer.replace, layer.prompts[..., prompt_rows[places], :], old)
            return jnp.concatenate([tokens[..., : span.start, :], new, tokens[..., span.stop :, :]], axis=-2)
    is_replaced = (prompt_rows >= 0) & layer.replace
    rows = jnp.maximum(prompt_rows, 0)
    if layer.prompts.ndim == 2:
        prompts = layer.prompts[rows]
    else:
        prompts = jnp.take_along_axis(layer.prompts, jnp.broadcast_to(rows, tokens.shape[:-1])[..., None], axis=-2)
    return jnp.where(is_replaced[..., None], prompts, tokens)


def bias_rows(
    bias: jax.Array | None, is_pooled: jax.Array | np.ndarray, positions: jax.Array | np.ndarray
) -> jax.Array | None:
    """Which row of a layer's bias each token gets, -1 for none; `None` where one vector `[L, D]` serves all.

    `[L, 2, D]`, by kind: row 0 for the tokens that are read out (`is_pooled`), row 1 for all others. `[L, N, D]`, by
    token: the row of its position; tokens at later positions, which are prompts, get nothing.
    """
    if bias is None or bias.ndim == 2:
        return None
    if bias.shape[1] == 2:
        return jnp.where(is_pooled, 0, 1)
    return jnp.where(positions < bias.shape[1], positions, -1)


def bias_of_tokens(bias: jax.Array, rows: jax.Array | None) -> jax.Array:
    """What a layer's bias adds to each token: `[..., N, D]` for `rows [..., N]`, or what broadcasts to it."""
    if rows is None:
        return bias
    if bias.shape[-2] == 2:
        # A choice between two vectors; its gradient is two sums, where an index would scatter.
        return jnp.where((rows == 0)[..., None], bias[..., :1, :], bias[..., 1:, :])
    return jnp.where((rows >= 0)[..., None], bias[jnp.maximum(rows, 0)], 0)
