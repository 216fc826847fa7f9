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
from clipbias.clip.config import TowerConfig
from clipbias.clip.weight_changes import changed


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
      changes: changes of the block's weights (`weight_changes.py`), or `None`; with a leading axis of `B` where each of
        the `B` rows of tokens has its own copy.
      adapters: a network beside the block (`layers.network`), or `None`; likewise with an axis of `B`.
      adapted_from: the first block that has one; before it adapters are zero.
    """

    index: jax.Array
    frozen: Any
    prompts: jax.Array | None
    replace: jax.Array
    bias: jax.Array | None
    changes: Any = None
    adapters: Any = None
    adapted_from: int = struct.field(pytree_node=False, default=0)

    @property
    def weights(self) -> Any:
        """The weights that the block computes with: the frozen ones with their changes."""
        return self.frozen if self.changes is None else changed(self.frozen, self.changes)


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
      readout: int32 `[B]`: the row whose output is the feature (`[cls]`: 0, text: the end-of-text token).
      causal: whether token `i` sees only tokens up to `i`.
    """

    tokens: jax.Array
    layers: LayerInput
    prompt_rows: jax.Array | np.ndarray | None
    bias_rows: jax.Array | None
    readout: jax.Array | np.ndarray
    causal: bool = struct.field(pytree_node=False)

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


def layer_inputs(
    weights: Any,
    prompts: jax.Array | None,
    bias: jax.Array | None,
    changes: Any = None,
    adapters: Any = None,
    *,
    dtype: jnp.dtype,
) -> LayerInput:
    """Stacks what every layer needs.

    Args:
      weights: block weights with leading axis `L`.
      prompts: `[depth - 1, T, D]`: row `i - 1` is put in at block `i`.
      bias: `[L, D]`, `[L, 2, D]` or `[L, N, D]`, see `bias_rows`.
      changes: changes of the blocks' weights with leading axis `L`.
      adapters: networks beside the last blocks, with as many on their leading axis.
      dtype: compute type of prompts and biases.
    """
    depth = jax.tree.leaves(weights)[0].shape[0]
    index = jnp.arange(depth)
    if prompts is None or prompts.shape[0] == 0:
        prompts, replace = None, jnp.zeros(depth, bool)
    else:
        replace = (index >= 1) & (index <= prompts.shape[0])
        prompts = jnp.pad(prompts, ((1, depth - 1 - prompts.shape[0]), (0, 0), (0, 0))).astype(dtype)
    # A NumPy array takes no traced index, which is how a bias by token is read.
    bias = None if bias is None else jnp.asarray(bias).astype(dtype)
    without = 0 if adapters is None else depth - jax.tree.leaves(adapters)[0].shape[0]
    adapters = jax.tree.map(lambda leaf: jnp.pad(leaf, [(without, 0)] + [(0, 0)] * (leaf.ndim - 1)), adapters)
    return LayerInput(index, weights, prompts, replace, bias, changes, adapters, without)


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
      The readout rows `[B, D]`, and what `observe` returned, stacked over layers (`None` without it).
    """

    def step(tokens: jax.Array, inputs: tuple[LayerInput, jax.Array | None]) -> tuple[jax.Array, Any]:
        tokens, view = layer(tokens, inputs[0], tower, config, tap=inputs[1], intervene=intervene)
        return tokens, None if observe is None else observe(view)

    tokens, observed = jax.lax.scan(step, tower.tokens, (tower.layers, taps))
    return take_rows(tokens, tower.readout), observed


def run_fused(
    tower: TowerInput, config: TowerConfig, *, every_row: bool = False, remat: Callable[..., Any] | None = None
) -> jax.Array:
    """Runs all blocks where nobody asks for probabilities; the last one only at the readout row. Returns `[B, D]`.

    Args:
      every_row: whether the last block's output is asked for at all tokens, `[B, N, D]`.
      remat: a `jax.checkpoint_policies` policy that says what the backward pass keeps of each block; `None` keeps the
        outputs of its matrix products.
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return layers.fused_attention(q, k, v, causal=tower.causal)

    def step(tokens: jax.Array, inputs: LayerInput) -> tuple[jax.Array, None]:
        tokens = put_prompts(tokens, inputs, tower.prompt_rows)
        output = add_beside(layers.block(tokens, inputs.weights, config, attend), tokens, inputs, config)
        return add_bias(output, inputs, tower.bias_rows), None

    tokens, last = scan_all_but_last(step, tower.tokens, tower.layers, remat)
    if every_row:
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


def scan_all_but_last(
    step: Callable[[jax.Array, LayerInput], tuple[jax.Array, None]],
    tokens: jax.Array,
    inputs: LayerInput,
    remat: Callable[..., Any] | None,
) -> tuple[jax.Array, LayerInput]:
    """Scans `step` over every layer except the last, whose inputs are returned beside the tokens that reach it.

    Slicing the stacked weights `[:-1]` would copy them all at every call, and so would a backward pass that keeps
    each layer's slice: the scan runs over layer numbers instead, and both passes read the weights where they lie.

    What a method adds is copied for each of the `B` rows of `tokens [B, N, D]`. Gradients are then summed over `B`
    once, behind the loop: where `B` is split over devices, that is one exchange instead of one per layer.

    Where no prompts are put in, nothing before the first block is learned: it runs ahead of the loop, since a loop
    would take gradients through it all the same. So do the blocks before the first adapter where there is nothing else.
    """
    count = tokens.shape[0]
    others = jax.tree.map(lambda leaf: leaf[:-1], dataclasses.replace(inputs, frozen=None))
    others = dataclasses.replace(
        others,
        prompts=None if others.prompts is None else _per_row(others.prompts, count),
        bias=None if others.bias is None else _bias_per_row(others.bias, count),
        changes=jax.tree.map(lambda x: _change_per_row(x, count), others.changes),
        adapters=jax.tree.map(lambda x: _per_row(x[:, None] if x.ndim == 2 else x, count), others.adapters),
    )

    def numbered(tokens: jax.Array, layer: LayerInput) -> tuple[jax.Array, None]:
        weights = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer.index, keepdims=False), inputs.frozen
        )
        return step(tokens, dataclasses.replace(layer, frozen=weights))

    learns = others.bias is not None or others.changes is not None
    if (learns or others.adapters is not None) and others.prompts is None and others.index.shape[0]:
        at = 0 if learns else min(others.adapted_from, others.index.shape[0] - 1)
        if at:
            before = jax.tree.map(lambda leaf: leaf[:at], dataclasses.replace(others, adapters=None))
            tokens, _ = jax.lax.scan(numbered, tokens, before)
        first = jax.tree.map(lambda leaf: leaf[at], dataclasses.replace(others, frozen=inputs.frozen))
        tokens, _ = step(tokens, first)
        others = jax.tree.map(lambda leaf: leaf[at + 1 :], others)
    numbered = jax.checkpoint(numbered, policy=layers.keep_products if remat is None else remat, prevent_cse=False)
    tokens, _ = jax.lax.scan(numbered, tokens, others)
    return tokens, jax.tree.map(lambda leaf: leaf[-1], inputs)


def _per_row(stacked: jax.Array, count: int) -> jax.Array:
    """`[L, n, D]` as `[L, count, n, D]`."""
    return jnp.broadcast_to(stacked[:, None], (stacked.shape[0], count, *stacked.shape[1:]))


def _bias_per_row(stacked: jax.Array, count: int) -> jax.Array:
    """`[L, D]` as `[L, count, 1, D]`, `[L, 2, D]` as `[L, count, 2, D]`; rows of every token are large and stay."""
    if stacked.ndim == 2:
        stacked = stacked[:, None]
    return stacked if stacked.shape[1] > 2 else _per_row(stacked, count)


def _change_per_row(stacked: jax.Array, count: int) -> jax.Array:
    """Vectors `[L, D]` as `[L, count, 1, D]`, pairs of low rank `[L, P, ...]` as `[L, count, P, ...]`.

    A whole kernel `[L, inputs, outputs]` is large and stays as it is, as do numbers `[L]` that no step learns.
    """
    if stacked.ndim in (1, 3):
        return stacked
    return _per_row(stacked[:, None] if stacked.ndim == 2 else stacked, count)


def take_rows(tokens: jax.Array, rows: jax.Array | np.ndarray) -> jax.Array:
    """`tokens [B, N, D]` at `rows [B]`: `[B, D]`."""
    return jnp.take_along_axis(tokens, rows[:, None, None], axis=1)[:, 0]
