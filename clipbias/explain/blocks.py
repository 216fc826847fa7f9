"""A tower's blocks forward, keeping what they are differentiated by, and one block backward.

What is kept of each block is some multiple of its tokens `[B, N, D]`, or the tokens of every so many-th block, from
which the others are computed again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from clipbias.clip import layers, scan, tower
from clipbias.clip.config import TowerConfig
from clipbias.clip.tower import TowerInput


@struct.dataclass
class Kept:
    """What a block is differentiated by.

    Attributes:
      tokens: `[B, N, D]` at the block's input, before prompts are put in.
      middle: `[B, N, D]` between the block's halves.
      qkv: queries, keys and values `[B, N, 3D]`.
      hidden: `[B, N, mlp_width]` before the activation.
    """

    tokens: jax.Array
    middle: jax.Array
    qkv: jax.Array
    hidden: jax.Array


def layer_at(inputs: TowerInput, index: int | jax.Array) -> scan.LayerInput:
    """One layer's weights. Scanning over numbers, not over `weights[:-1]`, spares a copy of nearly the whole model."""
    return jax.tree.map(lambda leaf: leaf[index], inputs.layers)


def attend(
    qkv: jax.Array, tap: jax.Array | float, weights: Any, inputs: TowerInput, config: TowerConfig
) -> tuple[jax.Array, jax.Array]:
    """The attention's output `[B, N, D]` and its probabilities `[B, H, N, N]`, a `tap` added to them."""
    # Heads before tokens, so that the products of both passes read their operands as they lie.
    q, k, v = (layers.split_heads(part, config.heads).swapaxes(1, 2) for part in jnp.split(qkv, 3, axis=-1))
    scores = jnp.einsum("BHNK,BHMK->BHNM", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
    if inputs.causal:
        scores = jnp.where(tower.causal_mask(q.shape[2]), scores, -jnp.inf)
    probabilities = jax.nn.softmax(scores, axis=-1) + tap
    heads = jnp.einsum("BHNM,BHMK->BHNK", probabilities.astype(v.dtype), v).swapaxes(1, 2)
    return layers.dense(heads.reshape(*heads.shape[:2], -1), weights["out"]), probabilities


def block_forward(
    tokens: jax.Array, index: int | jax.Array, inputs: TowerInput, config: TowerConfig
) -> tuple[jax.Array, Kept]:
    """Advances `tokens [B, N, D]` by one block."""
    layer = layer_at(inputs, index)
    tower.refuse_inserted(inputs)
    x = tower.put_prompts(tokens, layer, inputs.prompt_rows)
    qkv = layers.queries_keys_values(x, layer.weights, config)
    middle = x + attend(qkv, 0.0, layer.weights, inputs, config)[0]
    hidden = layers.mlp_hidden(middle, layer.weights, config)
    output = middle + layers.mlp_output(hidden, layer.weights, config)
    output = tower.add_beside(output, x, layer, config)
    output = tower.add_bias(output, layer, inputs.bias_rows)
    return output, Kept(tokens, middle, qkv, hidden)


def run_blocks(
    tokens: jax.Array, first: jax.Array, end: jax.Array, inputs: TowerInput, config: TowerConfig
) -> jax.Array:
    """Advances `tokens [B, N, D]` by the blocks from `first` up to `end`, which is not run, and keeps nothing."""
    return jax.lax.fori_loop(first, end, lambda index, x: block_forward(x, index, inputs, config)[0], tokens)


def whole_blocks(inputs: TowerInput, config: TowerConfig) -> int:
    """How many blocks are needed at all rows: all but the last, which is read at one, or all for a pooling head."""
    return config.layers - (inputs.readout is not None)


def run_forward(inputs: TowerInput, config: TowerConfig, recompute: int) -> tuple[Kept | jax.Array, jax.Array]:
    """All blocks but the last, and that too where a pooling head reads all its rows.

    Returns:
      What is kept, stacked: a `Kept` of every block, or with `recompute` the tokens at the input of every so many-th;
      and the tokens `[B, N, D]` that reach the last block, or that head.
    """
    count = whole_blocks(inputs, config)

    def step(tokens: jax.Array, index: jax.Array) -> tuple[jax.Array, Kept | jax.Array]:
        output, kept = block_forward(tokens, index, inputs, config)
        return output, tokens if recompute else kept

    def segment(tokens: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        return run_blocks(tokens, first, jnp.minimum(first + recompute, count), inputs, config), tokens

    kept: Kept | jax.Array
    if recompute > 1:
        tokens, kept = jax.lax.scan(segment, inputs.tokens, jnp.arange(0, count, recompute))
    else:
        tokens, kept = jax.lax.scan(step, inputs.tokens, jnp.arange(count))
    return kept, tokens


def kept_at(kept: Kept | jax.Array, index: jax.Array, inputs: TowerInput, config: TowerConfig, recompute: int) -> Kept:
    """What block `index` is differentiated by, computed again where `run_forward` did not keep it."""
    if isinstance(kept, Kept):
        return jax.tree.map(lambda leaf: leaf[index], kept)
    segment = index // recompute
    tokens = kept[segment]
    if recompute > 1:
        tokens = run_blocks(tokens, segment * recompute, index, inputs, config)
    return block_forward(tokens, index, inputs, config)[1]


def block_backward(
    kept: Kept, layer: scan.LayerInput, inputs: TowerInput, config: TowerConfig
) -> tuple[Callable[[jax.Array], tuple[jax.Array, jax.Array]], jax.Array]:
    """Differentiates one block where the forward pass left it, piece by piece.

    Every piece starts from what was kept, and its own product is not needed to differentiate it: the compiler leaves it
    out, and no matrix product of the forward pass is repeated here but `q kᵀ`.

    Returns:
      A function from the gradient of the block's output to that of its tokens and of its attention; and the attention
      probabilities `[B, H, N, N]`.
    """
    weights = layer.weights

    def enter(tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        x = tower.put_prompts(tokens, layer, inputs.prompt_rows)
        return x, layers.queries_keys_values(x, weights, config), tower.beside(x, layer, config)

    _, pull_enter = jax.vjp(enter, kept.tokens)
    batch, length = kept.tokens.shape[:2]
    tap = jnp.zeros((batch, config.heads, length, length), jnp.float32)
    _, pull_attend, probabilities = jax.vjp(
        lambda qkv, tap: attend(qkv, tap, weights, inputs, config), kept.qkv, tap, has_aux=True
    )
    _, pull_hidden = jax.vjp(lambda middle: layers.mlp_hidden(middle, weights, config), kept.middle)
    _, pull_mlp = jax.vjp(lambda hidden: layers.mlp_output(hidden, weights, config), kept.hidden)

    def pull(gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        middle = gradient + pull_hidden(*pull_mlp(gradient))[0]
        qkv, attention = pull_attend(middle)
        return pull_enter((middle, qkv, None if layer.adapters is None else gradient))[0], attention

    return pull, probabilities
