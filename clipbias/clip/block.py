"""The order of a transformer block's parts. It stands here and nowhere else.

Towers, packed texts, the backward pass of relevancy, the mixtures of the causal test and interventions all run this
block. Hooks say what differs between them:

    before      puts prompts in
    attention   LN1's output to what is added to the tokens
    take        the rows that the rest of the block is computed for
    keep        sees every named intermediate, and may put another value in its place
    bias_rows   which row of the layer's bias each token gets
    after       changes the block's output

BERT's LayerNorms behind the residuals and Perception Encoder's rotary positions are chosen here by the tower's
configuration.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from clipbias.clip import layers
from clipbias.clip.config import TowerConfig, VisionConfig
from clipbias.clip.layers import ATTENDED, HIDDEN, INPUT, QKV, Weights
from clipbias.clip.rotary import rotate
from clipbias.clip.scan import LayerInput

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

    Of a tower whose LayerNorms come behind the residuals, `x = LN1(x + MHA(x)); x = LN2(x + MLP(x))`.

    Args:
      tokens: `[..., D]`. How they are laid out is the business of attention alone: all else acts on single tokens.
      layer: weights and what a method adds to them.
      config: of the tower.
      hooks: what this run does at the places between the parts.

    Returns:
      The tokens at the rows of `hooks.take`.
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
    """Attention of a block that is read at one row; keys and values are still needed of all tokens.

    Args:
      take: selects rows: `[..., D]` to `[B, D]`. Not for rotary positions, whose towers are read by a pooling head.
      attend: queries `[B, H, K]` of the taken rows, keys and values `[..., H, K]` of all tokens to `[B, H, K]`.
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
    """Which row of a layer's bias each token gets, -1 for none; `None` where one vector serves all.

    Args:
      bias: `[L, D]`: one vector. `[L, 2, D]`, by kind: row 0 for the tokens that are read out, row 1 for all others.
        `[L, N, D]`, by token: the row of its position; tokens at later positions, which are prompts, get nothing.
      is_pooled: bool, for each token.
      positions: int32, likewise.
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
