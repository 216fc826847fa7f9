"""The text tower in the plain layout `[C, N]`, for observers; `packed_text` computes the same features faster."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike, DTypeLike

from clipbias.clip import block, layers, tower
from clipbias.clip.adaptation import NOTHING, Adaptation, check_inserted, check_text_parts, class_block, outside_layers
from clipbias.clip.block import bias_rows
from clipbias.clip.config import ClipConfig, TextConfig
from clipbias.clip.params import Params
from clipbias.clip.precision import with_precision


@struct.dataclass
class TextTokens:
    """Tokenised prompt texts.

    Attributes:
      ids: int32 `[C, N]`. In a causal tower, ids behind the end-of-text token influence nothing.
      context_rows: int32 `[C, N]`: row of the context at a position, -1 for an ordinary token.
      eos: int32 `[C]`: the pooled position: the first end-of-text token, the last position (SigLIP), the first (BERT).
      ends: int32 `[C]`, in towers that are not causal: the number of tokens before the end of each text; else `None`.
      visible: bool `[C, N]`: all tokens but BERT's padding; `None` for other towers.
    """

    ids: jax.Array | np.ndarray
    context_rows: jax.Array | np.ndarray
    eos: jax.Array | np.ndarray
    ends: jax.Array | np.ndarray | None = None
    visible: jax.Array | np.ndarray | None = None

    @property
    def end(self) -> jax.Array | np.ndarray:
        """int32 `[C]`: the number of tokens before each text's end."""
        return self.eos if self.ends is None else self.ends

    @property
    def counted(self) -> jax.Array:
        """bool `[C, N]`: the tokens of each text and the pooled position, without other padding."""
        positions = jnp.arange(self.ids.shape[1])
        eos = jnp.asarray(self.eos)[:, None]
        if self.ends is None:
            return positions <= eos
        if self.visible is not None:
            return jnp.asarray(self.visible)
        return (positions < jnp.asarray(self.ends)[:, None]) | (positions == eos)


def text_tokens(ids: np.ndarray | jax.Array, context_rows: np.ndarray | jax.Array, config: TextConfig) -> TextTokens:
    """Builds `TextTokens` from ids and context rows `[C, N]`, NumPy's or JAX's: it finds the pooled position."""
    numpy = np if isinstance(ids, np.ndarray) else jnp
    if config.causal:
        # `argmax` of booleans is the first True: padding after the text may repeat the end-of-text token.
        return TextTokens(ids, context_rows, numpy.argmax(ids == config.eos_token_id, axis=1).astype(np.int32))
    count, length = ids.shape
    # The end is counted from behind, since a vocabulary may have its padding or end token inside a text, too.
    words = (ids != config.pad_token_id) & (ids != config.eos_token_id)
    ends = length - numpy.argmax(words[:, ::-1], axis=1).astype(np.int32)
    if config.pooling == "first":
        return TextTokens(ids, context_rows, numpy.zeros(count, np.int32), ends, ids != config.pad_token_id)
    return TextTokens(ids, context_rows, numpy.full(count, length - 1, np.int32), ends)


def as_tokens(ids: ArrayLike, config: ClipConfig, context_length: int = 0) -> TextTokens:
    """Converts ids `[C, N]` to `TextTokens`, with `context_length` context tokens behind SOS if there is one."""
    ids = jnp.asarray(ids)
    # CoOp's context stands behind SOS; SigLIP has no SOS, so its context comes first.
    rows = jnp.arange(ids.shape[1]) - config.text.first_word
    rows = jnp.where((rows >= 0) & (rows < context_length), rows, -1)
    return text_tokens(ids, jnp.broadcast_to(rows, ids.shape), config.text)


def put_context(
    embeddings: jax.Array,
    context: jax.Array | None,
    context_rows: jax.Array | np.ndarray,
    texts: jax.Array | np.ndarray,
    count: int,
) -> jax.Array:
    """Replaces token embeddings `[..., D]` by rows of the context where `context_rows [...] >= 0`.

    The context is `[T, D]`, or `[S, T, D]` for `S` equal spans of the `count` texts. `texts`, int32 and broadcastable
    to `context_rows`, is the number of each token's text.
    """
    if context is None or context.shape[-2] == 0:
        return embeddings
    # Texts of one context lie in a row: an integer division gives the context of a text.
    context = jnp.asarray(context)  # a NumPy array takes no traced index
    index = jnp.maximum(context_rows, 0)
    # Both branches of the `where` are computed, so that rows of -1 gather row 0 and are dropped.
    new = context[index] if context.ndim == 2 else context[texts // (count // context.shape[0]), index]
    return jnp.where((context_rows >= 0)[..., None], new.astype(embeddings.dtype), embeddings)


def embed_text(
    params: Params,
    config: ClipConfig,
    tokens: TextTokens,
    adaptation: Adaptation | None = None,
    *,
    dtype: str = "float32",
) -> tower.TowerInput:
    """Embeds tokens, contexts and positions `[C, N, D]`; returns the tower's input."""
    adaptation = adaptation or NOTHING
    classes, length = tokens.ids.shape
    check_text_parts(adaptation, config, classes, length)
    weights = outside_layers(params, adaptation, "text", dtype)
    # Tokens are float32 in every compute type: sums over all blocks would lose small changes otherwise.
    x = weights["token_embedding"][tokens.ids].astype(jnp.float32)
    # The context replaces embeddings before positions are added, as in CoOp: a learned token keeps its position.
    x = put_context(x, adaptation.text_context, tokens.context_rows, jnp.arange(classes)[:, None], classes)
    positions = jnp.arange(length)
    x = embed_positions(x, weights, config.text, positions)
    prompts, bias = adaptation.text_prompts, adaptation.text_bias
    inputs = block.layer_inputs(params, config, adaptation, "text", prompts=prompts, bias=bias, dtype=dtype)
    class_prompts = adaptation.text_class_prompts
    if class_prompts is not None:
        # TCP: one block replaces the context, by the class's own prompts, so the stack has an axis of classes.
        at = class_block(adaptation, config.text)
        stacked = jnp.zeros((config.text.layers, *class_prompts.shape), jnp.float32)
        stacked = stacked.at[at].set(class_prompts.astype(jnp.float32))
        inputs = dataclasses.replace(inputs, prompts=stacked, replace=inputs.index == at)
    inserted = check_inserted(adaptation, "text", config)
    has_prompts = class_prompts is not None or prompts is not None
    return tower.TowerInput(
        tokens=x,
        layers=inputs,
        prompt_rows=tokens.context_rows if has_prompts else None,
        bias_rows=bias_rows(bias, positions == jnp.asarray(tokens.eos)[:, None], positions),
        pooled=tokens.eos,
        causal=config.text.causal,
        visible=None if tokens.visible is None else jnp.asarray(tokens.visible),
        inserted=inserted,
        insert_at=config.text.first_word,
        insert_from=0 if inserted is None else config.common_blocks - inserted.shape[0],
    )


def embed_positions(x: jax.Array, weights: layers.Weights, config: TextConfig, positions: jax.Array) -> jax.Array:
    """Adds position embeddings to tokens `[..., N, D]` at `positions [..., N]`, and BERT's type embedding."""
    x = x + jnp.asarray(weights["position_embedding"]).astype(jnp.float32)[positions]  # NumPy takes no traced index
    if config.norm_first:
        return x
    # BERT's type 0 marks the first sentence, and class texts have no second one.
    x = x + weights["type_embedding"][0].astype(jnp.float32)
    return layers.layer_norm(x, weights["embedding_norm"], config.layer_norm_epsilon)


def project_text(
    params: Params, config: ClipConfig, rows: jax.Array, adaptation: Adaptation | None = None
) -> jax.Array:
    """Computes `final-LayerNorm(x[eos]) @ projection`: `[C, D]` to `[C, d]`, float32, not of unit length."""
    # SigLIP's projection has a bias, BiomedCLIP's two layers; BERT ends with the last block's LayerNorm.
    weights = outside_layers(params, adaptation, "text")
    if config.text.norm_first:
        rows = layers.layer_norm(rows, weights["final_norm"], config.text.layer_norm_epsilon)
    if config.text.projection_hidden:
        rows = jax.nn.gelu(layers.project(rows, weights["projection_hidden"]), approximate=False)
    features = layers.project(rows, weights["projection"])
    return features + weights["projection_bias"].astype(jnp.float32) if config.text.projection_bias else features


@with_precision
def encode_text(
    params: Params,
    config: ClipConfig,
    tokens: TextTokens | jax.Array,
    adaptation: Adaptation | None = None,
    *,
    taps: jax.Array | None = None,
    observe: tower.Observe | None = None,
    remat: layers.RematPolicy | None = None,
    dtype: DTypeLike = "float32",
) -> tuple[jax.Array, tower.Observed]:
    """Encodes prompt texts with a frozen text tower and an adaptation.

    `tokens` are `TextTokens`, or ids `[C, N]` with the adaptation's context, if any, behind SOS. Other arguments and
    the second result are as in `encode_image`, with `C` for `B`; `text_residual` acts later, on class features.

    Returns features `[C, d]` in float32, not normalised. Raises `ClipbiasError` if a shape does not fit the geometry or
    the number of texts.
    """
    # Ids alone do not say where the context is: behind SOS, as long as the first part that has one.
    if not isinstance(tokens, TextTokens):
        parts = adaptation or NOTHING
        contexts = (parts.text_context, parts.text_prompts, parts.text_class_prompts)
        tokens = as_tokens(tokens, config, next((part.shape[-2] for part in contexts if part is not None), 0))
    inputs = embed_text(params, config, tokens, adaptation, dtype=str(dtype))
    if taps is None and observe is None:
        rows = tower.run_fused(inputs, config.text, remat=remat)
        return project_text(params, config, rows, adaptation), None
    rows, observed = tower.run_explicit(inputs, config.text, taps=taps, observe=observe)
    return project_text(params, config, rows, adaptation), observed
