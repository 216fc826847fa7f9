"""A stack of blocks as one scan over layers, the same for both towers.

A tower runs in three parts that callers may use one by one: *embed* (in `vision.py` and `text.py`) makes a
`TowerInput`, `layer` advances its tokens by one block, and a *readout* takes the feature's row. Nothing is patched to
look inside: `layer` returns a `LayerView` of what it computed, and `observe` reduces it while the scan runs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.clip import layers
from clipbias.clip.config import TextConfig, TowerConfig
from clipbias.clip.products import HALF
from clipbias.clip.scan import LayerInput, insert, scan_all_but_last, with_inserted
from clipbias.errors import ClipbiasError


@struct.dataclass
class TowerInput:
    """Tokens at the input of the first block and everything the blocks need.

    Attributes:
      tokens: `[B, N, D]`.
      layers: a `LayerInput` whose leaves are stacked on axis `L`.
      prompt_rows: int32 `[N]` or `[B, N]`: which prompt row may replace each token, -1 for none; `None` without
        prompts. A NumPy array is known while tracing, which makes replacing cheaper.
      bias_rows: int32 `[N]` or `[B, N]`: which row of a layer's bias each token gets, -1 for none; `None` where a layer
        has one vector for all tokens, or none.
      readout: int32 `[B]`: the row whose output is the feature (`[cls]`: 0, text: the end-of-text token); `None` where
        a pooling head reads all rows.
      causal: whether token `i` sees only tokens up to `i`.
      inserted: `[n, T, D]`, tokens that blocks have besides (`Adaptation.text_tokens`), or `None`.
      insert_at: behind how many of the others they are put.
      insert_from: the first block that has them.
    """

    tokens: jax.Array
    layers: LayerInput
    prompt_rows: jax.Array | np.ndarray | None
    bias_rows: jax.Array | None
    readout: jax.Array | np.ndarray | None
    causal: bool = struct.field(pytree_node=False)
    inserted: jax.Array | None = None
    insert_at: int = struct.field(pytree_node=False, default=0)
    insert_from: int = struct.field(pytree_node=False, default=0)

    @property
    def bias_row_read(self) -> jax.Array | None:
        """The bias' row that each readout token gets, `[B]`."""
        if self.bias_rows is None:
            return None
        every = jnp.broadcast_to(self.bias_rows, self.tokens.shape[:2])
        return jnp.take_along_axis(every, jnp.asarray(self.readout)[:, None], axis=1)[:, 0]


@dataclasses.dataclass(frozen=True)
class LayerView:
    """What a block computed, for observers and interventions.

    Attributes:
      index: the layer's number, from 0 (traced inside a scan).
      tokens: `[B, N, D]` at the block's input, after prompts were put in, before its LayerNorm.
      probabilities: `[B, H, N, N]` attention after softmax (and after a tap was added), float32.
      values: `[B, N, H, K]`, bias included.
      weights: the block's weights.
    """

    index: jax.Array
    tokens: jax.Array
    probabilities: jax.Array
    values: jax.Array
    weights: Any

    def heads_output(self, probabilities: jax.Array | None = None) -> jax.Array:
        """`Σ_j A_ij v_j` per head: `[B, N, H, K]`, with the block's own attention or with the one given."""
        probabilities = self.probabilities if probabilities is None else probabilities
        return jnp.einsum("BHNM,BMHK->BNHK", probabilities.astype(self.values.dtype), self.values)

    def project(self, heads_output: jax.Array) -> jax.Array:
        """`W_o · cat_h(heads_output)` without its bias: `[B, N, D]` (Eq. 12's terms)."""
        return layers.product(heads_output.reshape(*heads_output.shape[:-2], -1), self.weights["out"])


Observe = Callable[[LayerView], Any]
Intervene = Callable[[LayerView], jax.Array]


def put_prompts(tokens: jax.Array, layer: LayerInput, prompt_rows: jax.Array | np.ndarray | None) -> jax.Array:
    """Replaces the rows of `tokens [..., N, D]` that `prompt_rows [..., N]` names, where this layer replaces any."""
    if layer.prompts is None or prompt_rows is None:
        return tokens
    if isinstance(prompt_rows, np.ndarray) and prompt_rows.ndim == 1:
        # Known before tracing: the other tokens, and their gradients, are left alone.
        (at,) = np.nonzero(prompt_rows >= 0)
        here = slice(at[0], at[-1] + 1)
        if len(at) == here.stop - here.start:
            old = tokens[..., here, :]
            new = jnp.where(layer.replace, layer.prompts[..., prompt_rows[at], :], old)
            return jnp.concatenate([tokens[..., : here.start, :], new, tokens[..., here.stop :, :]], axis=-2)
    replaced, rows = (prompt_rows >= 0) & layer.replace, jnp.maximum(prompt_rows, 0)
    if layer.prompts.ndim == 2:
        chosen = layer.prompts[rows]
    else:
        chosen = jnp.take_along_axis(layer.prompts, jnp.broadcast_to(rows, tokens.shape[:-1])[..., None], axis=-2)
    return jnp.where(replaced[..., None], chosen, tokens)


def bias_rows(
    bias: jax.Array | None, is_readout: jax.Array | np.ndarray, positions: jax.Array | np.ndarray
) -> jax.Array | None:
    """Which row of a layer's bias each token gets, -1 for none; `None` where one vector serves all.

    Args:
      bias: `[L, D]`: one vector. `[L, 2, D]`, by kind: row 0 for the tokens that are read out, row 1 for all others.
        `[L, N, D]`, by token: the row of its position; tokens at later positions, which are prompts, get nothing.
      is_readout: bool, for each token.
      positions: int32, likewise.
    """
    if bias is None or bias.ndim == 2:
        return None
    if bias.shape[1] == 2:
        return jnp.where(is_readout, 0, 1)
    return jnp.where(positions < bias.shape[1], positions, -1)


def bias_of_tokens(bias: jax.Array, rows: jax.Array | None) -> jax.Array:
    """What a layer's bias adds to each token: `[..., N, D]` for `rows [..., N]`, or what broadcasts to it."""
    if rows is None:
        return bias
    if bias.shape[-2] == 2:
        # A choice between two vectors; its gradient is two sums, where an index would scatter.
        return jnp.where((rows == 0)[..., None], bias[..., :1, :], bias[..., 1:, :])
    return jnp.where((rows >= 0)[..., None], bias[jnp.maximum(rows, 0)], 0)


def add_bias(tokens: jax.Array, layer: LayerInput, rows: jax.Array | None) -> jax.Array:
    """`x + b_l`, each token its row: bias tuning's whole forward pass."""
    return tokens if layer.bias is None else tokens + bias_of_tokens(layer.bias, rows)


def beside(tokens: jax.Array, layer: LayerInput, config: TowerConfig) -> jax.Array | None:
    """What the network beside a block makes of the block's input `[..., D]`, or `None` where there is none."""
    if layer.adapters is None:
        return None
    normed = layers.layer_norm(tokens, layer.weights["norm1"], config.layer_norm_epsilon)
    return layers.network(normed, layer.adapters)


def add_beside(output: jax.Array, tokens: jax.Array, layer: LayerInput, config: TowerConfig) -> jax.Array:
    """A block's output with what the network beside it makes of its input."""
    return output if (added := beside(tokens, layer, config)) is None else output + added


def causal_mask(length: int) -> jax.Array:
    """`[N, N]`, True where query `i` may see key `j <= i`."""
    return jnp.tril(jnp.ones((length, length), bool))


def layer(
    tokens: jax.Array,
    layer: LayerInput,
    tower: TowerInput,
    config: TowerConfig,
    *,
    tap: jax.Array | None = None,
    intervene: Intervene | None = None,
) -> tuple[jax.Array, LayerView]:
    """Advances `tokens [B, N, D]` by one block on the explicit path and shows what it computed.

    Args:
      tap: added to the attention probabilities `[B, H, N, N]`; differentiating by it gives ∂y/∂A.
      intervene: returns the heads' outputs `[B, N, H, K]` to use instead of `view.heads_output()`.
    """
    refuse_inserted(tower)
    tokens = put_prompts(tokens, layer, tower.prompt_rows)
    seen = None

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        nonlocal seen
        mask = causal_mask(q.shape[1]) if tower.causal else None
        probabilities = layers.attention_probabilities(q, k, mask)
        if tap is not None:
            probabilities = probabilities + tap
        seen = LayerView(layer.index, tokens, probabilities, v, layer.weights)
        return seen.heads_output() if intervene is None else intervene(seen)

    output = add_beside(layers.block(tokens, layer.weights, config, attend), tokens, layer, config)
    output = add_bias(output, layer, tower.bias_rows)
    assert seen is not None
    return output, seen


def refuse_inserted(tower: TowerInput) -> None:
    """Raises `ClipbiasError` where later blocks have more tokens: what looks inside all of them alike cannot."""
    if tower.inserted is not None:
        raise ClipbiasError(
            "tokens are inserted inside this tower, so that attention differs in size from block to block and cannot "
            "be observed or changed; take another method."
        )


def run_explicit(
    tower: TowerInput,
    config: TowerConfig,
    *,
    taps: jax.Array | None = None,
    observe: Observe | None = None,
    intervene: Intervene | None = None,
) -> tuple[jax.Array, Any]:
    """Runs all blocks with their attention probabilities at hand.

    Returns:
      The readout rows `[B, D]` (all `[B, N, D]` for a pooling head), and what `observe` returned, stacked over layers
      (`None` without it).
    """

    def step(tokens: jax.Array, inputs: tuple[LayerInput, jax.Array | None]) -> tuple[jax.Array, Any]:
        tokens, view = layer(tokens, inputs[0], tower, config, tap=inputs[1], intervene=intervene)
        return tokens, None if observe is None else observe(view)

    tokens, observed = jax.lax.scan(step, tower.tokens, (tower.layers, taps))
    return take_rows(tokens, tower.readout), observed


def block_step(tower: TowerInput, config: TowerConfig, attend: Any) -> Callable[..., tuple[jax.Array, None]]:
    """A function that advances tokens by the block of one `LayerInput`, to be scanned."""

    def step(tokens: jax.Array, inputs: LayerInput) -> tuple[jax.Array, None]:
        tokens = put_prompts(tokens, inputs, tower.prompt_rows)
        output = add_beside(layers.block(tokens, inputs.weights, config, attend), tokens, inputs, config)
        return add_bias(output, inputs, tower.bias_rows), None

    return step


def after_insertion(tower: TowerInput, tokens: jax.Array) -> TowerInput:
    """What the blocks from `insert_from` on need, given the tokens that reach it: the same with the inserted ones."""
    assert tower.inserted is not None
    at, count = tower.insert_at, tower.inserted.shape[1]
    rows = np.full(tokens.shape[1] + count, -1)
    rows[at : at + count] = np.arange(count)
    return dataclasses.replace(
        tower,
        tokens=insert(tokens, tower.inserted[0], at),
        layers=with_inserted(tower.layers, tower.inserted, tower.insert_from),
        prompt_rows=rows,
        readout=None if tower.readout is None else tower.readout + count * (tower.readout >= at),
        inserted=None,
    )


def run_fused(
    tower: TowerInput, config: TowerConfig, *, every_row: bool = False, remat: Callable[..., Any] | None = None
) -> jax.Array:
    """Runs all blocks where nobody asks for probabilities; the last one only at the readout row. Returns `[B, D]`.

    A pooling head reads every row, `[B, N, D]`.

    Args:
      every_row: whether the last block's output is asked for at all tokens, `[B, N, D]`.
      remat: a `jax.checkpoint_policies` policy that says what the backward pass keeps of each block; `None` keeps the
        outputs of its matrix products.
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        # Of images, whose first token is read out; texts have few tokens.
        is_image = not isinstance(config, TextConfig)
        if tower.layers.dtype == "bfloat16" and is_image and layers.cudnn_takes(HALF, q.shape[-1]):
            return layers.read_out_exactly(q, k, v)
        return layers.fused_attention(q, k, v, causal=tower.causal)

    start = 0
    if tower.inserted is not None:
        start = tower.insert_from
        tokens, _ = scan_all_but_last(block_step(tower, config, attend), tower.tokens, tower.layers, remat, end=start)
        tower = after_insertion(tower, tokens)
    step = block_step(tower, config, attend)
    tokens, last = scan_all_but_last(step, tower.tokens, tower.layers, remat, start=start)
    if every_row or tower.readout is None:
        return step(tokens, last)[0]
    tokens = put_prompts(tokens, last, tower.prompt_rows)
    visible = jnp.arange(tokens.shape[1]) <= tower.readout[:, None] if tower.causal else None

    def attend_row(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        mask = None if visible is None else visible[:, None, None, :]
        probabilities = layers.attention_probabilities(q[:, None], k, mask)
        return jnp.einsum("BHNM,BMHK->BNHK", probabilities.astype(v.dtype), v)[:, 0]

    rows = layers.block_rows(tokens, last.weights, config, lambda x: take_rows(x, tower.readout), attend_row)
    rows = add_beside(rows, take_rows(tokens, tower.readout), last, config)
    return add_bias(rows, last, tower.bias_row_read)


def take_rows(tokens: jax.Array, rows: jax.Array | np.ndarray | None) -> jax.Array:
    """`tokens [B, N, D]` at `rows [B]`: `[B, D]`; as they are for a pooling head, which has no such row."""
    if rows is None:
        return tokens
    return jnp.take_along_axis(tokens, rows[:, None, None], axis=1)[:, 0]
