"""The transformer block, its hooks (`BlockHooks`), and the stacked inputs of the scan over blocks.

Towers, packed texts, relevancy and path patching all run `run_block`; hooks are the only difference between them.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from clipbias.clip import layers
from clipbias.clip.adaptation import Adaptation, check_adapters
from clipbias.clip.config import ClipConfig, TowerConfig, VisionConfig
from clipbias.clip.layers import ATTENDED, HIDDEN, INPUT, QKV, Changes, Weights, changed, rotate
from clipbias.clip.params import Params
from clipbias.clip.precision import cast_weights


@struct.dataclass
class LayerInput:
    """Inputs of one block besides its tokens; `TowerInput` stacks them on a leading axis `L`.

    Inside a scan, prompts, bias, changes and adapters may have a leading axis `B`: a copy per sequence of tokens.
    """

    index: jax.Array  # the layer's number, from 0
    frozen: layers.Weights | None  # the block's weights (`layers.py`)
    prompts: jax.Array | None  # `[T, D]` rows that may replace tokens at the block's input
    replace: jax.Array  # whether this block replaces tokens; false behind the last layer of prompts
    # Added after the block: `[D]` to every token, or `[2, D]` or `[N, D]`, of which `TowerInput.bias_rows` names a row
    # for each token.
    bias: jax.Array | None
    changes: Changes | None = None  # of the block's weights (`layers.changed`)
    adapters: layers.Weights | None = None  # a network beside the block (`layers.network`)
    # The first block with a network; the networks before it are zero.
    adapted_from: int = struct.field(pytree_node=False, default=0)
    dtype: str = struct.field(pytree_node=False, default="float32")

    @property
    def weights(self) -> layers.Weights:
        """Frozen weights in the compute type, with their changes."""
        # Cast before the changes: these stay float32, since half precision would round small steps of training away.
        frozen = cast_weights(self.frozen, self.dtype)
        return frozen if self.changes is None else changed(frozen, self.changes)


def layer_inputs(
    params: Params,
    config: ClipConfig,
    adaptation: Adaptation,
    tower: str,
    *,
    prompts: jax.Array | None,
    bias: jax.Array | None,
    dtype: str,
) -> LayerInput:
    """Stacks the inputs of all blocks of a `tower`; row `i - 1` of `prompts [depth - 1, T, D]` belongs to block `i`."""
    depth = getattr(config, tower).layers
    index = jnp.arange(depth)
    # Zeros and a mask stand for layers without prompts: all layers of a scan need equal shapes.
    if prompts is None or 0 in prompts.shape:
        prompts = None
        replace = jnp.zeros(depth, bool)
    else:
        replace = (index >= 1) & (index <= prompts.shape[0])
        prompts = jnp.pad(prompts, ((1, depth - 1 - prompts.shape[0]), (0, 0), (0, 0))).astype(jnp.float32)
    # A NumPy array takes no traced index, which is how a bias by token is read.
    bias = None if bias is None else jnp.asarray(bias).astype(jnp.float32)
    changes = layers.of_layers(getattr(adaptation, f"{tower}_weights"))
    # The last `n` blocks of the shallower tower have networks, and those of the same numbers in the deeper one (MMA).
    adapters = check_adapters(getattr(adaptation, f"{tower}_adapters"), config, tower)
    first = 0 if adapters is None else config.common_blocks - jax.tree.leaves(adapters)[0].shape[0]
    adapters = jax.tree.map(lambda leaf: _padded(leaf, first, depth), adapters)
    return LayerInput(index, params[tower]["layers"], prompts, replace, bias, changes, adapters, first, dtype)


def _padded(stacked: jax.Array, first: int, depth: int) -> jax.Array:
    """Pads `[n, …]`, of the blocks from `first` on, to `[depth, …]` with zeros."""
    widths = np.zeros((stacked.ndim, 2), int)
    widths[0] = first, depth - first - stacked.shape[0]
    return jnp.pad(stacked, widths)


def with_inserted(inputs: LayerInput, tokens: jax.Array, start: int) -> LayerInput:
    """Returns the inputs with tokens `[n, T, D]` as prompts of the `n` blocks from `start` on."""
    depth = inputs.index.shape[0]
    end = start + tokens.shape[0]
    # Block `start` replaces nothing: `insert` has just made the tokens there.
    replace = inputs.index > start
    if end < depth:
        replace &= inputs.index < end
    return dataclasses.replace(inputs, prompts=_padded(tokens, start, depth), replace=replace)


def insert(tokens: jax.Array, new: jax.Array, at: int) -> jax.Array:
    """Inserts `new [T, D]` behind the first `at` of `tokens [B, N, D]`."""
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
    """Scans `step` over layers `start` to `end - 1`; returns the tokens that reach `end` and the last layer's input."""
    count = tokens.shape[0]
    others = jax.tree.map(lambda leaf: leaf[start:end], dataclasses.replace(inputs, frozen=None))

    # A method's additions are copied for each of the `B` rows of `tokens [B, N, D]`. Gradients are then summed over `B`
    # once, behind the loop: where `B` is split over devices, this is one all-reduce instead of one per layer.
    def per_row(stacked: jax.Array) -> jax.Array:  # `[L, n, D]` to `[L, B, n, D]`, a vector `[L, D]` to `[L, B, 1, D]`
        stacked = stacked[:, None] if stacked.ndim == 2 else stacked
        return jnp.broadcast_to(stacked[:, None], (stacked.shape[0], count, *stacked.shape[1:]))

    prompts = others.prompts
    bias = others.bias
    others = dataclasses.replace(
        others,
        # Class prompts have an axis of rows already. A bias by token and a whole kernel `[L, inputs, outputs]` are too
        # large to copy; numbers `[L]` are not learned.
        prompts=prompts if prompts is None or prompts.ndim == 4 else per_row(prompts),
        bias=bias if bias is None or (bias.ndim == 3 and bias.shape[1] > 2) else per_row(bias),
        changes=jax.tree.map(lambda x: x if x.ndim in (1, 3) else per_row(x), others.changes),
        adapters=jax.tree.map(per_row, others.adapters),
    )

    # Slicing the stacked weights `[:-1]` would copy them all at every call, and so would a backward pass that keeps
    # each layer's slice: the scan runs over layer numbers, and both passes read the weights where they lie.
    def numbered(tokens: jax.Array, layer: LayerInput) -> tuple[jax.Array, None]:
        weights = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer.index, keepdims=False), inputs.frozen)
        return step(tokens, dataclasses.replace(layer, frozen=weights))

    # Without prompts nothing before the first block is learned, so this block runs ahead of the loop: inside, its input
    # would get gradients that nobody needs. So do the blocks before the first adapter without bias and changes.
    learns = others.bias is not None or others.changes is not None
    ahead = (learns or others.adapters is not None) and others.prompts is None and remat is not layers.no_gradient
    if ahead and others.index.shape[0]:
        # Biases and changes act from the first block on; adapters only from `adapted_from` on.
        at = 0 if learns else min(max(others.adapted_from - start, 0), others.index.shape[0] - 1)
        if at:
            before = jax.tree.map(lambda leaf: leaf[:at], dataclasses.replace(others, adapters=None))
            tokens, _ = jax.lax.scan(numbered, tokens, before)
        first = jax.tree.map(lambda leaf: leaf[at], others)
        first = dataclasses.replace(first, frozen=jax.tree.map(lambda leaf: leaf[start + at], inputs.frozen))
        tokens, _ = step(tokens, first)
        others = jax.tree.map(lambda leaf: leaf[at + 1 :], others)
    # Inside a scan XLA cannot merge the recomputation with the forward pass; without the barriers it fuses better.
    numbered = jax.checkpoint(numbered, policy=layers.keep_products if remat is None else remat, prevent_cse=False)
    tokens, _ = jax.lax.scan(numbered, tokens, others)
    return tokens, jax.tree.map(lambda leaf: leaf[-1], inputs)


# The block itself.

Tap = Callable[[jax.Array, str], jax.Array]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Attention = Callable[[jax.Array, Weights, TowerConfig, Tap], jax.Array]
SelectRows = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class BlockHooks:
    """Functions with which a caller changes or observes a block."""

    # Maps the tokens after the first LayerNorm to the attention's output `[..., D]` at the selected rows.
    attention: Attention
    # Maps the tokens and the layer to the tokens with the layer's prompts inserted.
    before: Callable[[jax.Array, LayerInput], jax.Array] = lambda tokens, layer: tokens
    # Maps all tokens `[..., D]` to the rows that are computed behind the attention.
    select_rows: SelectRows = lambda tokens: tokens
    bias_rows: jax.Array | None = None  # row of the layer's bias for each selected row (`bias_of_tokens`)
    # Called with each intermediate and its name (`layers.INPUT`, …); the block goes on with its result. Policies
    # of `jax.checkpoint` find intermediates by these names.
    tap: Tap = checkpoint_name
    # Maps the block's output and input, both at the selected rows, to the output.
    after: Callable[[jax.Array, jax.Array], jax.Array] = lambda output, inputs: output


class Record(dict[str, jax.Array]):
    """A `tap` hook that stores every intermediate by its name."""

    def __call__(self, value: jax.Array, name: str) -> jax.Array:
        self[name] = value
        return value


def run_block(tokens: jax.Array, layer: LayerInput, config: TowerConfig, hooks: BlockHooks) -> jax.Array:
    """Computes `x += MHA(LN1(x)); x += MLP(LN2(x))` with the layer's adapter and bias, at the selected rows."""
    weights = layer.weights
    # Prompts replace tokens before the block reads them, so that they act on this block's attention (VPT-deep, MaPLe).
    inputs = hooks.tap(hooks.before(tokens, layer), INPUT)
    # Attention needs keys and values of all tokens. Everything behind it acts on single tokens, so that the last block
    # is computed at the rows that somebody reads.
    rows = hooks.select_rows(inputs)
    if config.norm_first:
        normed = layers.layer_norm(inputs, weights["norm1"], config.layer_norm_epsilon)
        middle = hooks.tap(rows + hooks.attention(normed, weights, config, hooks.tap), ATTENDED)
        hidden = hooks.tap(layers.mlp_hidden(middle, weights, config), HIDDEN)
        output = middle + layers.mlp_output(hidden, weights, config)
    else:
        # BERT's LayerNorms lie behind the residuals: `x = LN1(x + MHA(x)); x = LN2(x + MLP(x))`.
        attended = hooks.tap(rows + hooks.attention(inputs, weights, config, hooks.tap), ATTENDED)
        middle = layers.layer_norm(attended, weights["norm1"], config.layer_norm_epsilon)
        hidden = hooks.tap(layers.dense(middle, weights["fc1"]), HIDDEN)
        output = middle + layers.mlp_output(hidden, weights, config)
        output = layers.layer_norm(output, weights["norm2"], config.layer_norm_epsilon)
    if layer.adapters is not None:
        # MMA's network reads the block's input after LN1, token by token, so that the selected rows suffice.
        normed = layers.layer_norm(rows, weights["norm1"], config.layer_norm_epsilon) if config.norm_first else rows
        output = output + layers.network(normed, layer.adapters)
    if layer.bias is not None:
        # Behind the MLP's residual, where it equals a change of fc2's bias, as long as all tokens share it.
        output = output + bias_of_tokens(layer.bias, hooks.bias_rows)
    return hooks.after(output, rows)


def self_attention(attend: Attend) -> Attention:
    """Returns attention of all tokens; `attend` maps queries, keys and values `[..., H, K]` to heads' outputs."""

    def attention(normed: jax.Array, weights: Weights, config: TowerConfig, tap: Tap) -> jax.Array:
        # One product for all three: a larger matrix fills the device better, and the backward pass keeps one array.
        qkv = tap(layers.dense(normed, weights["qkv"]), QKV)
        q, k, v = (layers.split_heads(part, config.heads) for part in jnp.split(qkv, 3, axis=-1))
        if isinstance(config, VisionConfig) and config.rotary:
            q, k = (rotate(part, config) for part in (q, k))
        return layers.dense(attend(q, k, v).reshape(normed.shape), weights["out"])

    return attention


def row_attention(select_rows: SelectRows, attend: Attend) -> Attention:
    """Returns attention of the selected rows, `[..., D]` to `[B, D]`, to all keys and values; it does not rotate."""

    def attention(normed: jax.Array, weights: Weights, config: TowerConfig, tap: Tap) -> jax.Array:
        # No `tap`: in the last block nothing is recomputed, so no policy looks for its queries, keys and values.
        query = layers.dense(select_rows(normed), layers.outputs(weights["qkv"], 0, 1))
        keys_values = layers.dense(normed, layers.outputs(weights["qkv"], 1, 3))
        k, v = (layers.split_heads(part, config.heads) for part in jnp.split(keys_values, 2, axis=-1))
        # One query per sequence: the scores are `N` numbers instead of `N²`.
        heads = attend(layers.split_heads(query, config.heads), k, v)
        return layers.dense(heads.reshape(query.shape), weights["out"])

    return attention


def put_prompts(tokens: jax.Array, layer: LayerInput, prompt_rows: jax.Array | np.ndarray | None) -> jax.Array:
    """Replaces those of `tokens [..., N, D]` for which `prompt_rows [..., N]` names a prompt (-1: none)."""
    if layer.prompts is None or prompt_rows is None:
        return tokens
    if isinstance(prompt_rows, np.ndarray) and prompt_rows.ndim == 1:
        # Places known before tracing: slices leave the other tokens and their gradients alone, where a gather and a
        # `where` over all tokens would copy them in both passes.
        (places,) = np.nonzero(prompt_rows >= 0)
        span = slice(places[0], places[-1] + 1)
        if len(places) == span.stop - span.start:
            old = tokens[..., span, :]
            new = jnp.where(layer.replace, layer.prompts[..., prompt_rows[places], :], old)
            return jnp.concatenate([tokens[..., : span.start, :], new, tokens[..., span.stop :, :]], axis=-2)
    is_replaced = (prompt_rows >= 0) & layer.replace
    rows = jnp.maximum(prompt_rows, 0)  # -1 would gather the last prompt
    if layer.prompts.ndim == 2:
        prompts = layer.prompts[rows]
    else:
        prompts = jnp.take_along_axis(layer.prompts, jnp.broadcast_to(rows, tokens.shape[:-1])[..., None], axis=-2)
    return jnp.where(is_replaced[..., None], prompts, tokens)


def bias_rows(
    bias: jax.Array | None, is_pooled: jax.Array | np.ndarray, positions: jax.Array | np.ndarray
) -> jax.Array | None:
    """Returns the row of a layer's bias for each token, -1 for none; `None` for a vector per layer, `[L, D]`.

    By token type, `[L, 2, D]`: row 0 for the pooled tokens, row 1 for all others. By token, `[L, N, D]`: the row of its
    position; tokens at later positions, which are prompts, get no bias.
    """
    if bias is None or bias.ndim == 2:
        return None
    return jnp.where(is_pooled, 0, 1) if bias.shape[1] == 2 else jnp.where(positions < bias.shape[1], positions, -1)


def bias_of_tokens(bias: jax.Array, bias_rows: jax.Array | None) -> jax.Array:
    """Returns the bias of each token: `[..., N, D]` for `bias_rows [..., N]`, or an array that broadcasts to it."""
    if bias_rows is None:
        return bias
    if bias.shape[-2] == 2:
        # A choice between two vectors; its gradient is two sums, where an index would scatter.
        return jnp.where((bias_rows == 0)[..., None], bias[..., :1, :], bias[..., 1:, :])
    return jnp.where((bias_rows >= 0)[..., None], bias[jnp.maximum(bias_rows, 0)], 0)
