"""A stack of blocks as one scan over layers, for both towers.

A tower runs in three parts, which callers may use separately: *embed* (`vision.py`, `text.py`) returns a `TowerInput`,
`run_block` (`block.py`) advances its tokens by one block, and a *projection* returns the feature of the pooled row.
For explanations, `observe_block` returns a block's intermediates as a `LayerView`; an observer reduces it in the scan.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.clip import block, layers
from clipbias.clip.block import LayerInput, run_block, scan_all_but_last
from clipbias.clip.config import TextConfig, TowerConfig
from clipbias.clip.layers import ATTENDED, HALF, INPUT
from clipbias.errors import ClipbiasError

Carry = TypeVar("Carry", bound=tuple[Any, ...])
Stacked = TypeVar("Stacked")


@struct.dataclass
class TowerInput:
    """Tokens at the input of the first block, and the inputs of all blocks."""

    tokens: jax.Array  # `[B, N, D]`
    layers: LayerInput  # its leaves are stacked on axis `L`
    # int32 `[N]` or `[B, N]`: the prompt that may replace each token, -1 for none; `None` without prompts. As
    # a NumPy array they are known while tracing, which makes replacing cheaper.
    prompt_rows: jax.Array | np.ndarray | None
    # int32 `[N]` or `[B, N]`: row of a layer's bias for each token, -1 for none; `None` if all tokens share the bias.
    bias_rows: jax.Array | None
    # int32 `[B]`: the row whose output is the feature (`[cls]`: 0, text: the end-of-text token); `None` with a pooling
    # head, which reads all rows.
    pooled: jax.Array | np.ndarray | None
    causal: bool = struct.field(pytree_node=False)  # whether token `i` sees only tokens up to `i`
    visible: jax.Array | None = None  # bool `[B, N]`: all tokens but BERT's padding; `None` for other towers
    inserted: jax.Array | None = None  # `[n, T, D]`, tokens of later blocks (`Adaptation.text_tokens`)
    insert_at: int = struct.field(pytree_node=False, default=0)  # number of tokens before the inserted ones
    insert_from: int = struct.field(pytree_node=False, default=0)  # the first block with inserted tokens

    def hooks(self, attend: block.Attend) -> block.BlockHooks:
        """Returns hooks of a block at all tokens; `attend` takes queries, keys and values `[B, N, H, K]`."""
        return block.BlockHooks(block.self_attention(attend), before=self._put_prompts, bias_rows=self.bias_rows)

    def pooled_hooks(self, attend: block.Attend) -> block.BlockHooks:
        """Returns hooks of the last block at the pooled rows; `attend` as for `row_attention`."""
        select_rows = functools.partial(take_rows, pooled=self.pooled)
        rows = self.bias_rows
        if rows is not None:
            # The bias of the pooled row alone, as the other rows are not computed.
            rows = jnp.broadcast_to(rows, self.tokens.shape[:2])
            rows = jnp.take_along_axis(rows, jnp.asarray(self.pooled)[:, None], axis=1)[:, 0]
        attention = block.row_attention(select_rows, attend)
        return block.BlockHooks(attention, before=self._put_prompts, select_rows=select_rows, bias_rows=rows)

    def _put_prompts(self, tokens: jax.Array, layer: LayerInput) -> jax.Array:
        return block.put_prompts(tokens, layer, self.prompt_rows)

    def attend_fused(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Computes this tower's attention without returning its probabilities."""
        return layers.fused_attention(q, k, v, causal=self.causal, visible=self.visible)

    def mask(self, length: int) -> jax.Array | None:
        """Returns the keys that each query sees, bool, broadcastable to `[B, H, N, N]`; `None` for all."""
        if self.causal:
            return causal_mask(length)
        # Padding is masked as a key alone: nobody reads the rows of its queries.
        return None if self.visible is None else self.visible[:, None, None, :]

    def pooled_visible(self, length: int) -> jax.Array | None:
        """Returns the tokens that the pooled row sees, bool `[B, N]`; `None` for all."""
        return jnp.arange(length) <= jnp.asarray(self.pooled)[:, None] if self.causal else self.visible


@dataclasses.dataclass(frozen=True)
class LayerView:
    """Intermediates of a block, for observers.

    Attributes:
      index: the layer's number, from 0 (traced inside a scan).
      tokens: `[B, N, D]` at the block's input, prompts among them, before LayerNorm.
      probabilities: `[B, H, N, N]`, attention after softmax, a tap included, float32.
      values: `[B, N, H, K]`, bias included.
      weights: the block's weights.
      attended: `[B, N, D]` behind attention, before the MLP.
    """

    index: jax.Array
    tokens: jax.Array
    probabilities: jax.Array
    values: jax.Array
    weights: layers.Weights
    attended: jax.Array | None = None

    def heads_output(self, probabilities: jax.Array) -> jax.Array:
        """Computes `Σ_j A_ij v_j` per head, `[B, N, H, K]`, for probabilities `A [B, H, N, N]`."""
        return jnp.einsum("BHNM,BMHK->BNHK", probabilities.astype(self.values.dtype), self.values)

    def project(self, heads_output: jax.Array) -> jax.Array:
        """Computes `W_o · cat_h(heads_output)` without bias: `[B, N, D]` (the terms of Eq. 12)."""
        # No bias: it belongs to no token, and the terms of Eq. 12 are sums over tokens.
        return layers.product(heads_output.reshape(*heads_output.shape[:-2], -1), self.weights["out"])


Observed = Any  # a pytree that an observer returns, stacked over layers
Observe = Callable[[LayerView], Observed]


def causal_mask(length: int) -> jax.Array:
    """Returns a mask `[N, N]`: True where query `i` sees key `j <= i`."""
    return jnp.tril(jnp.ones((length, length), bool))


def observe_block(
    tokens: jax.Array, layer: LayerInput, tower: TowerInput, config: TowerConfig, tap: jax.Array | None = None
) -> tuple[jax.Array, LayerView]:
    """Advances `tokens [B, N, D]` by one block; a `tap [B, H, N, N]` is added to its attention probabilities."""
    # The gradient with respect to the tap is ∂y/∂A of this layer, as relevancy needs it (Chefer et al. 2021).
    refuse_inserted(tower)
    record = block.Record()
    view: LayerView | None = None

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        nonlocal view
        # Written out, since a fused kernel returns no probabilities, and a gradient by `tap` needs them as an operand.
        probabilities = layers.attention_probabilities(q, k, tower.mask(q.shape[1]))
        if tap is not None:
            probabilities = probabilities + tap
        view = LayerView(layer.index, record[INPUT], probabilities, v, layer.weights)
        return view.heads_output(probabilities)

    output = run_block(tokens, layer, config, dataclasses.replace(tower.hooks(attend), tap=record))
    assert view is not None
    return output, dataclasses.replace(view, attended=record[ATTENDED])


def refuse_inserted(tower: TowerInput) -> None:
    """Raises `ClipbiasError` for inserted tokens: observers stack layers, and need equal sizes in all of them."""
    if tower.inserted is not None:
        raise ClipbiasError("with inserted tokens attention differs in size between blocks; it cannot be observed.")


def run_explicit(
    tower: TowerInput, config: TowerConfig, *, taps: jax.Array | None = None, observe: Observe | None = None
) -> tuple[jax.Array, Observed]:
    """Runs all blocks with explicit attention: the pooled rows `[B, D]`, and results of `observe` (else `None`)."""

    def step(tokens: jax.Array, layer_and_tap: tuple[LayerInput, jax.Array | None]) -> tuple[jax.Array, Observed]:
        layer, tap = layer_and_tap
        tokens, view = observe_block(tokens, layer, tower, config, tap)
        # Reduced inside the scan: `L` views at once would hold all attention of the tower.
        return tokens, None if observe is None else observe(view)

    # `taps=None` is an empty tree, which a scan takes as it is.
    tokens, observed = jax.lax.scan(step, tower.tokens, (tower.layers, taps))
    return take_rows(tokens, tower.pooled), observed


def after_insertion(tower: TowerInput, tokens: jax.Array) -> TowerInput:
    """Returns the input of the blocks from `insert_from` on: `tokens [B, N, D]` with the inserted ones."""
    assert tower.inserted is not None
    start = tower.insert_at
    count = tower.inserted.shape[1]
    # Later layers replace the inserted tokens as prompts; these rows are known while tracing (`put_prompts`).
    rows = np.full(tokens.shape[1] + count, -1)
    rows[start : start + count] = np.arange(count)
    return dataclasses.replace(
        tower,
        tokens=block.insert(tokens, tower.inserted[0], start),
        layers=block.with_inserted(tower.layers, tower.inserted, tower.insert_from),
        prompt_rows=rows,
        # EOS moves by the inserted tokens; `[cls]`, before them, stays.
        pooled=None if tower.pooled is None else tower.pooled + count * (tower.pooled >= start),
        inserted=None,
    )


def run_fused(
    tower: TowerInput, config: TowerConfig, *, every_row: bool = False, remat: layers.RematPolicy | None = None
) -> jax.Array:
    """Runs all blocks without returning probabilities: the pooled rows `[B, D]`.

    With `every_row`, or a pooling head, it returns all tokens `[B, N, D]`. `remat` is a `jax.checkpoint_policies`
    policy for the backward pass. Default: it stores the outputs of matrix products (`layers.keep_products`).
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        # cuDNN pays for images alone: texts have few tokens, and their pooled token is not the first, which
        # `read_out_exactly` computes in float32.
        is_image = not isinstance(config, TextConfig)
        if tower.layers.dtype == "bfloat16" and is_image and layers.cudnn_takes(HALF, q.shape[-1]):
            return layers.read_out_exactly(q, k, v)
        return tower.attend_fused(q, k, v)

    def step(hooks: block.BlockHooks, tokens: jax.Array, layer: LayerInput) -> tuple[jax.Array, None]:
        return run_block(tokens, layer, config, hooks), None

    start = 0
    if tower.inserted is not None:
        # Two scans, since the carry of a scan has a fixed shape and later blocks have more tokens.
        start = tower.insert_from
        first = functools.partial(step, tower.hooks(attend))
        tokens, _ = scan_all_but_last(first, tower.tokens, tower.layers, remat, end=start)
        tower = after_insertion(tower, tokens)
    hooks = tower.hooks(attend)
    tokens, last = scan_all_but_last(functools.partial(step, hooks), tower.tokens, tower.layers, remat, start=start)
    if every_row or tower.pooled is None:
        return run_block(tokens, last, config, hooks)
    # Only the pooled row of the last block enters the feature, so that its MLP and most of its attention are saved.
    visible = tower.pooled_visible(tokens.shape[1])

    def attend_row(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        mask = None if visible is None else visible[:, None, None, :]
        probabilities = layers.attention_probabilities(q[:, None], k, mask)
        return jnp.einsum("BHNM,BMHK->BNHK", probabilities.astype(v.dtype), v)[:, 0]

    return run_block(tokens, last, config, tower.pooled_hooks(attend_row))


def scan_blocks(
    tower: TowerInput, step: Callable[[TowerInput, np.ndarray, Carry, LayerInput], tuple[Carry, Stacked]], carry: Carry
) -> Stacked:
    """Scans a step over all layers, inserted tokens included; returns its results, stacked over layers.

    The step takes the tower's input at this layer, the positions of the original tokens in it, the carry, whose first
    item is the tokens, and the layer. It returns the next carry and a result.
    """
    length = tower.tokens.shape[1]
    if tower.inserted is None:
        return jax.lax.scan(functools.partial(step, tower, np.arange(length)), carry, tower.layers)[1]
    start = tower.insert_from
    before = jax.tree.map(lambda leaf: leaf[:start], tower.layers)
    carry, first = jax.lax.scan(functools.partial(step, tower, np.arange(length)), carry, before)
    # Inserted tokens may stand among the others (behind SOS), so that the positions of these move.
    later = after_insertion(tower, carry[0])
    inserted = later.insert_at + np.arange(later.tokens.shape[1] - length)
    places = np.delete(np.arange(later.tokens.shape[1]), inserted)
    behind = jax.tree.map(lambda leaf: leaf[start:], later.layers)
    carry = cast(Carry, (later.tokens, *carry[1:]))
    rest = jax.lax.scan(functools.partial(step, later, places), carry, behind)[1]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), first, rest)


def take_rows(tokens: jax.Array, pooled: jax.Array | np.ndarray | None) -> jax.Array:
    """Selects the rows `pooled [B]` of `tokens [B, N, D]`: `[B, D]`; all tokens for a pooling head (`None`)."""
    if pooled is None:
        return tokens
    # A gather, since each text ends at another position.
    return jnp.take_along_axis(tokens, pooled[:, None, None], axis=1)[:, 0]
