"""A tower's blocks forward, keeping what they are differentiated by, and one block backward.

What is saved of each block is some multiple of its tokens `[B, N, D]`, or the tokens of every so many-th block, from
which the others are computed again. Both passes run the towers' own block (`clip.block`).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from clipbias.clip import block, layers, tower
from clipbias.clip.block import Keep, Record, run_block
from clipbias.clip.config import TowerConfig
from clipbias.clip.tower import TowerInput

# What a block is differentiated by: its tokens `[B, N, D]` before prompts are put in, by this name, and what it
# computes of them by the names `layers.KEPT`.
Saved = dict[str, jax.Array]
TOKENS = "tokens"


def layer_at(inputs: TowerInput, index: int | jax.Array) -> block.LayerInput:
    """One layer's weights. Scanning over numbers, not over `weights[:-1]`, spares a copy of nearly the whole model."""
    return jax.tree.map(lambda leaf: leaf[index], inputs.layers)


def observed_block(
    tokens: jax.Array,
    layer: block.LayerInput,
    inputs: TowerInput,
    config: TowerConfig,
    keep: Keep,
    tap: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Advances `tokens [B, N, D]` by one block; returns its attention probabilities `[B, H, N, N]`, too.

    A `tap` is added to them.
    """
    tower.refuse_inserted(inputs)
    seen = Record()

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        # Heads before tokens, so that the products of both passes read their operands as they lie.
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        scores = jnp.einsum("BHNK,BHMK->BHNM", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
        mask = inputs.mask(q.shape[2])
        if mask is not None:
            scores = jnp.where(mask, scores, -jnp.inf)
        probabilities = jax.nn.softmax(scores, axis=-1)
        seen["probabilities"] = probabilities if tap is None else probabilities + tap
        heads = jnp.einsum("BHNM,BHMK->BHNK", seen["probabilities"].astype(v.dtype), v)
        return heads.swapaxes(1, 2)

    output = run_block(tokens, layer, config, dataclasses.replace(inputs.hooks(attend), keep=keep))
    return output, seen["probabilities"]


def block_forward(
    tokens: jax.Array, index: int | jax.Array, inputs: TowerInput, config: TowerConfig
) -> tuple[jax.Array, Saved]:
    """Advances `tokens [B, N, D]` by one block; returns what it is differentiated by, too."""
    seen = Record()
    output, _ = observed_block(tokens, layer_at(inputs, index), inputs, config, seen)
    return output, {TOKENS: tokens} | {name: seen[name] for name in layers.KEPT}


def run_blocks(
    tokens: jax.Array, first: jax.Array, end: jax.Array, inputs: TowerInput, config: TowerConfig
) -> jax.Array:
    """Advances `tokens [B, N, D]` by the blocks from `first` up to `end`, which is not run, and keeps nothing."""
    return jax.lax.fori_loop(first, end, lambda index, x: block_forward(x, index, inputs, config)[0], tokens)


def whole_blocks(inputs: TowerInput, config: TowerConfig) -> int:
    """How many blocks are needed at all rows: all but the last, which is read at one, or all for a pooling head."""
    return config.layers - (inputs.pooled is not None)


def run_forward(inputs: TowerInput, config: TowerConfig, recompute: int) -> tuple[Saved | jax.Array, jax.Array]:
    """All blocks but the last, and that too where a pooling head reads all its rows.

    Returns:
      What is saved, stacked: a `Saved` of every block, or with `recompute` the tokens at the input of every so many-th;
      and the tokens `[B, N, D]` that reach the last block, or that head.
    """
    count = whole_blocks(inputs, config)

    def step(tokens: jax.Array, index: jax.Array) -> tuple[jax.Array, Saved | jax.Array]:
        output, saved = block_forward(tokens, index, inputs, config)
        return output, tokens if recompute else saved

    def segment(tokens: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        return run_blocks(tokens, first, jnp.minimum(first + recompute, count), inputs, config), tokens

    saved: Saved | jax.Array
    if recompute > 1:
        tokens, saved = jax.lax.scan(segment, inputs.tokens, jnp.arange(0, count, recompute))
    else:
        tokens, saved = jax.lax.scan(step, inputs.tokens, jnp.arange(count))
    return saved, tokens


def saved_at(
    saved: Saved | jax.Array, index: jax.Array, inputs: TowerInput, config: TowerConfig, recompute: int
) -> Saved:
    """What block `index` is differentiated by, computed again where `run_forward` did not keep it."""
    if isinstance(saved, dict):
        return jax.tree.map(lambda leaf: leaf[index], saved)
    segment = index // recompute
    tokens = saved[segment]
    if recompute > 1:
        tokens = run_blocks(tokens, segment * recompute, index, inputs, config)
    return block_forward(tokens, index, inputs, config)[1]


@jax.custom_jvp
def _as_saved(computed: jax.Array, saved: jax.Array) -> jax.Array:
    """`saved`, with the gradient of `computed`, whose value is then not needed: the compiler leaves it out."""
    return saved


@_as_saved.defjvp
def _change_as_computed(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return primals[1], tangents[0]


def block_backward(
    saved: Saved, layer: block.LayerInput, inputs: TowerInput, config: TowerConfig
) -> tuple[Callable[[jax.Array], tuple[jax.Array, jax.Array]], jax.Array]:
    """Differentiates one block where the forward pass left it.

    Every part of it starts from what was saved, so that no matrix product of the forward pass is repeated but `q kᵀ`.

    Returns:
      A function from the gradient of the block's output to that of its tokens and of its attention; and the attention
      probabilities `[B, H, N, N]`.
    """

    def put_back(computed: jax.Array, name: str) -> jax.Array:
        return _as_saved(computed, saved[name]) if name in saved else computed

    def run(tokens: jax.Array, tap: jax.Array) -> tuple[jax.Array, jax.Array]:
        return observed_block(tokens, layer, inputs, config, put_back, tap)

    batch, length = saved[TOKENS].shape[:2]
    tap = jnp.zeros((batch, config.heads, length, length), jnp.float32)
    _, pull, probabilities = jax.vjp(run, saved[TOKENS], tap, has_aux=True)
    return pull, probabilities
