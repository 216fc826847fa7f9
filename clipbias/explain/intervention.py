"""A tower's run with something added to its input tokens after every block, or subtracted from them.

A method's equivalent bias stands in its place where it is added to the frozen model, and is missing where it is
subtracted from the tuned one. *Input tokens* are all but slots, which hold learned tokens and get nothing. What is
added to a token is a row of a table, another vector where the frozen model makes the token an outlier, and an affine
map of the block's input token: any of them may be zero, so that one program serves all forms.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.clip import Adaptation, TextTokens, layers, tower
from clipbias.clip.config import ClipConfig, TowerConfig
from clipbias.clip.params import Params
from clipbias.clip.precision import with_precision
from clipbias.clip.scan import LayerInput
from clipbias.clip.text import embed_text, project_text
from clipbias.clip.vision import embed_image, project_image, read_tokens

# A token is an outlier where its norm is so many times the median of its image's (or text's) tokens in the same layer.
OUTLIER = 5.0


@struct.dataclass
class Intervention:
    """What is added after every block; `F` of them may be stacked on a leading axis.

    Attributes:
      table: `[L, P, D]`: the rows that tokens get.
      outlier: `[L, D]`: what outliers get in place of their row,
      apart: where this is true, bool.
      down, up: `[L, D, r]` and `[L, r, D]`: the map of the block's input token `x` that is added, `x @ down @ up`.
    """

    table: jax.Array | np.ndarray
    outlier: jax.Array | np.ndarray
    apart: jax.Array | np.ndarray
    down: jax.Array | np.ndarray
    up: jax.Array | np.ndarray

    @classmethod
    def constant(
        cls, table: np.ndarray, outlier: np.ndarray | None = None, rank: int = 0, maps: tuple | None = None
    ) -> "Intervention":
        """A table, and what there is besides; maps are filled up with zeros to `rank`."""
        depth, _, width = table.shape
        down, up = (np.zeros((depth, width, 0)), np.zeros((depth, 0, width))) if maps is None else maps
        missing = rank - down.shape[-1]
        return cls(
            np.asarray(table, np.float32),
            np.zeros((depth, width), np.float32) if outlier is None else np.asarray(outlier, np.float32),
            np.asarray(outlier is not None),
            np.pad(down, ((0, 0), (0, 0), (0, missing))).astype(np.float32),
            np.pad(up, ((0, 0), (0, missing), (0, 0))).astype(np.float32),
        )


def run_with(
    run: tower.TowerInput,
    config: TowerConfig,
    added: Intervention,
    rows: jax.Array | np.ndarray,
    outliers: jax.Array | None = None,
    sign: float = 1.0,
) -> tuple[jax.Array, jax.Array | np.ndarray | None]:
    """Runs a tower with `sign` times what is to be added to each input token after every block.

    Args:
      run: the tower up to its first block.
      config: its geometry.
      added: not stacked.
      rows: int `[N]` or `[B, N]`: which row of the table each token gets, -1 for slots.
      outliers: bool `[L, B, N]`, of `outlier_tokens`; `None` for none. Tokens inserted later are in neither.
      sign: 1 adds, -1 subtracts.

    Returns:
      Tokens after the last block `[B, N', D]`, and which of them is read out `[B]`, `None` for a pooling head.
    """

    def scan(
        run: tower.TowerInput, blocks: LayerInput, part: Intervention, rows: jax.Array, seen: jax.Array | None
    ) -> jax.Array:
        def step(
            tokens: jax.Array, inputs: tuple[LayerInput, Intervention, jax.Array | None]
        ) -> tuple[jax.Array, None]:
            layer, here, outlier = inputs
            tokens = tower.put_prompts(tokens, layer, run.prompt_rows)
            attend = lambda q, k, v: layers.fused_attention(q, k, v, causal=run.causal)  # noqa: E731
            output = tower.add_beside(layers.block(tokens, layer.weights, config, attend), tokens, layer, config)
            output = tower.add_bias(output, layer, run.bias_rows)
            more = here.table[jnp.maximum(rows, 0)]
            if outlier is not None:
                more = jnp.where(outlier[..., None] & here.apart, here.outlier, more)
            more = more + (tokens @ here.down) @ here.up
            return output + sign * jnp.where((rows >= 0)[..., None], more, 0).astype(output.dtype), None

        return jax.lax.scan(step, run.tokens, (blocks, part, seen))[0]

    added, rows = jax.tree.map(jnp.asarray, added), jnp.asarray(rows)
    layerwise = dataclasses.replace(added, apart=jnp.broadcast_to(added.apart, added.table.shape[:1]))
    if run.inserted is None:
        return scan(run, run.layers, layerwise, rows, outliers), run.readout
    start, at, count = run.insert_from, run.insert_at, run.inserted.shape[1]
    first, rest = (jax.tree.map(lambda z, part=part: z[part], layerwise) for part in (slice(start), slice(start, None)))
    before = jax.tree.map(lambda z: z[:start], run.layers)
    tokens = scan(run, before, first, rows, None if outliers is None else outliers[:start])
    after = tower.after_insertion(run, tokens)
    blocks = jax.tree.map(lambda z: z[start:], after.layers)
    rows = jnp.concatenate([rows[..., :at], jnp.full((*rows.shape[:-1], count), -1), rows[..., at:]], axis=-1)
    if outliers is not None:
        none = jnp.zeros((*outliers[start:, :, :at].shape[:2], count), bool)
        outliers = jnp.concatenate([outliers[start:, :, :at], none, outliers[start:, :, at:]], axis=-1)
    return scan(after, blocks, rest, rows, outliers), after.readout


def outlier_tokens(run: tower.TowerInput, config: TowerConfig, counted: jax.Array) -> jax.Array:
    """Which tokens the reference run makes outliers, layer by layer, by their norm after the block: bool `[L, B, N]`.

    Args:
      run: the reference run up to its first block.
      config: the tower's geometry.
      counted: bool `[B, N]`: the tokens whose median norm is the measure, and which may be outliers.
    """

    def step(tokens: jax.Array, layer: LayerInput) -> tuple[jax.Array, jax.Array]:
        attend = lambda q, k, v: layers.fused_attention(q, k, v, causal=run.causal)  # noqa: E731
        tokens = layers.block(tokens, layer.weights, config, attend)
        norms = jnp.linalg.norm(tokens.astype(jnp.float32), axis=-1)
        median = jnp.nanmedian(jnp.where(counted, norms, jnp.nan), axis=-1, keepdims=True)
        return tokens, counted & (norms > OUTLIER * median)

    return jax.lax.scan(step, run.tokens, run.layers)[1]


@with_precision
def image_features_with(
    params: Params,
    config: ClipConfig,
    images: jax.Array,
    adaptation: Adaptation,
    added: Intervention,
    *,
    sign: float = 1.0,
    patches: bool = False,
    dtype: str = "float32",
) -> jax.Array:
    """`encode_image` with something added after every block: `[F, B, ...]` for `F` stacked forms.

    Args:
      params: the frozen weights.
      config: geometry.
      images: `[B, R, R, 3]`, normalised.
      adaptation: with one set of prompts at most. Nothing is added to its prompts.
      added: stacked; its tables hold a row for `[cls]` and each patch, in their order.
      sign: 1 adds, -1 subtracts.
      patches: whether patches get features, too.
      dtype: compute type by name.
    """
    count = config.vision.tokens
    run = embed_image(params, config, images, adaptation, dtype=dtype)
    length = run.tokens.shape[1]
    seen = image_outliers(params, config, images, dtype=dtype)
    seen = jnp.pad(seen, ((0, 0), (0, 0), (0, length - count)))
    rows = np.where(np.arange(length) < count, np.arange(length), -1)

    def one(added: Intervention) -> jax.Array:
        tokens, readout = run_with(run, config.vision, added, rows, seen, sign)
        if adaptation.vision_readout is not None:
            whole = project_image(params, config, tower.take_rows(tokens, readout), adaptation)
            return jnp.stack([whole, read_tokens(params, config, tokens, adaptation)], axis=1)
        read = tokens[:, :count] if patches else tower.take_rows(tokens, readout)
        return project_image(params, config, read, adaptation)

    return jax.lax.map(one, added)


@with_precision
def text_features_with(
    params: Params,
    config: ClipConfig,
    tokens: TextTokens,
    adaptation: Adaptation,
    added: Intervention,
    rows: jax.Array | np.ndarray,
    reference: Adaptation,
    *,
    sign: float = 1.0,
    dtype: str = "float32",
) -> jax.Array:
    """`encode_text` with something added after every block: `[F, C, d]` for `F` stacked forms.

    Args:
      params: the frozen weights.
      config: geometry.
      tokens: `[C, N]`.
      adaptation: of these texts.
      added: stacked.
      rows: `[C, N]`, of `text_rows`.
      reference: what the reference run has, in which outliers are found.
      sign: 1 adds, -1 subtracts.
      dtype: compute type by name.
    """
    run = embed_text(params, config, tokens, adaptation, dtype=dtype)
    seen = text_outliers(params, config, tokens, reference, dtype=dtype)

    def one(added: Intervention) -> jax.Array:
        after, readout = run_with(run, config.text, added, rows, seen, sign)
        return project_text(params, config, tower.take_rows(after, readout), adaptation)

    return jax.lax.map(one, added)


def image_outliers(params: Params, config: ClipConfig, images: jax.Array, *, dtype: str = "float32") -> jax.Array:
    """Outliers among the frozen model's patches, bool `[L, B, N]`; `[cls]`, which is a kind of its own, is none."""
    frozen = embed_image(params, config, images, dtype=dtype)
    found = outlier_tokens(frozen, config.vision, jnp.ones(frozen.tokens.shape[:2], bool))
    return found.at[:, :, : config.vision.first_patch].set(False)


def text_outliers(
    params: Params, config: ClipConfig, tokens: TextTokens, reference: Adaptation, *, dtype: str = "float32"
) -> jax.Array:
    """Outliers among the texts' tokens, the one that is read out left out, bool `[L, C, N]`."""
    frozen = embed_text(params, config, tokens, reference, dtype=dtype)
    is_read = jnp.arange(tokens.ids.shape[1]) == jnp.asarray(tokens.eos)[:, None]
    return outlier_tokens(frozen, config.text, tokens.counted) & ~is_read


def text_rows(tokens: TextTokens, *, by_position: bool, slots: bool) -> np.ndarray:
    """Which row each token of texts `[C, N]` gets: its position, or 0 for EOS and 1 for all others.

    Args:
      slots: whether the context's places are slots, which get nothing (-1).
    """
    rows, eos = np.asarray(tokens.context_rows), np.asarray(tokens.eos)[:, None]
    positions = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
    found = positions if by_position else np.where(positions == eos, 0, 1)
    return np.where(slots & (rows >= 0), -1, found)
